"""Who is there, and who is not: told by status, check, readiness and metrics within five seconds of it being so."""
import base64
import json
import secrets
import signal
import time

from harness import eventually
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
        late = "SELECT extract(epoch FROM max(r.started_at - t.created_at))::float8 FROM takt.runs r JOIN takt.ticks t ON t.id = r.tick_id WHERE r.started_at > %s"
        self.assertLess(self.one(late + " AND t.source = 'schedule' AND t.created_at > %s + interval '3 s'", since, since), 1, "seconds")
        self.assertEqual(self.one("SELECT count(*) FROM takt.ticks WHERE finished_at IS NULL AND created_at BETWEEN %s AND now() - interval '2 s'", since), 0)
        self.assertNotIn("tick quarantined", self.log_of(wrong))
        self.assertIn("ticks given back", self.log_of(wrong))
        self.stop(sound)
        self.stop(wrong)
