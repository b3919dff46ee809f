"""The random run of tests/chaos/run: one test whose faults and callers come from a seed."""
import collections
import os
import random
import signal
import time

from parts import RabbitMQ
from random_run import SECONDS, SEED, RandomRun

POINTS = ["worker.before_claim", "worker.after_claim", "worker.mid_handler", "worker.before_settle", "worker.after_settle", "worker.before_ack",
          "worker.after_ack", "publisher.before_confirm"]
LEADER_POINTS = ["dispatcher.after_tick_stored", "dispatcher.after_confirm", "publisher.before_confirm", "dispatcher.before_dead_letter",
                 "dispatcher.after_dead_letter"]
ARCHIVE_POINTS = ["archive.before_insert", "archive.after_insert", "archive.before_ack"]

CALM, WINDOW, FAULTY = 8, 12, 40  # seconds without a fault before a window, in it, and with faults between two windows

# kind, weight. Each takes at most a few seconds and is mended by itself.
FAULTS = {"kill worker": 6, "crash worker at a point": 8, "stop worker past its lease": 4, "terminate worker": 3, "kill leader": 4, "crash leader at a point": 4,
          "stop leader": 3, "kill archive": 2, "crash archive at a point": 2, "cut database": 4, "delay database": 2, "silent database": 2, "cut broker": 4,
          "silent broker": 3, "half-close broker": 2, "throttle broker": 2, "restart broker": 1, "kill broker": 1, "kill database": 1, "forged ticks": 3}


def schedule():
    """(second, kind, a number of its own) of each fault, and of each calm with a window in which lateness is judged."""
    dice = random.Random(SEED)
    at, faults, calm = 5.0, [], FAULTY
    while at < SECONDS - 5:
        if at > calm:
            faults.append((at, "calm", WINDOW))
            at += CALM + WINDOW
            calm = at + FAULTY
        kind = dice.choices(list(FAULTS), FAULTS.values())[0]
        if kind == "kill broker" and at < 5 + RabbitMQ.SETTLES:
            kind = "cut broker"
        faults.append((at, kind, dice.randrange(1_000_000)))
        at += dice.uniform(2, 8) + (10 if kind in ("restart broker", "kill broker", "kill database") else 0)
    return faults


class RandomFaults(RandomRun):
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

    def calm(self, seconds):
        """No fault, nor one still to come. Then a window."""
        self.replace_crashing()
        self.watch(CALM)
        begin = time.time()
        self.watch(seconds)
        self.windows.append((begin, time.time()))

    def test_nothing_is_lost_and_nothing_is_done_twice(self):
        faults = schedule()
        print(f"seed {SEED}, {SECONDS:.0f} s, {len(faults)} faults and calms:")
        for at, kind, number in faults:
            print(f"  {at:7.1f} s  {kind} ({number})")
        self.forged = 0
        self.begin()

        began, slowest = time.monotonic(), (0.0, "none")
        for at, kind, number in faults:
            self.watch(began + at - time.monotonic())
            if kind == "calm":
                self.calm(number)
                continue
            struck = time.monotonic()
            self.sound_from = float("inf")
            self.strike(kind, number)
            mended, count = time.monotonic(), len(self.ledger.of("/work"))
            # Recovered: work is delivered again, beyond what was under way.
            while len(self.ledger.of("/work")) < count + 30 and time.monotonic() < mended + 60:
                self.look_after()
                time.sleep(0.1)
            recovery = time.monotonic() - mended
            self.assertLess(recovery, 60, f"no work for a minute after {kind}")
            self.sound_from = time.monotonic() + CALM
            slowest = max(slowest, (recovery, kind))
            print(f"  {struck - began:7.1f} s  {kind}: work again {recovery:.1f} s after it was mended", flush=True)
        self.watch(began + SECONDS - time.monotonic())
        self.sound_from = float("inf")

        print(f"\nfaults injected: {sum(kind != 'calm' for _, kind, _ in faults)}")
        for kind, count in sorted(collections.Counter(kind for _, kind, _ in faults).items()):
            print(f"  {count:3}  {kind}")
        print(f"processes that were killed: {self.crashes}; forged ticks: {self.forged}; slowest recovery: {slowest[0]:.1f} s, after {slowest[1]}")
        self.end()
