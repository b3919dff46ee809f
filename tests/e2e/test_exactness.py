"""Numbers and texts are the same bytes from a caller to the receiver, before and after a death and a replay."""
import json
import os

from harness import TaktTest, answers, eventually

CONFIG = """
jobs:
  demo:
    max_attempts: 2
    backoff: [100ms]
    handler: {http: {url: "{url}/demo", method: POST}}
"""
ACCOUNT = '{"account": 1234567890123456789, "d": 0.1000000000000000055511151231257827}'


class Exactness(TaktTest):
    def setUp(self):
        super().setUp()
        self.install(CONFIG)

    def canonical(self, payload):
        return self.one("SELECT %s::jsonb::text", payload)

    def die(self, count):
        eventually(lambda: self.one("SELECT count(*) FROM takt.dead_letters WHERE state = 'archived'") == count, what=f"{count} letters")

    def test_Finding4_a_replayed_item_is_the_item_that_died(self):
        self.start("up")
        self.ledger.behave["/demo"] = answers(500)
        self.one("SELECT takt.enqueue('demo', %s::jsonb)", ACCOUNT)
        self.die(1)
        shown = json.loads(self.takt("dlq", "show", self.one("SELECT id FROM takt.dead_letters"), "--json"), parse_int=str, parse_float=str)
        self.assertEqual(shown["payload"], {"account": "1234567890123456789", "d": "0.1000000000000000055511151231257827"})
        self.ledger.behave["/demo"] = answers(200)
        self.takt("dlq", "replay", "--job", "demo", "--yes")
        eventually(lambda: self.one("SELECT count(*) FROM takt.finished_items WHERE state = 2") == 1, what="the replayed item, done")
        received = [d["body"].decode() for d in self.ledger.of("/demo")]
        self.assertEqual(received, [self.canonical(ACCOUNT)] * 3, "two attempts and the replay")
        self.check_invariants()

    def test_Finding4_what_a_file_and_a_command_enqueue_is_received(self):
        lines = [ACCOUNT, '{"a": 1, "a": 2}', '"\\\\u0000 is text"', "[1e400, -0, 1.10]", '"\\ud83d\\ude00"', "[" * 200 + "]" * 200]
        path = os.path.join(self.folder, "items.ndjson")
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n".join(lines))
        self.takt("enqueue", "demo", "--file", path)
        self.takt("enqueue", "demo", "[1e400, 1234567890123456789]")
        self.start("up")
        eventually(lambda: len(self.ledger.of("/demo")) == len(lines) + 1, what="every item's request")
        expected = [self.canonical(line) for line in lines] + [self.canonical("[1e400, 1234567890123456789]")]
        self.assertEqual(sorted(d["body"].decode() for d in self.ledger.of("/demo")), sorted(expected))
        self.check_invariants()

    def test_nothing_with_a_nul_is_enqueued_by_a_file_or_a_command(self):
        path = os.path.join(self.folder, "items.ndjson")
        for line in ('"\\u0000"', '{"a\\u0000": 1}', '[["\\\\\\u0000"]]'):
            with open(path, "w", encoding="utf-8") as file:
                file.write('{}\n' + line)
            self.assertIn("items.ndjson:2: holds a NUL", self.takt("enqueue", "demo", "--file", path, expect=2))
            self.assertIn("holds a NUL", self.takt("enqueue", "demo", line, expect=2))
        with open(path, "wb") as file:
            file.write(b'"a\x00b"')
        self.assertIn("items.ndjson:1: not JSON, at character 3", self.takt("enqueue", "demo", "--file", path, expect=2))
        self.assertEqual(self.one("SELECT count(*) FROM takt.all_items"), 0)
        with open(self.config, "a", encoding="utf-8") as file:
            file.write('    schedules: [{name: s, cron: "@daily", payload: {a: ["b\\0c"]}}]\n')
        self.assertIn("holds a NUL character", self.takt("apply", expect=2))
