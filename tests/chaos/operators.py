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

    def text(self):
        return self.plain + SHIFTING % self.cron + (EXTRA if self.extra else "")

    def takt(self, *arguments):
        """True if it went well; that it did not is wrong on a sound machine."""
        began = time.monotonic()
        done = subprocess.run([harness.BINARY, *arguments, "--config", self.path()], env=self.test.direct, capture_output=True, text=True, timeout=120, check=False)
        self.book.count("takt " + " ".join(arguments[:2] if arguments[0] in ("jobs", "dlq") else arguments[:1]) + (" --dry-run" * ("--dry-run" in arguments)),
                        "accepted" if done.returncode == 0 else "failed")
        if done.returncode != 0 and self.sound(began):
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
        """Items carried by a tick. One whose tick is refused is nowhere; one that is taken is exact."""
        ones, payloads = [], []
        for _ in range(self.dice.randrange(1, 4)):
            self.made += 1
            ones.append(callers.Stored("called", f"call-97-{self.made}x"))
            payloads.append(f'{{"call": "{ones[-1].mark}", "value": {values.random_json(self.dice)}}}')
        tick = {"id": f"external-{self.made}", "job": "called"}
        items = ", ".join('{"payload": ' + payload + "}" for payload in payloads)
        body = json.dumps(tick)[:-1] + f', "items": [{items}]}}'
        outcome = "failed"
        try:
            with psycopg2.connect(self.test.database_url, connect_timeout=2) as connection, connection.cursor() as cursor:
                for one, payload in zip(ones, payloads):
                    cursor.execute("SELECT %s::jsonb::text", (payload,))
                    one.text = callers.digest(cursor.fetchone()[0])
            channel = self.test.channel()
            self.test.publish(channel, tick, body=body.encode())
            channel.connection.close()
            outcome = "published"
        except Exception:  # noqa: BLE001: the database or the broker is away
            pass
        self.book.count("external tick: inline items", outcome)
        self.book.note("unsure", [one for one in ones if one.text])

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
