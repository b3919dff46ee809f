"""docs/enqueueing.md: its programs and commands run as they stand there, and its tables say what the functions say."""
import json
import os
import re
import shutil
import subprocess
import sys

from harness import SOURCE, TaktTest

CONFIG = """
jobs:
  billing.renewals:
    handler: {http: {url: "{url}/renewals", method: POST}}
"""


def page():
    with open(os.path.join(SOURCE, "docs", "enqueueing.md"), encoding="utf-8") as file:
        return file.read()


class Enqueueing(TaktTest):
    def setUp(self):
        super().setUp()
        self.install(CONFIG)
        self.db.cursor().execute("CREATE TABLE orders (id bigserial PRIMARY KEY, customer integer NOT NULL)")
        self.environment["DATABASE_URL"] = self.database_url + "?sslmode=disable"

    def program(self, language, suffix, command, **more):
        """The page's program in this language stores an order and its item; where that is refused, neither."""
        path = os.path.join(self.folder, "enqueue" + suffix)
        with open(path, "w", encoding="utf-8") as file:
            file.write(re.findall(rf"```{language}\n(.*?)```", page(), re.S)[0])
        environment = dict(self.environment, **more)
        done = subprocess.run([*command, path], env=environment, cwd=self.folder, capture_output=True, text=True, timeout=120, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        item = int(done.stdout)
        self.assertEqual(self.rows("SELECT id, state, key, payload FROM takt.all_items"), [(item, "pending", "order-1", {"order": 1})])
        self.assertEqual(self.one("SELECT count(*) FROM orders"), 1)
        self.db.cursor().execute("UPDATE takt.jobs SET removed_at = now()")
        done = subprocess.run([*command, path], env=environment, cwd=self.folder, capture_output=True, text=True, timeout=120, check=False)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn('no job named "billing.renewals"', done.stderr + done.stdout)
        self.assertEqual(self.one("SELECT count(*) FROM orders"), 1, "its own row went with it")

    def test_python(self):
        self.program("python", ".py", [sys.executable])

    def test_javascript(self):
        packages = os.path.join(SOURCE, "tests", "publishers")
        if not os.path.isdir(os.path.join(packages, "node_modules", "knex")):
            subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--silent"], cwd=packages, check=True, timeout=200)
        os.symlink(os.path.join(packages, "node_modules"), os.path.join(self.folder, "node_modules"))
        self.program("javascript", ".mjs", ["node"])

    def test_ruby(self):
        self.program("ruby", ".rb", ["ruby"])

    def test_php(self):
        self.program("php", ".php", ["php", "-d", "display_errors=stderr"])

    def test_go(self):
        self.program("go", ".go", [shutil.which("go"), "run"], GO111MODULE="off", GOPATH="/usr/share/gocode",
                     GOCACHE=os.path.join(self.folder, "go-cache"))

    def test_the_commands(self):
        with open(os.path.join(self.folder, "customers.jsonl"), "w", encoding="utf-8") as file:
            file.write('{"customer": 9}\n{"customer": 10}\n')
        with open(self.config, encoding="utf-8") as file, open(os.path.join(self.folder, "takt.yaml"), "w", encoding="utf-8") as here:
            here.write(file.read())
        shown = re.search(r"## From a shell\n+```\n(.*?)```", page(), re.S)[1].splitlines()
        self.assertEqual(len(shown), 4)
        path = os.path.dirname(os.environ["TAKT_BINARY"]) + ":" + self.environment["PATH"]
        said = [subprocess.run(["sh", "-c", line], env=dict(self.environment, PATH=path), cwd=self.folder, capture_output=True, text=True, timeout=60, check=True).stdout
                for line in shown]
        self.assertRegex(said[0], r"^item \d+\n$")
        self.assertEqual(said[2:], ["2 items enqueued\n"] * 2)
        self.assertEqual(self.one("SELECT count(*) FROM takt.items"), 6)
        self.assertTrue(self.one("SELECT bool_and(run_at > now() + interval '59 min') FROM takt.items WHERE payload = '{\"customer\": 8}'"))
        again = subprocess.run(["sh", "-c", shown[0] + " --json"], env=dict(self.environment, PATH=path), cwd=self.folder, capture_output=True, text=True, timeout=60, check=True)
        self.assertEqual(json.loads(again.stdout), {"item": int(said[0].split()[1]), "created": False})

    def test_the_tables(self):
        for function, documented in (("enqueue", 5), ("enqueue_many", 5)):
            arguments = self.one("SELECT pg_get_function_arguments(oid) FROM pg_proc WHERE pronamespace = 'takt'::regnamespace AND proname = %s", function)
            table = re.search(rf"## takt.{function}\n(?:[^|\n].*\n|\n)*((?:\|.*\n)+)", page())[1]
            names = re.findall(r"^\| `(\w+)` \|", table, re.M)
            self.assertEqual(len(names), documented)
            given = [word.split()[0] for word in re.sub(r"^OUT.*", "", arguments).split(", ")]
            self.assertEqual(given[:documented], names)
