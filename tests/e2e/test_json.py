"""What --json prints is what docs/json.md says, of every command that has it: one name and one type for a thing."""
import json
import os
import re
import subprocess

from harness import BINARY, SOURCE, TaktTest, eventually

CONFIG = """
dispatcher: {republish_after: 10s}
jobs:
  billing.renewals:
    handler: {http: {url: "{url}/renewals", method: POST}}
    schedules: [{name: nightly, cron: "* * * * * *", time_zone: Europe/Madrid}]
  mail.send:
    handler: {http: {url: "{url}/mail", method: POST}}
    max_attempts: 2
    backoff: [100ms]
  stays:
    handler: {http: {url: "{url}/refused", method: POST}}
  gone:
    handler: {http: {url: "{url}/gone", method: POST}}
"""
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"
SIMPLE = {"text": lambda v: isinstance(v, str), "whole": lambda v: isinstance(v, int) and not isinstance(v, bool), "yes/no": lambda v: isinstance(v, bool),
          "number": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool), "time": lambda v: isinstance(v, str) and re.fullmatch(TIME, v) and not v.startswith("0001"), "any": lambda v: True}


class Page:
    """docs/json.md: a shape for each command, a type for each field."""

    def __init__(self):
        with open(os.path.join(SOURCE, "docs", "json.md"), encoding="utf-8") as file:
            text = file.read()
        rows = re.findall(r"^\| (.*?) \| (.*?) \|", text, re.M)
        self.shapes = {name: shape for commands, shape in rows for name in re.findall(r"`(takt [^`]*)`", commands)}
        fields = re.findall(r"^\| `(\w+)` \| ([^|]*?) \|", text, re.M)
        self.types = dict(fields)
        self.twice = len(fields) - len(self.types)
        self.used = set()

    def names(self, listed):
        return [name.strip() for name in listed.split(",")]

    def fault_of_object(self, value, names, optional=()):
        if not isinstance(value, dict):
            return f"{value!r} is no object"
        wanted = {name.rstrip("?") for name in names}
        maybe = {name.rstrip("?") for name in names if name.endswith("?")} | set(optional)
        if set(value) - wanted - maybe or wanted - maybe - set(value):
            return f"fields {sorted(value)}, documented {sorted(wanted)}"
        return next((f"{name}: {fault}" for name, part in value.items() if (fault := self.fault_of_field(name, part))), None)

    def fault_of_field(self, name, value):
        kind = self.types.get(name)
        if kind is None:
            return "is in no row of docs/json.md"
        self.used.add(name)
        if kind.endswith("?"):
            if value is None:
                return None
            kind = kind[:-1]
        if kind in SIMPLE:
            return None if SIMPLE[kind](value) else f"{value!r} is not {kind}"
        names = self.names(kind[1:-1])
        if kind.startswith("{"):
            return self.fault_of_object(value, names)
        return self.fault_of_list(value, names)

    def fault_of_list(self, value, names, optional=()):
        if not isinstance(value, list):
            return f"{value!r} is no list"
        return next((fault for one in value if (fault := self.fault_of_object(one, names, optional))), None)

    def fault(self, command, value):
        parts = re.findall(r"`([^`]*)`", self.shapes[command])
        optional = self.names(parts[1]) if len(parts) > 1 else ()
        if parts[0].startswith("["):
            return self.fault_of_list(value, self.names(parts[0][1:-1]), optional)
        return self.fault_of_object(value, self.names(parts[0]), optional)


class Json(TaktTest):
    def test_F13_every_command_prints_what_the_page_says(self):
        page = Page()
        self.assertEqual(page.twice, 0, "a field has two rows")
        self.ledger.behave["/mail"] = lambda nth: (500, {}, b"")
        self.ledger.behave["/refused"] = lambda nth: (405, {}, b"")
        self.install(CONFIG)
        self.start("up")
        self.takt("enqueue", "mail.send", '{"n": 1}', "--key", "letter")
        self.takt("enqueue", "mail.send", '{"n": 2}')
        blocked = self.enqueue("stays")
        done = self.enqueue("billing.renewals", {"a": 12345678901234567890})
        self.enqueue("gone", run_at="2100-01-01T00:00:00Z")
        channel = self.channel()
        channel.basic_publish("takt.ticks", "default", b"no tick at all")
        channel.basic_publish("", "takt.dead", b"no letter at all")
        eventually(lambda: self.state(done) == "done" and self.state(blocked) == "blocked")
        eventually(lambda: self.one("SELECT count(*) FROM takt.dead_letters") == 3, what="the letters")
        eventually(lambda: self.queue_depth(channel, "takt.quarantine") == 1, what="the quarantine")
        answers = {}

        def ask(command, *arguments, expect=0):
            done = subprocess.run([BINARY, *command.split()[1:], *arguments, "--json", "--config", self.config], env=self.environment,
                                  capture_output=True, text=True, timeout=60, check=False)
            self.assertEqual(done.returncode, expect, f"{command}: {done.stdout}{done.stderr}")
            answers[command] = json.loads(done.stdout)
            self.assertIsNone(page.fault(command, answers[command]), f"{command}: {done.stdout[:2000]}")
            return answers[command]

        self.takt("jobs", "pause", "gone")
        service = ask("takt services list")[0]["service"]
        ask("takt services show", service)
        ask("takt jobs list")
        for job in ("billing.renewals", "gone"):
            ask("takt jobs show", job)
        ask("takt jobs pause", "mail.send")
        ask("takt jobs resume", "mail.send")
        ask("takt jobs run", "mail.send")
        ask("takt tick", "mail.send")
        ask("takt schedules list")
        ask("takt schedules show", "billing.renewals/nightly")
        ask("takt schedules pause", "billing.renewals/nightly")
        ask("takt schedules resume", "billing.renewals/nightly")
        for run in ask("takt runs list", "--limit", "50"):
            ask("takt runs show", str(run["run"]))
        for item in ask("takt items list", "--limit", "50"):
            ask("takt items show", str(item["item"]))
        ask("takt status")
        ask("takt check", expect=1)
        ask("takt enqueue", "billing.renewals", "--key", "k")
        lines = os.path.join(self.folder, "lines")
        with open(lines, "w", encoding="utf-8") as file:
            file.write('{"n": 1}\n{"n": 2}\n')
        ask("takt enqueue --file", lines, "billing.renewals")
        ask("takt items retry", str(blocked), "--yes")
        ask("takt items cancel", str(self.enqueue("billing.renewals", run_at="2100-01-01T00:00:00Z")), "--yes")
        ask("takt migrate")
        for letter in ask("takt dlq list"):
            ask("takt dlq show", letter["letter"])
            if letter["kind"] == "item":
                ask("takt dlq edit", letter["letter"], "--set", '{"n": 3}')
        self.assertEqual(ask("takt dlq replay", "--job", "mail.send", "--yes")["items_replayed"], 2)
        ask("takt dlq discard", "--kind", "message", "--yes")
        ask("takt dlq prune", "--yes")
        message = ask("takt quarantine list")[0]["message"]
        ask("takt quarantine show", message)
        self.assertEqual(ask("takt quarantine discard", message, "--yes"), {"discarded": 1})
        self.db.cursor().execute("INSERT INTO takt.services SELECT 'silent', kind, roles, host, pid, version, started_at, seen_at - interval '1 min', keys,"
                                 " queues, ready, detail, runs, places FROM takt.services LIMIT 1")
        ask("takt services forget", "silent")
        self.assertTrue(ask("takt audit list"))
        ask("takt keys list")
        ask("takt cron next", "0 9 * * *")
        ask("takt bench", "enqueue", "--count", "50", "--beside-live-work")
        self.takt("jobs", "pause", "billing.renewals")
        self.enqueue("billing.renewals")
        self.assertTrue(ask("takt worker --once --dry-run", "--job", "billing.renewals"))
        self.takt("jobs", "resume", "billing.renewals")
        ask("takt worker --once", "--job", "billing.renewals")
        with open(self.config, encoding="utf-8") as file:
            config = file.read()
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(config[:config.index("  gone:")])
        ask("takt apply", "--prune")
        ask("takt status")
        self.assertEqual(sorted(set(page.shapes) - set(answers)), [], "documented, and not asked here")
        self.assertEqual(sorted(set(page.types) - page.used), [], "documented, and in no answer")
        with open(os.path.join(SOURCE, "docs", "commands.md"), encoding="utf-8") as file:
            having = {command for command, text in re.findall(r"^## `(takt[^`]*)`\n\n```\n(.*?)```", file.read(), re.M | re.S) if "--json" in text}
        documented = set(answers) | {"takt worker"} | {command.removesuffix(" list") for command in answers}
        self.assertEqual(sorted(c for c in having - documented if not c.startswith("takt bench ")), [], "has --json, and no row in docs/json.md")
