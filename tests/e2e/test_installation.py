"""Who is there, and who is not: told by status, check, readiness and metrics within five seconds of it being so."""
import base64
import json
import secrets
import signal
import socket
import time

from harness import PATIENCE, answers, eventually
from told import TOLD, ToldTest

CONFIG = """
metrics: {listen: "127.0.0.1:0"}
worker: {queues: [default]}
jobs:
  mail.send:
    handler: {http: {url: "{url}/mail", method: POST}}
"""
TICKING = CONFIG + """
    item_per_tick: false
    schedules: [{name: s, cron: "@every 1s"}]
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def new_secret():
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


class Installation(ToldTest):
    def test_C23_F1_no_worker_no_archive_or_none_for_one_queue(self):
        self.install(CONFIG)
        dispatcher = self.start("dispatcher")
        self.told(dispatcher, "no_worker", "NO WORKER takes the ticks of queue default: nothing is done for mail.send")
        self.told(dispatcher, "no_archive", "NO ARCHIVE reads dead letters")
        worker, archive = self.start("worker"), self.start("dlq", "archive")
        self.complete()
        for service in (dispatcher, worker, archive):
            self.assertNotIn("NOT READY", self.log_of(service), "one that starts is not told as broken")
        self.assertIn("services: 1 dispatcher, 1 worker (0 of 12 runs), 1 archive", self.takt("status"))
        self.assertRegex(self.takt("check"), "ok    services: 1 dispatcher, 1 worker .*, 1 archive")
        eventually(lambda: 'takt_services{role="worker"} 1' in self.get(dispatcher, "/metrics"), TOLD, "the metric")
        self.stop(worker)
        self.told(dispatcher, "no_worker", "NO WORKER takes the ticks of queue default")
        self.stop(archive)
        self.told(dispatcher, "no_archive", "NO ARCHIVE")
        with open(self.config, "a", encoding="utf-8") as file:
            file.write(f'  slow.one: {{queue: slow, handler: {{http: {{url: "{self.ledger.url}/slow", method: POST}}}}}}\n')
        self.takt("apply")
        self.start("worker")
        self.start("dlq", "archive")
        eventually(lambda: set(self.troubles()) == {"no_worker"}, TOLD, "the one queue")
        self.told(dispatcher, "no_worker", "NO WORKER takes the ticks of queue slow: nothing is done for slow.one")

    def test_ticks_that_nobody_begins_are_counted_with_the_oldests_age(self):
        self.install(TICKING)
        dispatcher = self.start("dispatcher")

        def waiting():
            job = json.loads(self.takt("status", "--json"))["jobs"][0]
            return job["ticks_not_begun"], job["oldest_tick_s"]

        eventually(lambda: (seen := waiting())[0] >= 2 and seen[1] > 1, 10, "two ticks and more in status")
        self.assertRegex(self.takt("status"), r"mail\.send +active +0 +- +- +\d+ +\d+s ")
        for name, least in (("takt_job_ticks_not_begun", 2), ("takt_job_oldest_tick_seconds", 1)):
            eventually(lambda name=name, least=least: (self.metric(dispatcher, name + '{job="mail.send"}') or 0) >= least, 20, name)
        self.start("worker")
        eventually(lambda: waiting()[0] <= 1, 10, "that a worker begins them")

    def test_what_waits_in_the_brokers_queues_is_counted_and_dlq_says_that_nobody_reads(self):
        self.ledger.behave["/mail"] = answers(500)
        self.install(CONFIG + "    max_attempts: 1\n")
        dispatcher, _ = self.start("dispatcher"), self.start("worker")
        item = self.enqueue("mail.send")
        self.publish(self.channel(), {"id": "forged", "job": "mail.send"}, secret=new_secret())
        eventually(lambda: self.state(item) == "dead", what="its death")
        told = "NO ARCHIVE reads dead letters: 1 waits in takt.dead"
        for words in (told, "waiting in takt.dead: 1\n", "waiting in takt.quarantine: 1;"):
            eventually(lambda words=words: words in self.takt("status"), 30, words)
        self.assertEqual({queue: json.loads(self.takt("status", "--json"))["waiting_in"][queue] for queue in ("takt.dead", "takt.quarantine")},
                         {"takt.dead": 1, "takt.quarantine": 1})
        for queue in ("takt.dead", "takt.quarantine"):
            eventually(lambda queue=queue: self.metric(dispatcher, f'takt_queue_messages{{queue="{queue}"}}') == 1, 30, f"the metric of {queue}")
        said = self.takt("dlq", "list")
        self.assertIn("no dead letters match\n", said)
        self.assertIn(told, said)
        self.start("dlq", "archive")
        eventually(lambda: f"item-{item}-0" in (said := self.takt("dlq", "list")) and "NO ARCHIVE" not in said, what="the letter in the archive")

    def test_a_services_own_port_comes_before_the_files(self):
        shared, own = free_port(), free_port()
        self.install(CONFIG.replace("127.0.0.1:0", f"127.0.0.1:{shared}"))
        first = self.started_with(dict(self.environment, TAKT_METRICS_LISTEN=f"127.0.0.1:{own}"), "dispatcher")
        second = self.started_with(dict(self.environment, TAKT_METRICS_LISTEN=""), "worker")
        for service, port in ((first, own), (second, shared)):
            self.assertIn(f"metrics_port={port}", self.log_of(service))
            self.assertEqual(self.ask(service, "/healthz"), (200, "ok\n"))

    def test_C23_no_dispatcher(self):
        self.install(CONFIG)
        up = self.start("up")
        self.complete()
        self.stop(up)
        eventually(lambda: "no_leader" in self.troubles(), TOLD)
        self.assertIn("NONE LEADS", self.takt("status"))
        self.assertIn("FAULT services: NONE LEADS", self.takt("check", expect=1))

    def test_C23_F5_one_that_goes_silent_is_named_by_the_id_and_host_of_its_log_and_runs(self):
        self.install(CONFIG)
        dispatcher, worker, _ = self.start("dispatcher"), self.start("worker"), self.start("dlq", "archive")
        self.complete()
        item = self.enqueue("mail.send")
        eventually(lambda: self.state(item) == "done")
        name = self.one("SELECT worker FROM takt.runs ORDER BY id LIMIT 1")
        identity, host = name.split("@")
        self.assertIn(f" worker {name}: started version=", self.log_of(worker))
        services = json.loads(self.takt("services", "--json"))
        self.assertEqual([(s["service"], s["host"], s["pid"], s["queues"], s["places"]) for s in services if s["kind"] == "worker"],
                         [(name, host, worker.pid, ["default"], 12)])
        shown = json.loads(self.takt("check", "--json", expect=0))
        fingerprint = next(one["detail"] for one in shown if one["what"] == "signing keys")
        self.assertTrue(all(s["keys"] == [fingerprint] for s in services), services)
        self.assertIn(f"dispatcher: {self.one('SELECT holder FROM takt.leader')} leads, term 1", self.takt("status"))
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        self.told(dispatcher, "silent", f"WENT SILENT: worker {identity} on {host} (pid {worker.pid}), last seen ")
        self.assertIn("no_worker", self.troubles())
        told = self.log_of(dispatcher).count("WENT SILENT")
        time.sleep(5)  # two looks and more
        self.assertEqual((told, self.log_of(dispatcher).count("WENT SILENT")), (1, 1), "once, though the seconds in it change")
        self.db.cursor().execute("UPDATE takt.services SET seen_at = now() - interval '61 min' WHERE id = %s", (identity,))
        eventually(lambda: "silent" not in self.troubles(), 90, "to be forgotten")

    def test_C23_a_service_that_ends_in_order_is_gone_at_once(self):
        self.install(CONFIG)
        up = self.start("up")
        self.complete()
        self.assertEqual(self.rows("SELECT kind, roles FROM takt.services"), [("up", ["dispatcher", "worker", "archive"])])
        self.stop(up)
        self.assertEqual(self.one("SELECT count(*) FROM takt.services"), 0)
        self.assertIn("no service runs", self.takt("services"))

    def ring(self, *entries):
        environment = dict(self.environment, TAKT_SIGNING_KEYS="\n".join(entries))
        self.secrets.update(word for entry in entries for word in entry.split() if word.startswith("whsec_"))
        return environment

    def test_C21_F2_one_that_lacks_the_leaders_key_is_refused_at_its_start(self):
        self.install(CONFIG)
        up = self.start("up")
        self.complete()
        holder = self.one("SELECT holder FROM takt.leader")
        other = self.ring(new_secret())
        for service in (["worker"], ["dispatcher"], ["up"], ["dlq", "archive"]):
            told = self.takt(*service, expect=1, environment=other)
            self.assertRegex(told, f"TAKT_SIGNING_KEYS: this process lacks the key [0-9a-f]{{8}} that dispatcher {holder} signs ticks with")
        self.stop(up)
        self.stop(self.started_with(other, "up"))

    def test_C21_F2_one_whose_key_ends_while_the_leader_signs_with_it(self):
        """Keys were rotated, and one dispatcher was forgotten."""
        self.install(CONFIG)
        old, new = new_secret(), new_secret()
        dispatcher = self.started_with(self.ring(old), "dispatcher")
        ends = time.time() + 8
        rotated = self.ring(f"current {new}", f"retired {old} until {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(ends))}")
        worker, _ = self.started_with(rotated, "worker"), self.started_with(rotated, "dlq", "archive")
        self.complete()
        first = self.enqueue("mail.send")
        eventually(lambda: self.state(first) == "done", what="work, as long as the key is valid")
        time.sleep(max(0, ends - time.time()))
        item = self.enqueue("mail.send")
        self.told(dispatcher, "key", "WRONG KEY: worker ", f"(pid {worker.pid}) lacks the key ", since=ends, times=2)
        self.assertIn("lacks the key", self.takt("worker", expect=1, environment=rotated))
        self.assertIn("lacks the key", self.get(worker, "/readyz"))
        self.assertEqual(self.state(item), "pending")
        self.assertNotIn("tick quarantined", self.log_of(worker))
        self.stop(dispatcher)
        self.started_with(rotated, "dispatcher")
        eventually(lambda: self.state(item) == "done", 30, "work, once the leader signs with the new key")
        eventually(lambda: self.troubles() == {}, TOLD)

    def test_C21_check_names_those_that_lack_the_next_key(self):
        self.install(CONFIG)
        old, new = new_secret(), new_secret()
        both = self.ring(f"current {old}", f"next {new}")
        self.started_with(both, "dispatcher"), self.started_with(both, "dlq", "archive")
        lacking = self.started_with(self.ring(old), "worker")
        self.complete()
        name = self.one("SELECT id || '@' || host FROM takt.services WHERE pid = %s", lacking.pid)
        coming = json.loads(self.takt("keys", "list", "--json", environment=both))[1]["fingerprint"]
        said = self.takt("check", environment=both)
        self.assertIn(f"note  signing keys: worker {name} does not hold the next key {coming}; give it that key before you rotate", said)
        self.assertEqual(said.count("does not hold the next key"), 1, said)
        self.stop(lacking)
        self.started_with(both, "worker")
        self.complete()
        self.assertNotIn("does not hold", self.takt("check", environment=both))

    def test_C21_F2_one_that_comes_to_lack_it_loses_no_slot(self):
        self.install(TICKING)
        old, new = new_secret(), new_secret()
        both = self.ring(f"current {old}", f"next {new}")
        dispatcher = self.started_with(self.ring(f"current {old}", f"next {new}"), "dispatcher")
        sound, wrong = self.started_with(both, "worker"), self.started_with(self.ring(old), "worker")
        self.started_with(both, "dlq", "archive")
        self.complete()
        eventually(lambda: self.one("SELECT count(DISTINCT worker) FROM takt.runs") == 2, 30, "runs of both")
        self.stop(dispatcher)
        since = self.one("SELECT now()")
        dispatcher = self.started_with(self.ring(f"current {new}", f"next {old}"), "dispatcher")
        self.told(dispatcher, "key", "WRONG KEY: worker ", f"(pid {wrong.pid}) lacks the key ", "NOT READY: worker ")
        self.assertIn("lacks the key", self.get(wrong, "/readyz"))
        eventually(lambda: self.one("SELECT count(*) FROM takt.runs WHERE started_at > %s", since) >= 10, 30, "ten slots")
        late = "SELECT extract(epoch FROM max(r.started_at - t.publish_at))::float8 FROM takt.runs r JOIN takt.ticks t ON t.id = r.tick_id WHERE r.started_at > %s"
        self.assertLess(self.one(late + " AND t.source = 'schedule' AND t.publish_at > %s + interval '3 s'", since, since), PATIENCE, "seconds")
        self.assertEqual(self.one("SELECT count(*) FROM takt.ticks WHERE finished_at IS NULL AND publish_at BETWEEN %s AND now() - interval '2 s'", since), 0)
        self.assertNotIn("tick quarantined", self.log_of(wrong))
        self.assertIn("ticks given back", self.log_of(wrong))
        self.stop(sound)
        self.stop(wrong)
