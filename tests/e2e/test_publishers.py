"""The publishers and receivers that docs/signing.md shows, run as they stand there."""
import json
import os
import re
import subprocess
import sys

from harness import SOURCE, TaktTest, eventually

CONFIG = """
jobs:
  demo:
    handler: {http: {url: "{url}/demo", method: POST}}
"""


class Publishers(TaktTest):
    def setUp(self):
        super().setUp()
        self.install(CONFIG)
        self.start("up")
        self.environment["TAKT_SIGNING_KEY"] = self.secret

    def script(self, what, language, suffix, more=""):
        """The page's publisher or receiver in this language, with what a test adds; a file."""
        with open(os.path.join(SOURCE, "docs", "signing.md"), encoding="utf-8") as file:
            shown = re.findall(rf"```{language}\n(.*?)```", file.read(), re.S)[("publisher", "receiver").index(what)]
        path = os.path.join(self.folder, what + suffix)
        with open(path, "w", encoding="utf-8") as file:
            file.write(shown + more)
        return path

    def javascript_packages(self):
        packages = os.path.join(SOURCE, "tests", "publishers")
        if not os.path.isdir(os.path.join(packages, "node_modules")):
            subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--silent"], cwd=packages, check=True, timeout=200)
        os.symlink(os.path.join(packages, "node_modules"), os.path.join(self.folder, "node_modules"))

    def arrives(self, command, folder):
        done = subprocess.run([*command, "demo", '{"hello": "world"}'], env=self.environment, capture_output=True, text=True, timeout=60, check=False, cwd=folder)
        self.assertEqual(done.returncode, 0, done.stderr)
        tick = done.stdout.strip()
        eventually(lambda: len(self.ledger.of("/demo")) == 1, what="the item's delivery")
        self.assertEqual(json.loads(self.ledger.of("/demo")[0]["body"]), {"hello": "world"})
        eventually(lambda: self.rows("SELECT trigger, status, done FROM takt.runs WHERE tick_id = %s", tick) == [("external", "completed", 1)], what="its run")

    def test_the_python_publishers_tick_runs(self):
        self.arrives([sys.executable, self.script("publisher", "python", ".py")], self.folder)

    def test_the_javascript_publishers_tick_runs(self):
        self.javascript_packages()
        self.arrives(["node", self.script("publisher", "javascript", ".mjs")], self.folder)

    def judged(self, command):
        """What a receiver says of a request for job demo, with the secret of that job, then of another's."""
        self.enqueue("demo", {"hello": "world"})
        request = eventually(lambda: self.ledger.of("/demo"))[0]
        received = json.dumps({"headers": {name.lower(): value for name, value in request["headers"].items()}, "body": request["body"].decode()})
        said = []
        for job in ("demo", "other"):
            environment = dict(os.environ, TAKT_WEBHOOK_SECRET=self.webhook_secret(job))
            done = subprocess.run(command, input=received, env=environment, capture_output=True, text=True, timeout=60, check=False, cwd=self.folder)
            said.append(done.stdout.strip() if done.returncode == 0 else "refused")
        return said

    def test_finding6_the_python_receiver_takes_what_its_own_jobs_secret_signed(self):
        more = "\nimport json, sys\nrequest = json.load(sys.stdin)\nsys.exit(0 if genuine(request['headers'], request['body'].encode()) else 1)\n"
        self.assertEqual(self.judged([sys.executable, self.script("receiver", "python", ".py", more)]), ["", "refused"])

    def test_finding6_the_javascript_receiver_takes_what_its_own_jobs_secret_signed(self):
        self.javascript_packages()
        more = "\nimport { readFileSync } from 'node:fs';\nconst request = JSON.parse(readFileSync(0));\nconsole.log(received(request.headers, request.body).hello);\n"
        self.assertEqual(self.judged(["node", self.script("receiver", "javascript", ".mjs", more)]), ["world", "refused"])
