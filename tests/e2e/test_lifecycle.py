"""An item's life on real processes: retries, classes, death and replay, shutdown, lost workers, overlap."""
import json
import re
import signal
import time

import psycopg2

from harness import PATIENCE, SERVICES, TaktTest, answers, eventually, rabbitmqctl

CONFIG = """
broker: {heartbeat: 5s}
worker: {grace: 2s, runs: 4}
databases:
  app: {url_env: APP_DATABASE_URL, role: app_role}
jobs:
  hopeless:
    handler: {http: {url: "{url}/hopeless", method: POST}}
    max_attempts: 4
    backoff: {base: 500ms, factor: 2, max: 10s, jitter: none}
  flaky:
    handler: {http: {url: "{url}/flaky", method: POST}}
    max_attempts: 5
    backoff: [200ms]
  busy:
    handler: {http: {url: "{url}/busy", method: POST}}
    backoff: {base: 100ms, max: 10s, jitter: none}
  wrong-method:
    handler: {http: {url: "{url}/wrong-method", method: POST}}
  given-up:
    handler: {http: {url: "{url}/given-up", method: POST}}
  slow:
    handler: {http: {url: "{url}/slow", method: POST, parallel: 2}}
    lease: 3s
  solo:
    concurrency: 1
    batch_size: 1
    handler: {http: {url: "{url}/solo", method: POST}}
  many:
    batch_size: 50
    handler: {http: {url: "{url}/many", method: POST, parallel: 20}}
  poison:
    max_attempts: 2
    lease: 2s
    handler: {http: {url: "{url}/poison", method: POST}}
  in-sql:
    handler:
      sql:
        database: app
        statement: "INSERT INTO public.effects (item, payload) VALUES ($3, $1::jsonb) RETURNING 'done' AS result"
  in-sql-wrong:
    max_attempts: 1
    handler: {sql: {database: app, statement: "SELECT no_such_function($1::jsonb)"}}
"""


class Lifecycle(TaktTest):
    def setUp(self):
        super().setUp()
        self.role, self.login = "app_" + self.name, "login_" + self.name
        self.environment["APP_DATABASE_URL"] = f"postgresql://{self.login}:of-its-own@" + self.database_url.split("@")[1]
        self.admin.cursor().execute(f"CREATE ROLE {self.role}; CREATE ROLE {self.login} LOGIN PASSWORD 'of-its-own'; GRANT {self.role} TO {self.login}")
        self.install(CONFIG.replace("app_role", self.role))

    def tearDown(self):
        super().tearDown()
        admin = psycopg2.connect(SERVICES["TAKT_DATABASE_URL"])
        admin.autocommit = True
        admin.cursor().execute(f"DROP ROLE IF EXISTS {self.login}; DROP ROLE IF EXISTS {self.role}")
        admin.close()

    def test_a_job_that_fails_for_ever_dies_after_exactly_its_attempts_at_the_times_of_its_backoff_and_is_replayed(self):
        self.start("up")
        self.ledger.behave["/hopeless"] = answers(500)
        item = self.enqueue("hopeless", {"customer": "Ada"})
        eventually(lambda: self.rows("SELECT 1 FROM takt.dead_letters WHERE item_id = %s", item), what="the dead letter")
        deliveries = self.ledger.of("/hopeless")
        self.assertEqual([d["attempt"] for d in deliveries], [1, 2, 3, 4])
        self.assertEqual({d["item"] for d in deliveries}, {f"item-{item}"}, "the same webhook-id on every attempt")
        gaps = [b["time"] - a["time"] for a, b in zip(deliveries, deliveries[1:])]
        for gap, pause in zip(gaps, (0.5, 1.0, 2.0)):
            self.assertGreaterEqual(gap, pause)
            self.assertLess(gap, pause + 1.5 * PATIENCE, f"after a pause of {pause} s; the gaps were {gaps}")
        letter = json.loads(self.takt("dlq", "show", f"item-{item}-0", "--json"))
        self.assertEqual((letter["reason"], letter["attempts"], letter["payload"]), ("max_attempts", 4, {"customer": "Ada"}))
        self.assertEqual([(a["attempt"], a["reason"]) for a in letter["history"]], [(n, "http_500") for n in (1, 2, 3, 4)])
        self.assertEqual(self.state(item), "dead")
        self.check_invariants()

        listed = json.loads(self.takt("dlq", "list", "--job", "hopeless", "--text", "ada", "--json"))
        self.assertEqual([row["letter"] for row in listed], [f"item-{item}-0"])
        self.ledger.behave["/hopeless"] = answers(200)
        self.assertIn("--yes", self.takt("dlq", "replay", "--job", "hopeless", expect=2))
        self.assertIn("say which", self.takt("dlq", "replay", "--yes", expect=2))
        self.takt("dlq", "replay", "--job", "hopeless", "--yes", "--by", "ada", "--rate", "50")
        self.takt("dlq", "replay", f"item-{item}-0", "--yes", "--by", "bob")
        eventually(lambda: self.state(item) == "done", what="the replayed item")
        self.assertEqual(len(self.ledger.of("/hopeless")), 5)
        self.assertEqual(self.ledger.of("/hopeless")[-1]["attempt"], 1, "with fresh attempts")
        self.assertEqual(self.rows("SELECT state, changed_by FROM takt.dead_letters"), [("replayed", "ada")])
        self.assertEqual(self.one("SELECT count(*) FROM takt.attempts WHERE item_id = %s", item), 5, "its history is kept")
        self.check_invariants()

    def test_F10_check_prepares_each_statement_as_the_role_that_will_execute_it(self):
        with open(self.config, encoding="utf-8") as file:
            config = file.read()
        shown = self.takt("check", "--before-start", expect=1)
        self.assertRegex(shown, "FAULT statement of in-sql-wrong: .*no_such_function")
        self.assertRegex(shown, "FAULT statement of in-sql: .*effects")  # not made yet
        for statement, said in (("SELEKT 1", "syntax error"), ("SELECT nobody_made_this($1)", "nobody_made_this"), ("SELECT 1; DROP TABLE takt.items", "multiple commands"),
                                ("SELECT count(*) FROM takt.items", "permission denied")):
            with open(self.config, "w", encoding="utf-8") as file:
                file.write(re.sub(r'statement: "[^"]*"', f'statement: "{statement}"', config))
            shown = self.takt("check", "--before-start", expect=1)
            self.assertRegex(shown, f"FAULT statement of .*{said}")
        self.assertEqual(self.one("SELECT count(*) FROM takt.items"), 0, "it is there still")

    def test_H2_answers_become_the_classes_of_the_design(self):
        self.start("up")
        self.ledger.behave["/flaky"] = lambda nth: (500 if nth < 3 else 200, {}, b"")
        self.ledger.behave["/busy"] = lambda nth: (503, {"Retry-After": "2"}, b"") if nth == 1 else (200, {"Content-Type": "application/json"}, b'{"result":"noop"}')
        self.ledger.behave["/wrong-method"] = answers(405)
        self.ledger.behave["/given-up"] = answers(489, {"Upstash-NonRetryable-Error": "true"})
        flaky, busy, wrong, given_up = (self.enqueue(job) for job in ("flaky", "busy", "wrong-method", "given-up"))
        eventually(lambda: [self.state(i) for i in (flaky, busy, wrong, given_up)] == ["done", "done", "blocked", "dead"], what="the four ends")
        self.assertEqual(len(self.ledger.of("/flaky")), 3)
        first, second = self.ledger.of("/busy")
        self.assertGreaterEqual(second["time"] - first["time"], 2, "Retry-After was honoured")
        self.assertEqual(self.one("SELECT class FROM takt.finished_items WHERE id = %s", busy), "noop")
        self.assertEqual(self.one("SELECT error FROM takt.failed_attempts WHERE item_id = %s", wrong), "this endpoint does not accept POST")
        self.assertEqual(len(self.ledger.of("/given-up")), 1)
        self.ledger.behave["/wrong-method"] = answers(200)
        self.takt("items", "retry", str(wrong), "--yes")
        eventually(lambda: self.state(wrong) == "done")
        self.check_invariants()

    def test_requests_are_signed_so_that_any_standard_webhooks_library_takes_them(self):
        self.start("up")
        item = self.enqueue("flaky", {"n": 1})
        eventually(lambda: self.state(item) == "done")
        delivery = self.ledger.of("/flaky")[0]
        headers = delivery["headers"]
        self.assertEqual(headers["webhook-signature"], self.sign(headers["webhook-id"], headers["webhook-timestamp"], delivery["body"], self.webhook_secret("flaky")))
        self.assertRegex(headers["traceparent"], "^00-[0-9a-f]{32}-[0-9a-f]{16}-01$")
        self.assertEqual(headers["Takt-Job"], "flaky")

    def test_a_backlog_is_drained_by_continuation_ticks_once_each(self):
        self.start("up")
        self.one("SELECT count(*) FROM takt.enqueue_many('many', array_fill('{}'::jsonb, ARRAY[1000]))")
        eventually(lambda: self.one("SELECT count(*) FROM takt.finished_items WHERE state = 2") == 1000, what="the drain")
        self.assertEqual(len(self.ledger.of("/many")), 1000)
        self.assertGreaterEqual(self.one("SELECT count(*) FROM takt.runs WHERE scanned = 50"), 10)
        self.check_invariants()

    def test_work_begins_soon_after_its_transaction_commits(self):
        self.start("up")
        self.enqueue("flaky")
        eventually(lambda: len(self.ledger.of("/flaky")) == 1)
        delays = []
        for n in range(20):
            began = time.time()
            self.enqueue("flaky")
            eventually(lambda: len(self.ledger.of("/flaky")) == n + 2)
            delays.append(self.ledger.of("/flaky")[-1]["time"] - began)
        self.assertLess(sorted(delays)[10], 0.25 * PATIENCE, f"the median of {delays}")

    def test_one_run_at_a_time_over_all_workers(self):
        overlap = {"now": 0, "most": 0}

        def slowly(nth):
            overlap["now"] += 1
            overlap["most"] = max(overlap["most"], overlap["now"])
            time.sleep(0.1)
            overlap["now"] -= 1
            return 200, {}, b""

        self.ledger.behave["/solo"] = slowly
        self.start("dispatcher")
        for _ in range(3):
            self.start("worker")
        for _ in range(15):
            self.enqueue("solo")
        for _ in range(10):
            self.takt("tick", "solo")
        eventually(lambda: self.one("SELECT count(*) FROM takt.finished_items") == 15, 60, "fifteen items")
        self.assertEqual(overlap["most"], 1)
        eventually(lambda: self.one("SELECT count(*) FROM takt.ticks WHERE finished_at IS NULL") == 0, what="the last ticks")
        self.assertGreater(self.one("SELECT count(*) FROM takt.runs WHERE status = 'locked'"), 0)
        self.check_invariants()

    def test_W6_sigterm_finishes_or_hands_back_within_the_grace(self):
        self.start("dispatcher")
        worker = self.start("worker")
        self.ledger.behave["/slow"] = lambda nth: (time.sleep(1.0) or 200, {}, b"")
        for _ in range(10):
            self.enqueue("slow")
        eventually(lambda: len(self.ledger.of("/slow")) >= 2, what="the first requests")
        began = time.monotonic()
        self.stop(worker, within=10)
        self.assertLess(time.monotonic() - began, 5 * PATIENCE)
        self.assertEqual(self.one("SELECT count(*) FROM takt.running_items"), 0, "nothing is left to a lease")
        done = self.one("SELECT count(*) FROM takt.finished_items")
        self.assertEqual(done + self.one("SELECT count(*) FROM takt.items WHERE state = 0 AND attempt = 0"), 10)
        self.start("worker")
        eventually(lambda: self.one("SELECT count(*) FROM takt.finished_items") == 10, what="the rest")
        self.assertEqual(len(self.ledger.of("/slow")), 10, "none was delivered twice")
        eventually(lambda: self.one("SELECT count(*) FROM takt.running_items") == 0)
        self.check_invariants()

    def test_W6_a_request_longer_than_the_grace_is_cut_and_counts_as_an_attempt(self):
        self.start("dispatcher")
        worker = self.start("worker")
        self.ledger.behave["/slow"] = lambda nth: (time.sleep(6 if nth == 1 else 0) or 200, {}, b"")
        item = self.enqueue("slow")
        eventually(lambda: len(self.ledger.of("/slow")) == 1)
        self.stop(worker, within=6)
        self.assertEqual(self.rows("SELECT state, attempt FROM takt.items WHERE id = %s", item), [(0, 1)])
        self.start("worker")
        eventually(lambda: self.state(item) == "done")
        self.assertEqual([d["attempt"] for d in self.ledger.of("/slow")], [1, 2])
        self.check_invariants()

    def test_W7_a_killed_workers_item_comes_back_and_one_that_kills_ends_dead(self):
        self.start("dispatcher")
        self.start("dlq", "archive")
        self.ledger.behave["/poison"] = lambda nth: (time.sleep(30) or 200, {}, b"")
        item = self.enqueue("poison")
        for attempt in (1, 2):
            worker = self.start("worker")
            eventually(lambda: len(self.ledger.of("/poison")) == attempt, what=f"delivery {attempt}")
            worker.kill()
            worker.wait()
        eventually(lambda: self.rows("SELECT 1 FROM takt.dead_letters WHERE item_id = %s", item), what="its death")
        self.assertEqual(self.one("SELECT count(*) FROM takt.failed_attempts WHERE class = 'lost'"), 2)
        self.assertEqual(self.one("SELECT reason FROM takt.dead_letters"), "max_attempts")
        self.check_invariants()

    def test_W5_a_worker_stopped_past_its_lease_cannot_settle(self):
        self.start("dispatcher")
        frozen = self.start("worker")
        release = {"go": False}

        def first_waits(nth):
            while nth == 1 and not release["go"]:
                time.sleep(0.05)
            return 200, {}, b""

        self.ledger.behave["/slow"] = first_waits
        item = self.enqueue("slow")
        eventually(lambda: len(self.ledger.of("/slow")) == 1)
        frozen.send_signal(signal.SIGSTOP)
        self.start("worker")
        eventually(lambda: self.state(item) == "done", what="the successor's result")
        winner = self.one("SELECT run_id FROM takt.finished_items")
        release["go"] = True
        frozen.send_signal(signal.SIGCONT)
        eventually(lambda: re.search("run (finished|lost its lease).* settled=0", self.log_of(frozen)), what="the frozen worker's refused settling")
        self.assertEqual(self.rows("SELECT run_id, attempts FROM takt.finished_items"), [(winner, 2)])
        self.check_invariants()

    def test_a_long_request_keeps_its_lease(self):
        self.start("up")
        self.ledger.behave["/slow"] = lambda nth: (time.sleep(7) or 200, {}, b"")
        item = self.enqueue("slow")
        eventually(lambda: self.state(item) == "done")
        self.assertEqual(len(self.ledger.of("/slow")), 1, "a lease of 3 s was renewed while a request took 7")

    def test_sql_items_run_as_the_role_they_were_given(self):
        self.db.cursor().execute(f"CREATE TABLE public.effects (item bigint, payload jsonb, who text DEFAULT current_user); GRANT INSERT ON public.effects TO {self.role}; "
                                 f"GRANT SELECT (item) ON public.effects TO {self.role}")
        self.start("up")
        good, wrong = self.enqueue("in-sql", {"n": 5}), self.enqueue("in-sql-wrong")
        eventually(lambda: (self.state(good), self.state(wrong)) == ("done", "dead"), what="both ends")
        self.assertEqual(self.rows("SELECT item, payload, who FROM public.effects"), [(good, {"n": 5}, self.role)])
        self.assertEqual(self.one("SELECT reason FROM takt.failed_attempts WHERE item_id = %s", wrong), "sqlstate_42883")

    def test_C19_finding22_a_database_that_is_away_costs_its_items_no_attempt_and_finding23_a_superuser_is_refused(self):
        self.db.cursor().execute(f"CREATE TABLE public.effects (item bigint, payload jsonb); GRANT INSERT, SELECT ON public.effects TO {self.role}")
        self.admin.cursor().execute(f"ALTER ROLE {self.login} NOLOGIN")
        self.start("up")
        refused = self.enqueue("in-sql")
        eventually(lambda: self.state(refused) == "blocked", what="a login that is refused")
        self.admin.cursor().execute(f"ALTER ROLE {self.login} LOGIN SUPERUSER")
        superuser = self.enqueue("in-sql")
        eventually(lambda: self.state(superuser) == "blocked", what="a superuser")
        self.admin.cursor().execute(f"ALTER ROLE {self.login} NOSUPERUSER CONNECTION LIMIT 0")  # it has no place left
        time.sleep(1.1)  # a connection that was just used is not asked again
        self.admin.cursor().execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{self.login}'")
        waiting, healthy = [self.enqueue("in-sql") for _ in range(8)], self.enqueue("flaky")
        eventually(lambda: self.state(healthy) == "done", what="a job that needs no database")
        eventually(lambda: self.one("SELECT count(*) FROM takt.runs WHERE skipped > 0") >= 2, what="tries")
        self.admin.cursor().execute(f"ALTER ROLE {self.login} CONNECTION LIMIT -1")
        eventually(lambda: all(self.state(item) == "done" for item in waiting), what="all of them, once it is back")
        self.assertEqual(self.one("SELECT count(*) FROM public.effects"), 8)
        self.assertEqual(self.one("SELECT count(*) FROM takt.failed_attempts WHERE item_id = ANY(%s)", waiting), 0)
        self.takt("items", "retry", str(refused), str(superuser), "--yes")
        eventually(lambda: (self.state(refused), self.state(superuser)) == ("done", "done"), what="what the operator sent back")

    def test_once_and_dry_run_need_no_broker(self):
        environment = dict(self.environment)
        del environment["TAKT_AMQP_URL"]
        for _ in range(3):
            self.enqueue("flaky")
        shown = json.loads(self.takt("worker", "--once", "--job", "flaky", "--dry-run", "--json", environment=environment))
        self.assertEqual(len(shown), 3)
        self.assertEqual(self.ledger.deliveries, [])
        ran = json.loads(self.takt("worker", "--once", "--job", "flaky", "--batch-size", "2", "--json", environment=environment))
        self.assertEqual((ran[0]["scanned"], ran[0]["done"], ran[0]["remaining"]), (2, 2, 1))
        json.loads(self.takt("worker", "--once", "--json", environment=environment))
        self.assertEqual(self.one("SELECT count(*) FROM takt.finished_items"), 3)
        self.assertIn("no job named", self.takt("worker", "--once", "--job", "nobody", environment=environment, expect=1))

    def test_metrics_and_health_tell_what_happened(self):
        up = self.start("up")
        self.ledger.behave["/given-up"] = answers(489, {"Upstash-NonRetryable-Error": "true"})
        self.enqueue("flaky")
        self.enqueue("given-up")
        eventually(lambda: self.one("SELECT count(*) FROM takt.dead_letters") == 1)
        self.assertEqual(self.ask(up, "/healthz")[0], 200)
        self.assertEqual(self.ask(up, "/nothing")[0], 404)
        body = eventually(lambda: (answer := self.ask(up, "/readyz"))[0] == 200 and answer)[1]
        self.assertTrue(json.loads(body)["ready"])
        text = eventually(lambda: 'takt_dead_letters_archived_total{kind="item"} 1' in (body := self.get(up, "/metrics")) and body)
        eventually(lambda: 'takt_queue_messages{queue="takt.dead"} 0' in self.get(up, "/metrics"), what="the depth of the queues")
        for line in ('takt_items_total{class="done",job="flaky"} 1', 'takt_items_total{class="dead",job="given-up"} 1',
                     'takt_dead_letters_total{reason="http_489"} 1', "takt_dispatcher_leading 1", "takt_database_up 1",
                     'takt_broker_connected{connection="consumer"} 1', "takt_ticks_received_total", "takt_batch_duration_seconds_bucket"):
            self.assertIn(line, text)

    def test_services_wait_while_a_part_is_away_and_go_on_after(self):
        up = self.start("up")
        rabbitmqctl("close_all_connections", "--vhost", self.vhost, "a test says so")
        self.admin.cursor().execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND application_name = 'takt'", (self.name,))
        items = [self.enqueue("flaky") for _ in range(5)]
        eventually(lambda: all(self.state(item) == "done" for item in items), what="work after both were lost")
        self.assertIsNone(up.poll())
        self.check_invariants()
