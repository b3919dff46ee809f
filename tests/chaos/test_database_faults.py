"""PostgreSQL killed, cut off between commit and answer, read-only, full: nothing accepted is lost, nothing done twice."""
import contextlib
import os
import signal
import subprocess
import threading
import time

import psycopg2

from chaos import CONFIG, EVERY_SECOND, ChaosTest, eventually
from parts import listens

# A server that says nothing is given up after 6 to 8 s.
SHORT = CONFIG.replace("database: {", "database: {statement_timeout: 1s, ")


class DatabaseFaults(ChaosTest):
    def tearDown(self):
        if not listens(self.postgresql.port):
            self.postgresql.start()
            self.reconnect()
        super().tearDown()

    def check_goes_on(self, load, begin):
        """Work goes on after the fault, by the same processes; nothing accepted and no slot since `begin` is lost."""
        count = len(self.ledger.of("/work"))
        eventually(lambda: len(self.ledger.of("/work")) > count + 20, 30, "work after the fault")
        accepted = load.stop()
        self.check_slots(begin, self.now())
        self.takt("jobs", "pause", "every")
        self.check_accepted(accepted)
        self.assertEqual([p.poll() for p in self.processes], [None] * 3, "no service ended")

    def test_P1_database_killed_at_load_and_restarted(self):
        self.running(CONFIG + EVERY_SECOND)
        load = self.load(100)
        eventually(lambda: len(self.ledger.of("/work")) > 50)
        begin = self.now() + 1
        self.postgresql.stop("immediate")
        before = [self.cpu_seconds(p) for p in self.processes]
        time.sleep(3)
        used = [self.cpu_seconds(p) - b for p, b in zip(self.processes, before)]
        self.assertLess(max(used) / 3, 0.2, f"CPU seconds while the database was away for 3 s: {used}")
        self.postgresql.start()
        self.reconnect()
        self.check_goes_on(load, begin)

    def in_handlers(self, config=CONFIG, count=40):
        """The usual services, the worker behind a proxy; every item has been called and waits for its answer. At most 50
        connections go to one host."""
        release = threading.Event()
        self.ledger.behave["/work"] = lambda nth: (release.wait(20) and 200 or 500, {}, b"")
        self.install(config)
        self.dispatcher, self.archive = self.start("dispatcher"), self.start("dlq", "archive")
        self.proxy = self.through_proxy("postgresql")
        self.worker = self.start("worker")
        items = [row[0] for row in self.rows("SELECT item_id FROM takt.enqueue_many('work', array_fill('{}'::jsonb, ARRAY[%s]))", count)]
        channel = self.channel()
        for n in range(count // 10):  # a run each
            self.publish(channel, {"id": f"external-{self.name}-{n}", "job": "work"})
        eventually(lambda: len(self.ledger.of("/work")) == count, what="every item in its handler")
        return items, release

    def handled_and_waiting(self, silent=False):
        """Every item is answered just after the database went away, or fell silent."""
        items, release = self.in_handlers()
        if silent:
            self.postgresql.signal(signal.SIGSTOP)
        else:
            self.postgresql.stop("immediate")
        release.set()
        return items

    def test_finding28_what_was_done_before_an_outage_longer_than_the_lease_is_not_done_again(self):
        items = self.handled_and_waiting()
        self.proxy.refuse = True
        time.sleep(4)  # the lease is 2 s
        self.postgresql.start()
        self.reconnect()
        time.sleep(1.5)  # the dispatcher is back for longer than the worker
        self.proxy.mend()
        self.check_accepted(items)
        self.assertEqual(len(self.ledger.of("/work")), len(items), "an item was called again though its worker lived")
        self.assertEqual(self.one("SELECT count(*) FROM takt.failed_attempts"), 0)

    def ends_within_its_grace(self, *services):
        """IMPATIENT says 3 s; what a timeout of one connect adds is allowed, and no more."""
        for service in services:
            service.send_signal(signal.SIGTERM)
        began = time.monotonic()
        for service in services:
            self.assertEqual(service.wait(20), 0, self.log_of(service)[-2000:])
            took = time.monotonic() - began
            self.assertLess(took, 3 + 3, f"{' '.join(service.args[1:3])} took {took:.1f} s: {self.log_of(service)[-2000:]}")

    def test_C16_finding16_sigterm_while_the_database_is_away(self):
        items = self.handled_and_waiting()
        time.sleep(0.5)
        self.ends_within_its_grace(self.dispatcher, self.worker, self.archive)
        self.postgresql.start()
        self.reconnect()
        self.ledger.behave["/work"] = lambda nth: (200, {}, b"")
        self.running()
        self.check_accepted(items)

    def test_C16b_sigterm_while_the_broker_is_away(self):
        self.running()
        accepted = [self.enqueue("work", {"n": n}) for n in range(20)]
        self.enqueue("hopeless")
        eventually(lambda: len(self.ledger.of("/work")) >= 20)
        up = self.start("up")
        self.rabbitmq.stop()
        try:
            accepted += [self.enqueue("work", {"n": n}) for n in range(20)]
            self.enqueue("hopeless")  # its letter, if it dies, waits in the outbox
            time.sleep(1)
            self.ends_within_its_grace(self.dispatcher, self.worker, self.archive, up)
        finally:
            self.rabbitmq.start()
        self.running()
        self.check_accepted(accepted)

    def test_C16c_sigterm_while_both_are_away(self):
        self.running()
        accepted = [self.enqueue("work", {"n": n}) for n in range(20)]
        up = self.start("up")
        eventually(lambda: len(self.ledger.of("/work")) >= 20)
        self.postgresql.stop("immediate")
        self.rabbitmq.stop()
        try:
            time.sleep(1)
            self.ends_within_its_grace(self.dispatcher, self.worker, self.archive, up)
        finally:
            self.postgresql.start()
            self.rabbitmq.start()
            self.reconnect()
        self.running()
        self.drained()
        self.check_invariants()

    def test_C16d_sigterm_while_the_database_is_silent(self):
        """It takes what is sent and says nothing: no statement's own time is over within the grace."""
        items = self.handled_and_waiting(silent=True)
        try:
            self.ends_within_its_grace(self.dispatcher, self.worker, self.archive)
        finally:
            self.postgresql.signal(signal.SIGCONT)
        self.ledger.behave["/work"] = lambda nth: (200, {}, b"")
        self.running()
        self.check_accepted(items)

    def answer_lost(self, marker):
        proxy = self.through_proxy("postgresql")
        self.running()
        items = []
        for _ in range(3):
            proxy.cut_after(marker)
            items += [self.enqueue("work") for _ in range(5)]
            self.assertTrue(proxy.marked.wait(20), "the statement never came by")
            eventually(lambda: all(self.state(item) == "done" for item in items), 30, "the items' end")
        self.check_accepted(items)
        self.assertEqual(self.one("SELECT count(*) FROM takt.failed_attempts"), 0, "no attempt was spent on a lost answer")

    def test_P2_answer_lost_after_the_claim_committed(self):
        self.answer_lost(b"begin_run")

    def test_P2b_answer_lost_after_the_settling_committed(self):
        self.answer_lost(b"end_run")

    def test_P3_database_becomes_read_only(self):
        self.running()
        items = [self.enqueue("work") for _ in range(5)]
        eventually(lambda: all(self.state(item) == "done" for item in items))
        self.admin.cursor().execute(f"ALTER DATABASE {self.name} SET default_transaction_read_only = on")
        self.admin.cursor().execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND application_name = 'takt'", (self.name,))
        more = [self.enqueue("work") for _ in range(5)]  # through the connection that was open before
        time.sleep(4)
        self.assertEqual(self.one("SELECT sum(attempt) FROM takt.items"), 0, "no attempt was spent")
        self.admin.cursor().execute(f"ALTER DATABASE {self.name} RESET default_transaction_read_only")
        self.admin.cursor().execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND application_name = 'takt'", (self.name,))
        self.check_accepted(items + more)
        self.assertEqual(self.one("SELECT count(*) FROM takt.failed_attempts"), 0)

    def test_P4_competing_transactions_hold_locks(self):
        self.running()
        load = self.load(50)
        blocker = psycopg2.connect(self.database_url)
        for _ in range(3):
            with blocker, blocker.cursor() as cursor:
                cursor.execute("LOCK TABLE takt.items IN ACCESS EXCLUSIVE MODE")
                time.sleep(0.7)
        blocker.close()
        self.check_accepted(load.stop())

    def across_a_boundary(self):
        """A report reads runs while a partition is due and an old one is to go: who of Takt's sessions waits for a table, and how long."""
        self.db.cursor().execute("DROP TABLE " + self.one(
            "SELECT string_agg('takt.' || child, ', ') FROM takt.history_partitions WHERE until > now() + interval '2 days'"))
        self.db.cursor().execute("CREATE TABLE takt.runs_20200101 PARTITION OF takt.runs FOR VALUES FROM ('2020-01-01+00') TO ('2020-01-02+00')")
        report = psycopg2.connect(self.database_url)
        report.cursor().execute("SELECT count(*) FROM takt.runs")
        self.start("dispatcher")
        self.start("worker")
        load, waits, over = self.load(100), [], threading.Event()

        def watch():
            with psycopg2.connect(self.database_url) as look:
                look.autocommit = True
                cursor = look.cursor()
                while not over.wait(0.01):
                    cursor.execute("SELECT l.pid, a.query FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT l.granted AND"
                                   " l.locktype = 'relation' AND a.datname = current_database()")
                    waits.append({row[0]: row[1] for row in cursor.fetchall()})
        watcher = threading.Thread(target=watch)
        watcher.start()
        eventually(lambda: self.one("""SELECT min(until) > now() + interval '60 h' FROM
            (SELECT max(until) AS until FROM takt.history_partitions GROUP BY parent) p"""), what="the coming partitions")
        eventually(lambda: "partition kept" in "".join(self.log_of(p) for p in self.processes), what="the old partition's being left alone")
        time.sleep(2)
        self.assertEqual(self.one("SELECT count(*) FROM takt.history_partitions WHERE child = 'runs_20200101'"), 1)
        over.set()
        watcher.join()
        self.assertGreater(len(waits), 50)
        long = [before[pid] for before, after in zip(waits, waits[1:]) for pid in before.keys() & after.keys()]
        self.assertEqual(long, [], "waited for a table for longer than a moment")
        done = self.one("SELECT count(*) FROM takt.finished_items")
        eventually(lambda: self.one("SELECT count(*) FROM takt.finished_items") > done + 50, what="work beside the report")
        accepted = load.stop()
        report.close()
        self.check_accepted(accepted)
        self.assertEqual(self.one("SELECT dropped FROM takt.drop_old_partition('30 days')"), True, "once the report is over")

    def test_C14_finding13_a_report_reads_runs_across_a_partitions_boundary(self):
        self.install(CONFIG)
        self.across_a_boundary()

    def test_C14b_finding13_a_report_reads_runs_across_a_partitions_boundary_behind_a_pooler(self):
        self.install(CONFIG.replace("database: {connect_timeout: 2s}", "database: {connect_timeout: 2s, pooler: transaction}"))
        self.through_pgbouncer()
        self.across_a_boundary()

    def test_P6_a_long_transaction_holds_back_vacuum(self):
        self.running(CONFIG + "  noop: {batch_size: 100, handler: {native: {name: noop}}}\n")

        def drain(count):
            """Seconds until so many no-ops are done, which wait when it begins."""
            self.takt("jobs", "pause", "noop")
            for _ in range(count // 10_000):
                self.one("SELECT count(*) FROM takt.enqueue_many('noop', array_fill('{}'::jsonb, ARRAY[10000]))")
            before, began = self.one("SELECT coalesce(sum(done), 0) FROM takt.runs"), time.monotonic()
            self.takt("jobs", "resume", "noop")
            eventually(lambda: self.one("SELECT coalesce(sum(done), 0) FROM takt.runs") >= before + count, 60, "the drain")
            return time.monotonic() - began

        def size():
            return self.one("SELECT pg_total_relation_size('takt.items')")

        plain = [drain(20_000) for _ in range(3)]
        self.db.cursor().execute("VACUUM takt.items")
        before = size()
        holder = psycopg2.connect(self.database_url)
        holder.set_session("REPEATABLE READ")
        holder.cursor().execute("SELECT count(*) FROM takt.jobs")
        held = [drain(20_000) for _ in range(3)]
        grown = size() - before
        print(f"20,000 items drained in {min(plain):.2f} s, and in {min(held):.2f} s behind a transaction that holds back vacuum; {grown / 60_000:.0f} bytes an item grown")
        self.assertLess(min(held), 1.5 * min(plain) + 0.3, f"seconds without and with it: {plain}, {held}")
        self.assertLess(grown, 60_000 * 300, "what the items themselves took")
        single = self.enqueue("noop")
        eventually(lambda: self.state(single) == "done", 5, "a single item's end")
        holder.close()
        self.db.cursor().execute("VACUUM takt.items")
        peak = size()
        for _ in range(2):
            drain(20_000)
            self.db.cursor().execute("VACUUM takt.items")
        self.assertLessEqual(size(), peak * 1.05, "what it left is used again")

    @contextlib.contextmanager
    def frozen(self):
        """PostgreSQL stands still; its kernel goes on taking what is sent."""
        self.postgresql.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.postgresql.signal(signal.SIGCONT)

    def test_P7_database_frozen_under_load(self):
        self.running(SHORT + EVERY_SECOND)
        load = self.load(100)
        eventually(lambda: len(self.ledger.of("/work")) > 50)
        begin = self.now() + 1
        with self.frozen():
            time.sleep(12)
        for service in (self.dispatcher, self.worker):
            self.assertIn("the server did not answer for ", self.log_of(service), "it waits for ever")
        self.check_goes_on(load, begin)

    def test_P7b_what_was_being_done_while_the_database_froze_is_not_done_again(self):
        items, release = self.in_handlers(SHORT)
        with self.frozen():
            release.set()
            time.sleep(12)
        self.assertIn("the server did not answer for ", self.log_of(self.worker))
        self.check_accepted(items)
        self.assertEqual(len(self.ledger.of("/work")), len(items), "an item was called again though its worker lived")
        self.assertEqual(self.one("SELECT count(*) FROM takt.failed_attempts"), 0)

    def test_P5_disk_full(self):
        """A tablespace on a small file system holds the items; it fills, and room returns."""
        folder = os.path.join(self.folder, "small")
        os.mkdir(folder)
        if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", folder], stderr=subprocess.DEVNULL, check=False).returncode != 0:
            self.skipTest("needs the right to mount a tmpfs")
        try:
            os.chmod(self.folder, 0o755)
            subprocess.run(["chown", "postgres:postgres", folder], check=True)
            self.install(CONFIG)
            self.admin.cursor().execute(f"CREATE TABLESPACE small_{self.name} LOCATION '{folder}'")
            self.db.cursor().execute(f"ALTER TABLE takt.items SET TABLESPACE small_{self.name}")
            ballast = os.path.join(folder, "ballast")
            with open(ballast, "wb") as file:
                try:
                    while True:
                        file.write(b"x" * 65536)
                except OSError:
                    pass
            self.dispatcher, self.worker = self.start("dispatcher"), self.start("worker")
            load = self.load(50)
            refused = 0
            for n in range(200):
                try:
                    self.enqueue("work", {"pad": "%064d" % n * 40})
                except psycopg2.Error as error:
                    self.assertEqual(error.pgcode, "53100")
                    refused += 1
                    break
            self.assertGreater(refused, 0, "the disk did not fill")
            os.unlink(ballast)
            time.sleep(1)
            self.check_accepted(load.stop())
        finally:
            for process in self.processes:
                process.kill()
                process.wait()
            if self.db:
                self.db.cursor().execute("ALTER TABLE takt.items SET TABLESPACE pg_default")
                self.admin.cursor().execute(f"DROP TABLESPACE IF EXISTS small_{self.name}")
            subprocess.run(["umount", folder], check=False)
