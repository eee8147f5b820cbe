-- http-request lua.tokenward SCOPE: sets the variable txn.tokenward if the token is allowed, and responds to the request
-- otherwise. HAProxy goes on if a script fails, so the rules after it must check the variable.
--
-- Sends checks through `listen tokenward` of haproxy.cfg. Everything but a 200 denies the request.

local IDENTITY = { "x-tokenward-id", "x-tokenward-subject", "x-tokenward-scopes" }
local CREDENTIALS = { "authorization", "x-api-key" }

-- The values of a header: HAProxy's list starts at 0, that of its HTTP client at 1.
local function values(headers, name)
    local list = {}
    for index, value in pairs(headers[name] or {}) do
        list[index + 1] = value
    end
    return list
end

local function ask(txn, scope)
    local received = txn.http:req_get_headers()
    local headers = { ["host"] = { "tokenward" }, ["x-forwarded-for"] = { txn.sf:src() } }
    for _, name in ipairs(CREDENTIALS) do
        headers[name] = values(received, name)
    end
    return core.httpclient():get {
        url = "http://tokenward/auth?scope=" .. scope,
        dst = "abns@tokenward",
        headers = headers,
        timeout = 6000,
    }
end

local function refuse(txn, answer)
    local reply = txn:reply { status = 503, reason = "Service Unavailable" }
    if answer.status == 400 or answer.status == 401 or answer.status == 403 then
        reply:set_status(answer.status)
        reply:set_body(answer.body or "")
        for _, name in ipairs { "content-type", "www-authenticate", "cache-control" } do
            for _, value in ipairs(values(answer.headers, name)) do
                reply:add_header(name, value)
            end
        end
    else
        reply:add_header("retry-after", "1")
    end
    txn:done(reply)
end

core.register_action("tokenward", { "http-req" }, function(txn, scope)
    local answer = ask(txn, scope)
    if answer.status ~= 200 then
        return refuse(txn, answer)
    end
    for _, name in ipairs(IDENTITY) do
        for _, value in ipairs(values(answer.headers, name)) do
            txn.http:req_set_header(name, value)
        end
    end
    txn:set_var("txn.tokenward", true)
end, 1)
