"""What people type: exit codes, messages that name place and way out, and documentation that cannot drift."""
import itertools
import json
import os
import re
import shlex
import subprocess
import tempfile
import unittest

from harness import BINARY, SOURCE, TaktTest, eventually

CONFIG = """
jobs:
  demo:
    handler: {http: {url: "{url}/demo", method: POST}}
    schedules: [{name: daily, cron: "0 9 * * 1-5", time_zone: Europe/Madrid}]
"""


def run(*arguments, cwd=None, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TAKT_")}
    return subprocess.run([BINARY, *arguments], capture_output=True, text=True, timeout=60, check=False, env={**clean, **environment}, cwd=cwd)


class PrivateServices(unittest.TestCase):
    @unittest.skipUnless(os.geteuid() == 0, "only root's PostgreSQL lies outside of the folder given")
    def test_finding40_no_folder_that_somebody_else_made_is_taken(self):
        with tempfile.TemporaryDirectory() as folder:  # mode 0700: PostgreSQL's user cannot reach it
            number = subprocess.run(["cksum"], input=folder + "\n", capture_output=True, text=True, check=True).stdout.split()[0]
            predicted, elsewhere = f"/var/tmp/takt-postgresql-{number}", os.path.join(folder, "elsewhere")
            os.mkdir(elsewhere)
            for make, said in ((lambda: (os.mkdir(predicted), os.chown(predicted, 65534, 65534)), "belongs to"), (lambda: os.symlink(elsewhere, predicted), "a link")):
                make()
                self.addCleanup(subprocess.run, ["rm", "-rf", predicted], check=True)
                for verb in ("start", "stop"):
                    done = subprocess.run([os.path.join(SOURCE, "deploy", "private-services"), verb, folder], capture_output=True, text=True, timeout=60, check=False)
                    self.assertEqual(done.returncode, 1)
                    self.assertIn(predicted, done.stderr)
                    self.assertIn(said, done.stderr)
                self.assertEqual(os.listdir(elsewhere) + os.listdir(predicted), [], "nothing was written there")
                subprocess.run(["rm", "-rf", predicted], check=True)


class Documentation(unittest.TestCase):
    maxDiff = None

    def test_the_references_are_what_the_binary_prints(self):
        for page, arguments in (("configuration.md", []), ("commands.md", ["--commands"])):
            with open(os.path.join(SOURCE, "docs", page), encoding="utf-8") as file:
                self.assertEqual(file.read(), run("reference", *arguments).stdout, f"run: takt reference {' '.join(arguments)} > docs/{page}")

    @staticmethod
    def commands():
        """Each command of docs/commands.md with its help."""
        with open(os.path.join(SOURCE, "docs", "commands.md"), encoding="utf-8") as file:
            return dict(re.findall(r"^## `(takt[^`]*)`\n\n```\n(.*?)```", file.read(), re.M | re.S))

    def test_F11_every_usage_line_is_the_commands_own(self):
        commands = self.commands()
        self.assertGreater(len(commands), 50)
        for command, text in commands.items():
            self.assertIn(f"Usage: {command} [OPTIONS]", text)
        self.assertIn("runs a company's background jobs", commands["takt"])

    def test_F15_the_help_of_each_command_has_examples_with_options_that_it_has(self):
        commands = self.commands()
        for command, text in commands.items():
            if "Examples:" not in text:
                self.assertTrue(any(other.startswith(command + " ") for other in commands), f"{command} has no examples")
                continue
            for example in re.findall(r"^  (takt .*)$", text.split("Examples:")[1], re.M):
                self.assertTrue(example.startswith(command), example)
                for option in re.findall(r"--[a-z-]+", example):
                    self.assertRegex(text + commands["takt"], rf"{option}\b", example)

    def test_F19_the_units_of_the_page_start_what_takt_has(self):
        with open(os.path.join(SOURCE, "docs", "running.md"), encoding="utf-8") as file:
            page = file.read()
        unit = dict(re.findall(r"^(\w+)=(.*)$", re.search(r"```ini\n(.*?)```", page, re.S)[1], re.M))
        program, *words = unit["ExecStart"].split()
        self.assertEqual((program, words[-1]), ("/usr/local/bin/takt", "$TAKT_COMMAND"))
        for command in ("dispatcher", "worker", re.search(r'TAKT_COMMAND=(dlq archive)"', page)[1]):
            self.assertEqual(run("--log-level", "info", *command.split(), "--help").returncode, 0, command)
        with open(os.path.join(SOURCE, "docs", "configuration.md"), encoding="utf-8") as file:
            grace = re.search(r"`grace` \|[^\n]*`(\d+)s`", file.read())[1]
        self.assertGreater(int(unit["TimeoutStopSec"]), int(grace) + 10)

    @staticmethod
    def pages():
        """Every page of the project: its path and its text."""
        found = []
        for folder, folders, files in os.walk(SOURCE):
            folders[:] = [name for name in folders if name not in ("build", ".git", ".takt", "node_modules")]
            found += [os.path.join(folder, name) for name in files if name.endswith(".md")]
        assert len(found) > 40, found
        for path in found:
            with open(path, encoding="utf-8") as file:
                yield path, file.read()

    def test_every_link_in_the_documentation_leads_somewhere(self):
        for path, text in self.pages():
            for link in re.findall(r"\]\(([^)#]+)", text):
                if not link.startswith("http"):
                    self.assertTrue(os.path.exists(os.path.join(os.path.dirname(path), link)), f"{path}: {link}")

    def test_prose_wraps_at_120_columns_so_that_a_difference_can_be_read(self):
        for path, text in self.pages():
            shown = False  # as it is, between fences
            for number, line in enumerate(text.splitlines(), 1):
                shown ^= line.lstrip().startswith("```")
                if not shown and not line.startswith("|"):
                    self.assertLessEqual(len(line), 120, f"{path}:{number}")

    def test_every_example_configuration_is_right(self):
        with open(os.path.join(SOURCE, "README.md"), encoding="utf-8") as file:
            shown = re.findall(r"```yaml\n(.*?)```", file.read(), re.S)
        self.assertTrue(shown)
        for page in os.listdir(os.path.join(SOURCE, "docs")):
            if page.endswith(".md"):
                with open(os.path.join(SOURCE, "docs", page), encoding="utf-8") as file:
                    shown += re.findall(r"```yaml\n(.*?)```", file.read(), re.S)
        with open(os.path.join(SOURCE, "deploy", "example", "takt.yaml"), encoding="utf-8") as file:
            shown.append(file.read())
        for text in shown:
            path = os.path.join("/tmp", f"takt-shown-{os.getpid()}.yaml")
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            done = run("check", "--file-only", "--config", path)
            os.unlink(path)
            self.assertEqual(done.returncode, 0, text + done.stdout)


class ExitCodes(unittest.TestCase):
    def test_usage_is_2_and_says_what_is_known(self):
        for arguments in ([], ["nonsense"], ["runs", "--limit", "0"], ["enqueue"], ["cron", "next", "61 * * * *"], ["worker", "--job", "x"],
                          ["runs", "--status", "odd"], ["--log-level", "loud", "status"], ["apply", "--config", "/nonexistent.yaml"]):
            done = run(*arguments)
            self.assertEqual(done.returncode, 2, f"{arguments}: {done.stderr}")
            self.assertTrue(done.stderr, arguments)

    def test_help_and_version_are_0(self):
        for arguments in (["--help"], ["--version"], ["dlq", "replay", "--help"]):
            self.assertEqual(run(*arguments).returncode, 0)

    def test_troubles_of_is_named_with_exit_1(self):
        self.assertIn("TAKT_DATABASE_URL is not set", run("status").stderr)
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "takt.yaml"), "w", encoding="utf-8") as file:
                file.write("jobs: {}\n")
            self.assertIn("no signing key", run("up", cwd=folder).stderr)
            for arguments in (["status"], ["up"], ["worker"], ["dispatcher"], ["dlq", "archive"]):
                self.assertEqual(run(*arguments, cwd=folder).returncode, 1, arguments)
        away = run("status", TAKT_DATABASE_URL="postgresql://me:hunter2@127.0.0.1:1/x")
        self.assertEqual(away.returncode, 1)
        self.assertNotIn("hunter2", away.stderr)

    def test_a_cron_fault_is_pointed_at(self):
        done = run("cron", "next", "0 25 * * *")
        self.assertIn("  0 25 * * *\n    ^", done.stderr)
        times = json.loads(run("cron", "next", "0 9 * * 1-5", "--zone", "Europe/Madrid", "--from", "2026-11-20T12:00:00Z", "--count", "2", "--json").stdout)
        self.assertEqual([time["at"] for time in times], ["2026-11-23T08:00:00Z", "2026-11-24T08:00:00Z"])

    def test_every_command_has_help(self):
        with open(os.path.join(SOURCE, "docs", "commands.md"), encoding="utf-8") as file:
            commands = re.findall(r"^## `takt ?(.*)`$", file.read(), re.M)
        self.assertGreater(len(commands), 30)
        for command in commands:
            self.assertEqual(run(*command.split(), "--help").returncode, 0, command)


class ConfigurationFile(unittest.TestCase):
    """C9: what acts as the file says refuses without it; what only connects needs none, unless one was named."""
    ACTING = (["apply"], ["check"], ["check", "--file-only"], ["dispatcher"], ["worker"], ["worker", "--once"], ["worker", "--once", "--dry-run"], ["up"],
              ["dlq", "archive"], ["dlq", "prune", "--yes"], ["tick", "demo"], ["jobs", "run", "demo"])
    CONNECTING = (["migrate"], ["status"], ["jobs"], ["jobs", "pause", "demo"], ["schedules"], ["runs"], ["items"], ["enqueue", "demo"], ["dlq", "list"],
                  ["dlq", "replay", "--all"], ["dlq", "prune", "--older-than", "30d"], ["bench", "latency"])
    OTHERS = (["keys", "generate"], ["cron", "next", "0 9 * * *"], ["reference"])

    def setUp(self):
        self.folder = os.path.realpath(self.enterContext(tempfile.TemporaryDirectory()))

    def test_C9_finding10_a_named_file_that_is_not_there_is_refused_by_every_command(self):
        for name, arguments in itertools.product(("takt.ymal", os.path.join(self.folder, "takt.ymal"), ""), (*self.ACTING, *self.CONNECTING, *self.OTHERS)):
            done = run(*arguments, "--config", name, cwd=self.folder)
            self.assertEqual((done.returncode, done.stdout), (2, ""), arguments)
            self.assertEqual(done.stderr, f'takt: --config: there is no "{os.path.basename(name)}" in {self.folder}; give the path of the configuration file\n')

    def test_C9_finding10_what_acts_as_the_file_says_refuses_in_a_folder_without_it(self):
        for arguments in self.ACTING:
            done = run(*arguments, cwd=self.folder)
            self.assertEqual((done.returncode, done.stdout), (2, ""), arguments)
            self.assertEqual(done.stderr, f'takt: there is no "takt.yaml" in {self.folder}; start in the folder that holds it, or name it with --config\n')
        for arguments in self.CONNECTING:
            done = run(*arguments, cwd=self.folder)
            self.assertEqual(done.returncode, 1, arguments)
            self.assertIn("TAKT_DATABASE_URL is not set", done.stderr)
        for arguments in (*self.OTHERS, ["--version"], ["--help"], ["worker", "--help"]):
            self.assertEqual(run(*arguments, cwd=self.folder).returncode, 0, arguments)

    def test_C9_finding10_a_folder_is_no_file(self):
        self.assertIn(f"{self.folder}: cannot be read", run("check", "--config", self.folder).stdout)
        self.assertEqual(run("worker", "--config", self.folder).returncode, 2)


class Commands(TaktTest):
    def test_C9_finding10_a_worker_that_misses_its_file_sends_nothing(self):
        self.install(CONFIG + 'worker: {outbound_deny: ["127.0.0.0/8"]}\n')
        self.enqueue("demo")
        for arguments in (["worker", "--once", "--config", self.config + "l"], ["worker", "--once"]):
            done = subprocess.run([BINARY, *arguments], env=self.environment, cwd=self.folder + "/..", capture_output=True, text=True, timeout=60, check=False)
            self.assertEqual(done.returncode, 2, done.stderr)
        self.assertEqual(self.ledger.deliveries, [])
        self.takt("worker", "--once")
        self.assertEqual(self.ledger.deliveries, [])

    def test_check_tells_a_newcomer_what_is_wrong(self):
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(CONFIG.replace("{url}", self.ledger.url))
        before = self.takt("check", expect=1)
        self.assertIn("run \"takt migrate\"", before)
        self.takt("migrate")
        self.assertIn("run \"takt apply\"", self.takt("check", expect=1))
        self.takt("apply")
        self.assertIn("all good", self.takt("check", "--before-start"))
        environment = dict(self.environment)
        del environment["TAKT_SIGNING_KEYS"]
        self.assertIn("FAULT signing keys", self.takt("check", expect=1, environment=environment))
        environment = dict(self.environment, TAKT_AMQP_URL="amqp://takt:wrong@127.0.0.1:1/")
        self.assertIn("FAULT broker", self.takt("check", expect=1, environment=environment))

    def test_apply_shows_the_difference_first_and_changes_nothing_in_a_dry_run(self):
        self.install("jobs: {}")
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(CONFIG.replace("{url}", self.ledger.url))
        self.assertIn("+ job demo", self.takt("apply", "--dry-run"))
        self.assertEqual(json.loads(self.takt("jobs", "--json")), [])
        self.assertIn("2 differences, applied", self.takt("apply"))
        self.assertIn("0 differences", self.takt("apply"))

    def test_F15_every_example_of_a_help_is_understood(self):
        self.install(CONFIG.replace("demo", "billing.renewals").replace("daily", "nightly"))
        with open(os.path.join(self.folder, "customers.jsonl"), "w", encoding="utf-8") as file:
            file.write('{"customer": 7}\n')
        with open(os.path.join(SOURCE, "docs", "commands.md"), encoding="utf-8") as file:
            examples = [shlex.split(line) for text in re.findall(r"^Examples:\n(.*?)```", file.read(), re.M | re.S) for line in re.findall(r"^  takt (.*)$", text, re.M)]
        self.assertGreater(len(examples), 60)
        for words in examples:
            if words[0] in ("dispatcher", "up", "bench", "reference") or words[:2] in (["worker", "--log-json"], ["dlq", "archive"], ["keys", "rotate"], ["keys", "generate"]):
                continue  # they run on, or write where the example says
            frames = ["--frames", "1"] if words[0] == "top" else []
            done = subprocess.run([BINARY, *words, *frames, "--config", self.config], env=self.environment, cwd=self.folder, stdin=subprocess.DEVNULL,
                                  capture_output=True, text=True, timeout=60, check=False)
            said = done.stdout + done.stderr
            self.assertTrue(done.returncode in (0, 1) or "--yes" in said, f"takt {shlex.join(words)}\n{said}")

    def test_listing_commands_speak_json(self):
        self.install(CONFIG)
        item = int(self.takt("enqueue", "demo", '{"a": 1}', "--key", "k").split()[1])
        self.assertEqual(int(self.takt("enqueue", "demo", "--key", "k").split()[1]), item)
        self.assertEqual(json.loads(self.takt("items", "--json"))[0]["item"], item)
        self.assertEqual(json.loads(self.takt("items", "show", str(item), "--json"))["payload"], {"a": 1})
        self.assertEqual(json.loads(self.takt("schedules", "--json"))[0]["time_zone"], "Europe/Madrid")
        self.assertEqual(json.loads(self.takt("jobs", "--json"))[0]["due"], 1)
        self.assertEqual(json.loads(self.takt("runs", "--json")), [])
        self.assertEqual(json.loads(self.takt("dlq", "list", "--json")), [])
        self.assertEqual(json.loads(self.takt("status", "--json"))["dispatcher"]["leading"], False)
        self.assertEqual(json.loads(self.takt("keys", "list", "--json"))[0]["role"], "current")
        self.takt("items", "cancel", str(item), "--yes", "--by", "ada")
        self.assertEqual(self.state(item), "cancelled")
        self.assertEqual(self.rows("SELECT who, action, subject FROM takt.audit WHERE action = 'cancel'"), [("ada", "cancel", f"item {item}")])
        self.assertIn("others", self.takt("items", "cancel", str(item), "--yes", expect=1))
        self.takt("enqueue", "nobody", expect=1)
        self.takt("enqueue", "demo", "{not json", expect=2)

    def test_enqueue_takes_a_file_and_names_the_line_at_fault(self):
        self.install(CONFIG)
        path = os.path.join(self.folder, "items.ndjson")
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"n": n}) + "\n" for n in range(2500))
        self.assertIn("2500 items", self.takt("enqueue", "demo", "--file", path))
        self.assertEqual(self.one("SELECT count(*) FROM takt.items"), 2500)
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"n": n}) + "\n" for n in range(2299))
            file.write('{"n": \n{"n": 1}\n[1,\n')
        said = self.takt("enqueue", "demo", "--file", path, expect=2)
        self.assertIn("items.ndjson:2300: not JSON", said)
        self.assertIn("items.ndjson:2302: not JSON, at character 4\n2 lines are wrong; nothing was stored\n", said)
        self.assertEqual(self.one("SELECT count(*) FROM takt.items"), 2500)
        with open(path, encoding="utf-8") as file:
            said = self.takt("enqueue", "demo", "--file", "-", expect=2, stdin=file.read())
        self.assertIn("standard input:2300: not JSON", said)
        self.assertRegex(said, r"[12]000 items were stored; not stored: all from line [12]001 on")
        stored = int(re.search(r"(\d+) items were", said)[1])
        self.assertEqual(self.one("SELECT count(*) FROM takt.items"), 2500 + stored)
        self.db.cursor().execute("DELETE FROM takt.items")
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"pad": "p" * (600_000 if 1200 <= n < 1203 else 1)}) + "\n" for n in range(5000))
        said = self.takt("enqueue", "demo", "--file", path, expect=1)
        self.assertIn("bytes, more than 524288", said)
        self.assertIn("not stored: lines 1001 to 2000, all from line", said)
        stored = int(re.search(r"(\d+) items were stored", said)[1])
        self.assertEqual(self.one("SELECT count(*) FROM takt.items"), stored)
        with open(path, "w", encoding="utf-8") as file:
            file.write('{"n": "\\u0000"}\n')
        self.assertIn("items.ndjson:1: holds a NUL", self.takt("enqueue", "demo", "--file", path, expect=2))
        self.db.cursor().execute("DELETE FROM takt.items")
        with open(path, "w", encoding="utf-8") as file:
            file.write('{"pad": "' + "p" * 500_000 + '",' + " " * 100_000 + '"n": 1}\n')
        self.assertEqual(self.takt("enqueue", "demo", "--file", path), "1 items enqueued\n", "blanks between fields are not the payload's")
        with open(path, "a", encoding="utf-8") as file:
            file.write('{"pad": "' + "p" * 620_000 + '"}\n')
        self.assertIn("items.ndjson:2: longer than 600 KiB\n1 line is wrong; nothing was stored", self.takt("enqueue", "demo", "--file", path, expect=2))
        self.assertEqual(self.one("SELECT count(*) FROM takt.items"), 1)

    def test_tick_run_now_pause_and_resume(self):
        self.install(CONFIG)
        self.start("up")
        self.takt("tick", "demo")
        eventually(lambda: len(self.ledger.of("/demo")) == 1, what="the tick's own item")
        self.takt("jobs", "run", "demo")
        eventually(lambda: len(self.ledger.of("/demo")) == 2)
        eventually(lambda: self.one("SELECT count(*) FROM takt.runs WHERE trigger = 'manual'") == 2)
        self.takt("schedules", "pause", "demo/daily")
        self.assertEqual(json.loads(self.takt("schedules", "--json"))[0]["state"], "paused")
        self.takt("schedules", "resume", "demo/daily")
        self.takt("schedules", "pause", "demo/never", expect=1)
        self.takt("jobs", "pause", "nobody", expect=1)

    def test_finding31_a_tick_by_hand_bears_postgresqls_time_wherever_it_was_signed(self):
        self.install(CONFIG)
        self.start("up")
        # asan wants to be the first library that is loaded, which faketime is here.
        environment = dict(self.environment, ASAN_OPTIONS=os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0")
        for n, wrong in enumerate(("+10m", "-25h"), 1):
            done = subprocess.run(["faketime", "-f", wrong, BINARY, "tick", "demo", "--config", self.config], env=environment, capture_output=True, text=True, timeout=60, check=False)
            self.assertEqual(done.returncode, 0, done.stderr)
            eventually(lambda: len(self.ledger.of("/demo")) == n, 10, f"the delivery of a tick from a clock that is {wrong} off")
        self.assertEqual(self.queue_depth(self.channel(), "takt.quarantine"), 0)

    def test_keys_are_generated_rotated_and_never_shown(self):
        path = os.path.join(self.folder, "keys")
        environment = {"TAKT_SIGNING_KEYS_FILE": path}
        self.assertEqual(run("keys", "generate", "--file", path).returncode, 0)
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        before = json.loads(run("keys", "list", "--json", **environment).stdout)
        self.assertEqual(run("keys", "rotate", "--yes", **environment).returncode, 0)
        after = json.loads(run("keys", "list", "--json", **environment).stdout)
        self.assertEqual([key["role"] for key in after], ["current", "next", "retired"])
        self.assertEqual(after[0]["fingerprint"], before[1]["fingerprint"])
        self.assertEqual(after[2]["fingerprint"], before[0]["fingerprint"])
        os.chmod(path, 0o640)
        self.assertIn("chmod 600", run("keys", "list", **environment).stderr)

    def test_finding6_the_secret_of_a_receiver_is_printed_alone(self):
        self.assertEqual(run("keys", "show-webhook", "billing.renewals", TAKT_SIGNING_KEYS="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").stdout,
                         "whsec_ZdiltjCT3NiV+4Ky5hYuJb76PlGX57Q9HJo15Zth4SA=\n")
        for arguments, code, said in ((["demo", "--role", "next"], 1, "there is no next key"), (["demo", "--role", "retired"], 1, "there is no retired key"),
                                      (["No Name"], 2, "no job's name"), (["demo", "--role", "odd"], 2, "--role")):
            done = run("keys", "show-webhook", *arguments, TAKT_SIGNING_KEYS=self.secret)
            self.assertEqual((done.returncode, done.stdout), (code, ""), arguments)
            self.assertIn(said, done.stderr)
        self.assertIn("no signing key", run("keys", "show-webhook", "demo").stderr)

    def test_R7_a_service_refuses_a_queue_that_exists_otherwise(self):
        self.install("jobs: {}")
        channel = self.channel()
        channel.queue_delete("takt.ticks.default")
        channel.queue_declare("takt.ticks.default", durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": 3})
        done = self.takt("up", expect=1)
        self.assertIn("queue takt.ticks.default exists with other properties", done)
        self.assertIn("x-d", done)
