#!/usr/bin/env python3
"""The example's destination: three endpoints that behave differently. Usage: endpoint.py PORT

/steady answers 200. /flaky fails each item's first delivery and takes the second; it knows an item by its webhook-id,
as a real receiver would to ignore repeats. /hopeless always answers 500, until /mend is called.
"""
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MAX_BODY = 1024 * 1024
seen = set()
mended = False


class Endpoint(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        global mended
        self.rfile.read(min(int(self.headers.get("Content-Length", 0)), MAX_BODY))
        item = self.headers.get("webhook-id", "")
        if self.path == "/mend":
            mended = True
        failed = (self.path == "/hopeless" and not mended) or (self.path == "/flaky" and item not in seen)
        if len(seen) < 100_000:
            seen.add(item)
        body = b'{"error":"not today"}' if failed else b'{"result":"done"}'
        self.send_response(500 if failed else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    Server(("127.0.0.1", int(sys.argv[1])), Endpoint).serve_forever()
