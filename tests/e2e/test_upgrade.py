"""Pods of the version before, while the next release's functions come and their own go."""
import contextlib
import os
import re
import threading

import psycopg2

from harness import SOURCE, TaktTest, eventually

CONFIG = """
jobs:
  work:
    batch_size: 3
    handler: {http: {url: "{url}/work", method: POST}}
"""


class Upgrade(TaktTest):
    def claims_next(self):
        """The next release's claim.sql: begin_run has a parameter and a column more, so another name; the old one is kept."""
        with open(os.path.join(SOURCE, "migrations", "functions", "claim.sql"), encoding="utf-8") as file:
            kept = file.read()
        begin = re.search(r"CREATE OR REPLACE FUNCTION takt\.begin_run\(.*?END \$\$;", kept, re.S)[0]
        changed = begin.replace("takt.begin_run(", "takt.begin_run_2(the_shard integer, ").replace("overdue_ms bigint)", "overdue_ms bigint, shard integer)")
        changed = changed.replace("NULL::bigint, NULL::bigint;", "NULL::bigint, NULL::bigint, the_shard;").replace("* 1000)::bigint\n      FROM ordered", "* 1000)::bigint, the_shard\n      FROM ordered")
        self.assertEqual(changed.count("the_shard"), 3)
        return kept + changed

    def test_a_function_with_another_signature_comes_beside_the_old_one(self):
        self.install(CONFIG)
        before = self.start("up")
        accepted, ended = [], threading.Event()

        def enqueue():
            with contextlib.closing(psycopg2.connect(self.database_url)) as connection:
                connection.autocommit = True
                cursor = connection.cursor()
                while not ended.wait(0.01):
                    cursor.execute("SELECT takt.enqueue('work', jsonb_build_object('n', %s))", (len(accepted),))
                    accepted.append(cursor.fetchone()[0])

        caller = threading.Thread(target=enqueue)
        caller.start()
        try:
            eventually(lambda: len(self.ledger.of("/work")) > 20, what="work before the upgrade")
            with psycopg2.connect(self.database_url) as connection, connection.cursor() as cursor:
                cursor.execute(self.claims_next())
                cursor.execute("UPDATE takt.schema_functions SET release = '99.0.0', checksum = CASE name WHEN 'claim' THEN 'next' ELSE checksum END")
            self.assertIn("nothing to do", self.takt("migrate"))
            at = len(self.ledger.of("/work"))
            eventually(lambda: len(self.ledger.of("/work")) > at + 20, what="work of the pod that was there")
            after = self.start("up")
            self.stop(before)
            at = len(self.ledger.of("/work"))
            eventually(lambda: len(self.ledger.of("/work")) > at + 20, what="work of a pod that starts now")
        finally:
            ended.set()
            caller.join()
        self.drained()
        self.assertEqual(self.one("SELECT count(*) FROM takt.finished_items WHERE state = 2"), len(accepted))
        self.assertEqual(len(self.ledger.of("/work")), len(accepted), "each once")
        for process in (before, after):
            self.assertNotIn("waiting for the schema", self.log_of(process))
        self.stop(after)
        # The release after that drops the old name, and says which binaries it serves.
        self.db.cursor().execute("DROP FUNCTION takt.begin_run")
        self.db.cursor().execute("INSERT INTO takt.schema_migrations (version, name, checksum, oldest) VALUES (9999, 'drops', '', 9999)")
        self.assertIn("deploy a newer takt", self.takt("worker", expect=1))
