"""SIGKILL between any two effects whose order matters, under load; what is left is looked at from outside."""
import collections
import os
import signal
import time

from chaos import CONFIG, EVERY_SECOND, ChaosTest, eventually


class WorkerCrashes(ChaosTest):
    def crash_worker(self, point, repeats=0):
        self.install(CONFIG)
        self.start("dispatcher")
        load = self.load(50)
        victim = self.start_crashing(point, "worker")
        self.killed(victim)
        self.start("worker")
        time.sleep(1)
        self.check_accepted(load.stop(), repeats)
        self.assertEqual(load.unsure, 0)
        return victim

    def test_W1_worker_killed_before_claim(self):
        self.crash_worker("worker.before_claim")  # the first, so that no other run is lost with it
        self.assertEqual(self.one("SELECT count(*) FROM takt.failed_attempts"), 0, "no attempt was spent")

    def crash_worker_with_backlog(self, point):
        """Where it matters what the worker held: with 30 ticks for 400 items, every claim finds some."""
        self.install(CONFIG)
        self.start("dispatcher")
        self.one("SELECT count(*) FROM takt.enqueue_many('work', array_fill('{}'::jsonb, ARRAY[400]))")
        accepted = [row[0] for row in self.rows("SELECT id FROM takt.items")]
        channel = self.channel()
        for n in range(30):
            self.publish(channel, {"id": f"external-{self.name}-{n}", "job": "work"})
        victim = self.start_crashing(point, "worker")
        self.killed(victim)
        self.start("worker")
        self.check_accepted(accepted)

    def test_W2_worker_killed_after_claim_commit(self):
        self.crash_worker_with_backlog("worker.after_claim:3")
        self.assertGreater(self.one("SELECT count(*) FROM takt.failed_attempts WHERE class = 'lost'"), 0, "the lost attempt counts")

    def test_W3_worker_killed_in_the_middle_of_its_handler(self):
        self.crash_worker("worker.mid_handler:25")
        by_item = {}
        for delivery in self.ledger.of("/work"):
            by_item.setdefault(delivery["item"], []).append(delivery["attempt"])
        self.assertTrue(any(len(attempts) > 1 for attempts in by_item.values()), "nothing was called again: the crash hit nothing")
        self.assertTrue(all(len(attempts) <= 2 for attempts in by_item.values()), "more than one further call")

    def test_W3b_worker_killed_after_its_handler_before_it_settled(self):
        self.crash_worker("worker.before_settle:3")

    def one_of_twenty_kills_its_worker(self, handler, calls_of, signal_of_crash):
        """Two of its company fail once by themselves, and another job's items run in the same processes all the time.
        `calls_of` gives the items that were called, a call each."""
        self.install(CONFIG.replace("jobs:", f"""jobs:
  poisoned:
    lease: 2s
    batch_size: 20
    max_attempts: 3
    backoff: [200ms]
    handler: {handler}
  beside:
    lease: 2s
    batch_size: 3
    max_attempts: 3
    handler: {{http: {{url: "{{url}}/beside", method: POST, circuit_failures: 0}}}}""", 1))
        self.workers = []

        def ended():
            if not self.workers or self.workers[-1].poll() is not None:
                self.workers.append(self.start_crashing("nowhere", "worker"))  # which does not wait for it to be up
            return self.one("""SELECT count(*) FROM takt.all_items i JOIN takt.jobs j ON j.id = i.job_id
                WHERE j.name = 'poisoned' AND i.state IN ('pending', 'running')""") == 0

        def slow(_):
            time.sleep(0.3)  # so that some are under way at each crash
            return 200, {}, b""

        self.ledger.behave["/beside"] = slow
        payloads = {7: {"poison": 1}, 3: {"slip": 3}, 12: {"slip": 12}}
        items = [self.enqueue("poisoned", payloads.get(n, {"n": n})) for n in range(20)]
        slips = {f"item-{items[n]}" for n in (3, 12)}
        load = self.load(20, "beside")
        self.start("dispatcher")
        self.start("dlq", "archive")
        eventually(ended, 60, "the end of all twenty")
        eventually(lambda: self.rows("SELECT payload FROM takt.dead_letters"), what="the letter")
        beside = load.stop()
        self.drained()
        self.assertEqual(self.rows("SELECT payload, reason FROM takt.dead_letters"), [({"poison": 1}, "max_attempts")])
        crashes = [worker.returncode for worker in self.workers if worker.poll() is not None]
        self.assertEqual(crashes, [-signal_of_crash] * 4, "the poison has three attempts, and one more since other runs were beside it")
        done = {f"item-{row[0]}" for row in self.rows("SELECT id FROM takt.finished_items WHERE state = 2")}
        self.assertEqual({f"item-{item}" for item in items + beside} - done, {f"item-{items[7]}"}, "all others are done")
        self.assertGreater(self.one("""SELECT count(*) FROM takt.failed_attempts a JOIN takt.jobs j ON j.id = a.job_id
            WHERE j.name = 'beside' AND a.class = 'lost'"""), 0, "no other job's item was in a crash")
        self.assertGreater(self.one("SELECT count(*) FROM takt.failed_attempts WHERE item_id = %s AND class = 'error'", items[12]), 0, "no slip was settled")
        calls = collections.Counter(calls_of())
        poison = f"item-{items[7]}"
        self.assertEqual(calls[poison], 4)
        self.assertLessEqual(max(count for item, count in calls.items() if item not in slips | {poison}), 3, "a call of an innocent item that no crash asked for")
        self.assertLessEqual(max(calls[item] for item in slips), 4, "once more than that, for its own failure")
        called = collections.Counter(d["item"] for d in self.ledger.of("/beside"))
        self.assertLessEqual(max(called.values()), 5, "once, and once for each crash")
        self.check_invariants()

    def test_C10_finding7_one_item_of_twenty_kills_its_worker_and_dies_alone(self):
        slipped = set()

        def behave(_):
            call = self.ledger.of("/poisoned")[-1]
            if b"poison" in call["body"]:
                for worker in self.workers:
                    worker.kill()
                time.sleep(0.5)  # whoever asked is gone
            if b"slip" in call["body"] and call["item"] not in slipped:
                slipped.add(call["item"])
                return 503, {}, b""
            return 200, {}, b""

        self.ledger.behave["/poisoned"] = behave
        self.one_of_twenty_kills_its_worker('{http: {url: "{url}/poisoned", method: POST, parallel: 1, circuit_failures: 0}}',
                                            lambda: [d["item"] for d in self.ledger.of("/poisoned")], signal.SIGKILL)

    def test_C10_finding7_one_item_of_twenty_aborts_in_a_native_handler_and_dies_alone(self):
        calls = os.path.join(self.folder, "calls")
        self.environment["TAKT_CALLS_FILE"] = calls

        def lines():
            with open(calls, encoding="utf-8") as file:
                return file.read().split()

        self.one_of_twenty_kills_its_worker("{native: {name: aborting}}", lines, signal.SIGABRT)

    def test_W4_worker_killed_after_it_settled_before_its_acknowledgement(self):
        self.crash_worker("worker.before_ack:2")
        eventually(lambda: "tick duplicate" in self.log_of(self.processes[-1]), what="the redelivered tick, known to be done")

    def test_W4b_worker_killed_between_settling_and_what_follows(self):
        self.crash_worker("worker.after_settle:2")

    def test_W4c_worker_killed_after_its_acknowledgement(self):
        self.crash_worker("worker.after_ack:2")

    def test_W4d_worker_killed_with_a_continuation_stored_and_not_published(self):
        # Its other ticks wait at once, so that the backlog goes on through the queue.
        self.crash_worker_with_backlog("worker.before_continuation")


class DispatcherCrashes(ChaosTest):
    def crash_leader(self, point):
        self.install(CONFIG + EVERY_SECOND)
        leader = self.start_crashing(point, "dispatcher")
        eventually(lambda: " leading " in self.log_of(leader), what="the lead")
        begin = self.now() + 1
        self.start("dispatcher")
        self.start("worker")
        load = self.load(20)
        self.killed(leader)
        died = time.monotonic()
        standby = self.processes[1]
        eventually(lambda: " leading " in self.log_of(standby), 5, "the standby's lead")
        self.assertLess(time.monotonic() - died, 5)
        time.sleep(2)
        accepted = load.stop()
        end = self.now()
        self.check_slots(begin, end)
        self.stop(standby)
        self.start("dispatcher")
        self.takt("jobs", "pause", "every")
        self.check_accepted(accepted)

    def test_D1_leader_killed_after_a_tick_is_stored_before_it_is_published(self):
        self.crash_leader("dispatcher.after_tick_stored:3")

    def test_D1b_leader_killed_after_publish_before_confirm(self):
        self.crash_leader("publisher.before_confirm:4")

    def test_D1c_leader_killed_after_confirm_before_it_is_marked(self):
        self.crash_leader("dispatcher.after_confirm:3")

    def kill_between_letters(self, point, *victim):
        """Ten items die; each is in the archive once, whoever was killed on the way."""
        self.install(CONFIG)
        for service in (("dispatcher",), ("worker",), ("dlq", "archive")):
            if service != victim:
                self.start(*service)
        crashing = self.start_crashing(point, *victim)
        for _ in range(10):
            self.enqueue("hopeless")
        self.killed(crashing)
        self.start(*victim)
        eventually(lambda: self.one("SELECT count(*) FROM takt.dead_letters") == 10, what="ten letters")
        time.sleep(1)
        self.check_invariants()
        self.assertEqual(self.one("SELECT count(*) FROM takt.dead_letters"), 10)
        self.assertEqual(self.one("SELECT count(DISTINCT item_id) FROM takt.dead_letters"), 10)
        self.assertEqual(self.queue_depth(self.channel(), "takt.dead"), 0)

    def test_D1d_leader_killed_before_it_publishes_a_dead_letter(self):
        self.kill_between_letters("dispatcher.before_dead_letter", "dispatcher")

    def test_D1e_leader_killed_after_a_dead_letter_is_confirmed_before_it_leaves_the_outbox(self):
        self.kill_between_letters("dispatcher.after_dead_letter", "dispatcher")

    def test_A1_archive_killed_before_its_insert(self):
        self.kill_between_letters("archive.before_insert", "dlq", "archive")

    def test_A1b_archive_killed_after_its_commit_before_its_acknowledgement(self):
        self.kill_between_letters("archive.after_insert", "dlq", "archive")
