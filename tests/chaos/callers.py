"""Applications that call takt.enqueue and takt.enqueue_many with whatever there is, at random, and know what must come of each call."""
import collections
import hashlib
import re
import threading
import time
import traceback

import psycopg2

import values

CONFIG = """
  called: {lease: 3s, batch_size: 20, max_attempts: 1000, backoff: [200ms], handler: {http: {url: "{url}/called", method: POST, timeout: 5s}}}
  keyed: {lease: 3s, batch_size: 20, max_attempts: 1000, backoff: [200ms], handler: {http: {url: "{url}/keyed", method: POST, timeout: 5s}}}
  remembered: {lease: 3s, dedupe_window: 1h, max_attempts: 1000, backoff: [200ms], handler: {http: {url: "{url}/remembered", method: POST, timeout: 5s}}}
  native: {lease: 3s, max_attempts: 1000, backoff: [200ms], handler: {native: {name: noop}}}
  doomed: {lease: 3s, max_attempts: 1, handler: {http: {url: "{url}/doomed", method: POST, timeout: 5s, circuit_failures: 0}}}
  garbage: {lease: 3s, max_attempts: 1000, backoff: [100ms], handler: {http: {url: "{url}/garbage", method: POST, timeout: 5s, circuit_failures: 0}}}
"""
JOBS = ["called", "called", "called", "keyed", "keyed", "keyed", "remembered", "native", "doomed", "garbage"]
MARK = re.compile(rb"call-\d+-\d+x")
OVER = ("08", "57P")  # classes of SQLSTATE: the connection is over, the server goes down


def digest(text):
    return hashlib.md5(text.encode() if isinstance(text, str) else text).hexdigest()


class Book:
    """What was called, what must come of it, and what was found wrong at once."""

    def __init__(self):
        self.lock = threading.Lock()
        self.calls = collections.Counter()  # (what, outcome)
        self.accepted, self.unsure, self.nothing = {}, {}, set()  # mark → Stored; mark → Stored; marks that must not be there
        self.problems = []

    def count(self, what, outcome):
        with self.lock:
            self.calls[what, outcome] += 1

    def wrong(self, what):
        with self.lock:
            self.problems.append(what)
        print("  wrong: " + what[:900], flush=True)

    def note(self, where, stored):
        with self.lock:
            for one in stored:
                if where == "nothing":
                    self.nothing.add(one.mark)
                else:
                    getattr(self, where)[one.mark] = one


class Stored:
    """One element of a call, or of a tick: what is stored of it, unless its key has an item. Of a tick's no id is told; `key` is that
    under which there must be an item then, its own or the one that held it."""

    def __init__(self, job, mark, due=True, sole=True, key=None):
        self.job, self.mark, self.due, self.sole, self.key = job, mark, due, sole, key
        self.item = self.text = None


class Call:
    """One call: SQL, its parameters, what it is, and by which SQLSTATEs it may be refused (none: it must be taken)."""

    def __init__(self, what, sql, parameters, stored, refused=(), either=False, key=None):
        self.what, self.sql, self.parameters, self.stored = what, sql, parameters, stored
        self.refused, self.either, self.key = {code for code in refused if code}, either, key

    def execute(self, cursor):
        cursor.execute(self.sql, self.parameters)
        for one, (item, text) in zip(self.stored, cursor.fetchall()):
            one.item, one.text = item, digest(text or "")


class Caller(threading.Thread):
    def __init__(self, number, url, seed, rate, book, sound):
        super().__init__(daemon=True)
        self.number, self.url, self.rate, self.book, self.sound = number, url, rate, book, sound
        self.dice = values.dice_of(seed, f"caller {number}")
        self.made = 0
        self.ended = threading.Event()
        self.connections = []

    # --- what is called

    def mark(self):
        self.made += 1
        return f"call-{self.number}-{self.made}x"

    def one(self, job=None, key=False):
        dice, job = self.dice, job or self.dice.choice(JOBS)
        mark = self.mark()
        value = values.edge(dice)
        run_at, run_at_refused, due = dice.choice(values.TIMES) if dice.random() < 0.4 else ("NULL", None, True)
        priority, priority_refused = dice.choice(values.PRIORITIES) if dice.random() < 0.3 else (0, None)
        text, key_refused, shared = values.key(dice, mark) if job in ("keyed", "remembered") or dice.random() < 0.1 else (None, None, False)
        if key:
            text, key_refused, shared = key, None, True
        if shared and not due:
            run_at, run_at_refused, due = "NULL", None, True  # else its key would be held for ever
        envelope = "jsonb_build_array(%s::text, {})" if dice.random() < 0.2 else "jsonb_build_object('call', %s::text, 'value', {})"
        parameters = [mark] + ([value.parameter] if "%s" in value.sql else [])
        if value.name.startswith("text, "):  # to the byte: what stands around it counts too
            parameters[1] -= len(f'["{mark}", ""]' if "array" in envelope else f'{{"call": "{mark}", "value": ""}}')
        refused = [run_at_refused, priority_refused, key_refused, None if value.refused == values.EITHER else value.refused]
        if dice.random() < 0.02:
            job = dice.choice(["nobody", "", "ключ", "called ", "CALLED", "x" * 100_000])
            refused.append(values.TAKT_JOB)
        sql = f"SELECT takt.enqueue(%s, p, %s, {run_at}, %s), p::text FROM (SELECT {envelope.format(value.sql)} OFFSET 0) given(p)"
        edges = [value.name] * (value.name != "random JSON") + [run_at] * (run_at != "NULL") + [f"priority {priority}"] * (priority != 0)
        edges += [f"key of {len(text)} characters"] if text and len(text) > 100 else []
        return Call("enqueue: " + (" and ".join(edges[:1]) or "random JSON"), sql, [job, text, priority, *parameters],
                    [Stored(job, mark, due, not shared)], refused, value.refused == values.EITHER, text if shared else None)

    def many(self):
        dice = self.dice
        job = dice.choice(["called", "called", "native", "keyed"])
        kind = dice.choice(["plain", "plain", "plain", "keys", "keys", "times", "unequal keys", "unequal times", "unequal priorities", "NULL payload", "NULL time",
                            "NULL priority", "empty", "NULL", "10,001", "late", "a long key", "a large payload"])
        count = 10_001 if kind == "10,001" else 0 if kind in ("empty", "NULL") else dice.randrange(1, 12)
        marks = [f"call-{self.number}-0x"] * count if count > 100 else [self.mark() for _ in range(count)]
        payloads = [f'{{"call": "{mark}", "value": {values.random_json(dice, 2)}}}' if count < 100 else f'["{mark}"]' for mark in marks]
        keys = times = priorities = None
        if kind in ("keys", "unequal keys", "a long key"):
            keys = [dice.choice([None, "", f"many {dice.randrange(4)}", mark]) for mark in marks]
        if kind in ("times", "unequal times", "NULL time", "late"):
            times = [dice.choice(["-infinity", "0001-01-01 00:00:00+00", "1969-07-20 20:17:40+00", "2020-01-01 00:00:00+00"]) for _ in marks]
        if kind in ("unequal priorities", "NULL priority"):
            priorities = [dice.randrange(-100, 101) for _ in marks]
        refused = None
        if kind.startswith("unequal"):
            array = {"unequal keys": keys, "unequal times": times, "unequal priorities": priorities}[kind]
            array.append(array[0]) if dice.random() < 0.5 else array.pop()
            refused = values.TAKT_LENGTHS
        elif kind in ("NULL payload", "NULL time", "NULL priority"):
            {"NULL payload": payloads, "NULL time": times, "NULL priority": priorities}[kind][dice.randrange(count)] = None
            refused = values.TAKT_NULL
        elif kind in ("empty", "NULL"):
            payloads, refused = (None if kind == "NULL" else []), values.TAKT_VALUE
        elif kind == "10,001":
            refused = values.TAKT_LARGE
        elif kind == "late":
            times[dice.randrange(count)], refused = "infinity", values.TAKT_VALUE
        elif kind == "a long key":
            keys[dice.randrange(count)], refused = "k" * 513, values.TAKT_VALUE
        elif kind == "a large payload":
            place = dice.randrange(count)
            payloads[place], refused = f'["{marks[place]}", "{"x" * values.LIMIT}"]', values.TAKT_LARGE
        sole = [not (keys and keys[n] and keys[n].startswith("many")) if keys and n < len(keys) else True for n in range(count)]
        # The answer's order is the arrays': the n-th row is the n-th payload's.
        sql = """SELECT s.item_id, p.payload::text
            FROM takt.enqueue_many(%(job)s, %(payloads)s::jsonb[], %(keys)s::text[], %(times)s::timestamptz[], %(priorities)s::integer[]) s
            LEFT JOIN unnest(%(payloads)s::jsonb[]) WITH ORDINALITY p(payload, n) ON p.n = s.ordinal ORDER BY s.ordinal"""
        parameters = {"job": job, "payloads": payloads, "keys": keys, "times": times, "priorities": priorities}
        stored = [Stored(job, mark, True, alone) for mark, alone in zip(marks, sole)]
        return Call("enqueue_many: " + kind, sql, parameters, stored, [refused])

    # --- how it is called

    def connect(self):
        connection = psycopg2.connect(self.url, connect_timeout=2, options="-c statement_timeout=20000")
        self.connections.append(connection)
        return connection

    def attempt(self, connection, call, isolated=False):
        """Executes the call in the open transaction; true if it was taken."""
        call.result = None
        with connection.cursor() as cursor:
            ended = None
            if call.key and call.stored[0].job == "keyed" and not isolated:
                # Whose item had ended before the call cannot be this call's answer: its job remembers no key.
                cursor.execute("SELECT k.item_id FROM takt.item_keys k JOIN takt.jobs j ON j.id = k.job_id AND j.name = 'keyed'"
                               " WHERE k.key = %s AND k.expires_at <= clock_timestamp()", (call.key,))
                ended = cursor.fetchone()
            call.execute(cursor)
            if ended and call.stored[0].item == ended[0]:
                self.book.wrong(f"{call.what}: swallowed, since item {ended[0]} with key {call.key} had ended before")
        if call.refused:
            self.book.wrong(f"{call.what}: was taken, and should be refused by {call.refused}: {str(call.parameters)[:200]}")

    def transaction(self, calls, before=0.0, open_for=0.0, isolation=None, commit=True):
        """All calls in one transaction that is `before` old already and stays open; notes what becomes of each."""
        began, connection, committing = time.monotonic(), None, False
        what = calls[-1].what
        try:
            connection = self.connect()
            if isolation:
                connection.set_isolation_level(isolation)
            if before:
                connection.cursor().execute("SELECT 1")
                self.ended.wait(before)
            for call in calls:
                self.attempt(connection, call, isolation is not None)
            if open_for:
                self.ended.wait(open_for)
            committing = commit
            connection.commit() if commit else connection.rollback()
            for call in calls:
                self.book.count(call.what, "accepted" if commit else "rolled back")
                self.book.note("accepted" if commit else "nothing", call.stored)
        except psycopg2.Error as error:
            self.judge(error, calls, committing, began, isolation)
        finally:
            if connection is not None:
                connection.close()
                self.connections.remove(connection)
        return what

    def judge(self, error, calls, committing, began, isolation):
        code = error.pgcode or ""
        refused = next((call for call in calls if call.refused or call.either), None)
        if not code or code.startswith(OVER):
            if self.sound(began):
                self.book.wrong(f"{calls[-1].what}: the connection ended: {error}")
            outcome, where = "unsure", "unsure" if committing else "nothing"
        elif code in ("40001", "40P01") and (isolation or not self.sound(began)):
            outcome, where = "raced", "nothing"
        elif refused and (code in refused.refused or (refused.either and code in (values.TAKT_LARGE, values.TAKT_VALUE, values.TOO_DEEP))):
            outcome, where = "refused", "nothing"
            ours = code in (values.TAKT_LARGE, values.TAKT_VALUE, values.TAKT_LENGTHS, values.TAKT_NULL, values.TAKT_JOB)
            if ours and not str(error).startswith("takt: "):
                self.book.wrong(f"{refused.what}: refused without Takt's words: {error}")
        else:
            outcome, where = "failed", "nothing"
            if code not in ("57014", "55P03") or self.sound(began):
                self.book.wrong(f"{calls[-1].what}: {code} {error}")
        for call in calls:
            self.book.count(call.what, outcome)
            self.book.note(where, call.stored)

    def savepoint(self):
        """The call under a savepoint is undone, the other one kept."""
        began, connection = time.monotonic(), None
        undone, kept = self.one("called"), self.one("called")
        try:
            connection = self.connect()
            with connection.cursor() as cursor:
                cursor.execute("SAVEPOINT before")
                try:
                    self.attempt(connection, undone)
                    outcome = "rolled back"
                except psycopg2.Error as error:
                    if not error.pgcode or error.pgcode.startswith(OVER):
                        raise
                    outcome = "refused"
                    if not undone.refused and not undone.either:
                        self.book.wrong(f"{undone.what}: {error.pgcode} {error}")
                cursor.execute("ROLLBACK TO before")
            self.book.count(undone.what, outcome)
            self.book.note("nothing", undone.stored)
        except psycopg2.Error as error:
            self.judge(error, [undone], False, began, None)
            return
        finally:
            if connection is not None:
                connection.close()
                self.connections.remove(connection)
        self.transaction([kept])

    def twice(self):
        """Two sessions with the same key at once; the first stays open, then commits or not."""
        key = f"twice {self.dice.randrange(3)}"
        job = self.dice.choice(["keyed", "remembered"])
        first, second = self.one(job, key), self.one(job, key)
        commit = self.dice.random() < 0.6
        other = threading.Thread(target=self.transaction, args=([second],), kwargs={"before": 0.1}, daemon=True)
        other.start()
        self.transaction([first], open_for=self.dice.uniform(0.1, 1.5), commit=commit)
        other.join(30)

    def call(self):
        dice = self.dice
        way = dice.random()
        calls = [self.many() if dice.random() < 0.2 else self.one()]
        if way < 0.60:
            self.transaction(calls)
        elif way < 0.68:
            self.transaction(calls, commit=False)
        elif way < 0.74:
            self.transaction(calls, open_for=dice.uniform(0.5, 3), commit=dice.random() < 0.7)
        elif way < 0.80:
            self.transaction([self.one("keyed", f"k{dice.randrange(6)}")], before=dice.uniform(0.5, 2))
        elif way < 0.86:
            self.transaction(calls, before=0.2, isolation="REPEATABLE READ" if dice.random() < 0.7 else "SERIALIZABLE")
        elif way < 0.93:
            self.savepoint()
        else:
            self.twice()

    def run(self):
        while not self.ended.is_set():
            began = time.monotonic()
            try:
                self.call()
            except Exception:  # noqa: BLE001: a caller that ends would hide what it has not tried
                self.book.wrong("a caller failed: " + traceback.format_exc())
            self.ended.wait(max(0, began + 1 / self.rate - time.monotonic()))

    def stop(self):
        self.ended.set()
        self.join(40)
