"""A whole installation under load and under callers, and what must be left of it: shared by random_faults and test_callers."""
import collections
import os
import random
import signal
import time

import callers
import memory
import operators
from chaos import IMPATIENT, ChaosTest, eventually
from lateness import JUDGED, LATEST, PROBES, SLOTS, Metronome, latest
from parts import listens

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
  probe: {lease: 3s, max_attempts: 1000, backoff: [200ms], handler: {http: {url: "{url}/probe", method: POST, timeout: 5s}}}
"""
LOADS = {"work": 60, "flaky": 15, "slow": 3, "hopeless": 3, "probe": 5}  # items a second
CALLED = ["called", "keyed", "remembered", "native", "doomed", "garbage", "extra"]
# Items of one key whose times, with the job's dedupe window of an hour after each, overlap by more than the transaction that
# enqueued the second can have been open.
TWICE = """
    WITH keyed AS MATERIALIZED (
      SELECT i.id, i.key, i.enqueued_at, i.finished_at + interval '59 min' AS until
        FROM takt.all_items i JOIN takt.jobs j ON j.id = i.job_id AND j.name = 'remembered' WHERE i.key IS NOT NULL)
    SELECT a.key, a.id, b.id FROM keyed a JOIN keyed b ON b.key = a.key AND b.id > a.id
     WHERE a.enqueued_at < coalesce(b.until, 'infinity') AND b.enqueued_at < coalesce(a.until, 'infinity') LIMIT 5"""
CALLERS, CALLS = 3, 6  # threads, and calls a second of each


class RandomRun(ChaosTest):
    seconds = SECONDS

    def setUp(self):
        super().setUp()
        self.crashes = 0
        self.memory = memory.Memory(self.footprint, self.seconds)
        self.living = collections.defaultdict(list)
        self.book, self.callers = callers.Book(), []
        self.sound_from, self.windows = float("inf"), []

    def tearDown(self):
        for caller in self.callers:
            caller.ended.set()
        if not listens(self.postgresql.port):
            self.postgresql.start()
            self.reconnect()
        if not listens(self.rabbitmq.port):
            self.rabbitmq.start()
        for caller in self.callers:
            caller.stop()
        super().tearDown()

    # --- services, replaced when they end

    def spawn(self, what, crash=None):
        arguments = ("dlq", "archive") if what == "archive" else (what,)
        process = self.start_crashing(crash or "nowhere", *arguments)
        process.began, process.crash = time.monotonic(), crash
        self.living[what].append(process)
        return process

    def replace(self, what, process, crash=None):
        process.wait(30)
        self.living[what].remove(process)
        self.spawn(what, crash)

    def replace_crashing(self):
        """What has a crash point ahead gives way to one that has none."""
        for what, processes in self.living.items():
            for process in [process for process in processes if process.crash]:
                process.kill()
                self.replace(what, process)

    def leader(self):
        return self.leading(self.living["dispatcher"]) or self.living["dispatcher"][0]

    def look_after(self):
        """What a supervisor does: starts again what has ended."""
        for what, processes in self.living.items():
            for process in list(processes):
                if process.poll() is not None:
                    self.crashes += process.returncode == -signal.SIGKILL
                    self.replace(what, process)
                else:
                    self.memory.look(process, self.sound(time.monotonic()))

    def watch(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.look_after()
            time.sleep(0.2)

    def sound(self, began):
        """Whether no machine fault has been under way, or just over, since then."""
        return began >= self.sound_from

    # --- the run

    def begin(self):
        dice = random.Random(SEED)
        self.ledger.behave["/flaky"] = lambda nth: (500 if dice.random() < 0.3 else 200, {}, b"")
        self.ledger.behave["/slow"] = lambda nth: (time.sleep(1) or 200, {}, b"")
        self.ledger.behave["/doomed"] = lambda nth: (500 if nth == 1 else 200, {}, b"")
        self.ledger.behave["/garbage"] = operators.garbage(callers.values.dice_of(SEED, "garbage"))
        plain = CONFIG + callers.CONFIG + operators.CONFIG
        self.acting = operators.Operators(self, plain, SEED, self.book, self.sound)
        self.install(self.acting.text())
        with self.db.cursor() as cursor:
            cursor.execute("CREATE TABLE chaos_large AS SELECT jsonb_build_object('a', repeat('x', 40000000)) AS large")
        # Services alone go through the proxies: a caller's answer that was lost is another fault, which the loads have.
        self.direct = dict(self.environment)
        self.database_proxy, self.broker_proxy = self.through_proxy("postgresql"), self.through_proxy("rabbitmq")
        for what in ["dispatcher"] * 2 + ["worker"] * 3 + ["archive"]:
            self.spawn(what)
        eventually(lambda: self.one("SELECT count(*) FROM takt.runs") > 0, what="the first runs")
        self.first_slot = self.now() + 1
        self.metronome = Metronome()
        self.callers = [callers.Caller(n, self.database_url, SEED, CALLS, self.book, self.sound) for n in range(1, CALLERS + 1)]
        self.callers += [self.acting, self.metronome]
        for job, rate in LOADS.items():
            self.load(rate, job)
        for caller in self.callers:
            caller.start()

    def end(self):
        """Stops what calls, lets all come to its end, checks all and says it."""
        last_slot = self.now()
        accepted = {load.job: load.stop() for load in self.loads}
        unsure = {load.job: load.unsure for load in self.loads}
        for caller in self.callers:
            caller.stop()
        self.look_after()
        self.check_slots(self.first_slot, last_slot)
        self.check_lateness()
        self.replace_crashing()  # nobody looks after what ends once all is drained
        self.drain()
        self.check_loads(accepted, unsure, last_slot)
        self.check_left_over()
        self.check_callers()
        self.assertEqual(self.strangers(), [], "letters that nobody's death explains")

    def count_of(self, where):
        return self.one("SELECT count(*) FROM takt.all_items i JOIN takt.jobs j ON j.id = i.job_id WHERE i.run_at < now() + interval '1 day' AND " + where)

    def drain(self):
        for job in ("every", "shifting", "paused"):
            self.takt("jobs", "pause", job)
        eventually(lambda: self.look_after() or not self.not_taken() or self.strangers(), 120, "a worker's taking of every tick that the broker confirmed")
        waits = "i.state IN ('pending', 'running') AND j.name NOT IN ('every', 'shifting')"
        eventually(lambda: self.look_after() or self.count_of(waits) == 0, 120, "the drain")
        self.archived()
        # What was dead is well now, and comes back as it was.
        self.takt("dlq", "replay", "--job", "doomed", "--yes", "--by", "chaos")
        eventually(lambda: self.count_of(waits) == 0, 60, "the drain of what was replayed")
        eventually(lambda: self.one("SELECT count(*) FROM takt.all_items WHERE state = 'running'") == 0, 30, "the last run")
        self.archived()
        self.check_invariants()

    def archived(self):
        eventually(lambda: self.one("SELECT count(*) FROM takt.dead_letter_outbox") == 0, 60, "the emptying of the outbox")
        dead = self.one("SELECT count(*) FROM takt.ended_items WHERE state = 3")
        eventually(lambda: self.one("SELECT count(*) FROM takt.dead_letters WHERE kind = 'item' AND state = 'archived'") == dead or self.strangers(), 60,
                   "every letter in the archive")
        channel = self.channel()
        eventually(lambda: self.queue_depth(channel, "takt.dead") == 0, 60, "the emptying of the queue of letters")
        channel.connection.close()
        self.assertEqual(self.strangers(), [], "letters that nobody's death explains")

    def not_taken(self):
        """Ticks that the broker confirmed, and whose inline items are not stored."""
        taken = {row[0] for row in self.rows("SELECT id FROM takt.ticks WHERE id = ANY (%s) AND accepted_at IS NOT NULL", self.acting.confirmed)}
        return set(self.acting.confirmed) - taken

    def strangers(self):
        """Messages that are Takt's own and not understood, and genuine ticks that nobody took: none but those that woke the job `extra`,
        carry nothing, and found it removed."""
        return self.rows("""SELECT id, kind, job, reason, error, length(body) FROM takt.dead_letters
            WHERE kind = 'message' OR kind = 'tick' AND NOT (job = 'extra' AND reason = 'unknown_job' AND coalesce(jsonb_array_length(payload -> 'items'), 0) = 0)
            LIMIT 5""")

    # --- what must hold

    def check_lateness(self):
        """In the windows without machine faults nobody's items and slots were late, whatever callers did."""
        seconds = sum(to - since for since, to in self.windows)
        for what, sql, rate in (("items of the probe", PROBES, LOADS["probe"]), ("slots", SLOTS, 1)):
            judged, most, whose = latest(self.rows(sql), self.windows, self.metronome.starved)
            print(f"without a fault, {what}: {judged} judged of {rate * seconds:.0f} that should be due, at most {most * 1000:.0f} ms late ({whose})")
            self.assertLess(most, LATEST, f"{what}: late in a window without faults: {whose}")
            self.assertGreaterEqual(judged, JUDGED * rate * seconds, f"{what}: too few were judged")
        print(f"windows: {len(self.windows)} of {seconds:.0f} s in all; the machine itself was late {len(self.metronome.starved)} times", flush=True)

    def check_loads(self, accepted, unsure, last_slot):
        names = tuple(accepted)
        states = dict(self.rows("SELECT state, count(*) FROM takt.all_items GROUP BY 1"))
        total = sum(len(items) for items in accepted.values())
        stored = self.one("SELECT count(*) FROM takt.all_items i JOIN takt.jobs j ON j.id = i.job_id WHERE j.name IN %s", names)
        self.assertGreaterEqual(stored, total, "an accepted item is gone")
        self.assertLessEqual(stored, total + sum(unsure.values()), "an item nobody enqueued")
        known = dict(self.rows("SELECT i.id, i.state FROM takt.all_items i JOIN takt.jobs j ON j.id = i.job_id WHERE j.name IN %s", names))
        for job, items in accepted.items():
            wanted = "dead" if job == "hopeless" else "done"
            self.assertEqual([i for i in items if known.get(i) != wanted][:5], [], f"accepted items of {job} that are not {wanted}")
        self.assertEqual(self.one("SELECT count(*) FROM takt.all_items WHERE payload ? 'forged'"), 0, "a forged tick became work")
        twice = self.rows("SELECT item_id FROM takt.attempts WHERE class = 'done' GROUP BY item_id, replay HAVING count(*) > 1")
        self.assertEqual(twice, [], "items that were settled done twice")
        # An item that was replayed, or skipped, comes again under the number of an attempt before.
        calls = collections.Counter((d["item"], d["attempt"]) for d in self.ledger.deliveries if d["path"] not in ("/doomed", "/garbage"))
        same_attempt = sum(count - 1 for count in calls.values())
        lost = self.one("SELECT count(*) FROM takt.failed_attempts WHERE class = 'lost'")
        by_item = collections.Counter(item for item, _ in calls)
        again = sum(by_item[f"item-{i}"] > 1 for i in accepted["work"])
        self.assertEqual(same_attempt, 0, "one attempt was delivered twice")
        print(f"items accepted of loads: {total} (and {sum(unsure.values())} whose commit's answer was lost); slots of the schedule: "
              f"{last_slot - self.first_slot}, each ticked once")
        print("final states: " + ", ".join(f"{state} {count}" for state, count in sorted(states.items())))
        print(f"duplicates: settled twice 0; same attempt delivered twice {same_attempt}; called again with a new attempt because its worker was lost "
              f"{lost} attempts, {again} of the {len(accepted['work'])} plain items; ticks twice 0", flush=True)

    def check_callers(self):
        """What was accepted is stored and handled, byte for byte; what was refused or rolled back left nothing; dry runs changed nothing."""
        book, rows, keys, wrong = self.book, {}, set(), list(self.book.problems)
        for item, job, state, later, mark, text, key in self.rows(
                """SELECT i.id, j.name, i.state, i.run_at > now() + interval '1 day', substring(i.payload::text FROM 'call-\\d+-\\d+x'), md5(i.payload::text), i.key
                     FROM takt.all_items i JOIN takt.jobs j ON j.id = i.job_id WHERE j.name IN %s""", tuple(CALLED)):
            if mark in rows:
                wrong.append(f"{job}: {mark} is there twice, as item {rows[mark][0]} and {item}")
            rows[mark] = (item, job, state, later, text)
            keys.add((job, key))
        items = {row[0] for row in rows.values()}
        wrong += [f"{mark} was refused or rolled back, and is item {rows[mark][0]}" for mark in book.nothing & set(rows)]
        for mark, one in book.accepted.items():
            row = rows.get(mark)
            if one.item not in items and one.item is not None:
                wrong.append(f"{one.job}: {mark} was accepted as item {one.item}, which is not there")
            elif row is None and (one.sole or one.key and (one.job, one.key) not in keys):
                wrong.append(f"{one.job}: {mark} was accepted as item {one.item}, and is not there")
            elif row is not None and (one.item not in (None, row[0]) or row[1] != one.job):
                wrong.append(f"{mark} was accepted as item {one.item} of {one.job}, and is {row}")
        for mark, (item, job, state, later, text) in rows.items():
            one = book.accepted.get(mark) or book.unsure.get(mark)
            if one is None:
                wrong.append(f"{job}: item {item} ({mark}) was never accepted")
            elif one.text and one.text != text:
                wrong.append(f"{job}: item {item} ({mark}) is not stored as it was enqueued")
            elif state != ("done" if one.due else "pending") or later == one.due:
                wrong.append(f"{job}: item {item} ({mark}) is {state}")
        wrong += self.wrong_deliveries(rows)
        wrong += [f"remembered: items {one} and {other} have the key {key} within its window" for key, one, other in self.rows(TWICE)]
        dry = self.one("SELECT count(*) FROM takt.all_items i JOIN takt.jobs j ON j.id = i.job_id WHERE j.name = 'reported'")
        if dry or self.ledger.of("/reported"):
            wrong.append(f"dry runs stored {dry} items and called {len(self.ledger.of('/reported'))} times")
        runs = self.one("SELECT count(*) FROM takt.runs r JOIN takt.jobs j ON j.id = r.job_id WHERE j.name = 'reported' AND r.dry_run")
        report = [f"  {outcome:12} {count:6}  {what}" for (what, outcome), count in sorted(book.calls.items())]
        print("calls:\n" + "\n".join(report), flush=True)
        self.assertEqual(wrong[:20], [], f"{len(wrong)} things that callers found wrong")
        totals = collections.Counter()
        for (_, outcome), count in book.calls.items():
            totals[outcome] += count
        print("calls: " + ", ".join(f"{outcome} {count}" for outcome, count in sorted(totals.items())) + f"; items of callers {len(rows)}, each handled "
              f"as it was enqueued; {len(book.nothing)} that were refused or rolled back left nothing; dry runs {runs}", flush=True)

    def wrong_deliveries(self, rows):
        """Bodies that are not, as PostgreSQL reads them, what was enqueued; and items done that were never delivered."""
        texts = {f"item-{item}": (mark, text) for mark, (item, _, _, _, text) in rows.items()}
        wrong, delivered = [], set()
        for path in ("/called", "/keyed", "/remembered", "/doomed", "/garbage", "/extra"):
            for delivery in self.ledger.of(path):
                mark, text = texts.get(delivery["item"], (None, None))
                delivered.add(delivery["item"])
                if mark is None:
                    wrong.append(f"{path}: {delivery['item']} was delivered, and nobody enqueued it: {delivery['body'][:100]}")
                elif callers.digest(delivery["body"]) != text:
                    canonical = self.canonical(delivery["body"])
                    if canonical != text:
                        wrong.append(f"{path}: {delivery['item']} ({mark}), attempt {delivery['attempt']}, was delivered as {delivery['body'][:200]}")
        for mark, (item, job, state, _, _) in rows.items():
            if state == "done" and job != "native" and f"item-{item}" not in delivered:
                wrong.append(f"{job}: item {item} ({mark}) is done and was never delivered")
        return wrong

    def canonical(self, body):
        try:
            return self.one("SELECT md5((convert_from(%s, 'UTF8')::jsonb)::text)", body)
        except Exception as error:  # noqa: BLE001: a body that is no JSON
            return repr(error)

    def check_left_over(self):
        """No lease, lock, transaction, consumer, connection, descriptor or thread more than before, and memory within its bounds."""
        self.assertEqual(self.one("SELECT count(*) FROM takt.ticks WHERE lease_until IS NOT NULL"), 0, "leases")
        self.assertEqual(self.one("SELECT count(*) FROM takt.job_locks"), 0, "locks")
        self.assertEqual(self.one("SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND state LIKE 'idle in transaction%%'", self.name), 0, "transactions")
        channel = self.channel()
        eventually(lambda: channel.queue_declare("takt.ticks.default", passive=True).method.consumer_count == len(self.living["worker"]), 20, "one consumer a worker")
        channel.connection.close()  # the leak check takes longer than the broker keeps a silent one
        print("left over: " + "; ".join(self.memory.check(self, self.living)), flush=True)
        if self.seconds >= 60:
            self.install(self.acting.text() + memory.config())
            print("heap in use, over fixed amounts of work: " + "; ".join(memory.check_leak(self, self.living)), flush=True)
