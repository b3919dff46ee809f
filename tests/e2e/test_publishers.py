"""The publishers that docs/signing.md shows, run as they stand there."""
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

    def shown(self, language):
        with open(os.path.join(SOURCE, "docs", "signing.md"), encoding="utf-8") as file:
            return re.search(rf"```{language}\n(.*?)```", file.read(), re.S)[1]

    def arrives(self, command, folder):
        done = subprocess.run([*command, "demo", '{"hello": "world"}'], env=self.environment, capture_output=True, text=True, timeout=60, check=False, cwd=folder)
        self.assertEqual(done.returncode, 0, done.stderr)
        tick = done.stdout.strip()
        eventually(lambda: len(self.ledger.of("/demo")) == 1, what="the item's delivery")
        self.assertEqual(json.loads(self.ledger.of("/demo")[0]["body"]), {"hello": "world"})
        eventually(lambda: self.rows("SELECT trigger, status, done FROM takt.runs WHERE tick_id = %s", tick) == [("external", "completed", 1)], what="its run")

    def test_the_python_publishers_tick_runs(self):
        script = os.path.join(self.folder, "publish.py")
        with open(script, "w", encoding="utf-8") as file:
            file.write(self.shown("python"))
        self.arrives([sys.executable, script], self.folder)

    def test_the_javascript_publishers_tick_runs(self):
        packages = os.path.join(SOURCE, "tests", "publishers")
        if not os.path.isdir(os.path.join(packages, "node_modules")):
            subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--silent"], cwd=packages, check=True, timeout=200)
        os.symlink(os.path.join(packages, "node_modules"), os.path.join(self.folder, "node_modules"))
        script = os.path.join(self.folder, "publish.mjs")
        with open(script, "w", encoding="utf-8") as file:
            file.write(self.shown("javascript"))
        self.arrives(["node", script], self.folder)
