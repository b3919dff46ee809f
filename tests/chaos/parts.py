"""The private PostgreSQL and RabbitMQ of these tests, which may be killed, stopped and started again on the same ports."""
import contextlib
import glob
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

SERVICES_DIR = pathlib.Path(os.environ["TAKT_TEST_SERVICES"])


def settings():
    text = (SERVICES_DIR / "env").read_text(encoding="utf-8").replace("export ", "")
    return dict(re.findall(r"(\w+)='?([^' \n]*)'?", text))


SETTINGS = settings()
RABBIT = SERVICES_DIR / "rabbitmq"
PG = pathlib.Path(SETTINGS["TAKT_PG_DIR"])
PG_BIN = sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1]
PG_USER = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--"] if os.geteuid() == 0 else []


def until(condition, seconds, what):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not hold within {seconds} s")
        time.sleep(0.05)


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


class PostgreSQL:
    def __init__(self):
        self.port = int(SETTINGS["PGPORT"])

    def pid(self):
        return int((PG / "data/postmaster.pid").read_text(encoding="utf-8").split()[0])

    def signal(self, what):
        """To the server, and to each of its processes."""
        server = self.pid()
        os.kill(server, what)
        for child in pathlib.Path(f"/proc/{server}/task/{server}/children").read_text(encoding="utf-8").split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), what)

    def control(self, *arguments, **environment):
        subprocess.run([*PG_USER, "env", *(f"{name}={value}" for name, value in environment.items()), f"{PG_BIN}/pg_ctl", "-D", str(PG / "data"), "-l", str(PG / "log"), *arguments], check=True, timeout=120,
                       stdout=subprocess.DEVNULL, cwd="/")

    def stop(self, mode="immediate"):
        self.control("-m", mode, "-w", "stop")

    def start(self, **environment):
        self.control("-o", f"-p {self.port}", "-w", "-t", "60", "start", **environment)


class RabbitMQ:
    # Seconds. RabbitMQ 3.10 writes which quorum queues it has, and their terms, to disk some seconds after they were declared:
    # killed before, it starts with an empty queue that never elects a leader (docs/operating.md says what to do then).
    SETTLES = 8

    def __init__(self):
        conf = (RABBIT / "rabbitmq.conf").read_text(encoding="utf-8")
        self.port = int(re.search(r"listeners.tcp.1 = .*:(\d+)", conf)[1])

    def pid(self):
        return int((RABBIT / "pid").read_text(encoding="utf-8").split()[0])

    def ctl(self, *arguments):
        return subprocess.run([SETTINGS["TAKT_RABBITMQCTL"], "-q", *arguments], check=True, timeout=120, capture_output=True, text=True).stdout

    def kill(self):
        pid = self.pid()
        os.kill(pid, signal.SIGKILL)
        until(lambda: not alive(pid), 20, "the broker's end")

    def stop(self):
        pid = self.pid()
        os.kill(pid, signal.SIGTERM)
        until(lambda: not alive(pid), 60, "the broker's end")

    def start(self):
        subprocess.Popen([str(RABBIT / "start")], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        until(lambda: listens(self.port), 90, "the broker's listening")


def alive(pid):
    """False once nothing of it is left but its exit status. A process whose first thread has ended is a zombie in name, and goes on
    listening until the last one has: on a busy machine for seconds."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
            zombie = stat.read().rsplit(")", 1)[1].split()[0] == "Z"
        return not zombie or len(os.listdir(f"/proc/{pid}/task")) > 1
    except (FileNotFoundError, ProcessLookupError):
        return False
