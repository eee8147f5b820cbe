#!/usr/bin/env bash
# Asks tokenward whether a token is valid, and why not.
#
#   export TOKENWARD_URL=http://tokenward-verifier:8080
#   export TOKENWARD_CALLER_FILE=/run/secrets/tokenward/token   # your service's own token, see caller.yaml
#   printf %s "$TOKEN" | ./verify.sh orders:read
#
# Neither token is an argument, which other users of the machine could see.
set -euo pipefail
: "${TOKENWARD_URL:?the address of a verifier}" "${TOKENWARD_CALLER_FILE:?the file with the token of your service}"

token=$(cat)
case $token in
*[!A-Za-z0-9_]*)
    # So it needs no escaping in JSON.
    echo "a token has letters, digits and underscores only" >&2
    exit 1
    ;;
esac
scopes=$(printf '"%s",' "${@:?name the scopes that are needed}")

curl --silent --show-error --fail-with-body \
    --header @<(printf 'Authorization: Bearer %s\n' "$(<"$TOKENWARD_CALLER_FILE")") \
    --json @- \
    "$TOKENWARD_URL/v1/verify" <<<"{\"token\": \"$token\", \"scopes\": [${scopes%,}]}"
