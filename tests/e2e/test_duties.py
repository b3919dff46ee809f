"""The dispatcher's duties apart, what is set aside, an installation without a dispatcher, and two versions side by side."""
import json
import re
import time
import unittest

from harness import TaktTest, eventually

CONFIG = """
metrics: {listen: "127.0.0.1:0"}
dispatcher: {leader_lease: 2s}
jobs:
  work:
    batch_size: 5
    backoff: [200ms]
    handler: {http: {url: "{url}/work", method: POST}}
  every:
    handler: {http: {url: "{url}/every", method: POST}}
    schedules: [{name: second, cron: "* * * * * *"}]
"""


class DutiesTest(TaktTest):
    def done(self):
        return self.one("SELECT count(*) FROM takt.finished_items WHERE state = 2")


class Apart(DutiesTest):
    def test_Finding18_a_duty_that_fails_keeps_no_other_from_its_round(self):
        self.install(CONFIG)
        self.db.cursor().execute("ALTER TABLE takt.dead_letters RENAME TO away")  # gauges and retention read it
        self.db.cursor().execute("DROP TABLE " + self.one("SELECT string_agg('takt.' || child, ', ') FROM takt.history_partitions WHERE until > now() + interval '2 days'"))
        dispatcher = self.start("dispatcher")
        self.start("worker")
        eventually(lambda: self.metric(dispatcher, 'takt_duty_failures_total{duty="gauges"}'), what="the failing of gauges")
        eventually(lambda: self.metric(dispatcher, 'takt_duty_failures_total{duty="retention"}'), what="the failing of retention")
        for duty in ("lease", "scan", "publish", "outbox", "rescue", "suspects", "forgotten", "partitions"):
            eventually(lambda: time.time() - (self.metric(dispatcher, f'takt_duty_last_success_timestamp_seconds{{duty="{duty}"}}') or 0) < 10,
                       what=f"a round of {duty}")
            self.assertIsNone(self.metric(dispatcher, f'takt_duty_failures_total{{duty="{duty}"}}'))
        self.assertGreater(self.one("SELECT min(until) FROM (SELECT max(until) AS until FROM takt.history_partitions GROUP BY parent) p").timestamp(),
                           time.time() + 2.5 * 86400)
        ends = self.metric(dispatcher, "takt_history_partitions_end_timestamp_seconds")
        self.assertGreater(ends, time.time() + 2.5 * 86400)
        self.assertIn("dispatcher.partitions", self.get(dispatcher, "/readyz"))
        slots = len(self.ledger.of("/every"))
        eventually(lambda: len(self.ledger.of("/every")) > slots + 1, what="slots going on")
        # A lease that nobody renews is rescued all the same.
        self.db.cursor().execute("INSERT INTO takt.ticks (id, job_id, source, due_at, begun_at, run_id, worker, lease_until)"
                                 " VALUES ('due:lost', 1, 'due', now(), now(), 0, 'gone', now() - interval '1 s')")
        eventually(lambda: self.one("SELECT finished_at IS NOT NULL FROM takt.ticks WHERE id = 'due:lost'"), what="the rescue")
        self.db.cursor().execute("ALTER TABLE takt.away RENAME TO dead_letters")
        eventually(lambda: "part=gauges" in self.log_of(dispatcher).split("recovered", 1)[-1], what="the gauges' recovery")

    def test_Finding32_gauges_are_shown_by_the_leader_alone_and_of_present_jobs_alone(self):
        self.install(CONFIG)
        self.takt("jobs", "pause", "work")
        self.enqueue("work")
        dispatcher = self.start("dispatcher")
        eventually(lambda: self.metric(dispatcher, 'takt_job_due_items{job="work"}') == 1, what="the backlog's gauge")
        self.assertIsNotNone(self.metric(dispatcher, "takt_dead_letters_open"))
        self.db.cursor().execute("UPDATE takt.leader SET holder = 'another', term = term + 1, until = now() + interval '1 hour'")
        eventually(lambda: self.metric(dispatcher, 'takt_job_due_items{job="work"}') is None, what="the going of the gauge")
        for name in ("takt_dead_letters_open", "takt_outbox_ticks", "takt_history_partitions_end_timestamp_seconds",
                     'takt_duty_last_success_timestamp_seconds{duty="scan"}', 'takt_job_oldest_due_seconds{job="work"}'):
            eventually(lambda: self.metric(dispatcher, name) is None, what=f"the going of {name}")
        self.db.cursor().execute("UPDATE takt.leader SET until = now()")
        eventually(lambda: self.metric(dispatcher, 'takt_job_due_items{job="work"}') == 1, what="the gauge of the leader")
        self.db.cursor().execute("UPDATE takt.jobs SET removed_at = now() WHERE name = 'work'")
        eventually(lambda: self.metric(dispatcher, 'takt_job_due_items{job="work"}') is None, what="the going of the removed job's gauge")
        self.assertIsNotNone(self.metric(dispatcher, 'takt_job_due_items{job="every"}'))


class Status(DutiesTest):
    def test_Finding37_status_names_what_was_set_aside(self):
        self.install(CONFIG)
        self.db.cursor().execute("UPDATE takt.schedules SET fault = 'Atlantis is no zone', next_fire = now() + interval '1 h'")
        self.db.cursor().execute("UPDATE takt.jobs SET definition = definition - 'batch_size' WHERE name = 'work'")
        status = self.takt("status")
        self.assertIn("SET ASIDE: schedule every/second: Atlantis is no zone", status)
        self.assertIn("SET ASIDE: job work: its definition is another version's", status)
        faults = json.loads(self.takt("status", "--json"))["faults"]
        self.assertEqual([fault["what"] for fault in faults], ["schedule every/second", "job work"])

    def test_a_schedule_that_missed_its_slot_is_late_until_somebody_leads(self):
        self.install(CONFIG.replace("* * * * * *", "@every 1h"))

        def late():
            return json.loads(self.takt("status", "--json"))["schedules_late"]

        self.assertEqual(late(), 0)
        self.takt("status", "--fail-on", "late")
        self.db.cursor().execute("UPDATE takt.schedules SET next_due = next_due - interval '2 h', next_fire = next_fire - interval '2 h'")
        self.assertEqual(late(), 1)
        self.assertIn("schedules late: 1\n", self.takt("status"))
        self.takt("status", "--fail-on", "late", expect=1)
        self.start("dispatcher")
        eventually(lambda: late() == 0, 10, "the next slot")
        self.takt("status", "--fail-on", "late")

    def test_Finding39_status_counts_so_much_and_no_more(self):
        self.install(CONFIG)
        self.db.cursor().execute("""
            INSERT INTO takt.runs (id, started_at, job_id, tick_id, trigger, worker, status, done)
            SELECT -n, now() - interval '1 s', (SELECT id FROM takt.jobs WHERE name = 'work'), 't', 'due', 'w', 'completed', 2
              FROM generate_series(1, 12000) n""")
        self.db.cursor().execute("""
            INSERT INTO takt.dead_letters (id, kind, job, reason, error, died_at)
            SELECT 'l' || n, 'item', 'work', 'max_attempts', '', now() FROM generate_series(1, 12000) n""")
        status = self.takt("status")
        self.assertRegex(status, r"work +active +0 .* 10000\+ +10000\+ +0\+ +20000\+ +0\+ ")
        job = next(job for job in json.loads(self.takt("status", "--json"))["jobs"] if job["job"] == "work")
        self.assertEqual((job["runs_24h"], job["items_done_24h"], job["dead_letters"]), (10000, 20000, 10000))

    def test_Finding39_status_reads_many_jobs_some_at_a_time_and_shows_each_once_by_name(self):
        self.install(CONFIG)
        self.db.cursor().execute("""
            INSERT INTO takt.jobs (name, queue, definition, batch_size, concurrency, max_attempts, dedupe_window, source, removed_at)
            SELECT 'more-' || (n * 7919 % 450), queue, definition, batch_size, concurrency, max_attempts, dedupe_window, source, CASE WHEN n = 450 THEN now() END
              FROM takt.jobs, generate_series(1, 450) n WHERE name = 'work'""")
        self.db.cursor().execute("UPDATE takt.jobs SET paused = true WHERE name = 'more-100'")
        expected = sorted(["every", "work"] + [f"more-{n}" for n in range(1, 450)])
        jobs = json.loads(self.takt("status", "--json"))["jobs"]
        self.assertEqual([job["job"] for job in jobs], expected)
        self.assertEqual([job["job"] for job in jobs if job["state"] == "paused"], ["more-100"])
        lines = [line.split()[0] for line in self.takt("status").splitlines() if line.startswith(("every ", "work ", "more-"))]
        self.assertEqual(lines, expected)

    def test_suspects_are_due_and_messages_of_no_job_have_their_line(self):
        self.install(CONFIG)
        self.assertNotIn("of no job", self.takt("status"))
        for n in range(3):
            self.enqueue("work", {"n": n})
        self.db.cursor().execute("UPDATE takt.items SET state = 6, run_at = now() - interval '1 h' WHERE id = (SELECT min(id) FROM takt.items)")
        self.db.cursor().execute("INSERT INTO takt.dead_letters (id, kind, job, reason, error, died_at) VALUES ('m', 'message', '', 'not_protobuf', '', now())")
        self.assertRegex(self.takt("status"), r"\nwork +active +3 +1h")
        self.assertIn('dead letters of no job: 1, messages that could not be read; see "takt dlq list --kind message"', self.takt("status"))
        status = json.loads(self.takt("status", "--json"))
        work = next(job for job in status["jobs"] if job["job"] == "work")
        self.assertEqual((work["due"], round(work["oldest_due_s"], -2), status["dead_messages"]), (3, 3600, 1))
        self.assertEqual(next(job["due"] for job in json.loads(self.takt("jobs", "--json")) if job["job"] == "work"), 3)
        dispatcher = self.start("dispatcher")
        eventually(lambda: self.metric(dispatcher, 'takt_job_due_items{job="work"}') == 3, what="the gauge")
        self.assertGreater(self.metric(dispatcher, 'takt_job_oldest_due_seconds{job="work"}'), 3599)


class WithoutADispatcher(DutiesTest):
    def days_pass(self):
        """Ten days in which nobody made partitions."""
        self.db.cursor().execute("DROP TABLE " + self.one("SELECT string_agg('takt.' || child, ', ') FROM takt.history_partitions"))

    def test_C13_workers_and_once_go_on_where_no_dispatcher_made_partitions(self):
        self.install(CONFIG)
        self.days_pass()
        self.enqueue("work")
        self.takt("worker", "--once")
        self.assertEqual(self.done(), 1)
        self.assertEqual(self.one("SELECT count(*) FROM takt.history_partitions WHERE until < now() - interval '1 day'"), 0)
        # And a worker that is fed by an external ticker alone.
        self.start("worker")
        channel = self.channel()
        for day in range(2):
            self.days_pass()
            for n in range(5):
                self.publish(channel, {"id": f"outside-{day}-{n}", "job": "work", "items": [{"payload": {"n": n}}]})
            eventually(lambda: len(self.ledger.of("/work")) == 1 + 5 * (day + 1), what="the items' handling")
            eventually(lambda: self.done() == 5, what="their settling")  # those before went with their day
        self.assertEqual(self.queue_depth(channel, "takt.dead"), 0)

    def test_C13_ticks_wait_for_partitions_that_cannot_be_made_and_none_is_dead_lettered(self):
        self.install(CONFIG)
        worker = self.start("worker")
        channel = self.channel()
        self.days_pass()
        self.db.cursor().execute("""
            CREATE SEQUENCE tries;
            ALTER FUNCTION takt.ensure_partitions RENAME TO ensure_them;
            CREATE FUNCTION takt.ensure_partitions() RETURNS integer LANGUAGE plpgsql AS $$
            BEGIN
              IF nextval('public.tries') % 2 = 0 THEN RAISE 'none today'; END IF;
              RETURN 0;
            END $$""")
        for n in range(5):
            self.publish(channel, {"id": f"outside-{n}", "job": "work", "items": [{"payload": {"n": n}}]}, message_id=f"outside-{n}")
        # A queue dead-letters what came back to it 20 times.
        eventually(lambda: self.one("SELECT last_value FROM tries") > 5 * 21 or self.queue_depth(channel, "takt.dead"), what="many tries")
        self.assertEqual(self.queue_depth(channel, "takt.dead"), 0)
        self.assertLess(self.log_of(worker).count("waiting for the database"), 10)
        self.assertIn('partitions not made times=1 error="none today"', self.log_of(worker))
        self.db.cursor().execute("DROP FUNCTION takt.ensure_partitions; ALTER FUNCTION takt.ensure_them RENAME TO ensure_partitions")
        eventually(lambda: self.done() == 5, what="the items' settling")
        self.assertEqual(len(self.ledger.of("/work")), 5)

    def test_Finding18_once_works_though_its_housekeeping_cannot(self):
        self.install(CONFIG)
        self.enqueue("work")
        self.db.cursor().execute("ALTER FUNCTION takt.drop_old_partition RENAME TO gone")
        self.takt("worker", "--once")
        self.assertEqual(self.done(), 1)


class Lines(DutiesTest):
    def test_Finding18_ticks_that_fail_are_a_line_a_second(self):
        self.install(CONFIG)
        worker = self.start("worker")
        channel = self.channel()
        self.db.cursor().execute("CREATE FUNCTION takt.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no tick today'; END $$;"
                                 " CREATE TRIGGER broken BEFORE INSERT OR UPDATE ON takt.ticks FOR EACH ROW EXECUTE FUNCTION takt.refuse()")
        for n in range(12):
            self.publish(channel, {"id": f"outside-{n}", "job": "work", "items": [{"payload": {"n": n}}]}, message_id=f"outside-{n}")

        def failures():
            return [int(count) for count in re.findall(r"tick failed tick=\S+ ticks=(\d+) error=.*no tick today", self.log_of(worker))]

        began = time.monotonic()
        eventually(lambda: sum(failures()) >= 20, what="many failures, told in few lines")
        self.assertLessEqual(len(failures()), time.monotonic() - began + 2)
        self.db.cursor().execute("DROP TRIGGER broken ON takt.ticks")
        eventually(lambda: self.done() == 12, what="the items' settling")


class TwoVersions(DutiesTest):
    def test_C15_a_function_that_changes_under_running_pods_costs_no_tick(self):
        self.install(CONFIG)
        self.start("dispatcher")
        worker = self.start("worker")
        channel = self.channel()
        for n in range(20):
            self.enqueue("work", {"n": n})
        eventually(lambda: self.done() >= 20, what="the first items")

        # The next version's function has a further column: what was prepared must be prepared anew.
        columns = self.one("SELECT pg_get_function_result('takt.begin_run'::regproc)")
        arguments = self.one("SELECT pg_get_function_arguments('takt.begin_run'::regproc)")
        inner = ", ".join(f"${n + 1}" for n in range(self.one("SELECT pronargs FROM pg_proc WHERE oid = 'takt.begin_run'::regproc")))
        cursor = self.db.cursor()
        cursor.execute(f"""BEGIN; ALTER FUNCTION takt.begin_run RENAME TO begin_run_1;
            CREATE FUNCTION takt.begin_run({arguments}) RETURNS {columns.removesuffix(")")}, added integer) LANGUAGE sql AS
              $$ SELECT b.*, 1 FROM takt.begin_run_1({inner}) b $$; COMMIT""")
        for n in range(20):
            self.enqueue("work", {"n": n})
        eventually(lambda: self.done() >= 40, what="the items after a function got a column")

        # A version that took the function away: the old pod says why, and is not ready; nothing is dead-lettered.
        cursor.execute("ALTER FUNCTION takt.begin_run RENAME TO begin_run_2")
        for n in range(10):
            self.enqueue("work", {"n": n})
        for n in range(5):
            self.publish(channel, {"id": f"outside-{n}", "job": "work", "items": [{"payload": {"n": n}}]}, message_id=f"outside-{n}")
        eventually(lambda: self.log_of(worker).count("tick given back tick=outside-0 ") > 22, 90, "a tick's going round for longer than a queue lets it")
        self.assertIn("its schema is not this version's (begin_run)", self.log_of(worker))
        self.assertIn('"ready":false', self.get(worker, "/readyz"))
        self.assertEqual(self.queue_depth(channel, "takt.dead"), 0)
        cursor.execute("ALTER FUNCTION takt.begin_run_2 RENAME TO begin_run")
        eventually(lambda: self.one("SELECT count(*) FROM takt.finished_items f JOIN takt.jobs j ON j.id = f.job_id WHERE j.name = 'work'") == 55, 60,
                   "every item's end")
        self.assertEqual(self.queue_depth(channel, "takt.dead"), 0)
        self.assertEqual(max(self.ledger.of_item.values()), 1, "each was handled once")
        eventually(lambda: '"ready":true' in self.get(worker, "/readyz"), what="readiness")


if __name__ == "__main__":
    unittest.main()
