"""How late a probe's items and an every-second schedule were in windows without a machine fault."""
import threading
import time

import psycopg2

LATEST = 1.0  # seconds
STARVED = 0.25  # seconds that a trivial statement, every tenth of a second, may take on a machine that is not overloaded itself


class Metronome(threading.Thread):
    """Notes when this very machine was late: nothing can be said of Takt's lateness then."""

    def __init__(self, url):
        super().__init__(daemon=True)
        self.url, self.starved = url, []
        self.ended = threading.Event()

    def run(self):
        connection = None
        while not self.ended.is_set():
            before, began = time.time(), time.monotonic()
            try:
                if connection is None:
                    connection = psycopg2.connect(self.url, connect_timeout=2)
                    connection.autocommit = True
                connection.cursor().execute("SELECT 1")
                self.ended.wait(0.1)
            except psycopg2.Error:
                connection = None
                self.ended.wait(0.1)
            if time.monotonic() - began > 0.1 + STARVED:
                self.starved.append((before, time.time()))
        if connection is not None:
            connection.close()

    def stop(self):
        self.ended.set()
        self.join(10)


def overlaps(begin, end, spans):
    return any(begin < to and end > since for since, to in spans)


def latest(rows, windows, starved):
    """(how many were judged, the most seconds late, whose) of (what, due, begun) that were due in a window."""
    judged, most, whose = 0, 0.0, "none"
    for what, due, begun in rows:
        if not any(since <= due <= to for since, to in windows) or overlaps(due, begun, starved):
            continue
        judged += 1
        if begun - due > most:
            most, whose = begun - due, what
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
