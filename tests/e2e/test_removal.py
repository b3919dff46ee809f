"""Jobs that leave the file while they have items or ticks under way: what apply says, and what becomes of the work."""
import contextlib
import json
import threading
import time

import psycopg2

from harness import TaktTest, eventually

KEPT = """
dispatcher: {republish_after: 1s}
jobs:
  kept:
    handler: {http: {url: "{url}/kept", method: POST}}
"""
OLD = KEPT + """
  old:
    batch_size: 2
    handler: {http: {url: "{url}/old", method: POST}}
"""
SCHEDULED = KEPT + """
  old:
    schedules: [{name: s, cron: "@every 1s"}]
    item_per_tick: false
    handler: {http: {url: "{url}/old", method: POST}}
"""


class Removal(TaktTest):
    def write(self, config):
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(config.replace("{url}", self.ledger.url))

    def removed(self):
        return self.one("SELECT count(*) FROM takt.jobs WHERE name = 'old' AND removed_at IS NOT NULL") == 1

    def letters(self):
        return self.one("SELECT count(*) FROM takt.dead_letters")

    def test_C17_finding38_removing_a_job_with_items_is_refused_with_numbers_and_the_way_out(self):
        self.install(OLD)
        items = [self.enqueue("old", {"n": n}) for n in range(3)]
        self.write(KEPT.replace("kept:", "renamed:"))
        refused = self.takt("apply", expect=1)
        self.assertIn("- job old: 3 items waiting; items stay until the job is back\n", refused)
        for part in ("nothing was applied", "2 jobs that the database has (kept, old)", "--prune", "--cancel-items", "renamed is a new one"):
            self.assertIn(part, refused)
        self.assertEqual(self.one("SELECT count(*) FROM takt.jobs WHERE name = 'renamed' OR removed_at IS NOT NULL"), 0, "no part of it")
        self.write(KEPT)
        self.assertIn("- job old: 3 items waiting; items stay until the job is back\n1 difference, nothing changed\n", self.takt("apply", "--dry-run"))
        shown = json.loads(self.takt("apply", "--dry-run", "--json"))
        self.assertEqual((shown[0]["waiting"], shown[0]["running"], shown[0]["ticks"]), (3, 0, 0))
        self.assertIn("--prune", self.takt("apply", "--cancel-items", expect=2))
        self.assertFalse(self.removed())

        self.assertIn("items stay until the job is back", self.takt("apply", "--prune"))
        self.assertIn("removed, but not done: old, 3 items waiting", self.takt("status"))
        self.assertEqual(json.loads(self.takt("status", "--json"))["removed_jobs"], [{"job": "old", "waiting": 3, "running": 0}])
        self.assertEqual(self.takt("apply"), "0 differences\n", "said once, and not at each start")
        self.write(OLD)
        self.takt("apply")
        self.assertNotIn("removed", self.takt("status"))
        self.start("up")
        eventually(lambda: all(self.state(item) == "done" for item in items), what="the items, after their job came back")
        self.assertEqual(len(self.ledger.of("/old")), 3)
        self.check_invariants()

    def test_C17_finding38_cancelled_items_are_never_called_and_their_keys_are_free(self):
        self.install(OLD)
        item = self.enqueue("old", key="k")
        self.write(KEPT)
        self.assertIn("- job old: 1 item waiting; 1 cancelled\n", self.takt("apply", "--prune", "--cancel-items", "--by", "ann"))
        self.assertEqual(self.state(item), "cancelled")
        self.assertEqual(self.rows("SELECT who, action, detail #>> '{}' FROM takt.audit WHERE subject = 'job old' AND action <> 'create' ORDER BY id"),
                         [("ann", "remove", "1 item waiting; what waits is to be cancelled"), ("ann", "cancel", '{"items": 1}')])
        self.write(OLD)
        self.takt("apply")
        self.start("up")
        again = self.enqueue("old", key="k")
        eventually(lambda: self.state(again) == "done", what="the new item with the old key")
        self.assertEqual([d["item"] for d in self.ledger.of("/old")], [f"item-{again}"])
        self.check_invariants()

    def test_C17_finding38_a_key_that_somebody_holds_keeps_items_and_apply_says_which(self):
        self.install(OLD)
        items = [self.enqueue("old", key=f"k{n}") for n in range(3)]
        self.write("database: {lock_timeout: 100ms}" + KEPT)
        with contextlib.closing(psycopg2.connect(self.database_url)) as somebody:
            somebody.cursor().execute("SELECT FROM takt.item_keys WHERE key = 'k1' FOR UPDATE")
            told = self.takt("apply", "--prune", "--cancel-items", expect=1)
            for part in ("- job old: 3 items waiting; 0 cancelled\n1 difference, applied\n", "the file is applied, but not all items are cancelled: old (",
                         "lock timeout", "takt items cancel --job JOB"):
                self.assertIn(part, told)
            self.assertTrue(self.removed())
            self.assertIn("lock timeout", self.takt("apply", "--prune", "--cancel-items", expect=1), "it goes on where it was stopped")
            told = self.takt("items", "cancel", "--job", "old", "--yes", expect=1)
            self.assertIn("0 items cancelled\n", told)
            self.assertIn("repeat the command for the rest", told)
        self.assertIn("- job old: 3 items waiting; 3 cancelled\n1 difference, applied\n", self.takt("apply", "--prune", "--cancel-items"))
        self.assertEqual([self.state(item) for item in items], ["cancelled"] * 3)
        self.assertEqual(self.takt("apply", "--prune", "--cancel-items"), "0 differences\n")

    def test_C17_finding38_what_was_left_of_a_removed_job_is_ended_by_its_name(self):
        self.install(OLD)
        items = [self.enqueue("old", key=f"k{n}") for n in range(3)]
        kept = self.enqueue("kept")
        self.write(KEPT)
        self.takt("apply", "--prune")
        self.assertIn('takt items cancel --job old"', self.takt("status"))
        self.assertIn("which has 3 items waiting?", self.takt("items", "cancel", "--job", "old", expect=2))
        self.assertIn('no job named "olds"; did you mean "old"?', self.takt("items", "cancel", "--job", "olds", "--yes", expect=1))
        self.takt("items", "cancel", "--yes", expect=2)
        self.takt("items", "cancel", "1", "--job", "old", "--yes", expect=2)
        self.assertEqual(self.takt("items", "cancel", "--job", "old", "--yes", "--by", "ann"), "3 items cancelled\n")
        self.assertEqual([self.state(item) for item in (*items, kept)], ["cancelled"] * 3 + ["pending"])
        self.assertEqual(self.one("SELECT count(*) FROM takt.item_keys"), 0)
        self.assertEqual(self.rows("SELECT who, subject, detail::text FROM takt.audit WHERE action = 'cancel'"), [("ann", "job old", '{"items": 3}')])
        self.assertNotIn("removed", self.takt("status"))

    def test_C17_finding38_a_drain_under_way_ends_without_a_letter_and_goes_on_when_the_job_is_back(self):
        self.install(OLD)
        applied = threading.Event()  # until then no call returns, however long the command takes to start
        self.ledger.behave["/old"] = lambda nth: (applied.wait(20), (200, {}, b""))[1]
        self.start("up")
        items = [item for (item,) in self.rows("SELECT item_id FROM takt.enqueue_many('old', array_fill('{}'::jsonb, ARRAY[60]))")]
        eventually(lambda: len(self.ledger.of("/old")) >= 4, what="the drain's beginning")
        self.write(KEPT)
        self.assertRegex(self.takt("apply", "--prune"), r"- job old: \d+ items waiting, \d+ running, \d+ ticks? under way; items stay until the job is back")
        applied.set()
        eventually(lambda: self.one("SELECT count(*) FROM takt.running_items") == 0, what="the end of what was running")
        self.assertGreater(self.one("SELECT count(*) FROM takt.items"), 0)
        eventually(lambda: self.one("SELECT count(*) FROM takt.ticks WHERE finished_at IS NULL") == 0, what="the end of its ticks")
        self.write(OLD)
        self.takt("apply")
        eventually(lambda: all(self.state(item) == "done" for item in items), what="the rest")
        self.assertEqual(max(self.ledger.of_item.values()), 1, "called once")
        self.assertLessEqual(self.letters(), 1, "of a tick that was in the queue at that moment, at most")
        self.check_invariants()

    def test_F9_nothing_is_removed_unasked(self):
        self.install(OLD)
        self.write(KEPT)
        refused = self.takt("apply", expect=1)
        for part in ("- job old\n1 difference, nothing changed", "a job that the database has (old). Is it the right file?"):
            self.assertIn(part, refused)
        self.assertIn("the file does not name old", self.takt("check", expect=1))
        for empty in ("", "metrics: {listen: \"127.0.0.1:0\"}\n", "jobs: {}\n"):
            self.write(empty)
            self.assertIn("names no jobs. Is it the right file?", self.takt("apply", expect=1))
            self.assertRegex(self.takt("check", "--file-only", expect=1), "FAULT .*names no jobs")
        self.write("")
        self.takt("apply", "--prune", expect=1)
        self.assertEqual(self.one("SELECT count(*) FROM takt.jobs WHERE removed_at IS NOT NULL"), 0)
        self.write("jobs: {}\n")
        shown = json.loads(self.takt("apply", "--prune", "--json"))
        self.assertEqual([(change["sign"], change["subject"]) for change in shown], [("-", "job kept"), ("-", "job old")])
        self.assertEqual((shown[0]["cancelled"], shown[0]["not_cancelled"], shown[0]["is_back"]), (0, "", False))

    def test_C17_finding20_ticks_of_a_removed_job_make_no_letter_again_and_again(self):
        self.install(SCHEDULED)
        dispatcher = self.start("dispatcher")
        eventually(lambda: self.one("SELECT count(*) FROM takt.ticks WHERE published_at IS NOT NULL") >= 2, what="ticks in the queue")
        self.stop(dispatcher)
        self.write(KEPT)
        self.assertRegex(self.takt("apply", "--prune"), r"- job old: \d+ ticks? under way\n")
        self.assertEqual(self.one("SELECT count(*) FROM takt.ticks WHERE finished_at IS NULL"), 0)
        self.start("up")
        kept = self.enqueue("kept")
        eventually(lambda: self.state(kept) == "done", what="an item behind these ticks")
        # What is published again is so after a second (republish_after), looked for every five.
        began = time.time()
        eventually(lambda: time.time() > began + 8, what="the time for two rounds")
        self.assertEqual(self.letters(), 0)
        self.assertNotIn("tick dead-lettered", self.log_of(self.processes[-1]))
        self.assertEqual(self.one("SELECT count(*) FROM takt.ticks WHERE finished_at IS NULL"), 0)
        self.check_invariants()

    def test_C17_finding20_what_ticks_carry_is_kept_with_the_job_and_done_once(self):
        self.install(SCHEDULED.replace("item_per_tick: false", "item_per_tick: true"))
        dispatcher = self.start("dispatcher")
        eventually(lambda: self.one("SELECT count(*) FROM takt.ticks WHERE published_at IS NOT NULL") >= 3, what="ticks in the queue")
        self.stop(dispatcher)
        ticks = self.one("SELECT count(*) FROM takt.ticks WHERE finished_at IS NULL")
        self.write(KEPT)
        self.assertIn(f"- job old: {ticks} items waiting, {ticks} ticks under way", self.takt("apply", expect=1))
        self.takt("apply", "--prune")
        self.start("up")
        kept = self.enqueue("kept")
        eventually(lambda: self.state(kept) == "done", what="an item behind these ticks")
        self.assertEqual((self.letters(), len(self.ledger.of("/old"))), (0, 0))
        self.write(OLD)
        self.takt("apply")
        eventually(lambda: len(self.ledger.of("/old")) >= ticks, what="what the ticks carried")
        self.check_invariants()
        self.assertEqual(len(self.ledger.of("/old")), ticks, "once")
