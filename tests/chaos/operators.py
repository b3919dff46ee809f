"""Operators and publishers at random: apply, pause, resume, dry runs, replays, jobs that come and go; and a handler that answers garbage."""
import json
import os
import subprocess
import threading
import time

import psycopg2

import callers
import values
from chaos import harness

CONFIG = """
  reported:
    handler: {http: {url: "{url}/reported", method: POST}}
    schedules: [{name: yearly, cron: "0 0 1 1 *"}]
  paused: {lease: 3s, handler: {native: {name: noop}}, schedules: [{name: minute, cron: "* * * * *"}]}
"""
SHIFTING = """
  shifting:
    lease: 3s
    handler: {native: {name: noop}}
    schedules: [{name: often, cron: "%s"}]
"""
EXTRA = """
  extra: {lease: 3s, max_attempts: 1000, backoff: [200ms], handler: {http: {url: "{url}/extra", method: POST}}}
"""
ACTS = ["apply the same", "add and remove a job", "change a schedule", "pause", "resume", "dry run", "dry run", "external dry run", "external tick", "external tick", "replay", "replay", "look"]


def garbage(dice):
    """What the destination of the job `garbage` answers at first, and at its third attempt something it can be done by."""
    answers = [(200, {}, b"\xff\xfe\x80 no UTF-8"), (200, {"Content-Type": "application/json"}, b'{"result": "error", "reason": "a\\u0000b", "error": "\\u0000"}'),
               (500, {"Content-Type": "text/html"}, b"\x00" * 1000), (500, {}, b"\xc3\x28" * 1_000_000), (200, {"Content-Type": "application/json"}, b"[" * 50_000),
               (200, {"Content-Type": "application/json"}, b'{"result": "skipped", "retryAfter": "-5m"}'), (503, {"Retry-After": "yesterday"}, b"\x1b[31m"),
               (200, {"Content-Type": "application/json"}, b'{"processed": 1e400, "failed": -1, "queueDepth": "many", "checkpoint": "\xf0\x9f"}'), (599, {}, b""),
               (200, {"Content-Type": "application/json; charset=utf-16"}, "{}".encode("utf-16"))]
    return lambda nth: dice.choice(answers) if nth < 3 else (200, {}, b"")


class Operators(threading.Thread):
    """`test` is the running installation; `plain` its configuration without what comes and goes."""

    def __init__(self, test, plain, seed, book, sound):
        super().__init__(daemon=True)
        self.test, self.plain, self.book, self.sound = test, plain, book, sound
        self.dice = values.dice_of(seed, "operators")
        self.ended = threading.Event()
        self.extra, self.cron, self.made = False, "*/5 * * * * *", 0
        self.other = callers.Caller(96, test.database_url, seed, 1, book, sound)  # whose transactions are in the way of ticks
        self.confirmed = []  # ids of ticks with inline items that the broker has

    def text(self):
        return self.plain + SHIFTING % self.cron + (EXTRA if self.extra else "")

    def takt(self, *arguments):
        """True if it went well; that it did not is wrong on a sound machine."""
        began = time.monotonic()
        done = subprocess.run([harness.BINARY, *arguments, "--config", self.path()], env=self.test.direct, capture_output=True, text=True, timeout=120, check=False)
        self.book.count("takt " + " ".join(arguments[:2] if arguments[0] in ("jobs", "dlq") else arguments[:1]) + (" --dry-run" * ("--dry-run" in arguments)),
                        "accepted" if done.returncode == 0 else "failed")
        # For some minutes takt check tells of services that were killed, and of what fails: that is right.
        found = [line for line in done.stdout.splitlines() if line.startswith("FAULT")]
        right = arguments[0] == "check" and found and all(line.startswith("FAULT services:") for line in found)
        if done.returncode != 0 and not right and self.sound(began):
            self.book.wrong(f"takt {' '.join(arguments)}: exit {done.returncode}: {done.stdout[-300:]} {done.stderr[-300:]}")
        return done.returncode == 0

    def path(self):
        return os.path.join(self.test.folder, "operators.yaml")

    def write(self):
        with open(self.path(), "w", encoding="utf-8") as file:
            file.write(self.text().replace("{url}", self.test.ledger.url))

    def apply(self):
        self.write()
        return self.takt("apply", "--prune")

    def act(self, what):
        if what == "apply the same":
            self.apply()
        elif what == "change a schedule":
            self.cron = self.dice.choice(["*/5 * * * * *", "*/2 * * * * *", "0 0 29 2 *", "*/7 * * * * *"])
            self.apply()
        elif what == "add and remove a job":
            self.add_or_remove()
        elif what in ("pause", "resume"):
            self.takt("jobs", what, "paused")
        elif what == "dry run":
            self.takt("tick", "reported", "--dry-run")
        elif what == "external dry run":
            self.external()
        elif what == "external tick":
            self.inline()
        elif what == "replay":
            self.takt("dlq", "replay", "--job", "doomed", "--yes", "--by", "chaos")
        else:
            self.takt(*self.dice.choice([("status",), ("jobs",), ("dlq", "list"), ("check",)]))

    def add_or_remove(self):
        if not self.extra:
            self.extra = True
            if not self.apply():
                return
            # At once: nothing needs to be started anew for a job that has just come.
            for _ in range(3):
                self.enqueue_extra()
        elif self.quiet():
            self.extra = False
            self.apply()
        elif self.dice.random() < 0.5:
            # With work under way: it is left, and done once the job is back.
            self.extra = False
            self.write()
            self.takt("apply", "--prune")

    def enqueue_extra(self):
        self.made += 1
        one = callers.Stored("extra", f"call-99-{self.made}x")
        began, where = time.monotonic(), "nothing"
        try:
            connection = psycopg2.connect(self.test.database_url, connect_timeout=2, options="-c statement_timeout=20000")
            with connection, connection.cursor() as cursor:
                where = "unsure"
                cursor.execute("SELECT takt.enqueue('extra', p), p::text FROM (SELECT jsonb_build_object('call', %s::text)) given(p)", (one.mark,))
                one.item, text = cursor.fetchone()
                one.text = callers.digest(text)
            where = "accepted"
            connection.close()
        except psycopg2.Error as error:
            if self.sound(began):
                self.book.wrong(f"an enqueue for a job just added: {error}")
        self.book.count("enqueue: for a job just added", where)
        self.book.note(where, [one])

    def quiet(self):
        """Whether the job that is to go has nothing left."""
        try:
            connection = psycopg2.connect(self.test.database_url, connect_timeout=2)
            with connection, connection.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM takt.all_items i JOIN takt.jobs j ON j.id = i.job_id WHERE j.name = 'extra' AND i.state NOT IN ('done')")
                left = cursor.fetchone()[0]
                cursor.execute("SELECT count(*) FROM takt.ticks t JOIN takt.jobs j ON j.id = t.job_id WHERE j.name = 'extra' AND t.finished_at IS NULL")
                left += cursor.fetchone()[0]
            connection.close()
            return left == 0
        except psycopg2.Error:
            return False

    def external(self):
        self.made += 1
        try:
            channel = self.test.channel()
            self.test.publish(channel, {"id": f"dry-{self.made}", "job": "reported", "dryRun": True, "items": [{"payload": {"call": f"call-98-{self.made}x"}}]})
            channel.connection.close()
            self.book.count("external tick: dry run", "accepted")
        except Exception:  # noqa: BLE001: pika's are many, while the broker is away
            self.book.count("external tick: dry run", "failed")
        self.book.note("nothing", [callers.Stored("reported", f"call-98-{self.made}x")])

    def inline(self):
        """Items carried by one tick; by two with one key; or by one whose key another's open transaction holds, and leaves or not."""
        job, way = self.dice.choice(["called", "keyed", "remembered"]), self.dice.choice(["alone", "alone", "twice", "held"])
        key = f"inline {self.made}"
        other = None
        if way == "held":
            call, commit = self.other.one(job, key), self.dice.random() < 0.5
            other = threading.Thread(target=self.other.transaction, args=([call],), kwargs={"open_for": self.dice.uniform(0.3, 1.5), "commit": commit}, daemon=True)
            other.start()
            self.ended.wait(0.2)
        for _ in range(2 if way == "twice" else 1):
            self.carry(job, key, way == "alone")
        if other is not None:
            other.join(30)
        self.look_at_keys()

    def carry(self, job, key, sole):
        """A tick whose first item has this key, and others what there is. What the broker confirmed is accepted, whatever comes then."""
        ones, items = [], []
        for n in range(self.dice.randrange(1, 4)):
            self.made += 1
            its_key = key if n == 0 else self.dice.choice([None, None, "", f"k{self.dice.randrange(6)}", f"twice {self.dice.randrange(3)}"])
            ones.append(callers.Stored(job, f"call-97-{self.made}x", True, sole if n == 0 else not its_key, its_key))
            payload = f'{{"call": "{ones[-1].mark}", "value": {values.random_json(self.dice)}}}'
            items.append((payload, "" if its_key is None else ', "key": ' + json.dumps(its_key)))
        tick = {"id": f"external-{self.made}", "job": job}
        body = json.dumps(tick)[:-1] + ', "items": [' + ", ".join(f'{{"payload": {payload}{of_key}}}' for payload, of_key in items) + "]}"
        began, where = time.monotonic(), "nothing"
        try:
            connection = psycopg2.connect(self.test.database_url, connect_timeout=2)
            with connection, connection.cursor() as cursor:
                for one, (payload, _) in zip(ones, items):
                    cursor.execute("SELECT %s::jsonb::text", (payload,))
                    one.text = callers.digest(cursor.fetchone()[0])
            connection.close()
            channel = self.test.channel()
            where = "unsure"
            self.test.publish(channel, tick, body=body.encode())
            where = "accepted"
            self.confirmed.append(tick["id"])
            channel.connection.close()
        except Exception as error:  # noqa: BLE001: the database or the broker is away
            if where != "accepted" and self.sound(began):
                self.book.wrong(f"a tick with inline items: {error!r}")
        self.book.count("external tick: inline items", "failed" if where == "nothing" else where)
        self.book.note(where, ones)

    def look_at_keys(self):
        """Of each key at most one item lives."""
        try:
            connection = psycopg2.connect(self.test.database_url, connect_timeout=2)
            with connection, connection.cursor() as cursor:
                cursor.execute("""SELECT j.name, l.key, count(*)
                    FROM (SELECT job_id, key FROM takt.items UNION ALL SELECT job_id, key FROM takt.running_items) l
                    JOIN takt.jobs j ON j.id = l.job_id
                   WHERE l.key IS NOT NULL GROUP BY 1, 2 HAVING count(*) > 1""")
                for job, key, count in cursor.fetchall():
                    self.book.wrong(f"{job}: {count} items with key {key} live at once")
            connection.close()
        except psycopg2.Error:
            pass  # the database is away

    def run(self):
        self.write()
        while not self.ended.is_set():
            try:
                self.act(self.dice.choice(ACTS))
            except Exception as error:  # noqa: BLE001
                self.book.wrong(f"an operator failed: {error!r}")
            self.ended.wait(self.dice.uniform(0.3, 1.5))

    def stop(self):
        """Whatever was removed with work under way is back afterwards."""
        self.ended.set()
        self.join(130)
        self.extra = True
        harness.eventually(self.apply, 60, "the last apply")
