"""One installation of Takt for a test: a database and a virtual host of its own, a destination that keeps a ledger,
and real processes of the binary under test. Run through ctest, which starts PostgreSQL and RabbitMQ."""
import atexit
import base64
import collections
import functools
import hashlib
import hmac
import json
import os
import re
import secrets
import signal
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pika
import psycopg2

BINARY = os.environ["TAKT_BINARY"]
SOURCE = os.environ["TAKT_SOURCE"]
# How many times as long as a test says all may take: 1 for what is shipped, more under sanitizers.
PATIENCE = int(os.environ.get("TAKT_TEST_PATIENCE", "1"))


def service_environment():
    with open(os.path.join(os.environ["TAKT_TEST_SERVICES"], "env"), encoding="utf-8") as file:
        return dict(re.findall(r"(\w+)='?([^' \n]*)'?", file.read().replace("export ", "")))


SERVICES = service_environment()


def rabbitmqctl(*arguments):
    subprocess.run([SERVICES["TAKT_RABBITMQCTL"], "-q", *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=120)


@functools.lru_cache(maxsize=None)
def virtual_host():
    """One for the whole module: making one takes seconds."""
    name = "e2e" + secrets.token_hex(6)
    rabbitmqctl("add_vhost", name)
    rabbitmqctl("set_permissions", "-p", name, "takt", ".*", ".*", ".*")
    atexit.register(rabbitmqctl, "delete_vhost", name)
    return name


def until(end, condition, what="the condition"):
    """Waits until condition() is true and returns its value; fails after `end`, a time.monotonic()."""
    began = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not hold within {end - began:.1f} s")
        time.sleep(0.05)


def eventually(condition, seconds=30, what="the condition"):
    """Waits until condition() is true and returns its value; fails after `seconds` times PATIENCE."""
    return until(time.monotonic() + PATIENCE * seconds, condition, what)


class Ledger:
    """A destination that records every delivery and answers as told: behave[path] = f(handler, nth delivery of the item)."""

    def __init__(self, address=("127.0.0.1", 0)):
        self.deliveries = []
        self.of_item = collections.Counter()
        self.behave = {}
        self.lock = threading.Lock()
        ledger = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                item = self.headers["webhook-id"]
                with ledger.lock:
                    ledger.of_item[item] += 1
                    nth = ledger.of_item[item]
                    ledger.deliveries.append({"item": item, "attempt": int(self.headers["Takt-Attempt"]), "path": self.path, "time": time.time(),
                                              "body": body, "headers": dict(self.headers)})
                behave = ledger.behave.get(self.path.split("?")[0])
                status, headers, answer = behave(nth) if behave else (200, {}, b"")
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, request, client_address):
                pass  # a killed worker's connection

        self.server = Server(address, Handler)
        self.url = f"http://{address[0]}:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def of(self, path):
        with self.lock:
            return [d for d in self.deliveries if d["path"] == path]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class TaktTest(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.name = "t" + secrets.token_hex(8)
        self.folder = tempfile.mkdtemp(prefix="takt-e2e-")
        self.processes = []
        self.connections = []
        self.secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        self.secrets = {self.secret}  # those that no log may show
        self.admin = psycopg2.connect(SERVICES["TAKT_DATABASE_URL"])
        self.admin.autocommit = True
        self.admin.cursor().execute(f"CREATE DATABASE {self.name}")
        self.vhost = virtual_host()
        self.database_url = SERVICES["TAKT_DATABASE_URL"].rsplit("/", 1)[0] + "/" + self.name
        self.amqp_url = SERVICES["TAKT_AMQP_URL"].rsplit("/", 1)[0] + "/" + self.vhost
        self.environment = dict(os.environ, TAKT_DATABASE_URL=self.database_url, TAKT_AMQP_URL=self.amqp_url, TAKT_SIGNING_KEYS=self.secret)
        self.environment.pop("TAKT_SIGNING_KEYS_FILE", None)
        self.config = os.path.join(self.folder, "takt.yaml")
        self.ledger = Ledger()
        self.db = None

    def tearDown(self):
        for connection in self.connections:
            if connection.is_open:
                connection.close()
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            process.log.close()
        result = self._outcome.result
        if any(test is self for test, _ in result.failures + result.errors):
            self.show_logs()
        self.check_no_secret_in_logs()
        self.ledger.close()
        if self.db:
            self.db.close()
        self.admin.cursor().execute(f"DROP DATABASE {self.name} WITH (FORCE)")
        self.admin.close()
        self.delete_queues()
        subprocess.run(["rm", "-rf", self.folder], check=True)

    def show_logs(self):
        """Of each process what it warned of, and its last lines."""
        for process in self.processes:
            lines = self.log_of(process).splitlines()
            notable = [line for line in lines[:-10] if " debug " not in line]
            print("\n".join([f"--- {' '.join(process.args[1:])}", *notable[-30:], *lines[-10:]]))

    def check_no_secret_in_logs(self):
        password = SERVICES["PGPASSWORD"]
        for process in self.processes:
            with open(process.log.name, encoding="utf-8", errors="replace") as log:
                text = log.read()
            for marked in (*(secret[6:] for secret in self.secrets), password):
                self.assertNotIn(marked, text, "a secret is in a log")
            self.assertNotIn("ERROR: AddressSanitizer", text)
            self.assertNotIn("WARNING: ThreadSanitizer", text)
            self.assertNotIn("runtime error:", text)

    def delete_queues(self):
        """Leaves the virtual host as it was found, for the module's next test."""
        connection = pika.BlockingConnection(pika.URLParameters(self.amqp_url))
        channel = connection.channel()
        for queue in ("takt.ticks.default", "takt.wakes.default", "takt.ticks.other", "takt.wakes.other", "takt.dead", "takt.quarantine"):
            channel.queue_delete(queue)
        for exchange in ("takt.ticks", "takt.wakes", "takt.dlx"):
            channel.exchange_delete(exchange)
        connection.close()

    # --- the installation

    def install(self, config):
        """Writes takt.yaml ({url} is the ledger's), migrates, applies, connects to the database."""
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(config.replace("{url}", self.ledger.url))
        self.takt("migrate")
        self.takt("apply", "--prune")
        if not self.db:
            self.db = psycopg2.connect(self.database_url)
            self.db.autocommit = True

    def takt(self, *arguments, expect=0, stdin=None, environment=None):
        done = subprocess.run([BINARY, *arguments, "--config", self.config], env=environment or self.environment, capture_output=True, text=True,
                              timeout=120, input=stdin, check=False)
        self.assertEqual(done.returncode, expect, f"takt {' '.join(arguments)}\n{done.stdout}\n{done.stderr}")
        return done.stdout if expect == 0 else done.stdout + done.stderr

    def start(self, *arguments, wait="started", prefix=()):
        """A service process, behind the command `prefix` if there is one; waits for the log line `wait`."""
        with tempfile.NamedTemporaryFile("w", dir=self.folder, suffix=".log", delete=False) as log:
            process = subprocess.Popen([*prefix, BINARY, *arguments, "--config", self.config, "--log-level", "debug"], env=self.environment, stdout=log, stderr=log)
            process.log = log
        self.processes.append(process)
        eventually(lambda: wait in self.log_of(process) or process.poll() is not None, what=f"{wait!r} of takt {' '.join(arguments)}")
        self.assertIsNone(process.poll(), self.log_of(process))
        return process

    @staticmethod
    def log_of(process):
        with open(process.log.name, encoding="utf-8", errors="replace") as log:
            return log.read()

    def ask(self, process, path):
        """A service's answer at its status port: its status and its body."""
        port = eventually(lambda: re.search(r"metrics_port=(\d+)", self.log_of(process)), what="its status port")[1]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def get(self, process, path):
        return self.ask(process, path)[1]

    def metric(self, process, name):
        """The value of one metric line of a service, or None."""
        found = re.search("^" + re.escape(name) + r" (\S+)$", self.get(process, "/metrics"), re.MULTILINE)
        return float(found[1]) if found else None

    def stop(self, process, within=30):
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(within), 0)

    # --- looking

    def rows(self, sql, *parameters):
        with self.db.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return cursor.fetchall()

    def one(self, sql, *parameters):
        return self.rows(sql, *parameters)[0][0]

    def enqueue(self, job, payload=None, **named):
        more = "".join(f", {name} => %s" for name in named)
        return self.one(f"SELECT takt.enqueue(%s, %s::jsonb{more})", job, json.dumps(payload or {}), *named.values())

    def state(self, item):
        rows = self.rows("SELECT state FROM takt.all_items WHERE id = %s", item)
        return rows[0][0] if rows else None

    # --- publishing, as somebody outside would

    def channel(self):
        parameters = pika.URLParameters(self.amqp_url)
        parameters.heartbeat = 0  # a test that does other things for minutes answers none
        connection = pika.BlockingConnection(parameters)
        self.connections.append(connection)
        channel = connection.channel()
        channel.confirm_delivery()
        return channel

    def sign(self, tick_id, timestamp, body, secret=None):
        secret = secret or self.secret
        self.secrets.add(secret)
        key = base64.b64decode(secret[6:])
        return "v1," + base64.b64encode(hmac.new(key, f"{tick_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()).decode()

    def publish(self, channel, tick, *, body=None, age=0, secret=None, headers=None, content_type="application/json", queue="default", message_id=None):
        """A tick as JSON, signed; every part can be spoiled."""
        body = json.dumps(tick).encode() if body is None else body
        timestamp = str(int(time.time() - age))
        signed = {"webhook-id": tick["id"], "webhook-timestamp": timestamp, "webhook-signature": self.sign(tick["id"], timestamp, body, secret)}
        signed.update(headers or {})
        signed = {name: value for name, value in signed.items() if value is not None}
        channel.basic_publish("takt.ticks", queue, body, pika.BasicProperties(content_type=content_type, delivery_mode=2, headers=signed, message_id=message_id),
                              mandatory=True)

    def webhook_secret(self, job, role="current"):
        """What the receiver of the job's webhooks is given."""
        secret = self.takt("keys", "show-webhook", job, "--role", role).removesuffix("\n")
        self.secrets.add(secret)
        return secret

    def queue_depth(self, channel, name):
        return channel.queue_declare(name, passive=True).method.message_count

    # --- the invariants that hold after every test

    def drained(self, seconds=60, later=True):
        """Nothing runs, and nothing is left to run now or, with `later`, at its time. A job that was paused between a slot's item and
        its claim keeps that item."""
        due = "true" if later else "i.run_at <= now()"
        eventually(lambda: self.one(f"""SELECT count(*) FROM takt.all_items i JOIN takt.jobs j ON j.id = i.job_id
            WHERE i.state = 'running' OR (i.state = 'pending' AND {due} AND NOT j.paused)""") == 0, seconds, "the drain")

    def check_invariants(self):
        self.drained(30, later=False)
        eventually(lambda: self.one("SELECT count(*) FROM takt.dead_letter_outbox") == 0, what="the emptying of the outbox")
        self.assertEqual(self.one("SELECT count(*) FROM (SELECT id FROM takt.all_items GROUP BY id HAVING count(*) > 1) twice"), 0, "an item in two places")
        wrong = self.rows("""
            SELECT i.id, i.attempts, count(a.*) FROM takt.all_items i LEFT JOIN takt.attempts a ON a.item_id = i.id AND a.replay = i.replay
             WHERE i.state NOT IN ('running') GROUP BY i.id, i.attempts HAVING i.attempts <> count(a.*)""")
        self.assertEqual(wrong, [], "items whose attempts are not all accounted for")
        eventually(lambda: self.one("""SELECT count(*) FROM takt.ended_items f WHERE state = 3 AND NOT EXISTS
            (SELECT 1 FROM takt.dead_letters d WHERE d.item_id = f.id)""") == 0, what="every dead item's letter in the archive")
        # A schedule that goes on may have brought an item at this moment.
        eventually(lambda: self.one("SELECT count(*) FROM takt.running_items") == 0, what="the end of what is running")
        eventually(lambda: self.one("SELECT count(*) FROM takt.job_locks") == 0, what="the release of the jobs' locks")


def answers(status, headers=None, body=b""):
    return lambda nth: (status, headers or {}, body)
