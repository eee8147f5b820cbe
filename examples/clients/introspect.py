#!/usr/bin/env python3
"""Asks tokenward whether a token is valid, by OAuth 2.0 Token Introspection (RFC 7662), as any OAuth library does.

    pip install Authlib requests
    export TOKENWARD_URL=http://tokenward-verifier:8080
    export TOKENWARD_CALLER_FILE=/run/secrets/tokenward/token   # your service's own token, see caller.yaml
    printf %s "$TOKEN" | ./introspect.py orders:read

The token is read from the standard input: arguments show up in process lists.
"""

import json
import os
import pathlib
import sys
import urllib.parse

from authlib.integrations.requests_client import OAuth2Session

caller = pathlib.Path(os.environ["TOKENWARD_CALLER_FILE"]).read_text().strip()
# The client id can be any name: the secret identifies the caller.
session = OAuth2Session("orders", caller, token_endpoint_auth_method="client_secret_basic")
answer = session.introspect_token(
    os.environ["TOKENWARD_URL"] + "/oauth2/introspect",
    token=sys.stdin.read().strip(),
    # A token that lacks one of these scopes is reported as not active.
    body=urllib.parse.urlencode({"scope": " ".join(sys.argv[1:])}),
)
answer.raise_for_status()
print(json.dumps(answer.json(), indent=2))
