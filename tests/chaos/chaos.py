"""What every chaos test shares: an installation that can be hurt, a load that notes what was accepted, and the invariants."""
import collections
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time

import psycopg2

sys.path.insert(0, os.path.join(os.environ["TAKT_SOURCE"], "tests", "e2e"))
import harness  # noqa: E402
from harness import TaktTest, eventually  # noqa: E402,F401
from parts import SETTINGS, PostgreSQL, RabbitMQ, listens, until  # noqa: E402
from proxy import Proxy  # noqa: E402

CRASHING = os.environ["TAKT_CRASHING"]

IMPATIENT = """
metrics: {listen: "127.0.0.1:0"}
broker: {heartbeat: 2s, connect_timeout: 2s, confirm_timeout: 2s}
database: {connect_timeout: 2s}
dispatcher: {leader_lease: 2s}
worker: {grace: 3s}
jobs:
"""
CONFIG = IMPATIENT + """  work:
    lease: 2s
    batch_size: 10
    max_attempts: 20
    backoff: [200ms]
    handler: {http: {url: "{url}/work", method: POST, timeout: 5s, circuit_failures: 0}}
  hopeless:
    lease: 2s
    max_attempts: 1
    handler: {http: {url: "{url}/hopeless", method: POST, circuit_failures: 0}}
"""
EVERY_SECOND = """  every:
    lease: 2s
    max_attempts: 20
    backoff: [200ms]
    handler: {http: {url: "{url}/every", method: POST, circuit_failures: 0}}
    schedules: [{name: second, cron: "* * * * * *", misfire: all, misfire_limit: 1000}]
"""


class Load(threading.Thread):
    """Enqueues `rate` items a second, each in its own transaction, until stopped, and notes those whose commit was
    answered (accepted) and those of which nobody can say (unsure)."""

    def __init__(self, url, rate=100, job="work"):
        super().__init__(daemon=True)
        self.url, self.rate, self.job = url, rate, job
        self.accepted, self.unsure = [], 0
        self.ended = threading.Event()

    def run(self):
        connection, n = None, 0
        while not self.ended.is_set():
            began = time.monotonic()
            try:
                if connection is None:
                    connection = psycopg2.connect(self.url, connect_timeout=2, options="-c statement_timeout=5000")
                with connection, connection.cursor() as cursor:
                    self.unsure += 1
                    cursor.execute("SELECT takt.enqueue(%s, %s::jsonb)", (self.job, json.dumps({"n": n})))
                    item = cursor.fetchone()[0]
                self.accepted.append(item)
                self.unsure -= 1
                n += 1
            except psycopg2.Error:
                if connection is not None:
                    connection.close()
                connection = None
                self.ended.wait(0.1)
            self.ended.wait(max(0, began + 1 / self.rate - time.monotonic()))
        if connection is not None:
            connection.close()

    def stop(self):
        self.ended.set()
        self.join(30)
        return self.accepted


class ChaosTest(TaktTest):
    config_text = CONFIG

    def setUp(self):
        super().setUp()
        self.loads, self.proxies = [], []
        self.postgresql, self.rabbitmq = PostgreSQL(), RabbitMQ()
        self.ledger.behave["/hopeless"] = lambda nth: (500, {}, b"")

    def tearDown(self):
        for load in self.loads:
            load.stop()
        for proxy in self.proxies:
            proxy.close()
        super().tearDown()

    def running(self, config=CONFIG):
        """The usual three services on this configuration."""
        self.install(config)
        self.dispatcher, self.worker, self.archive = self.start("dispatcher"), self.start("worker"), self.start("dlq", "archive")

    def reconnect(self):
        """After PostgreSQL was away."""
        self.admin.close()
        self.admin = psycopg2.connect(SETTINGS["TAKT_DATABASE_URL"])
        self.admin.autocommit = True
        self.db = psycopg2.connect(self.database_url)
        self.db.autocommit = True

    def leading(self, dispatchers):
        """The one of them that says it leads, or None."""
        for dispatcher in dispatchers:
            log = self.log_of(dispatcher)
            if dispatcher.poll() is None and log.rfind(" leading ") > log.rfind(" standing by "):
                return dispatcher
        return None

    def through_proxy(self, what):
        """Puts a proxy before PostgreSQL or RabbitMQ for every process started from now on."""
        name, key = {"postgresql": ("TAKT_DATABASE_URL", "PGPORT"), "rabbitmq": ("TAKT_AMQP_URL", None)}[what]
        port = int(SETTINGS[key]) if key else self.rabbitmq.port
        proxy = Proxy(("127.0.0.1", port))
        self.proxies.append(proxy)
        self.environment[name] = self.environment[name].replace(f"127.0.0.1:{port}", f"127.0.0.1:{proxy.port}")
        return proxy

    def through_pgbouncer(self):
        """Puts a pooler in transaction mode before PostgreSQL for every process started from now on."""
        with socket.create_server(("127.0.0.1", 0)) as held:
            port = held.getsockname()[1]
        folder = os.path.join(self.folder, "pgbouncer")
        os.mkdir(folder)
        with open(os.path.join(folder, "users"), "w", encoding="utf-8") as file:
            file.write(f'"{SETTINGS["PGUSER"]}" "{SETTINGS["PGPASSWORD"]}"\n')
        with open(os.path.join(folder, "ini"), "w", encoding="utf-8") as file:
            file.write(f"""[databases]
* = host=127.0.0.1 port={SETTINGS["PGPORT"]}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = plain
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = 5
ignore_startup_parameters = extra_float_digits,options
logfile = {folder}/log
""")
        command = ["pgbouncer", os.path.join(folder, "ini")]
        if os.geteuid() == 0:
            os.chmod(self.folder, 0o755)
            harness.subprocess.run(["chown", "-R", "postgres:postgres", folder], check=True)
            command[1:1] = ["-u", "postgres"]
        bouncer = harness.subprocess.Popen(command, env=dict(os.environ, PATH=os.environ["PATH"] + ":/usr/sbin"), stdout=harness.subprocess.DEVNULL, stderr=harness.subprocess.DEVNULL)
        self.addCleanup(bouncer.wait, 10)
        self.addCleanup(bouncer.terminate)
        until(lambda: listens(port), 10, "pgbouncer's listening")
        self.environment["TAKT_DATABASE_URL"] = self.database_url.replace(f":{SETTINGS['PGPORT']}/", f":{port}/")

    def start_crashing(self, point, *arguments):
        """The service in a binary that kills itself at `point`."""
        with tempfile.NamedTemporaryFile("w", dir=self.folder, suffix=".log", delete=False) as log:
            heap = log.name.removesuffix(".log") + ".heap"
            process = harness.subprocess.Popen([CRASHING, *arguments, "--config", self.config, "--log-level", "debug"],
                                               env=dict(self.environment, TAKT_CRASH_AT=point, TAKT_HEAP_FILE=heap), stdout=log, stderr=log)
            process.log, process.heap = log, heap
        self.processes.append(process)
        return process

    def killed(self, process, seconds=30):
        eventually(lambda: process.poll() is not None, seconds, f"the crash of {' '.join(process.args[1:3])}")
        self.assertEqual(process.returncode, -signal.SIGKILL, self.log_of(process)[-2000:])

    def load(self, rate=100, job="work"):
        load = Load(self.database_url, rate, job)
        self.loads.append(load)
        load.start()
        return load

    def cpu_seconds(self, process):
        with open(f"/proc/{process.pid}/stat", encoding="utf-8") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def footprint(self, process):
        """What a process holds: descriptors, threads, resident MiB. Connections kept alive to the destination do not count: their
        bound is worker.host_connections."""
        with open("/proc/net/tcp", encoding="utf-8") as file:
            lines = [line.split() for line in file][1:]
        kept = {f"socket:[{line[9]}]" for line in lines if int(line[2].split(":")[1], 16) == self.ledger.server.server_address[1]}
        folder, held = f"/proc/{process.pid}/fd", 0
        for name in os.listdir(folder):
            try:
                held += os.readlink(os.path.join(folder, name)) not in kept
            except OSError:
                pass  # closed meanwhile
        with open(f"/proc/{process.pid}/status", encoding="utf-8") as file:
            status = dict(line.split(":", 1) for line in file)
        return held, int(status["Threads"]), int(status["VmRSS"].split()[0]) / 1024

    # --- the invariants, from outside

    def check_accepted(self, accepted, repeats=0):
        """Every accepted item is done, once; no (item, attempt) reached the destination twice, but for `repeats` of them."""
        self.drained()
        self.check_invariants()
        done = {row[0] for row in self.rows("SELECT id FROM takt.finished_items WHERE state = 2")}
        missing = [item for item in accepted if item not in done]
        self.assertEqual(missing, [], "accepted items that are not done")
        calls = collections.Counter((d["item"], d["attempt"]) for d in self.ledger.deliveries)
        doubled = [call for call, count in calls.items() if count > 1]
        self.assertLessEqual(len(doubled), repeats, f"attempts that were delivered twice: {doubled[:5]}")
        settled = self.rows("SELECT item_id FROM takt.attempts WHERE class = 'done' GROUP BY item_id HAVING count(*) > 1")
        self.assertEqual(settled, [], "items that were settled done twice")
        delivered = {d["item"] for d in self.ledger.of("/work")}
        self.assertEqual([item for item in accepted if f"item-{item}" not in delivered], [], "done without a delivery")

    def check_slots(self, begin, end, job="every"):
        """Every second from begin until before end has exactly one tick, each with exactly one finished run."""
        eventually(lambda: self.one("""SELECT bool_and(s.next_due >= to_timestamp(%s)) FROM takt.schedules s JOIN takt.jobs j ON j.id = s.job_id
            WHERE j.name = %s""", end, job), 60, "the leader's way to the present")
        # Ticks that every worker has forgotten are published again by the sweep.
        eventually(lambda: self.one("""SELECT count(*) FROM takt.ticks t JOIN takt.jobs j ON j.id = t.job_id
            WHERE j.name = %s AND t.source = 'schedule' AND t.finished_at IS NULL AND t.due_at < to_timestamp(%s)""", job, end) == 0,
                   60, "the last slot's run")
        slots = self.one("""SELECT count(*) FROM takt.ticks t JOIN takt.jobs j ON j.id = t.job_id
            WHERE j.name = %s AND t.source = 'schedule' AND t.due_at >= to_timestamp(%s) AND t.due_at < to_timestamp(%s)""", job, begin, end)
        self.assertEqual(slots, end - begin, "one tick a slot")
        self.assertEqual(self.one("SELECT count(*) - count(DISTINCT (job_id, due_at)) FROM takt.ticks WHERE source = 'schedule'"), 0, "a slot twice")
        wrong = self.rows("""SELECT t.id, count(r.id) FROM takt.ticks t JOIN takt.jobs j ON j.id = t.job_id
            LEFT JOIN takt.runs r ON r.tick_id = t.id AND r.status = 'completed'
            WHERE j.name = %s AND t.source = 'schedule' AND t.due_at < to_timestamp(%s) GROUP BY 1 HAVING count(r.id) <> 1""", job, end)
        self.assertEqual(wrong, [], "each tick has exactly one finished run")

    def now(self):
        return self.one("SELECT extract(epoch FROM date_trunc('second', now()))::bigint")
