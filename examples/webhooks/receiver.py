#!/usr/bin/env python3
"""Prints the events of a TokenWebhook, each verified by the published library of Standard Webhooks.

The signing key is read from standard input, so it shows up in no process list:

    pip install standardwebhooks
    kubectl get secret audit-signing -o jsonpath='{.data.signing-key}' | base64 -d | ./receiver.py

It listens on 127.0.0.1:8000, or on the address in RECEIVER_LISTEN. An event may come more than once, always with the
same webhook-id, by which a receiver recognizes it.
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook, WebhookVerificationError

webhook = Webhook(sys.stdin.read().strip())
# A real receiver stores these where they survive a restart, for as long as it wants to recognize a repeated delivery.
seen = set()


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        try:
            event = webhook.verify(body, dict(self.headers))
        except WebhookVerificationError as error:
            print(f"rejected: {error}", file=sys.stderr, flush=True)
            return self.answer(401)
        if self.headers["webhook-id"] not in seen:
            seen.add(self.headers["webhook-id"])
            print(json.dumps({"event": event}), flush=True)
        return self.answer(204)

    def answer(self, status):
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


host, _, port = os.environ.get("RECEIVER_LISTEN", "127.0.0.1:8000").rpartition(":")
server = ThreadingHTTPServer((host, int(port)), Receiver)
print(server.server_port, flush=True)
server.serve_forever()
