"""Every kind of message that may come, genuine or not, ends where it must and changes nothing else."""
import json
import os
import re
import secrets
import time

import pika

from harness import TaktTest, answers, eventually

CONFIG = """
metrics: {listen: "127.0.0.1:0"}
broker: {heartbeat: 5s}
jobs:
  demo:
    handler: {http: {url: "{url}/demo", method: POST}}
  mortal:
    max_attempts: 1
    handler: {http: {url: "{url}/mortal", method: POST}}
  batch:
    batch_size: 10
    handler: {http: {url: "{url}/batch", method: POST}}
"""


class Messages(TaktTest):
    def setUp(self):
        super().setUp()
        self.install(CONFIG)
        self.up = self.start("up")
        self.broker = self.channel()

    def tick(self, job="demo", **more):
        return {"id": "external-" + secrets.token_hex(8), "job": job, **more}

    def quarantined(self, count):
        """The reasons in the quarantine, once it holds `count` messages."""
        eventually(lambda: self.queue_depth(self.broker, "takt.quarantine") == count, what=f"{count} messages in quarantine")
        reasons = []
        for _ in range(count):
            method, properties, body = self.broker.basic_get("takt.quarantine", auto_ack=True)
            self.assertLessEqual(len(body), 64 * 1024)
            reasons.append(properties.headers["takt-reason"])
        return sorted(reasons)

    def untouched(self):
        self.assertEqual(self.one("SELECT count(*) FROM takt.ticks"), 0)
        self.assertEqual(self.one("SELECT count(*) FROM takt.runs"), 0)
        self.assertEqual(self.one("SELECT count(*) FROM takt.all_items"), 0)
        self.assertEqual(self.ledger.deliveries, [])

    def test_M1_a_message_that_does_not_verify_goes_to_quarantine_and_changes_nothing(self):
        item = {"items": [{"payload": {"evil": True}}]}
        good = self.tick(**item)
        other_secret = "whsec_" + "A" * 43 + "="
        self.publish(self.broker, self.tick(**item), secret=other_secret)                                   # forged
        self.publish(self.broker, good, body=json.dumps(good).encode()[:-5], headers={"webhook-signature": self.sign(good["id"], str(int(time.time())), json.dumps(good).encode())})  # truncated
        self.publish(self.broker, self.tick(**item), body=b"x" * (1024 * 1024 + 1))                         # oversized, though signed
        self.publish(self.broker, self.tick(**item), age=86400 + 60)                                        # stale
        self.publish(self.broker, self.tick(**item), age=-600)                                              # future-dated
        self.publish(self.broker, self.tick(**item), headers={"webhook-signature": None})                   # unsigned
        self.publish(self.broker, self.tick(**item), headers={"webhook-timestamp": "yesterday"})
        self.publish(self.broker, self.tick(**item), content_type="text/plain")
        self.publish(self.broker, self.tick(**item), body=b"not json")
        self.publish(self.broker, self.tick(**item), body=json.dumps(self.tick(**item)).encode())           # another id inside
        self.publish(self.broker, self.tick(**item, surprise=1))                                            # an unknown field
        self.publish(self.broker, self.tick(items=[{}] * 1001))                                             # too many items
        self.publish(self.broker, self.tick(), body=b"")                                                    # empty
        self.assertEqual(self.quarantined(13), sorted(["bad_signature", "bad_signature", "oversized", "stale", "future_dated", "missing_header",
                                                       "malformed_timestamp", "bad_content_type", "malformed_body", "id_mismatch", "malformed_body",
                                                       "field_limit", "malformed_body"]))
        self.untouched()
        log = self.log_of(self.up)
        self.assertIn("tick quarantined reason=bad_signature", log)
        self.assertNotIn("evil", log, "a payload is in the log")

    def test_M2_a_replayed_tick_runs_once(self):
        tick = self.tick(items=[{"payload": {"n": 1}}])
        for _ in range(200):
            self.publish(self.broker, tick)
        eventually(lambda: self.queue_depth(self.broker, "takt.ticks.default") == 0)
        eventually(lambda: self.log_of(self.up).count("tick duplicate") == 199, what="199 duplicates")
        self.assertEqual(self.one("SELECT count(*) FROM takt.runs WHERE tick_id = %s", tick["id"]), 1)
        self.assertEqual(len(self.ledger.of("/demo")), 1)
        self.publish(self.broker, tick, age=86400 + 60)  # the same id, from before max_tick_age
        self.assertEqual(self.quarantined(1), ["stale"])
        self.assertEqual(len(self.ledger.of("/demo")), 1)
        self.check_invariants()

    def test_inline_items_are_stored_and_handled_with_their_keys(self):
        tick = self.tick(items=[{"payload": {"n": n}, "key": f"k{n % 3}"} for n in range(9)])
        self.publish(self.broker, tick)
        eventually(lambda: self.one("SELECT count(*) FROM takt.finished_items") == 3, what="three keyed items")
        self.assertEqual(sorted(json.loads(d["body"])["n"] for d in self.ledger.of("/demo")), [0, 1, 2])
        self.assertEqual(self.one("SELECT trigger FROM takt.runs WHERE tick_id = %s", tick["id"]), "external")
        self.check_invariants()

    def test_M5_batch_size_is_capped_by_the_jobs_own(self):
        self.one("SELECT count(*) FROM takt.enqueue_many('batch', array_fill('{}'::jsonb, ARRAY[25]), run_ats => array_fill(now() + interval '1 h', ARRAY[25]))")
        self.db.cursor().execute("UPDATE takt.jobs SET definition = jsonb_set(definition, '{drain}', 'false'), version = nextval('takt.definitions_version') WHERE name = 'batch'")
        time.sleep(2)
        self.db.cursor().execute("UPDATE takt.items SET run_at = now()")
        sizes = []
        for size in (0, 3, 4294967295):
            tick = self.tick("batch", batchSize=size)
            self.publish(self.broker, tick)
            eventually(lambda: self.rows("SELECT 1 FROM takt.runs WHERE tick_id = %s AND status <> 'running'", tick["id"]))
            sizes.append(self.one("SELECT scanned FROM takt.runs WHERE tick_id = %s", tick["id"]))
        self.assertEqual(sizes, [10, 3, 10])

    def test_a_dry_run_claims_nothing_and_reports(self):
        self.takt("jobs", "pause", "demo")
        for _ in range(3):
            self.enqueue("demo")
        tick = self.tick(dryRun=True)
        self.publish(self.broker, tick)
        eventually(lambda: self.rows("SELECT 1 FROM takt.runs WHERE tick_id = %s AND status <> 'running'", tick["id"]))
        self.assertEqual(self.rows("SELECT scanned, done, dry_run FROM takt.runs WHERE tick_id = %s", tick["id"]), [(3, 0, True)])
        self.assertEqual(self.one("SELECT count(*) FROM takt.items WHERE state = 0 AND attempt = 0"), 3)
        self.assertEqual(self.ledger.deliveries, [])

    def test_C8_finding5_a_dry_run_by_command_or_from_outside_changes_nothing_but_a_run_record(self):
        self.install(CONFIG + """  nightly:
    schedules: [{name: yearly, cron: "0 0 1 1 *"}]
    handler: {http: {url: "{url}/nightly", method: POST}}
""")
        self.takt("tick", "nightly", "--dry-run")
        carrying = self.tick("demo", dryRun=True, items=[{"payload": {"n": 1}, "key": "k"}])
        self.publish(self.broker, carrying)
        eventually(lambda: self.one("SELECT count(*) FROM takt.runs WHERE status = 'completed' AND dry_run") == 2, what="two dry runs")
        self.assertEqual(self.rows("SELECT DISTINCT scanned, done FROM takt.runs"), [(1, 0)], "what would be done")
        time.sleep(1.5)  # the scan would have woken a job for an item by now
        self.assertEqual(self.one("SELECT count(*) FROM takt.all_items"), 0)
        self.assertEqual(self.one("SELECT count(*) FROM takt.item_keys"), 0)
        self.assertEqual(self.ledger.deliveries, [])

    def test_C8_finding21_a_dry_run_that_died_and_is_replayed_changes_nothing_but_a_run_record(self):
        with_items = self.tick("later", dryRun=True, items=[{"payload": {"n": n}} for n in range(3)])
        without = self.tick("later", dryRun=True)
        for tick in (with_items, without):
            self.publish(self.broker, tick)
        eventually(lambda: self.one("SELECT count(*) FROM takt.dead_letters WHERE reason = 'unknown_job'") == 2, what="two letters")
        self.install(CONFIG + """  later:
    schedules: [{name: yearly, cron: "0 0 1 1 *"}]
    handler: {http: {url: "{url}/later", method: POST}}
""")
        self.takt("dlq", "replay", "--job", "later", "--yes")
        eventually(lambda: self.one("SELECT count(*) FROM takt.runs WHERE status = 'completed' AND dry_run") == 2, what="two dry runs")
        self.assertEqual(self.rows("SELECT scanned, done FROM takt.runs ORDER BY scanned"), [(0, 0), (3, 0)], "what would be done")
        self.takt("dlq", "replay", "--job", "later", "--yes")
        self.handle_an_ordinary_item()
        self.assertEqual(self.one("SELECT count(*) FROM takt.all_items"), 1)
        self.assertEqual(self.one("SELECT count(*) FROM takt.item_keys"), 0)
        self.assertEqual(self.one("SELECT count(*) FROM takt.ticks WHERE source = 'replay' AND finished_at IS NOT NULL"), 2, "each once")
        self.assertEqual(self.ledger.of("/later"), [])

    def handle_an_ordinary_item(self):
        """By the time it was handled the scan has looked at every job."""
        before = len(self.ledger.of("/demo"))
        self.enqueue("demo")
        eventually(lambda: len(self.ledger.of("/demo")) == before + 1, what="an ordinary item")

    def test_C7_an_answer_that_is_no_text_is_its_items_error(self):
        answers_of = [b"{\"result\":\"error\",\"error\":\"a\\u0000b\"}", b"{\"result\":\"error\",\"error\":\"\xff\xfe\"}",
                      b"{\"result\":\"blocked\",\"processed\":-5,\"queueDepth\":99999999999999999999}", b"\x00\xff" * 500]
        self.ledger.behave["/demo"] = lambda nth: (200, {"Content-Type": "application/json"}, answers_of[len(self.ledger.deliveries) % 4])
        items = [self.enqueue("demo", {"n": n}) for n in range(8)]
        eventually(lambda: self.one("SELECT count(*) FROM takt.running_items") == 0 and len(self.ledger.deliveries) >= 8, what="eight answers")
        eventually(lambda: self.one("SELECT sum(scanned) FROM takt.runs WHERE status = 'completed'") == 8, what="eight settled")
        self.assertEqual(self.one("SELECT count(*) FROM takt.runs WHERE status = 'failed'"), 0)
        self.assertEqual(len({d["item"] for d in self.ledger.deliveries}), len(items))
        self.assertEqual(len(self.ledger.deliveries), len(items), "no other item is called again")

    def test_M5_a_tick_for_a_paused_job_keeps_its_items(self):
        self.takt("jobs", "pause", "demo")
        tick = self.tick(items=[{"payload": {"kept": 1}}])
        self.publish(self.broker, tick)
        eventually(lambda: self.one("SELECT count(*) FROM takt.ticks WHERE finished_at IS NOT NULL") == 1)
        self.assertEqual(self.one("SELECT count(*) FROM takt.items WHERE state = 0"), 1)
        self.takt("jobs", "resume", "demo")
        eventually(lambda: len(self.ledger.of("/demo")) == 1, what="the item's delivery after the job was resumed")

    def test_M5_a_tick_for_an_unknown_job_is_dead_lettered_and_can_be_replayed_later(self):
        tick = self.tick("later", items=[{"payload": {"n": 7}}])
        self.publish(self.broker, tick)
        letter = eventually(lambda: self.rows("SELECT id, kind, reason FROM takt.dead_letters"))[0]
        self.assertEqual(letter, ("tick-" + tick["id"], "tick", "unknown_job"))
        self.takt("dlq", "replay", letter[0], "--yes", expect=1)
        self.install(CONFIG + '  later:\n    handler: {http: {url: "{url}/later", method: POST}}\n')
        self.takt("dlq", "replay", letter[0], "--yes", "--by", "ada")
        eventually(lambda: len(self.ledger.of("/later")) == 1, what="the replayed item's delivery")
        self.assertEqual(json.loads(self.ledger.of("/later")[0]["body"]), {"n": 7})
        self.takt("dlq", "replay", letter[0], "--yes")
        time.sleep(3)
        self.assertEqual(len(self.ledger.of("/later")), 1)

    def test_what_rabbitmq_dead_letters_by_itself_is_in_the_archive(self):
        self.stop(self.up)
        genuine = self.tick(items=[{"payload": {"n": 1}}])
        self.publish(self.broker, genuine)
        self.publish(self.broker, self.tick(), secret="whsec_" + "A" * 43 + "=")
        for _ in range(2):
            method, _, _ = eventually(lambda: (got := self.broker.basic_get("takt.ticks.default")) and got[0] and got)
            self.broker.basic_reject(method.delivery_tag, requeue=False)
        self.start("dlq", "archive")
        letters = eventually(lambda: len(found := self.rows("SELECT kind, job, reason, x_death->0->>'queue' FROM takt.dead_letters ORDER BY kind DESC")) == 2 and found)
        self.assertEqual(letters, [("tick", "demo", "rejected", "takt.ticks.default"), ("message", "", "rejected", "takt.ticks.default")])
        self.start("up")
        self.takt("dlq", "replay", "broker-" + genuine["id"], "--yes")
        eventually(lambda: len(self.ledger.of("/demo")) == 1)
        forged = self.one("SELECT id FROM takt.dead_letters WHERE kind = 'message'")
        self.takt("dlq", "replay", forged, "--yes", expect=1)
        self.assertEqual(len(self.ledger.of("/demo")), 1)

    def test_a_forged_dead_letter_never_becomes_work(self):
        body = json.dumps({"id": "item-1-0", "kind": "KIND_ITEM", "job": "demo", "reason": "max_attempts", "itemId": "1", "payload": {"evil": 1}}).encode()
        self.broker.basic_publish("takt.dlx", "", body, pika.BasicProperties(content_type="application/json", headers={"takt-kind": "dead-letter"}))
        letter = eventually(lambda: self.rows("SELECT id, kind FROM takt.dead_letters"))[0]
        self.assertEqual(letter[1], "message")
        self.takt("dlq", "replay", letter[0], "--yes", expect=1)
        self.assertEqual(self.one("SELECT count(*) FROM takt.items"), 0)

    def forge(self, exchange, routing_key, body, signed):
        """What somebody who may publish makes of a body and three headers."""
        headers = {name: signed[name] for name in ("webhook-id", "webhook-timestamp", "webhook-signature")}
        self.broker.basic_publish(exchange, routing_key, body, pika.BasicProperties(content_type="application/json", headers={**headers, "takt-kind": "dead-letter"}), mandatory=True)

    def forged_letters_are_kept_only(self, count):
        """The letters that came are messages, and none can be replayed."""
        letters = eventually(lambda: len(found := self.rows("SELECT id, kind FROM takt.dead_letters WHERE kind <> 'item'")) == count and found, what=f"{count} forged letters")
        self.assertEqual({kind for _, kind in letters}, {"message"})
        self.takt("dlq", "replay", *(letter for letter, _ in letters), "--yes", expect=1)

    def test_C11_finding6_a_request_that_a_receiver_saw_is_neither_tick_nor_letter(self):
        last = self.enqueue("demo")
        evil = [{"id": f"item-{last + 1}", "job": "batch", "items": [{"payload": {"evil": 1}}]},
                {"id": f"item-{last + 2}", "kind": "KIND_ITEM", "job": "batch", "itemId": "1", "payload": {"evil": 1}}]
        self.assertEqual([self.enqueue("demo", payload) for payload in evil], [last + 1, last + 2])
        seen = eventually(lambda: len(found := [d for d in self.ledger.of("/demo") if d["body"] != b"{}"]) == 2 and found, what="the two requests")
        for request in seen:
            self.assertEqual(json.loads(request["body"])["id"], request["headers"]["webhook-id"])
            self.forge("takt.ticks", "default", request["body"], request["headers"])
            self.forge("takt.dlx", "", request["body"], request["headers"])
        self.assertEqual(self.quarantined(2), ["bad_signature"] * 2)
        self.forged_letters_are_kept_only(2)
        self.assertEqual(self.one("SELECT count(*) FROM takt.all_items"), 3)
        self.assertEqual(self.ledger.of("/batch"), [])

    def test_C11_finding6_the_secret_of_a_receiver_forges_nothing(self):
        now = str(int(time.time()))
        for job in ("demo", "batch"):
            for evil in (self.tick("batch", items=[{"payload": {"evil": 1}}]),
                         {"id": f"item-{job}-0", "kind": "KIND_ITEM", "job": "batch", "itemId": "1", "payload": {"evil": 1}}):
                body = json.dumps(evil).encode()
                signed = {"webhook-id": evil["id"], "webhook-timestamp": now, "webhook-signature": self.sign(evil["id"], now, body, self.webhook_secret(job))}
                self.forge("takt.ticks", "default", body, signed)
                self.forge("takt.dlx", "", body, signed)
        self.assertEqual(self.quarantined(4), ["bad_signature"] * 4)
        self.forged_letters_are_kept_only(4)
        self.untouched()

    def test_C11_finding6_a_letter_is_no_tick_and_a_tick_no_letter(self):
        copies = self.broker.queue_declare("", exclusive=True).method.queue
        self.broker.queue_bind(copies, "takt.dlx")
        self.ledger.behave["/mortal"] = answers(500)
        self.enqueue("mortal", {"n": 1})
        _, letter, body = eventually(lambda: (got := self.broker.basic_get(copies, auto_ack=True))[0] and got, what="the letter's copy")
        self.forge("takt.ticks", "default", body, letter.headers)
        self.assertEqual(self.quarantined(1), ["bad_signature"])
        forged = {"id": "item-1-0", "kind": "KIND_ITEM", "job": "batch", "itemId": "1", "payload": {"evil": 1}}
        body, now = json.dumps(forged).encode(), str(int(time.time()))
        self.forge("takt.dlx", "", body, {"webhook-id": forged["id"], "webhook-timestamp": now, "webhook-signature": self.sign(forged["id"], now, body)})
        self.forged_letters_are_kept_only(1)
        self.assertEqual(self.one("SELECT count(*) FROM takt.dead_letters WHERE kind = 'item'"), 1)
        self.assertEqual(self.ledger.of("/batch"), [])

    def verifies(self, delivery, secret):
        """As a Standard Webhooks library does: one of the signatures is right."""
        headers = delivery["headers"]
        return self.sign(headers["webhook-id"], headers["webhook-timestamp"], delivery["body"], secret) in headers["webhook-signature"].split(" ")

    def test_finding6_receivers_change_their_secret_when_it_suits_them(self):
        keys = os.path.join(self.folder, "keys")
        self.takt("keys", "generate", "--file", keys)
        self.environment.pop("TAKT_SIGNING_KEYS")
        self.environment["TAKT_SIGNING_KEYS_FILE"] = keys
        old, coming = self.webhook_secret("demo"), self.webhook_secret("demo", "next")
        self.assertNotIn(old, (coming, self.webhook_secret("batch")))
        for rotated in (False, True):
            if rotated:
                self.takt("keys", "rotate", "--yes")
                self.assertEqual((self.webhook_secret("demo"), self.webhook_secret("demo", "retired")), (coming, old))
            self.stop(self.processes[-1])
            self.start("up")
            self.enqueue("demo")
            request = eventually(lambda: len(found := self.ledger.of("/demo")) == 1 + rotated and found[-1])
            self.assertTrue(self.verifies(request, old), "with the secret from before the rotation")
            self.assertEqual(self.verifies(request, coming), rotated)
        with open(keys, encoding="utf-8") as file:
            self.secrets.update(re.findall(r"whsec_\S+", file.read()))

    def test_finding34_refused_messages_get_one_line_a_second_that_counts_them(self):
        line = "tick quarantined reason=bad_signature"
        began = time.monotonic()
        for _ in range(300):
            self.publish(self.broker, self.tick(), secret="whsec_" + "A" * 43 + "=")
        self.quarantined(300)
        self.assertLessEqual(self.log_of(self.up).count(line), time.monotonic() - began + 1)
        time.sleep(1.1)  # the next line is due
        self.publish(self.broker, self.tick(), secret="whsec_" + "A" * 43 + "=")
        eventually(lambda: sum(map(int, re.findall(line + r" messages=(\d+) ", self.log_of(self.up)))) == 301, what="every refused message counted in the log")

    def test_M3_keys_rotate_without_losing_a_message(self):
        old, new = self.secret, "whsec_" + "Q" * 43 + "="
        self.environment["TAKT_SIGNING_KEYS"] = f"current {old}, next {new}"
        self.stop(self.up)
        self.start("up")
        first, second = self.tick(items=[{}]), self.tick(items=[{}])
        self.publish(self.broker, first, secret=old)
        self.publish(self.broker, second, secret=new)
        eventually(lambda: len(self.ledger.of("/demo")) == 2, what="ticks of both keys")
        end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 1))
        self.environment["TAKT_SIGNING_KEYS"] = f"current {new}, retired {old} until {end}"
        self.stop(self.processes[-1])
        self.start("up")
        self.publish(self.broker, self.tick(items=[{}]), secret=old)
        self.assertEqual(self.quarantined(1), ["bad_signature"])
        self.assertEqual(len(self.ledger.of("/demo")), 2)
