"""Dead letters are mended by hand or by command, and replayed as they are then."""
import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
import time

import harness
from harness import TaktTest, answers, eventually

CONFIG = """
jobs:
  demo:
    max_attempts: 1
    handler: {http: {url: "{url}/demo", method: POST}}
"""
PAYLOAD = '{"rate": 0.1000000000000000000001, "account": 1234567890123456789, "customer": "unknown"}'
MENDED = PAYLOAD.replace("unknown", "Ada Lovelace")


class Mending(TaktTest):
    def setUp(self):
        super().setUp()
        self.install(CONFIG)

    def dead(self, payload=PAYLOAD):
        """A letter whose item the endpoint refused; from then on it takes everything."""
        self.ledger.behave["/demo"] = answers(422)
        self.start("up")
        item = self.one("SELECT takt.enqueue('demo', %s::jsonb)", payload)
        letter = f"item-{item}-0"
        eventually(lambda: self.rows("SELECT 1 FROM takt.dead_letters WHERE id = %s", letter), what="the letter")
        self.ledger.behave["/demo"] = answers(200)
        return letter

    def editor(self, script):
        """An editor that is a shell script; the file is $1, or $2 where the editor was given an argument of its own."""
        path = os.path.join(self.folder, "editor")
        with open(path, "w", encoding="utf-8") as file:
            file.write("#!/bin/sh\nset -e\n" + script)
        os.chmod(path, 0o700)
        return path

    def edit(self, letter, editor, expect=0, **more):
        scratch = os.path.join(self.folder, "scratch")
        os.makedirs(scratch, exist_ok=True)
        said = self.takt("dlq", "edit", letter, "--by", "ann", expect=expect, environment=dict(self.environment, **{"VISUAL": "", "EDITOR": editor, "TMPDIR": scratch, **more}))
        self.assertEqual(os.listdir(scratch), [], "the file is gone")
        return said

    def payload(self, letter):
        return self.one("SELECT payload::text FROM takt.dead_letters WHERE id = %s", letter)

    def replayed(self, letter):
        before = len(self.ledger.of("/demo"))
        self.takt("dlq", "replay", letter, "--yes")
        eventually(lambda: len(self.ledger.of("/demo")) > before, what="the replayed item's request")
        return self.ledger.of("/demo")[-1]["body"]

    def test_finding40_a_letter_is_mended_in_the_editor_and_replayed_as_it_is_then(self):
        letter = self.dead()
        report = os.path.join(self.folder, "report")
        editor = self.editor(f"""
            [ "$1" = --wait ]
            stat -c '%a %n' "$2" "$(dirname "$2")" > {report}; env >> {report}; cat "$2" >> {report}; touch "$2~"
            sed -i 's/unknown/Ada Lovelace/' "$2"
        """)
        self.assertIn(f"mended {letter}", self.edit(letter, f"  {editor}  --wait "))
        with open(report, encoding="utf-8") as file:
            seen = file.read()
        self.assertRegex(seen, r"^600 .*/payload\.json\n700 ")
        self.assertNotIn("TAKT_", seen, "an editor is given no secrets")
        self.assertIn('\n    "account": 1234567890123456789,\n', seen, "a line a field, numbers as they are")
        self.assertEqual(self.payload(letter), MENDED)
        self.assertIn('"edited_by": "ann"', self.takt("dlq", "show", letter, "--json"))
        audit = self.rows("SELECT who, detail::text FROM takt.audit WHERE action = 'dlq edit' AND subject = %s", letter)
        self.assertEqual(len(audit), 1)
        self.assertEqual(audit[0][0], "ann")
        self.assertNotIn("Ada", audit[0][1])
        self.assertEqual(self.replayed(letter), MENDED.encode(), "what the endpoint receives, byte for byte")
        self.assertIn("was replayed by", self.edit(letter, "false", expect=1, VISUAL=editor))
        self.check_invariants()

    def test_finding40_what_is_wrong_changes_nothing_and_says_so(self):
        letter = self.dead()
        for script, said in ((r"""sed -i 's/"rate": /"rate": oops/' "$1" """, r"not JSON: line \d, column \d+"), (': > "$1"', "the text is empty"),
                             ("exit 3", "the editor, .*, ended with 3"), ("kill -9 $$", "was ended by signal 9"), ("rm $1", "cannot read"),
                             (r"""printf '"\\u0000"' > "$1" """, r"holds U\+0000")):
            self.assertRegex(self.edit(letter, "true", expect=1, VISUAL=self.editor(script)), said)
        pwned = os.path.join(self.folder, "pwned")
        self.assertIn("cannot be run", self.edit(letter, f"/nothing;touch${{IFS}}{pwned}", expect=1))
        self.assertFalse(os.path.exists(pwned), "no shell reads it")
        self.assertIn("give --payload or --set", self.edit(letter, "", expect=2))
        self.assertIn("holds this already", self.edit(letter, "true"))
        ignored = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # a child inherits this; this process does not wait for it meanwhile
        process = subprocess.Popen([harness.BINARY, "dlq", "edit", letter, "--config", self.config], env=dict(self.environment, VISUAL="true"),
                                   stdout=subprocess.DEVNULL, restore_signals=False)
        signal.signal(signal.SIGCHLD, ignored)
        self.assertEqual(process.wait(20), 0)
        for text in ('{"a": ', '"\\u0000"', "[" * 101 + "]" * 101, "1e1001"):
            self.takt("dlq", "edit", letter, "--payload", "-", stdin=text, expect=1)
        self.assertIn("is not JSON", self.takt("dlq", "edit", letter, "--set", "{oops}", expect=1))
        self.assertIn("cannot read", self.takt("dlq", "edit", letter, "--payload", "/nothing", expect=1))
        self.assertIn("no dead letter", self.takt("dlq", "edit", "item-1-99", "--set", "{}", expect=1))
        self.rows("INSERT INTO takt.dead_letters (id, kind, job, reason, error, died_at) VALUES ('message-1', 'message', '', 'rejected', '', now()) RETURNING 1")
        self.assertIn("is a message", self.takt("dlq", "edit", "message-1", "--set", "{}", expect=1))
        self.assertEqual(self.payload(letter), PAYLOAD)
        self.assertEqual(self.one("SELECT count(*) FROM takt.audit WHERE action = 'dlq edit'"), 0)
        self.takt("dlq", "discard", letter, "--yes", "--by", "bob")
        self.assertIn("was discarded by bob", self.takt("dlq", "edit", letter, "--set", "{}", expect=1))

    def test_finding40_of_two_who_mend_a_letter_the_second_is_told(self):
        letter = self.dead()
        other = " ".join(f"{name}='{self.environment[name]}'" for name in ("TAKT_DATABASE_URL",))
        said = self.edit(letter, self.editor(f"""
            {other} {harness.BINARY} dlq edit {letter} --set '{{"by": "bob"}}' --by bob --config {self.config} >&2
            sed -i 's/unknown/Ada/' "$1"
        """), expect=1)
        self.assertIn("was changed by somebody else meanwhile", said)
        self.assertEqual(self.payload(letter), '{"by": "bob"}')

    def test_finding40_a_letter_is_mended_by_command(self):
        letter = self.dead()
        self.takt("dlq", "edit", letter, "--payload", "-", stdin=MENDED + "\n")
        self.assertEqual(self.payload(letter), MENDED)
        with open(os.path.join(self.folder, "payload"), "w", encoding="utf-8") as file:
            file.write('{"é": "\\ud83d\\ude00", "n": 1.50}')
        self.takt("dlq", "edit", letter, "--payload", file.name)
        self.assertEqual(self.replayed(letter), '{"n": 1.50, "é": "😀"}'.encode())
        self.check_invariants()

    def test_finding40_a_tick_is_mended_and_keeps_its_id_and_job(self):
        self.start("up")
        self.publish(self.channel(), {"id": "from-outside", "job": "later", "items": [{"payload": {"n": 1}}]})
        letter = eventually(lambda: self.rows("SELECT id FROM takt.dead_letters WHERE kind = 'tick'"), what="the letter")[0][0]
        self.assertIn("id cannot be changed", self.takt("dlq", "edit", letter, "--set", '{"id": "another", "job": "later"}', expect=1))
        self.assertIn("no takt.v1.JobTick", self.takt("dlq", "edit", letter, "--set", '{"id": "from-outside", "job": "later", "x": 1}', expect=1))
        self.edit(letter, self.editor(r"""sed -i 's/"n": 1/"n": 12345678901234567890.5/' "$1" """))
        with open(self.config, "a", encoding="utf-8") as file:
            file.write(f'  later: {{handler: {{http: {{url: "{self.ledger.url}/later", method: POST}}}}}}\n')
        self.takt("apply")
        self.takt("dlq", "replay", letter, "--yes")
        eventually(lambda: self.ledger.of("/later"), what="the tick's item")
        self.assertEqual(self.ledger.of("/later")[0]["body"], b'{"n": 12345678901234567890.5}')

    def test_finding40_a_mending_that_is_ended_leaves_no_file(self):
        letter = self.dead()
        scratch = os.path.join(self.folder, "scratch")
        os.makedirs(scratch)
        # The editor itself is the process that waits: it dies of the signal that is passed on.
        editor = self.editor('touch "$1.open"; exec sleep 60')
        process = subprocess.Popen([harness.BINARY, "dlq", "edit", letter, "--config", self.config], stderr=subprocess.DEVNULL,
                                   env=dict(self.environment, VISUAL="", EDITOR=editor, TMPDIR=scratch))
        self.addCleanup(process.kill)
        eventually(lambda: any(name.endswith(".open") for _, _, names in os.walk(scratch) for name in names), what="the open editor")
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(20), -signal.SIGTERM)
        self.assertLess(time.monotonic() - began, 10, "the editor was told")
        self.assertEqual(os.listdir(scratch), [])
        self.assertEqual(self.payload(letter), PAYLOAD)

    def test_finding40_ctrl_c_at_the_prompt_ends_the_command_and_leaves_no_file(self):
        letter = self.dead()
        scratch = os.path.join(self.folder, "scratch")
        os.makedirs(scratch)
        editor = self.editor(': > "$1"')
        for how, code in ((b"\x03", -signal.SIGINT), (signal.SIGTERM, -signal.SIGTERM), (b"\n\x04", 1)):
            terminal, ours = pty.openpty()
            process = subprocess.Popen([harness.BINARY, "dlq", "edit", letter, "--config", self.config], stdin=ours, stdout=ours, stderr=ours,
                                       start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
                                       env=dict(self.environment, VISUAL=editor, TMPDIR=scratch))
            self.addCleanup(process.kill)
            os.close(ours)
            self.read_until(terminal, b"give up ")
            if how == b"\n\x04":
                os.write(terminal, b"\n")
                self.read_until(terminal, b"give up ")
                os.write(terminal, b"\x04")
            elif isinstance(how, bytes):
                os.write(terminal, how)
            else:
                process.send_signal(how)
            self.assertEqual(process.wait(10), code)
            os.close(terminal)
            self.assertEqual(os.listdir(scratch), [])
        self.assertEqual(self.payload(letter), PAYLOAD)

    def read_until(self, terminal, text):
        said = b""
        while text not in said:
            self.assertTrue(select.select([terminal], [], [], 20)[0], said)
            said += os.read(terminal, 4096)
