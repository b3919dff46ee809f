"""Leaders that freeze, die every second, are both away, or share a host name behind a transaction pooler."""
import datetime
import glob
import os
import random
import signal
import time

from chaos import CONFIG, EVERY_SECOND, ChaosTest, eventually
from parts import until


MISFIRES = "".join("""  POLICY:
    handler: {http: {url: "{url}/every", method: POST}}
    schedules: [{name: second, cron: "* * * * * *", misfire: POLICY, misfire_after: 5s, misfire_limit: 8}]
""".replace("POLICY", policy) for policy in ("skip", "once", "all"))


class FakeClock:
    """The wall clock of processes that start with its environment; it jumps when told, and within two seconds they see it."""

    def __init__(self, file, offset, library):
        self.file = file
        self.set(offset)
        self.environment = {"LD_PRELOAD": glob.glob(f"/usr/lib/*/faketime/{library}")[0], "FAKETIME_TIMESTAMP_FILE": file,
                            "FAKETIME_CACHE_DURATION": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}

    def set(self, offset):
        with open(self.file, "w", encoding="utf-8") as file:
            file.write(offset)

    def turn(self, offset):
        self.set(offset)
        time.sleep(2)


class DispatcherFaults(ChaosTest):
    def test_D2_leader_stopped_standby_leads_old_leader_continues(self):
        self.install(CONFIG + EVERY_SECOND)
        dispatchers = [self.start("dispatcher"), self.start("dispatcher")]
        self.start("worker")
        old = eventually(lambda: self.leading(dispatchers))
        standby = next(d for d in dispatchers if d is not old)
        begin = self.now() + 1
        time.sleep(2)
        old.send_signal(signal.SIGSTOP)
        eventually(lambda: " leading " in self.log_of(standby), 5, "the standby's lead")
        time.sleep(2)
        old.send_signal(signal.SIGCONT)
        eventually(lambda: self.log_of(old).rfind("standing by") > self.log_of(old).rfind(" leading "), 5, "the old leader's stepping down")
        time.sleep(2)
        self.check_slots(begin, self.now())

    def test_D2b_two_dispatchers_of_one_host_behind_a_transaction_pooler(self):
        self.install(CONFIG.replace("database: {connect_timeout: 2s}", "database: {connect_timeout: 2s, pooler: transaction}") + EVERY_SECOND)
        self.through_pgbouncer()
        for service in ("dispatcher", "dispatcher", "worker"):
            self.start(service)
        eventually(lambda: self.one("SELECT count(*) FROM takt.runs") > 0, what="the first runs")
        begin = self.now() + 1
        load = self.load(20)
        time.sleep(10)
        accepted = load.stop()
        self.check_slots(begin, self.now())
        self.assertEqual(self.one("SELECT term FROM takt.leader WHERE name = 'dispatcher'"), 1, "one leader all the time")
        self.takt("jobs", "pause", "every")
        self.check_accepted(accepted)

    def test_D2c_leadership_changes_every_second_while_slots_fall_due(self):
        self.install(CONFIG + EVERY_SECOND)
        dispatchers = [self.start("dispatcher"), self.start("dispatcher")]
        self.start("worker")
        eventually(lambda: self.one("SELECT count(*) FROM takt.runs") > 0, what="the first runs")
        begin, changes = self.now() + 1, 0
        first_term = self.one("SELECT term FROM takt.leader")
        for _ in range(8):
            leader = eventually(lambda: self.leading(dispatchers), 10, "a leader")
            leader.terminate() if random.random() < 0.5 else leader.kill()
            leader.wait(10)
            changes += 1
            dispatchers.append(self.start("dispatcher"))
            time.sleep(1)
        eventually(lambda: self.leading(dispatchers), 10, "a leader")
        time.sleep(1)
        self.check_slots(begin, self.now())
        self.assertGreaterEqual(self.one("SELECT term FROM takt.leader") - first_term, changes)

    def start_with_clock(self, offset, *arguments):
        """A service whose wall clock is wrong by `offset`, until turn_clock() says otherwise."""
        normal = self.environment
        clock = FakeClock(os.path.join(self.folder, f"clock-{len(self.processes)}"), offset, "libfaketimeMT.so.1")
        self.environment = dict(normal, **clock.environment)
        try:
            process = self.start(*arguments)
        finally:
            self.environment = normal
        process.clock = clock
        return process

    def turn_clock(self, process, offset):
        process.clock.turn(offset)
        logged = datetime.datetime.fromisoformat(self.log_of(process).splitlines()[-1].split("Z ")[0]).timestamp() - time.timezone
        self.assertGreater(abs(logged - time.time()), 1800, "the clock did not jump")

    def test_D4_clocks_of_the_dispatchers_jump_an_hour_ahead_and_an_hour_behind(self):
        self.install(CONFIG + EVERY_SECOND)
        dispatchers = [self.start_with_clock(offset, "dispatcher") for offset in ("+1h", "-1h")]
        self.start("worker")
        eventually(lambda: self.one("SELECT count(*) FROM takt.runs") > 0, what="the first runs")
        begin = self.now() + 1
        load = self.load(20)
        time.sleep(2)
        self.turn_clock(dispatchers[0], "-1h")
        self.turn_clock(dispatchers[1], "+1h")
        first = self.leading(dispatchers)
        first.kill()
        eventually(lambda: self.leading([d for d in dispatchers if d is not first]), 5, "the other's lead")
        time.sleep(4)
        accepted = load.stop()
        self.check_slots(begin, self.now())
        self.assertEqual(self.queue_depth(self.channel(), "takt.quarantine"), 0, "ticks that seem to come from another time")
        self.takt("jobs", "pause", "every")
        self.check_accepted(accepted)

    def test_D4b_clocks_of_the_workers_jump_an_hour_ahead_and_two_days_behind(self):
        self.install(CONFIG + EVERY_SECOND)
        workers = [self.start_with_clock(offset, "worker") for offset in ("+1h", "-2d")]
        self.start("dispatcher")
        eventually(lambda: self.one("SELECT count(*) FROM takt.runs") > 0, what="the first runs")
        begin = self.now() + 1
        load = self.load(50)
        time.sleep(2)
        self.turn_clock(workers[0], "-1h")
        self.turn_clock(workers[1], "+2d")
        accepted = load.stop()
        self.check_slots(begin, self.now())
        self.assertEqual(self.queue_depth(self.channel(), "takt.quarantine"), 0, "ticks that seem to come from another time")
        for worker in workers:
            self.assertGreater(self.metric(worker, "takt_ticks_received_total"), 0, "both took part")
        self.takt("jobs", "pause", "every")
        self.check_accepted(accepted)
        for delivery in self.ledger.of("/work"):
            self.assertLess(abs(int(delivery["headers"]["webhook-timestamp"]) - self.now()), 120, "a receiver would refuse the signature")

    def clock_of_the_database(self):
        """PostgreSQL starts anew with a clock that can be turned."""
        os.chmod(self.folder, 0o755)
        clock = FakeClock(os.path.join(self.folder, "clock"), "+0", "libfaketime.so.1")
        self.postgresql.stop("fast")
        self.postgresql.start(**clock.environment)
        self.addCleanup(lambda: (self.postgresql.stop("fast"), self.postgresql.start()))
        self.reconnect()
        return clock

    def test_C13_ten_days_pass_without_a_dispatcher_and_nobody_made_partitions(self):
        clock = self.clock_of_the_database()
        self.install(CONFIG)
        worker = self.start("worker")
        channel = self.channel()
        done = "SELECT count(*) FROM takt.finished_items WHERE state = 2"
        for days in (0, 10, 20):
            before = self.one(done)
            clock.turn(f"+{days}d")
            self.assertEqual(self.one("SELECT count(*) FROM takt.history_partitions WHERE until > now()") == 0, days > 0, "the days that partitions were made for")
            for n in range(5):
                self.publish(channel, {"id": f"outside-{days}-{n}", "job": "work", "items": [{"payload": {"n": n}}]}, message_id=f"outside-{days}-{n}",
                             age=-days * 86400)  # their publisher sees the same day
            eventually(lambda count=before + 5: self.one(done) == count, what="the settling of what an external ticker brought")
        self.stop(worker)
        # By cron alone, after ten days more: the worker's clock is what the database's is.
        clock.turn("+30d")
        self.enqueue("work", {"n": 0})
        before = self.one(done)
        self.takt("worker", "--once", environment=dict(self.environment, **FakeClock(os.path.join(self.folder, "cron"), "+30d", "libfaketimeMT.so.1").environment))
        self.assertEqual(self.one(done), before + 1)
        self.assertEqual(self.queue_depth(channel, "takt.dead") + self.queue_depth(channel, "takt.quarantine"), 0)

    def test_D4c_clock_of_the_database_jumps_an_hour_ahead_and_back(self):
        clock = self.clock_of_the_database()
        self.running(CONFIG + MISFIRES)
        eventually(lambda: self.one("SELECT count(*) FROM takt.ticks WHERE source = 'schedule'") >= 6, what="the first slots")
        load = self.load(20)
        before = self.one("SELECT now()")
        clock.turn("+1h")
        self.assertGreater((self.one("SELECT now()") - before).total_seconds(), 3000, "the clock did not jump")
        eventually(lambda: self.one("SELECT bool_and(next_due > now() - interval '2 s') FROM takt.schedules"), 20, "the way to the present")
        late = dict(self.rows("""SELECT j.name, count(*) FROM takt.ticks t JOIN takt.jobs j ON j.id = t.job_id
            WHERE t.source = 'schedule' AND t.due_at > %s + interval '1 min' AND t.due_at < now() - interval '1 min' GROUP BY 1""", before))
        self.assertEqual(late.get("skip", 0), 0, "skip: none of the hour's")
        self.assertLessEqual(late.get("once", 0), 1, "once: the latest at most")
        self.assertLessEqual(late.get("all", 0), 8, "all: up to its limit, no storm")
        clock.turn("+0")
        ticks = self.one("SELECT count(*) FROM takt.ticks WHERE source = 'schedule'")
        time.sleep(3)
        self.assertLessEqual(self.one("SELECT count(*) FROM takt.ticks WHERE source = 'schedule'"), ticks + 3, "slots of the hour that was ticked already")
        self.assertEqual(self.one("SELECT count(*) - count(DISTINCT (job_id, due_at)) FROM takt.ticks WHERE source = 'schedule'"), 0, "a slot twice")
        # What was retried or rescued in that hour waits for it to come again: nothing is lost, and an operator need not wait.
        accepted = load.stop()
        for job in ("skip", "once", "all"):
            self.takt("jobs", "pause", job)
        self.db.cursor().execute("UPDATE takt.items SET run_at = now() WHERE run_at > now()")
        self.check_accepted(accepted, repeats=len(accepted))

    def test_D3_both_dispatchers_down_and_the_misfire_policies(self):
        self.install(CONFIG + MISFIRES)
        dispatchers = [self.start("dispatcher"), self.start("dispatcher")]
        self.start("worker")
        eventually(lambda: self.one("SELECT count(*) FROM takt.ticks WHERE source = 'schedule'") >= 3, what="the first slots")
        for dispatcher in dispatchers:
            dispatcher.kill()
            dispatcher.wait()
        # Ten minutes pass: as if the last slots were that long ago.
        self.db.cursor().execute("UPDATE takt.schedules SET next_due = next_due - interval '10 min', next_fire = next_fire - interval '10 min'")
        self.db.cursor().execute("DELETE FROM takt.ticks WHERE source = 'schedule'")
        begin = self.one("SELECT extract(epoch FROM min(next_due))::bigint FROM takt.schedules")
        before_start = self.one("SELECT now() - interval '6 s'")
        self.start("dispatcher")
        eventually(lambda: self.one("SELECT count(*) FROM takt.schedules WHERE next_due > now() - interval '2 s'") == 3, 20, "the way to the present")
        late = dict(self.rows("""SELECT j.name, count(*) FROM takt.ticks t JOIN takt.jobs j ON j.id = t.job_id
            WHERE t.source = 'schedule' AND t.due_at >= to_timestamp(%s) AND t.due_at < %s GROUP BY 1""", begin, before_start))
        self.assertEqual(late.get("skip", 0), 0, "skip: none of the missed")
        self.assertLessEqual(late.get("once", 0), 1, "once: the latest at most")
        self.assertLessEqual(late.get("all", 0), 8, "all: the latest up to its limit")
        self.assertGreater(late.get("all", 0), 0)
