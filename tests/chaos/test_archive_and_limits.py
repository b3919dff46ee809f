"""Archive away, replay against prune and against itself, descriptors and memory at their limits, many pods at once."""
import subprocess
import threading
import time

from chaos import CONFIG, ChaosTest, eventually, harness


class ArchiveFaults(ChaosTest):
    def dead(self, count):
        self.install(CONFIG)
        self.start("dispatcher")
        self.start("worker")
        self.start("dlq", "archive")
        self.one("SELECT count(*) FROM takt.enqueue_many('hopeless', array_fill('{}'::jsonb, ARRAY[%s]))" % count)
        eventually(lambda: self.one("SELECT count(*) FROM takt.dead_letters") == count, 60, f"{count} letters")

    def test_A1c_archive_away_the_queue_holds(self):
        self.install(CONFIG)
        self.start("dispatcher")
        self.start("worker")
        for _ in range(50):
            self.enqueue("hopeless")
        channel = self.channel()
        eventually(lambda: self.queue_depth(channel, "takt.dead") == 50, 30, "fifty letters in the queue")
        self.start("dlq", "archive")
        eventually(lambda: self.one("SELECT count(*) FROM takt.dead_letters") == 50, 30, "fifty in the archive")
        self.check_invariants()

    def test_A2_replay_killed_half_way_and_repeated_by_two(self):
        self.dead(300)
        self.ledger.behave["/hopeless"] = lambda nth: (200, {}, b"")
        replay = [harness.BINARY, "dlq", "replay", "--job", "hopeless", "--yes", "--rate", "100", "--config", self.config]
        first = subprocess.Popen(replay, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(lambda: self.one("SELECT count(*) FROM takt.dead_letters WHERE state = 'replayed'") > 20, 20, "the first replays")
        first.kill()
        first.wait()
        self.assertLess(self.one("SELECT count(*) FROM takt.dead_letters WHERE state = 'replayed'"), 300, "it was not half-way")
        both = [subprocess.Popen([*replay[:-2], "--by", who, *replay[-2:]], env=self.environment, stdout=subprocess.DEVNULL) for who in ("ada", "bob")]
        for one in both:
            self.assertEqual(one.wait(60), 0)
        eventually(lambda: self.one("SELECT count(*) FROM takt.finished_items WHERE state = 2") == 300, 60, "three hundred done")
        self.drained()
        self.assertEqual(len(self.ledger.of("/hopeless")), 600, "each once before its death and once after")
        self.check_invariants()

    def test_A3_prune_while_replaying(self):
        self.dead(200)
        self.ledger.behave["/hopeless"] = lambda nth: (200, {}, b"")
        self.db.cursor().execute("UPDATE takt.dead_letters SET died_at = now() - interval '40 days'")
        columns = [row[0] for row in self.rows("SELECT column_name FROM information_schema.columns WHERE table_schema = 'takt' AND table_name = 'dead_letters'")]
        self.assertIn("died_at", columns)
        replay = subprocess.Popen([harness.BINARY, "dlq", "replay", "--job", "hopeless", "--yes", "--rate", "100", "--config", self.config],
                                  env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        eventually(lambda: self.one("SELECT count(*) FROM takt.dead_letters WHERE state = 'replayed'") > 0, 20, "the first replays")
        self.takt("dlq", "prune", "--older-than", "30d", "--yes")
        self.assertIn("pruned", replay.communicate(timeout=60)[1], "it says what became of the others")
        self.drained()
        replayed = self.one("SELECT count(*) FROM takt.finished_items WHERE state = 2")
        self.assertEqual(len(self.ledger.of("/hopeless")), 200 + replayed, "what was replayed ran once, what was pruned did not")
        self.assertEqual(self.one("SELECT count(*) FROM takt.dead_letters WHERE state = 'archived'"), 0)


class Limits(ChaosTest):
    def test_W8_thirty_workers_connect_at_once_and_half_vanish(self):
        self.install(CONFIG.replace("database: {", "database: {pool: 2, "))
        self.start("dispatcher")
        load = self.load(100)
        threads = [threading.Thread(target=self.start, args=("worker",)) for _ in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        workers = [p for p in self.processes if "worker" in p.args]
        self.assertEqual(len(workers), 30)
        connections = self.one("SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND application_name = 'takt'", self.name)
        self.assertLessEqual(connections, 31 * (2 + 1) + 1, "each its pool and one for its lease or heartbeat, the leader one that listens")
        eventually(lambda: len(self.ledger.of("/work")) > 50)
        for worker in workers[:15]:
            worker.kill()
        time.sleep(3)
        self.check_accepted(load.stop())

    def test_X1_out_of_file_descriptors(self):
        """A worker with few descriptors keeps those it cannot do without, goes on with fewer connections, and says so."""
        self.install(CONFIG.replace("method: POST, timeout", "method: POST, parallel: 50, timeout"))
        self.start("dispatcher")
        with open(f"{self.folder}/limited.log", "w", encoding="utf-8") as log:
            worker = subprocess.Popen(["prlimit", "--nofile=40:40", harness.BINARY, "worker", "--config", self.config, "--log-level", "debug"],
                                      env=self.environment, stdout=log, stderr=log)
            worker.log = log
        self.processes.append(worker)
        self.ledger.behave["/work"] = lambda nth: (time.sleep(0.3) or 200, {}, b"")
        load = self.load(100)
        time.sleep(6)
        self.assertIsNone(worker.poll(), self.log_of(worker)[-1000:])
        accepted = load.stop()
        self.ledger.behave.pop("/work")
        self.assertGreater(self.one("SELECT count(*) FROM takt.finished_items WHERE state = 2"), 0, "it goes on with what it has")
        self.assertEqual(self.rows("SELECT class, reason, error, count(*) FROM takt.failed_attempts GROUP BY 1, 2, 3"), [],
                         "what the worker lacked cost the items no attempt")
        self.assertIn("few file descriptors", self.log_of(worker))
        self.assertEqual(self.one("SELECT coalesce(sum(skipped), 0) FROM takt.runs"), 0, "it opened what it had no descriptors for")
        self.start("worker")
        self.drained(90)
        self.check_invariants()
        self.assertEqual(self.one("SELECT count(*) FROM takt.finished_items WHERE state = 2"), len(accepted))

    def test_X1b_out_of_memory(self):
        """A worker whose memory is limited dies of its items, and they end, with or without it."""
        self.install(CONFIG)
        self.start("dispatcher")
        self.start("dlq", "archive")
        with open(f"{self.folder}/limited.log", "w", encoding="utf-8") as log:
            worker = subprocess.Popen(["prlimit", f"--as={600 * 2**20}", harness.BINARY, "worker", "--config", self.config], env=self.environment, stdout=log, stderr=log)
            worker.log = log
        self.processes.append(worker)
        items = [self.enqueue("work", {"pad": "x" * 400_000}) for _ in range(40)]
        time.sleep(4)
        self.start("worker")
        self.check_accepted(items, repeats=40)

    def test_X2_configuration_changed_under_running_services(self):
        self.install(CONFIG)
        self.start("dispatcher")
        self.start("worker")
        self.ledger.behave["/work"] = lambda nth: (time.sleep(2) or 200, {}, b"")
        item = self.enqueue("work")
        eventually(lambda: self.ledger.of("/work"))
        self.install(CONFIG.replace("url}/work", "url}/moved"))
        time.sleep(1.5)  # running services follow within a second
        later = self.enqueue("work")
        eventually(lambda: self.state(item) == "done" and self.state(later) == "done", what="both ends")
        self.assertEqual(len(self.ledger.of("/work")), 1, "what was under way ended by the version it began with")
        eventually(lambda: len(self.ledger.of("/moved")) >= 1, what="the later item at the new place")
        self.install(CONFIG.replace("  work:", "  renamed:"))
        again = subprocess.run([harness.BINARY, "enqueue", "work", "--config", self.config], env=self.environment, capture_output=True, text=True, check=False)
        self.assertEqual(again.returncode, 1)
        self.assertIn('no job named "work"', again.stderr)

    def test_X3_migration_by_ten_pods_killed_in_the_middle(self):
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(CONFIG.replace("{url}", self.ledger.url))
        migrate = [harness.BINARY, "migrate", "--config", self.config]
        for delay in (0.02, 0.05, 0.1):
            victim = subprocess.Popen(migrate, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(delay)
            victim.kill()
            victim.wait()
        pods = [subprocess.Popen(migrate, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(10)]
        for pod in pods:
            errors = pod.communicate(timeout=60)[1]
            self.assertEqual(pod.returncode, 0, errors)
        self.install(CONFIG)
        self.assertGreater(self.one("SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'takt'"), 20)
