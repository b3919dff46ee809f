"""What an operator types and reads: messages that name what, where and what to do, filters, exit codes for scripts, and top on a terminal."""
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time

import psycopg2

from harness import BINARY, answers, eventually
from told import ToldTest

CONFIG = """
jobs:
  billing.renewals:
    handler: {http: {url: "{url}/renewals", method: POST}}
    schedules: [{name: nightly, cron: "0 0 1 1 *"}]
  mail.send:
    handler: {http: {url: "{url}/mail", method: POST, circuit_failures: 0}}
    max_attempts: 1
"""


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, test, *words, columns=80, rows=24, **environment):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = subprocess.Popen([BINARY, *words, "--config", test.config], env={**test.environment, "TERM": "xterm", **environment},
                                        stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        self.seen = ""
        test.addCleanup(self.close)

    def read(self, seconds=0.2):
        end = time.monotonic() + seconds
        while time.monotonic() < end and select.select([self.master], [], [], max(0, end - time.monotonic()))[0]:
            try:
                data = os.read(self.master, 65536)
            except OSError:
                break
            if not data:
                break
            self.seen += data.decode()
        return self.seen

    def all(self):
        """What it shows until it ends: less than the terminal keeps for a reader, 4 KiB."""
        self.process.wait(30)
        return self.read()

    def key(self, key):
        self.seen = ""
        os.write(self.master, key.encode())

    def frame(self):
        """The last whole screen, as lines without colours."""
        text = self.read().split("\x1b[H")[-1]
        return [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line).rstrip("\r") for line in text.split("\n")]

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


class Messages(ToldTest):
    def usage(self, *words):
        done = subprocess.run([BINARY, *words], env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(done.returncode, 2, done.stdout)
        return done.stderr

    def test_F14_faults_of_the_file_name_the_way_out(self):
        for text, said in (("jobs:\n\tdemo: 1\n", "a tab at the line's beginning; indent with spaces"), ("jobs:\n  demo:\n    schedules: [{name: x, cron: */5 * * * *}]\n", "in quotes"),
                           ('jobs:\n  demo:\n    handler: {http: {url: "http://x/", bearer: X}}\n', 'did you mean bearer_env?')):
            with open(self.config, "w", encoding="utf-8") as file:
                file.write(text)
            self.assertIn(said, self.takt("check", "--file-only", expect=1))

    def test_F14_a_mistyped_command_is_named_with_the_one_that_may_be_meant(self):
        self.assertEqual(self.usage("stauts"), 'takt: no command "takt stauts"; did you mean "takt status"?; "takt --help" lists them\n')
        self.assertIn('did you mean "takt items retry"?', self.usage("items", "rety"))
        for words in (["help"], ["help", "items"], ["version"]):
            self.assertEqual(subprocess.run([BINARY, *words], capture_output=True, timeout=60, check=False).returncode, 0)

    def test_F14_times_say_what_is_missing(self):
        self.install(CONFIG)
        self.assertIn("Z", self.takt("enqueue", "mail.send", "--run-at", "2026-11-25T10:00:00", expect=2))
        self.takt("enqueue", "mail.send", "--run-at", "1h")
        self.assertEqual(self.takt("runs", "--since", "1h"), "no runs\n")
        self.assertIn("--since", self.takt("runs", "--since", "yesterday", expect=2))

    def test_F14_nothing_is_said_before_a_tick_is_published(self):
        self.install(CONFIG)
        away = dict(self.environment, TAKT_AMQP_URL="amqp://takt:x@127.0.0.1:1/")
        for words in (["tick", "mail.send"], ["jobs", "run", "mail.send"]):
            said = self.takt(*words, expect=1, environment=away)
            self.assertTrue(said.startswith("takt: "), said)
        self.takt("jobs", "pause", "mail.send")
        self.assertIn('the job is paused: it does nothing until "takt jobs resume mail.send"', self.takt("jobs", "run", "mail.send"))

    def test_F14_why_a_letter_is_not_replayed(self):
        self.ledger.behave["/mail"] = answers(500)
        self.install(CONFIG)
        self.start("up")
        first, second = self.enqueue("mail.send", key="k"), self.enqueue("mail.send")
        eventually(lambda: self.one("SELECT count(*) FROM takt.dead_letters") == 2)
        self.ledger.behave["/mail"] = answers(200)
        self.takt("dlq", "replay", f"item-{second}-0", "--yes", "--by", "ann")
        eventually(lambda: self.state(second) == "done")
        self.assertRegex(self.takt("dlq", "replay", f"item-{second}-0", "--yes"), rf"item-{second}-0: replayed at 20\S+ by ann; item {second} is done")
        again = json.loads(self.takt("dlq", "replay", f"item-{second}-0", "--yes", "--json"))
        self.assertEqual(again, {"items_replayed": 0, "ticks_replayed": 0, "replayed_before": 1, "refused": 0})
        self.assertIn(f"item-{second}-0", self.takt("dlq", "show", str(second), expect=1), "an item's number is no letter's id")
        self.takt("jobs", "pause", "mail.send")
        holder = self.enqueue("mail.send", key="k")
        said = self.takt("dlq", "replay", "--job", "mail.send", "--yes", expect=1)
        self.assertIn(f"1 not replayed:\nitem-{first}-0: its key is that of item {holder}", said)
        self.takt("jobs", "resume", "mail.send")

    def test_F16_a_filter_with_a_wrong_name_is_no_calm(self):
        self.install(CONFIG)
        for words in (["runs"], ["items"], ["schedules"], ["dlq", "list"], ["items", "retry"], ["items", "cancel"]):
            for name, said in (("mail.sendd", 'no job named "mail.sendd"; did you mean "mail.send"?'), ("x", 'no job named "x"')):
                self.assertIn(said, self.takt(*words, "--job", name, *(["--yes"] if words[-1] in ("retry", "cancel") else []), expect=1))
            if words[-1] not in ("retry", "cancel"):
                self.takt(*words, "--job", "mail.send")
        for words, said, code in ((["runs", "--worker", "nobody"], 'no worker "nobody" lives or made a run', 1),
                                  (["dlq", "list", "--reason", "odd"], 'no dead letter has the reason "odd"; there are: none', 1),
                                  (["quarantine", "--reason", "odd"], "bad_signature", 2), (["audit", "--who", "nobody"], 'nothing by "nobody"', 1),
                                  (["audit", "--subject", "nobody"], 'nothing of the subject "nobody"', 1), (["audit", "--action", "odd"], 'nothing of the action "odd"', 1)):
            self.assertIn(said, self.takt(*words, expect=code))
            if code == 1:
                self.takt(*words, "--json", expect=1)
        self.start("worker")
        for words in (["runs", "--worker", self.one("SELECT host FROM takt.services")], ["quarantine", "--reason", "stale"], ["audit", "--action", "create"],
                      ["audit", "--subject", "mail.send"], ["audit", "--since", "1s", "--action", "create"]):
            self.takt(*words)
        self.assertEqual(self.takt("enqueue", "mail.send", "--key", "k").split("\n")[0].replace("item ", "").isdigit(), True)
        self.assertIn("(was there)", self.takt("enqueue", "mail.send", "--key", "k"))

    def test_F15_an_act_takes_no_filter_of_the_list(self):
        self.install(CONFIG)
        self.enqueue("mail.send")
        for words in (["dlq", "discard", "--all", "--yes", "--limit", "1"], ["dlq", "--job", "mail.send", "discard", "--yes"],
                      ["items", "retry", "1", "--key", "k"], ["items", "--job", "mail.send", "cancel", "1", "--yes"], ["runs", "show", "1", "--job", "mail.send"]):
            said = self.takt(*words, expect=2)
            self.assertRegex(said, "takes no --(limit|key|job)|--job stands before")
        self.assertEqual(self.takt("dlq", "--job", "mail.send"), self.takt("dlq", "list", "--job", "mail.send"))

    def test_F15_a_pipe_and_a_named_pipe_are_files_too(self):
        self.install(CONFIG)
        lines = '{"n": 1}\n{"n": 2}\n'
        self.assertEqual(self.takt("enqueue", "mail.send", "--file", "-", stdin=lines), "2 items enqueued\n")
        pipe = os.path.join(self.folder, "pipe")
        os.mkfifo(pipe)
        with subprocess.Popen(["sh", "-c", f"printf '%s' '{lines}' > {pipe}"]) as writer:
            self.assertEqual(self.takt("enqueue", "mail.send", "--file", pipe), "2 items enqueued\n")
            writer.wait(10)
        self.assertEqual(self.one("SELECT count(*) FROM takt.items"), 4)
        self.assertIn("cannot be read", self.takt("enqueue", "mail.send", "--file", self.folder, expect=1))

    def test_F15_items_are_retried_by_filter_and_each_once(self):
        self.install(CONFIG)
        self.db.cursor().execute("SELECT takt.enqueue('mail.send', '{}', NULL, now() + interval '1 h', n % 3 - 1) FROM generate_series(1, 2500) n")
        self.db.cursor().execute("SELECT takt.enqueue('mail.send') FROM generate_series(1, 10)")
        self.assertIn("2500 items are due now", self.takt("items", "retry", "--job", "mail.send", "--state", "pending", "--yes"))
        self.db.cursor().execute("UPDATE takt.items SET state = 5, attempt = 3")
        self.assertEqual(json.loads(self.takt("items", "retry", "--job", "mail.send", "--yes", "--json")), {"retried": 2510})
        self.assertEqual(self.rows("SELECT DISTINCT state, attempt, replay FROM takt.items"), [(0, 0, 1)])
        self.assertIn("no blocked items of mail.send", self.takt("items", "retry", "--job", "mail.send", "--yes"))

    def test_F18_F12_exit_codes_for_scripts(self):
        self.ledger.behave["/mail"] = answers(500)
        self.install(CONFIG)
        self.takt("status")
        self.takt("status", "--fail-on", "no_worker", expect=1)
        self.takt("status", "--fail-on", "held,paused")
        self.start("up")
        eventually(lambda: self.troubles() == {}, 10, "a whole installation")
        self.takt("status", "--fail-on", "any,dead")
        item = self.enqueue("mail.send")
        eventually(lambda: self.one("SELECT count(*) FROM takt.dead_letters") == 1)
        eventually(lambda: "failing" in self.troubles(), 10, "the job whose item died")
        self.takt("status", "--fail-on", "any", expect=1)
        self.takt("status", "--fail-on", "held,blocked,no_worker,key")
        self.takt("status", "--fail-on", "dead", expect=1)
        self.takt("jobs", "pause", "mail.send")
        self.takt("status", "--fail-on", "paused", expect=1)
        self.takt("jobs", "resume", "mail.send")
        self.assertIn("is none of", self.takt("status", "--fail-on", "odd", expect=2))
        job = next(job for job in json.loads(self.takt("status", "--json"))["jobs"] if job["job"] == "mail.send")
        self.assertEqual((job["attempts_failed_24h"], job["items_done_24h"], job["runs_lost_24h"], job["dead_letters"]), (1, 0, 0, 1))
        self.assertEqual(self.state(item), "dead")

    def test_F17_the_rate_is_of_the_last_seconds(self):
        self.install(CONFIG)
        self.start("up")

        def job():
            return next(job for job in json.loads(self.takt("status", "--json"))["jobs"] if job["job"] == "mail.send")

        def while_items_are_done(look):
            """They go on, since what was done ten seconds ago is no rate any more."""
            return lambda: [self.enqueue("mail.send") for _ in range(5)] and look()

        self.assertEqual(job()["done_a_second"], 0)
        self.assertRegex(self.takt("status"), r"\nmail\.send +active +0 +- +- ")
        eventually(while_items_are_done(lambda: job()["done_a_second"] > 0), 10, "a rate")
        for command in (["status"], ["top", "--frames", "1"]):
            eventually(while_items_are_done(lambda command=command: re.search(r"mail\.send +active .* \d\.\d/s ", self.takt(*command))), 10, f"a rate in {command}")

    def quarantined(self):
        """Three forged ticks in quarantine; the channel they were sent through."""
        self.install(CONFIG)
        self.start("up")
        channel = self.channel()
        for n in range(3):
            self.publish(channel, {"id": f"forged-{n}", "job": "mail.send"}, secret="whsec_" + "A" * 43 + "=")
        eventually(lambda: self.queue_depth(channel, "takt.quarantine") == 3, what="the quarantine")
        return channel

    def test_F15_the_quarantine_is_looked_at_and_stays(self):
        channel = self.quarantined()
        for _ in range(2):
            listed = sorted(json.loads(self.takt("quarantine", "--json")), key=lambda one: one["tick"])  # workers judge at once, in any order
            self.assertEqual([(one["reason"], one["tick"], one["queue"]) for one in listed], [("bad_signature", f"forged-{n}", "default") for n in range(3)])
        shown = json.loads(self.takt("quarantine", "show", listed[1]["message"], "--json"))
        self.assertEqual(json.loads(shown["body"]), {"id": "forged-1", "job": "mail.send"})
        self.assertEqual(len(json.loads(self.takt("quarantine", "list", "--limit", "2", "--json"))), 2)
        self.assertIn("no message", self.takt("quarantine", "show", "odd", expect=1))
        eventually(lambda: self.queue_depth(channel, "takt.quarantine") == 3, what="all are there still")
        self.assertIn("say which", self.takt("quarantine", "discard", "--yes", expect=2))
        self.assertIn("no message", self.takt("quarantine", "discard", "odd", "--yes", expect=1))
        self.assertEqual(self.takt("quarantine", "discard", "--reason", "stale", "--yes"), "no such message is in quarantine\n")
        self.takt("status", "--fail-on", "quarantine", expect=eventually(lambda: "waiting in takt.quarantine: 3" in self.takt("status"), 30, "the count") and 1)

    def test_F15_what_was_looked_at_is_discarded(self):
        channel = self.quarantined()
        first = json.loads(self.takt("quarantine", "--json"))[0]["message"]
        self.assertEqual(self.takt("quarantine", "discard", first, "--yes", "--by", "ann"), "discarded 1 message\n")
        eventually(lambda: self.queue_depth(channel, "takt.quarantine") == 2, what="the others")
        self.assertIn("excludes", self.takt("quarantine", "discard", first, "--reason", "stale", "--yes", expect=2))
        second = json.loads(self.takt("quarantine", "--json"))[0]["message"]
        self.assertIn("no message", self.takt("quarantine", "discard", second, first, "--yes", expect=1), "the other is gone")
        eventually(lambda: self.queue_depth(channel, "takt.quarantine") == 1, what="the last one")
        self.takt("quarantine", "discard", "--reason", "bad_signature", "--yes")
        eventually(lambda: self.queue_depth(channel, "takt.quarantine") == 0, what="an empty quarantine")
        self.assertEqual(self.rows("SELECT who, subject FROM takt.audit WHERE action = 'quarantine discard' ORDER BY id")[0], ("ann", f"message {first}"))

    def test_F16_lists_are_of_the_newest_whatever_numbers_their_runs_have(self):
        """Numbers of runs are given to workers in blocks: a lower one may be the newer run's."""
        self.install(CONFIG)
        self.start("up")
        items = []
        for _ in range(12):
            items.append(self.enqueue("mail.send"))
            eventually(lambda: self.state(items[-1]) == "done")
        self.db.cursor().execute("UPDATE takt.runs SET id = id + 1000000 WHERE item_max <= %s", (items[5],))
        for filters in ([], ["--job", "mail.send"], ["--state", "done"]):
            listed = [one["item"] for one in json.loads(self.takt("items", "--limit", "6", "--json", *filters))]
            self.assertEqual(listed, items[:5:-1], filters)

    def test_F16_the_last_slots_are_those_that_were_due_last(self):
        self.install(CONFIG + "    schedules: [{name: second, cron: '* * * * * *'}]\n")
        self.start("up")
        slots = "SELECT count(*) FROM takt.runs WHERE tick_id LIKE 'mail.send/second@%%' AND status = 'completed'"
        eventually(lambda: self.one(slots) >= 7, what="seven slots")
        self.takt("jobs", "pause", "mail.send")
        # One that was caught up with late, as after an outage.
        self.db.cursor().execute("UPDATE takt.runs SET started_at = now() + interval '1 s' WHERE tick_id = (SELECT min(tick_id) FROM takt.runs WHERE tick_id LIKE 'mail.send/second@%%')")
        due = [slot["due_at"] for slot in json.loads(self.takt("schedules", "show", "mail.send/second", "--json"))["last_slots"]]
        self.assertEqual(due, [row[0].split("@")[1] for row in self.rows("SELECT tick_id FROM takt.runs WHERE tick_id LIKE 'mail.send/second@%%' ORDER BY tick_id DESC LIMIT 5")])

    def test_F1_a_silent_service_that_is_not_to_come_back_is_forgotten(self):
        self.install(CONFIG)
        self.start("dispatcher"), self.start("dlq", "archive"), self.start("worker")
        gone = self.start("worker")
        eventually(lambda: self.troubles() == {}, 10, "a whole installation")
        identity = self.one("SELECT id FROM takt.services WHERE pid = %s", gone.pid)
        self.assertIn("lives goes by itself", self.takt("services", "forget", identity, expect=1))
        gone.kill()
        told = eventually(lambda: self.troubles().get("silent"), 10, "the silent one")
        self.assertIn(f'"takt services forget {identity}"', told)
        self.assertIn("forgotten", self.takt("services", "forget", identity, "--by", "ann"))
        self.assertEqual(self.troubles(), {})
        self.assertEqual(self.one("SELECT who FROM takt.audit WHERE action = 'forget'"), "ann")


class OnATerminal(ToldTest):
    def test_F18_tables_fit_and_colours_end_where_nobody_wants_them(self):
        self.ledger.behave["/mail"] = answers(500)
        self.install(CONFIG)
        self.start("up")
        self.enqueue("mail.send")
        eventually(lambda: self.one("SELECT count(*) FROM takt.dead_letters") == 1)
        self.takt("jobs", "pause", "mail.send")
        for command in ("runs", "jobs", "items", "dlq list", "status", "schedules", "services", "audit"):
            terminal = Terminal(self, *command.split(), columns=80)
            terminal.all()
            lines = terminal.frame()
            table = [line for line in lines if "  " in line and not line.startswith(("dispatcher:", "runs active", "services:"))]
            self.assertLessEqual(max(len(line) for line in table), 80, lines)
        self.assertIn("the endpoint answered 500", Terminal(self, "runs", columns=80).all())
        self.assertIn("\x1b[33mpaused\x1b[0m", Terminal(self, "jobs").all())
        for quiet in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
            shown = Terminal(self, "jobs", **quiet).all()
            self.assertIn("paused", shown)
            self.assertNotIn("\x1b[", shown)
        wide = Terminal(self, "runs", "--wide", columns=80)
        self.assertTrue(eventually(lambda: any(len(line) > 100 for line in wide.frame()), 10, "all columns"))
        self.assertNotIn("\x1b[", self.takt("jobs"))

    def test_F17_top_marks_sorts_pauses_and_outlives_the_database(self):
        self.install(CONFIG)
        for _ in range(3):
            self.enqueue("mail.send")
        top = Terminal(self, "top", "--interval", "1", columns=80, rows=16)

        def shows(*words, without=()):
            return eventually(lambda: (text := "\n".join(top.frame())) and all(word in text for word in words) and not any(word in text for word in without) and text, 15, f"{words}")

        text = shows("mail.send", "NONE LEADS", "by job", "q quit")
        self.assertRegex(text, r"20\d\d-\d\d-\d\dT")
        self.assertLessEqual(max(len(line) for line in top.frame()), 80)
        self.assertLess(text.index("billing.renewals"), text.index("mail.send"))
        top.key("s")
        text = shows("by due")
        self.assertLess(text.index("mail.send"), text.rindex("billing.renewals"))
        top.key("r")
        shows("by due reversed")
        self.takt("jobs", "pause", "mail.send")
        shows("> mail.send")
        top.key("p")
        shows("PAUSED")
        self.takt("jobs", "resume", "mail.send")
        top.key("p")
        shows("> mail.send", without=("PAUSED",))
        self.admin.cursor().execute(f'ALTER DATABASE "{self.name}" WITH ALLOW_CONNECTIONS false')
        self.admin.cursor().execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (self.name,))
        shows("POSTGRESQL AWAY, what follows is", "mail.send")
        self.admin.cursor().execute(f'ALTER DATABASE "{self.name}" WITH ALLOW_CONNECTIONS true')
        shows("mail.send", without=("POSTGRESQL AWAY",))
        top.key("q")
        self.assertEqual(top.process.wait(10), 0)
        self.db = psycopg2.connect(self.database_url)
        self.db.autocommit = True
        again = Terminal(self, "top")
        eventually(lambda: "mail.send" in again.read(), 15)
        again.process.send_signal(signal.SIGINT)
        self.assertEqual(again.process.wait(10), 0)
        self.assertIn("\x1b[?1049l", again.read(), "the screen as it was")
