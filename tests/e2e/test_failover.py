"""Two dispatchers and three workers, twenty schedules a second for a minute, while the leader and a worker are killed."""
import collections
import time

from harness import PATIENCE, TaktTest, eventually

SECONDS = 60


def config():
    jobs = "".join(f"""
  job{n:02}:
    lease: 4s
    handler: {{http: {{url: "{{url}}/job", method: POST}}}}
    schedules: [{{name: every-second, cron: "* * * * * *", payload: {{job: {n}}}}}]""" for n in range(20))
    return "broker: {heartbeat: 5s}\nworker: {runs: 4}\njobs:" + jobs + "\n"


class Failover(TaktTest):
    def test_every_slot_has_one_tick_and_every_tick_one_finished_run_while_leader_and_worker_are_killed(self):
        self.install(config())
        dispatchers = [self.start("dispatcher"), self.start("dispatcher")]
        workers = [self.start("worker") for _ in range(3)]
        archive = self.start("dlq", "archive")
        eventually(lambda: self.one("SELECT count(*) FROM takt.runs") > 0, what="the first runs")
        begin = self.one("SELECT extract(epoch FROM date_trunc('second', now()))::bigint + 1")

        time.sleep(SECONDS / 3)
        leader = next(d for d in dispatchers if "leading" in self.log_of(d))
        standby = next(d for d in dispatchers if d is not leader)
        leader.kill()
        killed_at = time.monotonic()
        leader.wait()
        eventually(lambda: " leading " in self.log_of(standby), 10, "the standby's lead")
        takeover = time.monotonic() - killed_at
        time.sleep(SECONDS / 6)
        workers[0].kill()
        workers[0].wait()
        time.sleep(max(0, begin + SECONDS + 1 - time.time()))
        end = begin + SECONDS

        # No further slots; everything that was begun ends.
        self.stop(standby)
        self.start("dispatcher")
        for n in range(20):
            self.takt("jobs", "pause", f"job{n:02}")
        last = self.one("SELECT extract(epoch FROM now())::bigint")
        for n in range(20):
            self.db.cursor().execute("UPDATE takt.schedules SET paused = true")
        for n in range(20):
            self.takt("jobs", "resume", f"job{n:02}")
        eventually(lambda: self.one("SELECT count(*) FROM takt.ticks WHERE finished_at IS NULL") == 0, 60, "the last tick's run")
        eventually(lambda: self.one("SELECT count(*) FROM takt.all_items WHERE state IN ('pending', 'running')") == 0, 60, "the last item")

        self.assertLess(takeover, 5 * PATIENCE, "a standby takes over within 5 seconds")
        slots = dict(self.rows("""SELECT j.name, count(*) FROM takt.ticks t JOIN takt.jobs j ON j.id = t.job_id WHERE t.source = 'schedule'
            AND t.due_at >= to_timestamp(%s) AND t.due_at < to_timestamp(%s) GROUP BY 1""", begin, end))
        self.assertEqual(slots, {f"job{n:02}": SECONDS for n in range(20)}, "each slot has exactly one tick")
        self.assertEqual(self.one("SELECT count(*) - count(DISTINCT (job_id, due_at)) FROM takt.ticks WHERE source = 'schedule'"), 0)
        runs = self.rows("""SELECT t.id, count(r.id) FROM takt.ticks t LEFT JOIN takt.runs r ON r.tick_id = t.id AND r.status = 'completed'
            WHERE t.source = 'schedule' AND (t.begun_at IS NOT NULL OR t.due_at < to_timestamp(%s)) GROUP BY 1 HAVING count(r.id) <> 1""", end)
        self.assertEqual(runs, [], "each tick has exactly one finished run, but for those that the pause stopped")

        ticks = self.one("SELECT count(*) FROM takt.ticks WHERE source = 'schedule' AND begun_at IS NOT NULL")
        self.assertEqual(self.one("SELECT count(*) FROM takt.finished_items WHERE state = 2"), ticks, "each tick's item was done")
        calls = collections.Counter((d["item"], d["attempt"]) for d in self.ledger.deliveries)
        lost = self.one("SELECT count(*) FROM takt.failed_attempts WHERE class = 'lost'")
        self.assertEqual([call for call, count in calls.items() if count > 1], [], "no attempt was delivered twice")
        done = self.one("SELECT count(*) FROM takt.attempts WHERE class = 'done'")
        self.assertEqual(done, ticks, "no item was settled twice")
        self.assertLessEqual(len(self.ledger.deliveries), ticks + lost, "an item is called again only where its worker died")
        self.assertEqual(self.one("SELECT count(*) FROM takt.dead_letters"), 0)
        self.check_invariants()
        print(f"ticks {ticks}, deliveries {len(self.ledger.deliveries)}, attempts lost with the worker {lost}, takeover {takeover:.1f} s, last slot {last}")
        self.assertIsNone(archive.poll())
