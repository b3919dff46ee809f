"""What applications do to a running Takt through SQL: times at the edges, huge payloads, transactions that stay open."""
import json
import time

import psycopg2

from harness import PATIENCE, TaktTest, eventually

CONFIG = """
jobs:
  every-second:
    schedules: [{name: s, cron: "* * * * * *"}]
    handler: {http: {url: "{url}/every-second", method: POST}}
  demo:
    batch_size: 100
    lease: 6s
    handler: {http: {url: "{url}/demo", method: POST, parallel: 4}}
  other:
    handler: {http: {url: "{url}/other", method: POST}}
"""


class Callers(TaktTest):
    def setUp(self):
        super().setUp()
        self.install(CONFIG)

    def application(self):
        connection = psycopg2.connect(self.database_url)
        self.addCleanup(connection.close)
        return connection

    def latency(self, job):
        """Seconds from an enqueue's commit to its request."""
        item = self.enqueue(job)
        began = time.time()
        eventually(lambda: any(d["item"] == f"item-{item}" for d in self.ledger.of("/" + job)), what=f"the request of item {item}")
        return next(d["time"] for d in self.ledger.of("/" + job) if d["item"] == f"item-{item}") - began

    def assert_slots_go_on(self, seconds=3):
        before = len(self.ledger.of("/every-second"))
        eventually(lambda: len(self.ledger.of("/every-second")) >= before + seconds, seconds=seconds + 3, what="a tick a second")

    def test_C1_finding1_no_run_at_stops_a_schedule_or_a_job(self):
        self.start("up")
        taken = [self.one("SELECT takt.enqueue('demo', run_at => %s)", at) for at in ("-infinity", "0001-01-01", None)]
        for at in ("infinity", "290000-01-01"):
            with self.assertRaisesRegex(psycopg2.Error, "after the year 9999"):
                self.one("SELECT takt.enqueue('demo', run_at => %s)", at)
        # As an older version stored them, under the notification of that moment.
        for at in ("-infinity", "0001-01-01", "infinity", "290000-01-01"):
            self.rows("WITH i AS (INSERT INTO takt.items (job_id, run_at) SELECT id, %s FROM takt.jobs WHERE name = 'demo' RETURNING id)"
                      " SELECT id, pg_notify('takt_due', 'demo') FROM i", at)
        eventually(lambda: len(self.ledger.of("/demo")) == 5, what="the items that are due")
        self.assertLess(self.latency("other"), 2 * PATIENCE)
        self.assert_slots_go_on()
        self.assertEqual([self.state(item) for item in taken], ["done"] * 3)
        self.assertEqual(self.one("SELECT count(*) FROM takt.items"), 2, "what is never due waits")
        self.assertEqual(len(json.loads(self.takt("items", "--job", "demo", "--json"))), 7)
        self.takt("status")
        self.assertNotIn("dispatcher failing", "".join(self.log_of(process) for process in self.processes))
        self.check_invariants()

    def test_finding1_slots_go_on_while_no_item_can_be_looked_for(self):
        self.start("up")
        self.assertLess(self.latency("demo"), 5 * PATIENCE)
        self.rows("CREATE FUNCTION public.broken(timestamptz) RETURNS timestamptz LANGUAGE plpgsql AS $$BEGIN RAISE 'broken'; END$$; SELECT 1")
        self.rows("ALTER TABLE takt.items RENAME TO items_away; CREATE VIEW takt.items AS SELECT id, job_id, state, priority, replay, attempt,"
                  " public.broken(run_at) AS run_at, enqueued_at, key, payload FROM takt.items_away;"
                  " INSERT INTO takt.items_away (job_id) SELECT id FROM takt.jobs WHERE name = 'demo'; SELECT pg_notify('takt_due', 'demo')")
        eventually(lambda: "dispatcher failing part=scan" in "".join(self.log_of(process) for process in self.processes), what="the failure")
        stored = self.one("SELECT count(*) FROM takt.ticks WHERE source = 'schedule'")
        eventually(lambda: self.one("SELECT count(*) FROM takt.ticks WHERE source = 'schedule'") >= stored + 3, seconds=8, what="a slot a second")
        self.rows("DROP VIEW takt.items; ALTER TABLE takt.items_away RENAME TO items; SELECT 1")
        eventually(lambda: len(self.ledger.of("/demo")) == 2, what="the item that nobody could look for")

    def test_C4_finding2_a_duplicate_in_an_open_transaction_repeats_and_delays_nothing(self):
        self.ledger.behave["/demo"] = lambda nth: (time.sleep(0.3), (200, {}, b""))[1]
        self.start("up")
        items = [item for (item,) in self.rows("SELECT item_id FROM takt.enqueue_many('demo', array_fill('{}'::jsonb, ARRAY[20]),"
                                               " ARRAY(SELECT 'k' || n FROM generate_series(1, 20) n))")]
        eventually(lambda: self.ledger.of("/demo"), what="the first request")
        with self.application() as open_transaction, open_transaction.cursor() as cursor:
            cursor.execute("SELECT takt.enqueue('demo', '{}', 'k7')")
            self.assertEqual(cursor.fetchone()[0], items[6])
            eventually(lambda: all(self.state(item) == "done" for item in items), seconds=5, what="the batch, settled")
            self.assertEqual(max(self.ledger.of_item.values()), 1, "called once")
        self.check_invariants()

    def test_C6_finding14_finding25_an_open_transaction_that_enqueued_delays_nobody(self):
        self.start("up")
        self.latency("other")
        open_transaction = self.application()
        with open_transaction.cursor() as cursor:
            cursor.execute("SELECT takt.enqueue('demo'), takt.enqueue('other')")
            self.takt("migrate")
            time.sleep(6)  # until the dispatcher, finding nothing, looks by itself once a second only
            delays = sorted(self.latency("other") for _ in range(9))
            self.assertLess(delays[4], 0.15 * PATIENCE, f"woken, and not found by a scan: {delays}")
        open_transaction.commit()
        eventually(lambda: len(self.ledger.of("/demo")) == 1, what="the item of the open transaction")
        self.check_invariants()

    def test_C2_finding8_what_is_small_stored_and_huge_as_text_is_refused_or_carried(self):
        self.start("up")
        self.rows("CREATE TABLE app AS SELECT jsonb_build_object('a', repeat('x', 40000000)) AS payload; SELECT 1")
        for payload in ("(SELECT payload FROM app)", "(SELECT jsonb_agg(1e131071::numeric) FROM generate_series(1, 8))",
                        "to_jsonb(repeat(chr(1), 90000))"):
            with self.assertRaisesRegex(psycopg2.Error, "more than 524288"):
                self.one(f"SELECT takt.enqueue('demo', {payload})")
        self.rows("SELECT takt.enqueue('demo', to_jsonb(repeat(chr(1), 87000))) FROM generate_series(1, 20)")
        self.rows("SELECT takt.enqueue('demo', (SELECT jsonb_agg(1e131071::numeric) FROM generate_series(1, 7)))")
        eventually(lambda: len(self.ledger.of("/demo")) == 21, what="the items that were taken")
        self.assertEqual(sorted({len(d["body"]) for d in self.ledger.of("/demo")}), [87000 * 6 + 2, 7 * 131072 + 14], "byte for byte")
        self.assertLess(self.latency("other"), 2 * PATIENCE)
        self.check_invariants()
