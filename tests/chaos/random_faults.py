"""The random run of tests/chaos/run: one test whose faults come from a seed."""
import collections
import os
import random
import signal
import time

from chaos import IMPATIENT, ChaosTest, eventually
from parts import RabbitMQ, listens

SETTLED_AFTER = 8  # seconds until a process has opened what it works with: its footprint then is what it must come back to

SECONDS = float(os.environ.get("TAKT_CHAOS_SECONDS", "60"))
SEED = int(os.environ.get("TAKT_CHAOS_SEED", "1"))

CONFIG = IMPATIENT + """  work: {lease: 3s, batch_size: 10, max_attempts: 1000, backoff: [200ms], handler: {http: {url: "{url}/work", method: POST, timeout: 5s}}}
  flaky: {lease: 3s, max_attempts: 1000, backoff: [300ms], handler: {http: {url: "{url}/flaky", method: POST, timeout: 5s}}}
  slow: {lease: 3s, max_attempts: 1000, backoff: [300ms], handler: {http: {url: "{url}/slow", method: POST, timeout: 10s}}}
  hopeless: {lease: 3s, max_attempts: 2, backoff: [300ms], handler: {http: {url: "{url}/hopeless", method: POST, circuit_failures: 0}}}
  every:
    lease: 3s
    max_attempts: 1000
    backoff: [200ms]
    handler: {http: {url: "{url}/every", method: POST}}
    schedules: [{name: second, cron: "* * * * * *", misfire: all, misfire_limit: 1000}]
"""
POINTS = ["worker.before_claim", "worker.after_claim", "worker.mid_handler", "worker.before_settle", "worker.after_settle", "worker.before_ack",
          "worker.after_ack", "publisher.before_confirm"]
LEADER_POINTS = ["dispatcher.after_tick_stored", "dispatcher.after_confirm", "publisher.before_confirm", "dispatcher.before_dead_letter",
                 "dispatcher.after_dead_letter"]
ARCHIVE_POINTS = ["archive.before_insert", "archive.after_insert"]

# kind, weight. Each takes at most a few seconds and is mended by itself.
FAULTS = {"kill worker": 6, "crash worker at a point": 8, "stop worker past its lease": 4, "terminate worker": 3, "kill leader": 4, "crash leader at a point": 4,
          "stop leader": 3, "kill archive": 2, "crash archive at a point": 2, "cut database": 4, "delay database": 2, "silent database": 2, "cut broker": 4,
          "silent broker": 3, "half-close broker": 2, "throttle broker": 2, "restart broker": 1, "kill broker": 1, "kill database": 1, "forged ticks": 3}


def schedule():
    """(second, kind, a number of its own) of each fault."""
    dice = random.Random(SEED)
    at, faults = 5.0, []
    while at < SECONDS - 5:
        kind = dice.choices(list(FAULTS), FAULTS.values())[0]
        if kind == "kill broker" and at < 5 + RabbitMQ.SETTLES:
            kind = "cut broker"
        faults.append((at, kind, dice.randrange(1_000_000)))
        at += dice.uniform(2, 8) + (10 if kind in ("restart broker", "kill broker", "kill database") else 0)
    return faults


class RandomFaults(ChaosTest):
    def tearDown(self):
        if not listens(self.postgresql.port):
            self.postgresql.start()
            self.reconnect()
        if not listens(self.rabbitmq.port):
            self.rabbitmq.start()
        super().tearDown()

    # --- services, replaced when they end

    def spawn(self, what, crash=None):
        arguments = ("dlq", "archive") if what == "archive" else (what,)
        process = self.start_crashing(crash or "nowhere", *arguments)
        process.began = time.monotonic()
        self.living[what].append(process)
        return process

    def replace(self, what, process, crash=None):
        process.wait(30)
        self.living[what].remove(process)
        self.spawn(what, crash)

    def leader(self):
        return self.leading(self.living["dispatcher"]) or self.living["dispatcher"][0]

    def look_after(self):
        """What a supervisor does: starts again what has ended."""
        for what, processes in self.living.items():
            for process in list(processes):
                if process.poll() is not None:
                    self.crashes += process.returncode == -signal.SIGKILL
                    self.replace(what, process)
                elif process not in self.footprints and time.monotonic() > process.began + SETTLED_AFTER:
                    self.footprints[process] = self.footprint(process)

    def check_left_over(self):
        """No lease, lock, transaction, consumer, connection, descriptor or thread more than before, and memory within a fifth."""
        self.assertEqual(self.one("SELECT count(*) FROM takt.ticks WHERE lease_until IS NOT NULL"), 0, "leases")
        self.assertEqual(self.one("SELECT count(*) FROM takt.job_locks"), 0, "locks")
        self.assertEqual(self.one("SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND state LIKE 'idle in transaction%%'", self.name), 0, "transactions")
        eventually(lambda: self.channel().queue_declare("takt.ticks.default", passive=True).method.consumer_count == len(self.living["worker"]), 20, "one consumer a worker")
        report = []
        for what, processes in self.living.items():
            for process in processes:
                if process not in self.footprints:
                    continue
                before, after = self.footprints[process], self.footprint(process)
                report.append(f"{what} {before[0]} → {after[0]} descriptors, {before[1]} → {after[1]} threads, {before[2]:.1f} → {after[2]:.1f} MiB")
                self.assertLessEqual(after[0], before[0] + 4, f"descriptors of a {what}: {report[-1]}")
                self.assertLessEqual(after[1], before[1], f"threads of a {what}: {report[-1]}")
                self.assertLessEqual(after[2], before[2] * 1.2, f"memory of a {what}: {report[-1]}")
        return report

    # --- the faults

    def crash_soon(self, what, process, points, number):
        """The process is replaced by one that will kill itself at a point; the supervisor replaces that in turn."""
        process.kill()
        self.replace(what, process, f"{points[number % len(points)]}:{1 + number % 7}")

    def strike(self, kind, number):
        workers = self.living["worker"]
        worker = workers[number % len(workers)]
        archive = self.living["archive"][0]
        if kind == "kill worker":
            worker.kill()
        elif kind == "crash worker at a point":
            self.crash_soon("worker", worker, POINTS, number)
        elif kind == "stop worker past its lease":
            worker.send_signal(signal.SIGSTOP)
            time.sleep(4)
            worker.send_signal(signal.SIGCONT)
        elif kind == "terminate worker":
            worker.terminate()
        elif kind == "kill leader":
            self.leader().kill()
        elif kind == "crash leader at a point":
            self.crash_soon("dispatcher", self.leader(), LEADER_POINTS, number)
        elif kind == "stop leader":
            leader = self.leader()
            leader.send_signal(signal.SIGSTOP)
            time.sleep(4)
            leader.send_signal(signal.SIGCONT)
        elif kind == "kill archive":
            archive.kill()
        elif kind == "crash archive at a point":
            self.crash_soon("archive", archive, ARCHIVE_POINTS, number)
        elif kind == "cut database":
            self.database_proxy.cut()
        elif kind == "delay database":
            self.database_proxy.delay = 0.05
            time.sleep(3)
        elif kind == "silent database":
            self.database_proxy.silent = True
            time.sleep(3)
            self.database_proxy.silent = False
            self.database_proxy.cut()
        elif kind == "cut broker":
            self.broker_proxy.cut()
        elif kind == "silent broker":
            self.broker_proxy.silent = True
            time.sleep(5)
            self.broker_proxy.silent = False
            self.broker_proxy.cut()
        elif kind == "half-close broker":
            self.broker_proxy.half_close()
        elif kind == "throttle broker":
            self.broker_proxy.rate = 20_000
            time.sleep(3)
        elif kind == "restart broker":
            self.rabbitmq.stop()
            self.rabbitmq.start()
        elif kind == "kill broker":
            self.rabbitmq.kill()
            self.rabbitmq.start()
        elif kind == "kill database":
            self.postgresql.stop("immediate")
            time.sleep(2)
            self.postgresql.start()
            self.reconnect()
        elif kind == "forged ticks":
            channel = self.channel()
            for n in range(200):
                self.publish(channel, {"id": f"forged-{number}-{n}", "job": "work", "items": [{"payload": {"forged": True}}]}, secret="whsec_" + "A" * 43 + "=")
            channel.connection.close()
            self.forged += 200
        self.database_proxy.mend()
        self.broker_proxy.mend()

    def test_nothing_is_lost_and_nothing_is_done_twice(self):
        faults = schedule()
        print(f"seed {SEED}, {SECONDS:.0f} s, {len(faults)} faults:")
        for at, kind, number in faults:
            print(f"  {at:7.1f} s  {kind} ({number})")
        self.crashes = self.forged = 0
        self.footprints = {}
        self.living = collections.defaultdict(list)
        dice = random.Random(SEED)
        self.ledger.behave["/flaky"] = lambda nth: (500 if dice.random() < 0.3 else 200, {}, b"")
        self.ledger.behave["/slow"] = lambda nth: (time.sleep(1) or 200, {}, b"")
        self.install(CONFIG)
        self.database_proxy, self.broker_proxy = self.through_proxy("postgresql"), self.through_proxy("rabbitmq")
        for what in ["dispatcher"] * 2 + ["worker"] * 3 + ["archive"]:
            self.spawn(what)
        eventually(lambda: self.one("SELECT count(*) FROM takt.runs") > 0, what="the first runs")
        first_slot = self.now() + 1
        for job, rate in (("work", 60), ("flaky", 15), ("slow", 3), ("hopeless", 3)):
            self.load(rate, job)

        began, slowest = time.monotonic(), (0.0, "none")
        for at, kind, number in faults:
            while time.monotonic() < began + at:
                self.look_after()
                time.sleep(0.2)
            struck = time.monotonic()
            self.strike(kind, number)
            mended, count = time.monotonic(), len(self.ledger.of("/work"))
            # Recovered: work is delivered again, beyond what was under way.
            while len(self.ledger.of("/work")) < count + 30 and time.monotonic() < mended + 60:
                self.look_after()
                time.sleep(0.1)
            recovery = time.monotonic() - mended
            self.assertLess(recovery, 60, f"no work for a minute after {kind}")
            slowest = max(slowest, (recovery, kind))
            print(f"  {struck - began:7.1f} s  {kind}: work again {recovery:.1f} s after it was mended", flush=True)
        while time.monotonic() < began + SECONDS:
            self.look_after()
            time.sleep(0.2)

        last_slot = self.now()
        accepted = {load.job: load.stop() for load in self.loads}
        unsure = sum(load.unsure for load in self.loads)
        self.look_after()
        self.check_slots(first_slot, last_slot)
        self.takt("jobs", "pause", "every")
        eventually(lambda: self.look_after() or self.one("SELECT count(*) FROM takt.all_items i JOIN takt.jobs j ON j.id = i.job_id WHERE i.state IN ('pending', 'running') AND j.name <> 'every'") == 0,
                   120, "the drain")
        eventually(lambda: self.one("SELECT count(*) FROM takt.all_items WHERE state = 'running'") == 0, 30, "the last run")
        eventually(lambda: self.one("SELECT count(*) FROM takt.dead_letter_outbox") == 0, 60, "the emptying of the outbox")
        dead = self.one("SELECT count(*) FROM takt.ended_items WHERE state = 3")
        eventually(lambda: self.one("SELECT count(*) FROM takt.dead_letters WHERE kind = 'item'") == dead, 60, "every letter in the archive")
        self.check_invariants()

        states = dict(self.rows("SELECT state, count(*) FROM takt.all_items GROUP BY 1"))
        every = self.one("SELECT count(*) FROM takt.all_items i JOIN takt.jobs j ON j.id = i.job_id WHERE j.name = 'every'")
        total = sum(len(items) for items in accepted.values())
        stored = sum(states.values()) - every
        self.assertGreaterEqual(stored, total, "an accepted item is gone")
        self.assertLessEqual(stored, total + unsure, "an item nobody enqueued")
        known = {row[0]: row[1] for row in self.rows("SELECT id, state FROM takt.all_items")}
        for job, items in accepted.items():
            wanted = "dead" if job == "hopeless" else "done"
            self.assertEqual([i for i in items if known.get(i) != wanted][:5], [], f"accepted items of {job} that are not {wanted}")
        self.assertEqual(self.one("SELECT count(*) FROM takt.all_items WHERE payload ? 'forged'"), 0, "a forged tick became work")
        twice = self.rows("SELECT item_id FROM takt.attempts WHERE class = 'done' GROUP BY item_id, replay HAVING count(*) > 1")
        self.assertEqual(twice, [], "items that were settled done twice")
        calls = collections.Counter((d["item"], d["attempt"]) for d in self.ledger.deliveries)
        same_attempt = sum(count - 1 for count in calls.values())
        lost = self.one("SELECT count(*) FROM takt.failed_attempts WHERE class = 'lost'")
        by_item = collections.Counter(item for item, _ in calls)
        again = sum(by_item[f"item-{i}"] > 1 for i in accepted["work"])

        left_over = self.check_left_over()
        print(f"\nfaults injected: {len(faults)}")
        for kind, count in sorted(collections.Counter(kind for _, kind, _ in faults).items()):
            print(f"  {count:3}  {kind}")
        print(f"processes that were killed: {self.crashes}; forged ticks: {self.forged}")
        print(f"items accepted: {total} (and {unsure} whose commit's answer was lost); slots of the schedule: {last_slot - first_slot}, each ticked once")
        print("final states: " + ", ".join(f"{state} {count}" for state, count in sorted(states.items())))
        print(f"duplicates: settled twice 0; same attempt delivered twice {same_attempt}; called again with a new attempt because its worker was lost {lost} attempts, "
              f"{again} of the {len(accepted['work'])} plain items; ticks twice 0")
        print("left over, from " + str(SETTLED_AFTER) + " s after each process's start to the end: " + "; ".join(left_over))
        print(f"slowest recovery: {slowest[0]:.1f} s, after {slowest[1]}", flush=True)
        self.assertEqual(same_attempt, 0, "one attempt was delivered twice")
