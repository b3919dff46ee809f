"""What processes hold, and the bounds that a leak breaks.

Resident memory means nothing at first: services give the pages that only their start needed back, and take some of them again
with the first load. So a process is measured once it has served load for a minute (a quarter of a shorter run). At the run's
end its resident memory may be a fifth more and 16 MiB, which is what batches of the largest payloads leave unused; a process
that is younger may hold 64 MiB. Its descriptors and threads are counted at the first moment after that at which no fault is
under way: without PostgreSQL it has neither connections nor the threads that watch them. That shows what grows without bound, and not a small leak, which fills such holes first.
Therefore each process also says how many bytes of its heap are in use (heap_meter.cc): at the end, at rest, at most a fifth
and 8 MiB more than after its first minute of load, since a connection keeps room for the largest batch that it has carried;
and over a fixed amount of work without faults at most 15 bytes an item, of all processes of one kind together, and 192 KiB
for caches of statements, logs and connections.
"""
import time

SERVED = 60  # seconds of load
YOUNG = 64  # MiB that a younger process may hold
GROWTH, RESIDENT, HEAP = 1.2, 16, 8  # and MiB
WARMING, WORK = 3000, 6000  # items
LEAK, FLAT = 15, 192 * 1024  # bytes an item, and bytes at all
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


def check_leak(test, living, work):
    """`work(n)` has n items done. What each kind of process holds more afterwards is within the bound."""
    work(WARMING)
    time.sleep(2)
    before = {what: sum(heap(process) for process in processes) for what, processes in living.items()}
    work(WORK)
    time.sleep(2)
    report = []
    for what, processes in living.items():
        grown = sum(heap(process) for process in processes) - before[what]
        report.append(f"{what} {grown:+,} bytes, {grown / WORK:.1f} an item")
        test.assertLessEqual(grown, LEAK * WORK + FLAT, f"heap in use after {WORK} items: {'; '.join(report)}")
    return report
