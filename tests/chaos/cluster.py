"""Three RabbitMQ nodes on one machine, joined into a cluster, each to be killed and started again."""
import os
import pathlib
import secrets
import signal
import socket
import subprocess
import tempfile
import time

from parts import alive, listens, until

SBIN = "/usr/lib/rabbitmq/bin"


def free_ports(count):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


class Node:
    def __init__(self, folder, cookie, password, epmd):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(mode=0o700)
        self.port, distribution = free_ports(2)
        self.name = f"takt-{self.port}@localhost"
        (self.folder / ".erlang.cookie").write_text(cookie, encoding="utf-8")
        (self.folder / ".erlang.cookie").chmod(0o400)
        (self.folder / "enabled_plugins").write_text("[].", encoding="utf-8")
        (self.folder / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{self.port}\ndefault_user = takt\ndefault_pass = {password}\n"
                                                   "log.console = false\nlog.file.level = warning\n", encoding="utf-8")
        self.environment = dict(
            os.environ, HOME=folder, RABBITMQ_BASE=folder, RABBITMQ_MNESIA_BASE=folder + "/mnesia", RABBITMQ_LOG_BASE=folder + "/log", RABBITMQ_NODENAME=self.name,
            RABBITMQ_NODE_IP_ADDRESS="127.0.0.1", RABBITMQ_NODE_PORT=str(self.port), RABBITMQ_DIST_PORT=str(distribution), RABBITMQ_CONFIG_FILE=folder + "/rabbitmq.conf",
            RABBITMQ_ENABLED_PLUGINS_FILE=folder + "/enabled_plugins", RABBITMQ_PID_FILE=folder + "/pid", RABBITMQ_CONF_ENV_FILE="/dev/null", ERL_EPMD_PORT=str(epmd),
            ERL_EPMD_ADDRESS="127.0.0.1")

    def start(self):
        with open(self.folder / "console", "ab") as console:
            subprocess.Popen([f"{SBIN}/rabbitmq-server"], env=self.environment, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True)
        until(lambda: listens(self.port), 120, f"{self.name}'s listening")

    def ctl(self, *arguments):
        return subprocess.run([f"{SBIN}/rabbitmqctl", "-q", *arguments], env=self.environment, check=True, timeout=120, capture_output=True, text=True).stdout

    def pid(self):
        return int((self.folder / "pid").read_text(encoding="utf-8").split()[0])

    def kill(self):
        pid = self.pid()
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
            until(lambda: not alive(pid), 20, f"{self.name}'s end")


class Cluster:
    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="takt-cluster-")
        self.password, cookie, epmd = secrets.token_hex(12), secrets.token_hex(20), free_ports(1)[0]
        self.nodes = [Node(f"{self.folder}/{n}", cookie, self.password, epmd) for n in range(3)]
        first, *others = self.nodes
        for node in self.nodes:
            node.start()
        for node in others:
            node.ctl("stop_app")
            node.ctl("join_cluster", first.name)
            node.ctl("start_app")

    def node_leading(self, queue, asked):
        """The node that leads a quorum queue, as another one says."""
        for line in asked.ctl("list_queues", "--no-table-headers", "name", "leader").splitlines():
            name, leader = line.split("\t")
            if name == queue:
                return next(node for node in self.nodes if node.name == leader)
        raise AssertionError(f"no queue {queue}")

    def close(self):
        for node in self.nodes:
            try:
                node.kill()
            except (OSError, FileNotFoundError):
                pass
        subprocess.run(["epmd", "-port", self.nodes[0].environment["ERL_EPMD_PORT"], "-kill"], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.2)
        subprocess.run(["rm", "-rf", self.folder], check=True)
