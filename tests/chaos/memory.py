"""What processes hold, and the bounds that a leak breaks.

Resident memory means nothing at first: services give the pages that only their start needed back, and take some of them again
with the first load. So a process is measured once it has served load for a minute (a quarter of a shorter run). At the run's
end its resident memory may be a fifth more and 16 MiB, which is what batches of the largest payloads leave unused; a process
that is younger may hold 64 MiB. Its descriptors and threads are counted at the first moment after that at which no fault is
under way: without PostgreSQL it has neither connections nor the threads that watch them. That shows what grows without bound, and not a small leak, which fills such holes first.
Therefore each process also says how many bytes of its heap are in use (heap_meter.cc): at the end, at rest, at most a fifth
and 8 MiB more than after its first minute of load, since a connection keeps room for the largest batch that it has carried;
and over a fixed number of items, of letters and of ticks without faults at most 15 bytes apiece, of all processes of one kind
together, and 192 KiB for caches of statements, logs and connections. So many there are of each that 100 bytes lost apiece are more.
A connection that carries its largest answer only now doubles its room once, by up to half a MiB; so what is beyond is measured
again, and only what is beyond each time is a leak.
"""
import time

from chaos import eventually

SERVED = 60  # seconds of load
YOUNG = 64  # MiB that a younger process may hold
GROWTH, RESIDENT, HEAP = 1.2, 16, 8  # and MiB
ITEMS, LETTERS = (3000, 6000), (1500, 4500)  # to warm up, and over which is measured
SLOTS = 1000  # that one schedule ticks at once: misfire_limit's bound
TICKS = (SLOTS, 4 * SLOTS)
LEAK, FLAT = 15, 192 * 1024  # bytes apiece, and bytes at all
TURNS = 3  # at most, in which a leak is beyond that
# Descriptors. A standby has two connections to PostgreSQL; as the leader, under load, it may have six (database.pool 4, the lease's
# and the one that listens). Each is two descriptors: its socket, and the one that its answers' deadline shuts down.
OPENED = 2 * (6 - 2)
MIB = 1024 * 1024


class Memory:
    def __init__(self, footprint, seconds):
        self.footprint, self.served = footprint, min(SERVED, seconds / 4)
        self.before, self.opened = {}, {}

    def look(self, process, sound):
        """`sound`: no fault is under way."""
        if time.monotonic() - process.began < self.served:
            return
        if process not in self.before:
            self.before[process] = (self.footprint(process)[2], heap(process, 1) / MIB)
        if sound and process not in self.opened:
            self.opened[process] = self.footprint(process)[:2]

    def check(self, test, living):
        """Descriptors, threads and resident memory of every process, against what it had before; says them."""
        report = []
        for what, processes in living.items():
            for process in processes:
                descriptors, threads, resident = self.footprint(process)
                if process not in self.before:
                    report.append(f"{what} younger than {self.served:.0f} s: {resident:.1f} MiB")
                    test.assertLessEqual(resident, YOUNG, f"memory of a {report[-1]}")
                    continue
                before, in_use = self.before[process], heap(process) / MIB
                report.append(f"{what} {before[0]:.1f} → {resident:.1f} MiB resident, {before[1]:.1f} → {in_use:.1f} MiB of heap")
                test.assertLessEqual(resident, before[0] * GROWTH + RESIDENT, f"memory of a {report[-1]}")
                test.assertLessEqual(in_use, before[1] * GROWTH + HEAP, f"heap of a {report[-1]}")
                if process not in self.opened:
                    continue
                opened = self.opened[process]
                report[-1] += f", {opened[0]} → {descriptors} descriptors, {opened[1]} → {threads} threads"
                test.assertLessEqual(descriptors, opened[0] + OPENED, f"descriptors of a {report[-1]}")
                test.assertLessEqual(threads, opened[1], f"threads of a {report[-1]}")
        return report


def heap(process, looks=10):
    """Bytes of its heap in use, as it says itself ten times a second: the least of so many looks, when the least is under way."""
    found = []
    for look in range(looks):
        if look > 0:
            time.sleep(0.1)
        with open(process.heap, encoding="ascii") as file:
            found.append(int(file.read()))
    return min(found)


def config():
    """The jobs of the leak check: one whose items die at once, and one with a schedule for each thousand of slots."""
    schedules = ", ".join(f'{{name: s{n}, cron: "* * * * * *", misfire: all, misfire_limit: {SLOTS}}}' for n in range((TICKS[0] + TURNS * TICKS[1]) // SLOTS))
    return """
  dying: {lease: 3s, max_attempts: 1, handler: {http: {url: "{url}/dying", method: POST, timeout: 5s, circuit_failures: 0}}}
  slots: {lease: 3s, handler: {native: {name: noop}}, schedules: [%s]}
""" % schedules


class Fixed:
    """Fixed amounts of work for an installation with these jobs, each made and then waited for."""

    def __init__(self, test):
        self.test, self.letters_made, self.schedules = test, 0, 0
        test.ledger.behave["/dying"] = lambda nth: (500, {}, b"")

    def enqueue(self, job, count):
        for _ in range(count // 500):
            self.test.one("SELECT count(*) FROM takt.enqueue_many(%s, array_fill('{}'::jsonb, ARRAY[500]))", job)

    def items(self, count):
        self.enqueue("work", count)
        eventually(lambda: self.test.one("SELECT count(*) FROM takt.items i JOIN takt.jobs j ON j.id = i.job_id WHERE j.name = 'work'") == 0, 120, "the work")

    def letters(self, count):
        self.enqueue("dying", count)
        self.letters_made += count
        eventually(lambda: self.test.one("SELECT count(*) FROM takt.dead_letters WHERE job = 'dying'") == self.letters_made, 120, "the letters in the archive")

    def ticks(self, count):
        """As if one schedule after the other had missed a thousand slots. No more at once, since a connection keeps room for all of them."""
        for _ in range(count // SLOTS):
            begin = self.test.one("""UPDATE takt.schedules SET next_due = next_due - %s * interval '1 s', next_fire = next_fire - %s * interval '1 s'
                WHERE name = %s RETURNING next_due""", SLOTS, SLOTS, f"s{self.schedules}")
            ended = """SELECT count(*) FROM takt.ticks
                WHERE id LIKE %s AND due_at >= %s AND due_at < %s::timestamptz + %s * interval '1 s' AND finished_at IS NOT NULL"""
            slots = (f"slots/s{self.schedules}@%", begin, begin, SLOTS)
            eventually(lambda sql=ended, of=slots: self.test.one(sql, *of) == SLOTS, 120, "the ticks of a thousand slots")
            self.schedules += 1


def check_leak(test, living):
    """Over items, letters and ticks, each of which was made in number before, every kind of process stays within the bound."""
    fixed, report, beyond = Fixed(test), [], []
    for kind, make, (warming, count) in (("items", fixed.items, ITEMS), ("letters", fixed.letters, LETTERS), ("ticks", fixed.ticks, TICKS)):
        make(warming)
        growing = living
        for _ in range(TURNS):
            time.sleep(2)
            before = {what: sum(heap(process) for process in processes) for what, processes in growing.items()}
            make(count)
            time.sleep(2)
            grown = {what: sum(heap(process) for process in processes) - before[what] for what, processes in growing.items()}
            report += [f"{what} {bytes_:+,} bytes over {count} {kind}, {bytes_ / count:.1f} apiece" for what, bytes_ in grown.items()]
            growing = {what: processes for what, processes in growing.items() if grown[what] > LEAK * count + FLAT}
            if not growing:
                break
        beyond += [f"{what} over {count} {kind}, {TURNS} times" for what in growing]
    test.assertEqual(beyond, [], f"heap in use: {'; '.join(report)}")
    return report
