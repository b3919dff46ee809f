"""Names that do not resolve, resolve too late, or resolve to somewhere else than before: the others do not notice."""
import os
import socket
import threading
import time
import unittest

from chaos import ChaosTest, eventually
from harness import Ledger

SERVER = "127.0.0.53"
CONFIG = """
metrics: {listen: "127.0.0.1:0"}
jobs:
  healthy:
    handler: {http: {url: "{url}/healthy", method: POST}}
  nowhere:
    max_attempts: 2
    backoff: [100ms]
    handler: {http: {url: "http://nowhere.test:{port}/nowhere", method: POST, timeout: 1s, connect_timeout: 1s, circuit_failures: 0}}
  slow:
    max_attempts: 2
    backoff: [100ms]
    handler: {http: {url: "http://slow.test:{port}/slow", method: POST, timeout: 1s, connect_timeout: 1s, circuit_failures: 0}}
  moving:
    max_attempts: 1000
    backoff: [200ms]
    handler: {http: {url: "http://moving.test:{port}/moving", method: POST, timeout: 1s, connect_timeout: 1s, circuit_failures: 0}}
"""


class NameServer:
    """A DNS server (RFC 1035) that knows IPv4 addresses by name; None: the name is there, and no answer ever comes."""

    def __init__(self, addresses):
        self.addresses = addresses
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((SERVER, 53))
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                query, client = self.socket.recvfrom(512)
            except OSError:
                return
            labels, at = [], 12
            while query[at]:
                labels.append(query[at + 1:at + 1 + query[at]].decode())
                at += 1 + query[at]
            name, kind, question = ".".join(labels), query[at + 2], query[12:at + 5]
            address = self.addresses.get(name, "")
            if address is None:
                continue
            found = socket.inet_aton(address) if address and kind == 1 else b""
            answer = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x04" + found if found else b""
            flags = b"\x81\x80" if address else b"\x81\x83"
            self.socket.sendto(query[:2] + flags + b"\x00\x01" + (b"\x00\x01" if found else b"\x00\x00") + b"\x00\x00\x00\x00" + question + answer, client)

    def close(self):
        self.socket.close()


@unittest.skipUnless(os.geteuid() == 0, "needs the right to bind port 53 and to mount a resolv.conf of its own")
class NameFaults(ChaosTest):
    def test_H4b_names_that_are_unknown_slow_or_move(self):
        names = NameServer({"slow.test": None, "moving.test": "127.0.0.1"})
        self.addCleanup(names.close)
        port = self.ledger.server.server_address[1]
        self.install(CONFIG.replace("{port}", str(port)))
        resolver = os.path.join(self.folder, "resolv.conf")
        with open(resolver, "w", encoding="utf-8") as file:
            file.write(f"nameserver {SERVER}\noptions timeout:20 attempts:1\n")
        self.start("dispatcher")
        worker = self.start("worker", prefix=("unshare", "--mount", "sh", "-c", f'mount --bind {resolver} /etc/resolv.conf && exec "$0" "$@"'))
        self.start("dlq", "archive")

        nowhere = self.enqueue("nowhere")
        eventually(lambda: self.state(nowhere) == "dead", 20, "the end of an item whose destination nobody knows")
        self.assertEqual({row[0] for row in self.rows("SELECT reason FROM takt.failed_attempts")}, {"dns"})

        slow = [self.enqueue("slow") for _ in range(10)]
        time.sleep(0.5)
        waits = []
        for _ in range(20):
            began, item = time.monotonic(), self.enqueue("healthy")
            eventually(lambda item=item: self.state(item) == "done", 20, "a healthy item")
            waits.append(time.monotonic() - began)
        print(f"healthy items beside names that do not answer: the longest took {max(waits) * 1000:.0f} ms")
        self.assertLess(max(waits), 1.0, "a healthy item waited for somebody else's name")
        eventually(lambda: all(self.state(item) == "dead" for item in slow), 20, "the ends of items whose names do not answer")
        self.assertLessEqual({row[0] for row in self.rows("SELECT DISTINCT reason FROM takt.failed_attempts")}, {"dns", "timeout"})

        moving = self.enqueue("moving")
        eventually(lambda: self.state(moving) == "done", 20, "a delivery to the first address")
        there = Ledger(("127.0.0.2", port))
        self.addCleanup(there.close)
        names.addresses["moving.test"] = "127.0.0.2"
        self.ledger.behave["/moving"] = lambda nth: (503, {"Connection": "close"}, b"")  # on a connection that was kept
        self.ledger.close()
        moving = self.enqueue("moving")
        eventually(lambda: there.of("/moving"), 30, "a delivery to the second address")
        eventually(lambda: self.state(moving) == "done", 10, "its settling")
        self.assertIsNone(worker.poll())
        self.check_invariants()
