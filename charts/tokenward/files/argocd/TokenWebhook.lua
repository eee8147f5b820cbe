-- The health of a TokenWebhook for Argo CD, by its conditions.
local status = obj.status
if status == nil or status.conditions == nil or status.observedGeneration ~= obj.metadata.generation then
  return { status = "Progressing", message = "waiting for the controller" }
end
local conditions = {}
for _, condition in ipairs(status.conditions) do
  conditions[condition.type] = condition
end
for _, type in ipairs({ "Stalled", "Disabled" }) do
  local condition = conditions[type]
  if condition ~= nil and condition.status == "True" then
    return { status = "Degraded", message = condition.message }
  end
end
local ready, healthy = conditions.Ready, conditions.Healthy
if ready == nil or ready.status ~= "True" then
  return { status = "Progressing", message = ready and ready.message or "waiting for the controller" }
end
if healthy ~= nil and healthy.status == "False" then
  return { status = "Degraded", message = healthy.message }
end
return { status = "Healthy", message = ready.message }
