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


C12_CONFIG = """
metrics: {listen: "127.0.0.1:0"}
worker: {runs: 8}
jobs:
  shared:
    max_attempts: 20
    backoff: [100ms]
    batch_size: 10
    handler: {http: {url: "http://destination.test:{port}/shared", method: POST, timeout: 1s, connect_timeout: 1s, circuit_failures: 5, circuit_pause: 20s}}
"""


@unittest.skipUnless(os.geteuid() == 0, "needs the right to mount an /etc/hosts of its own")
class OneWorkersNetwork(ChaosTest):
    """A worker for which the destination's name leads nowhere, beside two for which it leads to the ledger."""

    def start_worker(self, address):
        hosts = os.path.join(self.folder, f"hosts-{address}")
        with open(hosts, "w", encoding="utf-8") as file:
            file.write(f"127.0.0.1 localhost\n{address} destination.test\n")
        return self.start("worker", prefix=("unshare", "--mount", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$0" "$@"'))

    def done_within(self, seconds, rate):
        """How many items of a steady load are done at its end; and the longest that one took, in seconds."""
        load = self.load(rate, "shared")
        time.sleep(seconds)
        accepted = load.stop()
        done = self.one("SELECT count(*) FROM takt.finished_items WHERE id = ANY (%s)", accepted)
        self.drained(30)
        longest = self.one("SELECT max(extract(epoch FROM finished_at - enqueued_at))::float FROM takt.finished_items WHERE id = ANY (%s)", accepted)
        return done / len(accepted), longest

    def test_C12_finding11_a_worker_that_cannot_reach_the_destination_holds_up_nobody(self):
        self.ledger.behave["/shared"] = lambda nth: (time.sleep(0.02) or 200, {}, b"")
        self.install(C12_CONFIG.replace("{port}", str(self.ledger.server.server_address[1])))
        self.start("dispatcher")
        for _ in range(2):
            self.start_worker("127.0.0.1")
        share, longest = self.done_within(4, 40)
        self.assertGreater(share, 0.9, "two workers keep up")
        broken = self.start_worker("127.0.0.9")
        eventually(lambda: self.enqueue("shared") and "destination left alone" in self.log_of(broken), what="the broken worker's circuit")
        with_broken, longest_with = self.done_within(8, 40)
        print(f"C12: {share:.0%} done within the time with two workers, {with_broken:.0%} with a broken one beside them; longest {longest:.1f} s, {longest_with:.1f} s")
        self.assertGreaterEqual(with_broken, 0.9 * share)
        self.assertLess(longest_with, 3)
        spent = self.one("SELECT count(*) FROM takt.failed_attempts")
        self.assertLess(spent, 100, "attempts that the broken worker spent")
        # A backlog, and the same beside a broken worker: what the other two do at full speed.
        self.one("SELECT count(*) FROM takt.enqueue_many('shared', array_fill('{}'::jsonb, ARRAY[5000]))")
        began = time.monotonic()
        self.drained(60)
        beside = time.monotonic() - began
        broken.kill()
        self.one("SELECT count(*) FROM takt.enqueue_many('shared', array_fill('{}'::jsonb, ARRAY[5000]))")
        began = time.monotonic()
        self.drained(60)
        alone = time.monotonic() - began
        print(f"C12: a backlog of 5,000 in {beside:.1f} s beside the broken worker, in {alone:.1f} s without it")
        self.assertLessEqual(beside, alone / 0.9 + 0.5)
