"""takt bench: bounded, honest about counts, and gone without a trace."""
import json
import unittest

from harness import TaktTest

CONFIG = """
jobs:
  demo:
    handler: {http: {url: "{url}/demo", method: POST}}
"""


class Bench(TaktTest):
    def no_trace_is_left(self):
        for table in ("items", "runs", "ticks", "schedules", "failed_attempts", "ended_items"):
            self.assertEqual(self.one(f"SELECT count(*) FROM takt.{table} WHERE job_id NOT IN (SELECT id FROM takt.jobs WHERE name = 'demo')"), 0, table)
        self.assertEqual(self.rows("SELECT name FROM takt.jobs"), [("demo",)])

    def test_each_bench_measures_what_it_says_and_removes_its_traces(self):
        self.install(CONFIG)
        figures = json.loads(self.takt("bench", "all", "--count", "300", "--connections", "5", "--json"))
        measured = {(row["bench"], row["measure"]): row["value"] for row in figures}
        for bench, measure in (("drain", "items"), ("enqueue", "in sets of 1,000"), ("enqueue", "one a commit, 5 connections"), ("http", "items"),
                               ("latency", "commit to handler, p99"), ("ticks", "signed, confirmed, verified"), ("schedules", "lateness, p99")):
            self.assertGreater(measured[bench, measure], 0, f"{bench}: {measure}")
        self.assertEqual(measured["schedules", "due together"], 300)
        self.no_trace_is_left()

    def test_refuses_a_database_with_live_work_unless_told(self):
        self.install(CONFIG)
        item = self.enqueue("demo")
        self.assertIn("live work", self.takt("bench", "drain", "--count", "10", expect=1))
        self.takt("bench", "drain", "--count", "10", "--beside-live-work")
        self.assertEqual(self.state(item), "pending", "another job's item is left alone")
        self.no_trace_is_left()

    def test_waits_for_its_own_schedules_alone(self):
        self.install(CONFIG)
        self.rows("INSERT INTO takt.ticks (id, job_id, source, due_at, publish_at) SELECT 'demo/later', id, 'schedule', now(), now() + interval '1 hour' FROM takt.jobs RETURNING id")
        self.takt("bench", "schedules", "--count", "10", "--seconds", "10")
        self.assertEqual(self.one("SELECT count(*) FROM takt.ticks WHERE published_at IS NULL"), 1)

    def test_gives_up_in_time_and_still_cleans_up(self):
        self.install(CONFIG)
        self.assertIn("waited 3 s", self.takt("bench", "http", "--count", "5", "--seconds", "3", "--url", "http://127.0.0.1:9/", expect=1))
        self.no_trace_is_left()


if __name__ == "__main__":
    unittest.main()
