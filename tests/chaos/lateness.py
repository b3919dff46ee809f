"""How late a probe's items and an every-second schedule were in windows without a machine fault."""
import threading
import time

LATEST = 1.0  # seconds
BEAT = 0.01  # seconds that the metronome sleeps
STARVED = 0.25  # seconds too late that it may wake on a machine that is not overloaded itself
# The share of its wait in which the machine was starved that explains a late beginning. Less does not: one such moment
# would excuse any stall that it falls into.
EXPLAINS = 0.2
# The share of what should have been due in the windows that must be judged. Not more, since what makes it is starved as well
# on two busy cores: a load of five a second then enqueues three, all of them begun in time.
JUDGED = 0.5


class Metronome(threading.Thread):
    """Notes when this very machine was late: nothing can be said of Takt's lateness then. It asks nobody, since a PostgreSQL
    that answers nobody is what a caller must not bring about."""

    def __init__(self):
        super().__init__(daemon=True)
        self.starved = []
        self.ended = threading.Event()

    def run(self):
        while not self.ended.is_set():
            before, began = time.time(), time.monotonic()
            time.sleep(BEAT)
            if time.monotonic() - began > BEAT + STARVED:
                self.starved.append((before, time.time()))

    def stop(self):
        self.ended.set()
        self.join(10)


def shared(begin, end, spans):
    """Seconds from begin to end that lie in the spans."""
    return sum(max(0.0, min(end, to) - max(begin, since)) for since, to in spans)


def latest(rows, windows, starved):
    """(how many were judged, the most seconds late, whose) of (what, due, begun) that were due in a window. What began in time is
    judged whatever the machine did; what is late is not, where the machine explains it."""
    judged, most, whose = 0, 0.0, "none"
    for what, due, begun in rows:
        if not any(since <= due <= to for since, to in windows):
            continue
        late = begun - due
        if late >= LATEST and shared(due, begun, starved) >= EXPLAINS * late:
            continue
        judged += 1
        if late > most:
            most, whose = late, what
    return judged, most, whose


# Each item's first attempt, and each slot's run. Database time throughout.
PROBES = """
    SELECT 'item ' || i.id, extract(epoch FROM i.run_at)::float8, extract(epoch FROM r.started_at)::float8
      FROM takt.runs r JOIN takt.jobs j ON j.id = r.job_id AND j.name = 'probe' CROSS JOIN LATERAL takt.items_of(r) i
     WHERE i.attempt = 1"""
SLOTS = """
    SELECT t.id, extract(epoch FROM t.due_at)::float8, extract(epoch FROM min(r.started_at))::float8
      FROM takt.ticks t JOIN takt.jobs j ON j.id = t.job_id AND j.name = 'every' JOIN takt.runs r ON r.tick_id = t.id
     WHERE t.source = 'schedule' GROUP BY t.id"""
