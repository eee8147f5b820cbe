#!/usr/bin/env bash
# Asks tokenward whether a token is valid, by OAuth 2.0 Token Introspection (RFC 7662).
#
#   export TOKENWARD_URL=http://tokenward-verifier:8080
#   export TOKENWARD_CALLER_FILE=/run/secrets/tokenward/token   # your service's own token, see caller.yaml
#   printf %s "$TOKEN" | ./introspect.sh orders:read
#
# Neither token is an argument, which other users of the machine could see.
set -euo pipefail
: "${TOKENWARD_URL:?the address of a verifier}" "${TOKENWARD_CALLER_FILE:?the file with the token of your service}"
: "${1:?name the scopes that are needed, such as orders:read}"

curl --silent --show-error --fail-with-body \
    --header @<(printf 'Authorization: Bearer %s\n' "$(<"$TOKENWARD_CALLER_FILE")") \
    --data-urlencode token@- \
    --data-urlencode "scope=$*" \
    "$TOKENWARD_URL/oauth2/introspect"
