"""How would I find it? Each fault that makes no noise by itself, told by status, check, readiness and metrics within five seconds."""
import json
import signal
import time

from harness import PATIENCE, answers, eventually, until
from told import TOLD, ToldTest

CONFIG = """
metrics: {listen: "127.0.0.1:0"}
worker: {queues: [default]}
jobs:
  mail.send:
    handler: {http: {url: "{url}/mail", method: POST, timeout: 300ms%s}}
    max_attempts: 20
    backoff: {base: 200ms, factor: 1, max: 200ms, jitter: none}
"""
WITH_SECRET = CONFIG % ", bearer_env: MAIL_SECRET"
PLAIN = CONFIG % ""


class Faults(ToldTest):
    def running(self, config):
        self.install(config)
        dispatcher, worker, _ = self.start("dispatcher"), self.start("worker"), self.start("dlq", "archive")
        self.complete()
        return dispatcher, worker

    def mended(self, items):
        eventually(lambda: all(self.state(item) == "done" for item in items), 60, "all done once it is mended")
        eventually(lambda: self.troubles() == {}, TOLD, "no trouble any more")

    def test_F8_an_endpoint_that_is_down(self):
        dispatcher, worker = self.running(PLAIN.replace("max_attempts: 20", "max_attempts: 100").replace("timeout: 300ms", "circuit_pause: 1s, circuit_max_pause: 1s"))
        self.ledger.behave["/mail"] = answers(500)
        items = [self.enqueue("mail.send") for _ in range(4)]
        self.told(dispatcher, "held", "HELD: job mail.send until ", " failures in a row since ", "the endpoint answered 500", since=self.first_at("/mail"))
        self.assertIn("held", self.takt("jobs"))
        told = json.loads(self.takt("jobs", "--json"))[0]
        self.assertEqual((told["state"], told["held_for"]), ("held", "the endpoint answered 500"))
        self.assertRegex(told["held_until"], "^20")
        self.assertIn('destination left alone job=mail.send failures=', self.log_of(worker))
        self.ledger.behave["/mail"] = answers(200)
        self.mended(items)
        self.assertEqual(self.one("SELECT count(*) FROM takt.failing_destinations"), 0)

    def test_F8_a_destination_that_is_left_alone_is_tried_at_once_when_somebody_says_so(self):
        self.running(PLAIN.replace("max_attempts: 20", "max_attempts: 100").replace("timeout: 300ms", "circuit_pause: 10m, circuit_max_pause: 10m"))
        self.ledger.behave["/mail"] = answers(500)
        items = [self.enqueue("mail.send") for _ in range(4)]
        eventually(lambda: "held" in self.troubles(), 20, "the circuit's opening")
        self.assertIn('"takt jobs resume mail.send" tries it now', self.troubles()["held"])
        self.ledger.behave["/mail"] = answers(200)
        said = self.takt("items", "retry", *map(str, items), "--yes")
        self.assertIn('is held until 20', said)
        self.assertEqual(self.takt("jobs", "resume", "mail.send", "--by", "ann"),
                         "job mail.send is not paused; its destination, which was left alone, is tried again now\n")
        self.mended(items)
        self.assertEqual(self.one("SELECT who FROM takt.audit WHERE action = 'free'"), "ann")
        self.assertEqual(self.takt("jobs", "resume", "mail.send"), "job mail.send is neither paused nor held\n")
        self.assertEqual(self.takt("jobs", "pause", "mail.send", "--by", "bob"), "job mail.send paused: its items are kept, its schedules do not tick\n")
        self.assertEqual(self.takt("jobs", "pause", "mail.send", "--by", "ann"), "job mail.send was paused already\n")
        self.assertIn("by bob since", self.troubles()["paused"])

    def test_an_endpoint_that_refuses_the_method(self):
        dispatcher, _ = self.running(PLAIN)
        self.ledger.behave["/mail"] = answers(405)
        items = [self.enqueue("mail.send") for _ in range(2)]
        self.told(dispatcher, "blocked", "BLOCKED: job mail.send: 2 items wait for you: this endpoint does not accept POST; once it is mended,")
        self.ledger.behave["/mail"] = answers(200)
        self.takt("items", "retry", "--job", "mail.send", "--yes", "--by", "ann")
        self.assertEqual(json.loads(self.takt("audit", "--subject", "mail.send", "--json"))[0]["parameters"], {"items": 2, "state": "blocked"})
        self.mended(items)

    def test_an_endpoint_that_fails_for_a_few_items(self):
        dispatcher, worker = self.running(PLAIN.replace("timeout: 300ms", "circuit_failures: 0"))
        self.ledger.behave["/mail"] = answers(500)
        items = [self.enqueue("mail.send") for _ in range(2)]
        name = self.one("SELECT id || '@' || host FROM takt.services WHERE pid = %s", worker.pid)
        self.told(dispatcher, "failing", "FAILING: job mail.send: the last ", f" attempts failed at worker {name}: the endpoint answered 500")
        self.ledger.behave["/mail"] = answers(200)
        self.mended(items)

    def test_an_endpoint_that_fails_is_told_minutes_before_the_second_attempt(self):
        dispatcher, worker = self.running(PLAIN.replace("{base: 200ms, factor: 1, max: 200ms, jitter: none}", "[10m]"))
        self.ledger.behave["/mail"] = answers(500)
        item = self.enqueue("mail.send")
        name = self.one("SELECT id || '@' || host FROM takt.services WHERE pid = %s", worker.pid)
        self.told(dispatcher, "failing", f"FAILING: job mail.send: the last attempt failed at worker {name}: the endpoint answered 500", since=self.first_at("/mail"))
        self.start("worker")  # another, which has not failed
        self.ledger.behave["/mail"] = answers(200)
        for _ in range(20):
            self.enqueue("mail.send")
        eventually(lambda: self.troubles() == {}, TOLD, "no trouble where the job's items succeed")
        self.takt("items", "retry", str(item), "--yes")
        self.mended([item])

    def test_an_endpoint_that_answers_too_late(self):
        dispatcher, _ = self.running(PLAIN.replace("timeout: 300ms", "timeout: 300ms, circuit_failures: 0"))  # held soon, otherwise
        self.ledger.behave["/mail"] = lambda nth: (time.sleep(1) or 200, {}, b"")
        items = [self.enqueue("mail.send") for _ in range(4)]
        self.told(dispatcher, "failing", "FAILING: job mail.send: the last ", "timed out")
        self.ledger.behave["/mail"] = answers(200)
        self.mended(items)

    def refuse_but(self, token):
        """The endpoint knows one bearer."""
        self.ledger.behave["/mail"] = lambda nth: (200 if self.ledger.deliveries[-1]["headers"].get("Authorization") == "Bearer " + token else 401, {}, b"")

    def test_F5_a_secret_that_is_wrong_in_one_worker_of_two(self):
        self.environment["MAIL_SECRET"] = "right"
        dispatcher, _ = self.running(WITH_SECRET)
        wrong = self.started_with(dict(self.environment, MAIL_SECRET="wrong"), "worker")
        self.refuse_but("right")
        items = [self.enqueue("mail.send") for _ in range(5)]
        name = self.one("SELECT id || '@' || host FROM takt.services WHERE pid = %s", wrong.pid)

        def refused():
            """When it was, once it was so often that a job is a failing one; until then there is more to try."""
            found = [one["time"] for one in self.ledger.of("/mail") if one["headers"].get("Authorization") == "Bearer wrong"]
            if len(found) >= 3:
                return found
            items.append(self.enqueue("mail.send"))
            return None

        since = eventually(refused, what="three attempts with the wrong secret")[0]
        self.told(dispatcher, "failing", "FAILING: job mail.send: the last ", f" attempts failed at worker {name}: the endpoint answered 401", since=since)
        self.stop(wrong)
        self.mended(items)

    def test_F10_a_secret_that_is_missing_in_one_worker_of_two(self):
        dispatcher = self.running_without_secret()
        self.started_with(dict(self.environment, MAIL_SECRET="there"), "worker")
        items = [self.enqueue("mail.send") for _ in range(20)]
        eventually(lambda: all(self.state(item) == "done" for item in items), what="all done by the other")
        self.assertEqual(self.rows("SELECT DISTINCT attempts FROM takt.finished_items"), [(1,)])
        self.told(dispatcher, "not_ready", "NOT READY: worker ", "worker.setup: job mail.send: the environment variable MAIL_SECRET is not set")

    def running_without_secret(self):
        self.environment.pop("MAIL_SECRET", None)
        self.install(WITH_SECRET)
        dispatcher, worker, _ = self.start("dispatcher"), self.start("worker"), self.start("dlq", "archive")
        eventually(lambda: "set-up incomplete" in self.log_of(worker), TOLD, "the word of its start")
        self.assertIn('"ready":false', self.get(worker, "/readyz"))
        self.told(dispatcher, "not_ready", "NOT READY: worker ", "worker.setup: job mail.send: the environment variable MAIL_SECRET is not set")
        return dispatcher

    def test_F10_a_secret_that_is_missing_everywhere_spends_no_attempts(self):
        self.running_without_secret()
        items = [self.enqueue("mail.send") for _ in range(3)]
        time.sleep(2)
        self.assertEqual(self.rows("SELECT state, attempts FROM takt.all_items"), [("pending", 0)] * 3)
        self.assertEqual(self.one("SELECT count(*) FROM takt.failed_attempts"), 0)
        empty = self.started_with(dict(self.environment, MAIL_SECRET=""), "worker")
        eventually(lambda: "the environment variable MAIL_SECRET is empty" in self.log_of(empty), TOLD)
        self.assertIn("MAIL_SECRET is empty here", self.takt("check", expect=1, environment=dict(self.environment, MAIL_SECRET="")))
        self.assertIn("job mail.send: here the environment variable MAIL_SECRET is not set", self.takt("worker", "--once", "--job", "mail.send", expect=1))
        self.started_with(dict(self.environment, MAIL_SECRET="there"), "worker")
        eventually(lambda: all(self.state(item) == "done" for item in items), what="that they go on by themselves")
        self.assertEqual(self.rows("SELECT DISTINCT attempts FROM takt.finished_items"), [(1,)])

    def test_F10_what_no_worker_can_do_keeps_no_place_and_none_of_its_ticks_is_lost(self):
        """More ticks than there are places, of a job whose secret is missing, also of schedules and with items."""
        self.environment.pop("MAIL_SECRET", None)
        self.install(WITH_SECRET.replace("queues: [default]", "queues: [default], runs: 4") + """
    dedupe_window: 1h
    schedules: [{name: s, cron: "@every 1s", payload: {of: schedule}}]
  plain:
    handler: {http: {url: "{url}/plain", method: POST}}
""")
        self.start("dispatcher"), self.start("worker"), self.start("dlq", "archive")
        channel = self.channel()
        for n in range(30):
            self.publish(channel, {"id": f"external-{n}", "job": "mail.send", "items": [{"payload": {"n": n}, "key": f"k{n}"}]})
        items = [self.enqueue("mail.send") for _ in range(30)]
        eventually(lambda: self.one("SELECT count(*) FROM takt.ticks WHERE put_off_until IS NOT NULL") >= 30, 20, "that they are put off")
        waits = []
        for _ in range(20):
            began = time.monotonic()
            plain = self.enqueue("plain")
            eventually(lambda plain=plain: self.state(plain) == "done", 10, "another job's item")
            waits.append(time.monotonic() - began)
            time.sleep(0.2)
        self.assertLess(sorted(waits)[10], 0.5 * PATIENCE, f"another job's items wait for a place: {waits}")
        self.assertLess(self.queue_depth(channel, "takt.ticks.default"), 60)
        job = eventually(lambda: (found := {one["job"]: one for one in json.loads(self.takt("jobs", "--json"))}["mail.send"])["held_for"] and found, TOLD, "the reason")
        self.assertEqual(job["state"], "held")
        self.assertRegex(job["held_for"], "^worker [0-9a-f]{12}@.* lacks what the job needs: the environment variable MAIL_SECRET is not set$")
        self.takt("schedules", "pause", "mail.send/s")
        self.started_with(dict(self.environment, MAIL_SECRET="there"), "worker")
        eventually(lambda: all(self.state(item) == "done" for item in items), 30, "what was enqueued")
        eventually(lambda: {f"k{n}" for n in range(30)} <= {row[0] for row in self.rows("SELECT key FROM takt.finished_items WHERE state = 2")}, 90,
                   "what the ticks brought")
        eventually(lambda: self.one("SELECT count(*) FROM takt.ticks WHERE finished_at IS NULL") == 0, 90, "the last tick")
        self.assertEqual(self.one("SELECT max(attempts) FROM takt.finished_items"), 1)
        self.assertEqual(self.one("SELECT count(*) FROM takt.dead_letters"), 0)

    def test_F10_a_database_without_address_and_a_function_that_is_not_there(self):
        self.environment.pop("REPORTING_URL", None)
        self.install(PLAIN + """
  report:
    handler: {sql: {database: reporting, statement: "SELECT 1"}}
  crunch:
    handler: {native: {name: crunch}}
databases:
  reporting: {url_env: REPORTING_URL, role: takt}
""")
        dispatcher, worker, _ = self.start("dispatcher"), self.start("worker"), self.start("dlq", "archive")
        report, crunch, mail = self.enqueue("report"), self.enqueue("crunch"), self.enqueue("mail.send")
        self.told(dispatcher, "not_ready", "job crunch: it has no native handler named crunch",
                  "job report: the environment variable REPORTING_URL (database reporting) is not set")
        eventually(lambda: self.state(mail) == "done", what="the sound job's item")
        self.assertEqual(self.rows("SELECT state, attempts FROM takt.all_items WHERE id IN (%s, %s)", report, crunch), [("pending", 0)] * 2)
        self.assertIn("set-up incomplete", self.log_of(worker))

    def test_a_job_that_somebody_paused(self):
        dispatcher, _ = self.running(PLAIN)
        self.takt("jobs", "pause", "mail.send", "--by", "ann")
        self.told(dispatcher, "paused", "PAUSED: job mail.send by ann since 20", "takt jobs resume mail.send", check=0)
        self.assertIn("note  services: PAUSED", self.takt("check"))
        self.takt("jobs", "resume", "mail.send")
        eventually(lambda: self.troubles() == {}, TOLD, "no trouble any more")

    def test_a_leader_that_is_killed(self):
        self.install(PLAIN)
        first, _, _ = self.start("dispatcher"), self.start("worker"), self.start("dlq", "archive")
        second = self.start("dispatcher")
        self.complete()
        killed = time.time()
        first.send_signal(signal.SIGKILL)
        first.wait()
        until(time.monotonic() + self.left(killed), lambda: "leads, term 2" in self.takt("status"), "the other's lead")
        self.told(second, "silent", "WENT SILENT: dispatcher ", f"(pid {first.pid}), last seen ", since=killed)
        self.assertIn("services: 1 dispatcher, 1 worker", self.takt("status"))

    def test_no_dispatcher_at_all_is_told_by_the_workers_too(self):
        dispatcher, worker = self.running(PLAIN)
        self.assertIn("takt_led 1", self.get(worker, "/metrics"))
        dispatcher.send_signal(signal.SIGKILL)
        dispatcher.wait()
        end = time.monotonic() + PATIENCE * TOLD
        for ask, words in ((lambda: self.takt("status"), "NONE LEADS"), (lambda: self.takt("check", expect=1), "FAULT services: NONE LEADS"),
                           (lambda: self.get(worker, "/readyz"), "no dispatcher leads"), (lambda: self.get(worker, "/metrics"), "takt_led 0")):
            until(end, lambda ask=ask, words=words: words in ask(), words)


class Judgment(ToldTest):
    def test_F6_small_jobs_items_do_not_die_before_the_circuit_opens(self):
        """15 items, 3 attempts, three workers: the destination is left alone after 20 failures of all workers together."""
        self.install(PLAIN.replace("max_attempts: 20", "max_attempts: 3").replace("timeout: 300ms", "circuit_pause: 2s, circuit_max_pause: 2s"))
        self.ledger.behave["/mail"] = answers(500)
        self.start("dispatcher")
        for _ in range(3):
            self.start("worker")
        self.start("dlq", "archive")
        items = [self.enqueue("mail.send") for _ in range(15)]
        eventually(lambda: "held" in self.troubles(), 10, "the circuit's opening")
        time.sleep(1)
        self.assertEqual(self.one("""SELECT count(*) FROM takt.ended_items WHERE finished_at <
            (SELECT min(opened_at) FROM takt.failing_destinations)"""), 0, "nothing died before it was left alone")
        dead = self.one("SELECT count(*) FROM takt.ended_items")
        self.assertLessEqual(dead, 1, "the try of a worker that had seen no failure itself")
        # Nineteen had failed, and one run took all fifteen; then a try of each worker. Each for itself would have sent 45.
        self.assertLessEqual(len(self.ledger.of("/mail")), 19 + 15 + 3, "and little more was sent")
        self.ledger.behave["/mail"] = answers(200)
        eventually(lambda: sum(self.state(item) == "done" for item in items) == 15 - dead, 30, "all done")

    def test_11_what_one_sound_worker_learns_frees_all(self):
        """Two workers that leave it alone for five minutes; a third comes, and its success lets them try."""
        self.install(PLAIN.replace("max_attempts: 20", "max_attempts: 1000\n    batch_size: 5").replace("timeout: 300ms", "circuit_pause: 5m"))
        self.ledger.behave["/mail"] = answers(500)
        self.start("dispatcher")
        workers = [self.start("worker") for _ in range(2)]
        items = [self.enqueue("mail.send") for _ in range(40)]
        eventually(lambda: "held" in self.troubles(), 20, "the circuit's opening")
        # One that had seen no failure has tried for itself.
        eventually(lambda: all(part in self.get(w, "/metrics") for w in workers for part in
                               ('takt_circuit_open{job="mail.send"} 1', 'takt_items_total{class="error",job="mail.send"}')), 20, "both leave it alone")
        self.ledger.behave["/mail"] = answers(200)
        time.sleep(1.5)
        self.assertEqual(self.one("SELECT count(*) FROM takt.finished_items"), 0, "they wait")
        third = self.start("worker")
        eventually(lambda: all(self.state(item) == "done" for item in items), 20, "all done by the third, which asked once")
        self.assertNotIn("held", self.troubles())
        self.stop(third)
        last = [self.enqueue("mail.send") for _ in range(5)]
        eventually(lambda: all(self.state(item) == "done" for item in last), 10, "the freed ones' work")
