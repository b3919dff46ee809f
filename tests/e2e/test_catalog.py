"""Jobs and queues that come and go while all services run: nobody restarts anything, and no tick is lost over it."""
import concurrent.futures
import contextlib
import json
import time

import pika
import psycopg2

from harness import PATIENCE, TaktTest, eventually

CONFIG = """
worker: {grace: 2s, queues: [QUEUES]}
jobs:
  demo:
    handler: {http: {url: "{url}/demo", method: POST}}
"""
ADDED = """
  on-new-queue:
    queue: slow
    handler: {http: {url: "{url}/on-new-queue", method: POST}}
  on-old-queue:
    handler: {http: {url: "{url}/on-old-queue", method: POST}}
  every-second:
    queue: ticking
    schedules: [{name: s, cron: "* * * * * *"}]
    handler: {http: {url: "{url}/every-second", method: POST}}
"""
ALL = CONFIG.replace("QUEUES", "")


class Catalog(TaktTest):
    def delete_queues(self):
        connection = pika.BlockingConnection(pika.URLParameters(self.amqp_url))
        for queue in ("slow", "ticking", "odd"):
            connection.channel().queue_delete("takt.ticks." + queue)
        connection.close()
        super().delete_queues()

    def apply(self, config):
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(config.replace("{url}", self.ledger.url))
        return self.takt("apply", "--prune")

    def apply_around(self, deed, config):
        """Applies, and does `deed` while that is about to write: what follows is the commit, however long a command takes to start."""
        with concurrent.futures.ThreadPoolExecutor(1) as pool, contextlib.closing(psycopg2.connect(self.database_url)) as other:
            other.cursor().execute("SELECT pg_advisory_xact_lock(1952541557)")  # as core/config/apply.cc takes it
            applied = pool.submit(self.apply, config)
            eventually(lambda: self.one("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = 1952541557"
                                        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())") == 1, what="apply, at its lock")
            deed()
        return applied.result()

    def enqueue_together(self, *jobs):
        """One item each in the moment in which the jobs are there; with what they wait, in seconds."""
        began = time.time()
        with self.db.cursor() as cursor:
            cursor.execute("SELECT " + ", ".join("takt.enqueue(%s)" for _ in jobs), jobs)
        eventually(lambda: all(self.ledger.of("/" + job) for job in jobs), what=f"the requests of {jobs}")
        return {job: self.ledger.of("/" + job)[0]["time"] - began for job in jobs}

    def waiting(self, queue):
        try:
            return self.queue_depth(self.channel(), "takt.ticks." + queue)
        except pika.exceptions.ChannelClosedByBroker:
            return 0  # nobody has declared it yet

    def logs(self):
        return "".join(self.log_of(process) for process in self.processes)

    def ready(self, process):
        return self.ask(process, "/readyz")[0] == 200

    def check_nothing_was_restarted(self):
        for process in self.processes:
            self.assertIsNone(process.poll())
        for word in ("broker lost", "unroutable", "dead-lettered", "failing"):
            self.assertNotIn(word, self.logs())
        self.assertEqual(self.rows("SELECT id, reason FROM takt.dead_letters"), [])

    def test_C20_finding33_jobs_and_queues_added_while_all_services_run(self):
        self.install(ALL)
        for service in (("dispatcher",), ("dispatcher",), ("worker",), ("worker",), ("dlq", "archive")):
            self.start(*service)
        self.enqueue_together("demo")
        self.apply(ALL + ADDED)
        waited = self.enqueue_together("on-new-queue", "on-old-queue")
        self.assertLess(waited["on-old-queue"], 2 * PATIENCE)
        self.assertLess(waited["on-new-queue"], 4 * PATIENCE, "workers meet a queue within a second, twice of it on a busy machine")
        eventually(lambda: len(self.ledger.of("/every-second")) >= 3, what="slots on another new queue")
        self.check_nothing_was_restarted()
        self.assertEqual(self.queue_depth(self.channel(), "takt.ticks.slow"), 0)
        self.check_invariants()

    def test_C20_finding19_two_jobs_applied_and_enqueued_in_one_moment(self):
        self.install(ALL)
        up = self.start("up")
        self.enqueue_together("demo")
        channel = self.channel()
        for n in range(5):
            jobs = [f"new-{n}-{i}" for i in range(4)]
            more = "".join(f'  {job}:\n    handler: {{http: {{url: "{{url}}/{job}", method: POST}}}}\n' for job in jobs)

            def early(n=n, job=jobs[0]):
                received = self.metric(up, "takt_ticks_received_total")
                self.publish(channel, {"id": f"early-{n}", "job": job, "dueAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                                       "items": [{"payload": {"early": n}}]})
                eventually(lambda: self.metric(up, "takt_ticks_received_total") > received, what="a worker that met the tick")

            self.apply_around(early, ALL + more)
            waited = self.enqueue_together(*jobs)
            self.assertLess(max(waited.values()), 3 * PATIENCE, waited)
            eventually(lambda job=jobs[0]: len(self.ledger.of("/" + job)) == 2, what="the item of a tick that was faster than the commit")
        self.check_nothing_was_restarted()
        self.check_invariants()

    def test_finding33_a_worker_with_a_list_keeps_it(self):
        self.install(CONFIG.replace("QUEUES", "default"))
        self.start("up")
        self.enqueue_together("demo")
        self.apply(CONFIG.replace("QUEUES", "default") + ADDED)
        self.enqueue_together("on-old-queue")
        item = self.enqueue("on-new-queue")
        eventually(lambda: self.waiting("ticking") >= 2, what="ticks that are routed, and wait for a worker")
        self.assertEqual(self.state(item), "pending")
        self.assertNotIn("unroutable", self.logs())
        self.apply(ALL + ADDED)
        self.start("worker")
        eventually(lambda: self.state(item) == "done", what="the item, by a worker without a list")
        self.check_nothing_was_restarted()

    def test_finding33_a_queue_that_exists_otherwise_disturbs_no_other(self):
        self.install(ALL)
        self.start("up")
        self.enqueue_together("demo")
        self.channel().queue_declare("takt.ticks.odd", durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": 3})
        self.apply(ALL + ADDED + '  odd: {queue: odd, handler: {http: {url: "{url}/odd", method: POST}}}\n')
        self.enqueue("odd")
        self.enqueue_together("on-new-queue", "on-old-queue")
        eventually(lambda: "queue left out queue=odd" in self.logs(), what="a line that names the queue")
        self.assertIn("takt.ticks.odd exists with other properties", self.logs())
        self.assertNotIn("broker lost", self.logs())
        self.assertIn("takt.ticks.odd exists with other properties", self.takt("check", expect=1))
        # Nor does it keep anything from starting, or the archive from connecting.
        self.stop(self.processes[0])
        self.takt("migrate")
        done = len(self.ledger.of("/demo"))
        for service in (("dispatcher",), ("worker",), ("dlq", "archive"), ("up",)):
            process = self.start(*service)
            eventually(lambda process=process: self.ready(process), what=f"readiness of takt {service[-1]}")
            self.assertIn("queue left out queue=odd", self.log_of(process))
            self.assertNotIn("broker lost", self.log_of(process))
        self.enqueue("demo")
        eventually(lambda: len(self.ledger.of("/demo")) > done, what="work after the restarts")
        # A list that names it needs it.
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(CONFIG.replace("QUEUES", "odd").replace("{url}", self.ledger.url))
        self.assertIn("takt.ticks.odd exists with other properties", self.takt("worker", expect=1))

    def test_finding33_check_says_which_queues_are_still_to_be_declared(self):
        self.install(ALL)
        self.apply(ALL + ADDED)
        endpoints = [line for line in self.takt("check", "--before-start").splitlines() if line.startswith("ok    broker")]
        self.assertEqual(endpoints, ["ok    broker: reachable, 1 queue; the services will declare slow, ticking"])
        self.start("up")
        eventually(lambda: json.loads(self.takt("status", "--json"))["troubles"] == [], what="its signs of life, with all queues")
        self.assertIn("reachable, 3 queues\n", self.takt("check"))
        self.assertTrue(json.loads(self.takt("check", "--json"))[0]["ok"])
