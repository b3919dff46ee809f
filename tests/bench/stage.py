"""What both bench runs share: installing, building, private services, rounds, medians, tables."""
import atexit, glob, json, os, re, shutil, socket, statistics, subprocess, sys, tempfile, time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, "build", "release")


# PostgreSQL's malloc gives the 3 MB that a set of 1,000 payloads takes back to the kernel after each set, or does not, as the
# heap of that session happens to lie: 700 page faults a set or none, and a sixth of the rate. Kept, a round measures the same
# thing as the round before.
KEPT_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(256 << 20), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}


def say(text):
    print(text, flush=True)


def run(command, env=None, cwd=None, timeout=600):
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def build():
    subprocess.run([os.path.join(ROOT, "deploy", "install-packages"), "bench"], check=True)
    run(["cmake", "--preset", "release"], cwd=ROOT)
    say("building")
    run(["cmake", "--build", "--preset", "release", "--target", "takt", "limits"], cwd=ROOT, timeout=3600)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


def until_open(port):
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    sys.exit(f"nothing listens on port {port}")


class Stage:
    """A private PostgreSQL, RabbitMQ, nginx and Redis; everything that is measured uses these same four."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="takt-bench-")
        os.chmod(self.folder, 0o755)
        services = os.path.join(BUILD, "bench-services")
        private = os.path.join(ROOT, "deploy", "private-services")
        subprocess.run([private, "start", services], env=dict(os.environ, **KEPT_MEMORY), check=True)
        atexit.register(subprocess.run, [private, "stop", services], check=False)
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        self.env = dict(os.environ)
        with open(os.path.join(services, "env"), encoding="utf-8") as file:
            self.env.update(re.findall(r"(\w+)='?([^' \n]*)'?", file.read().replace("export ", "")))
        run(["psql", "-qc", "DROP DATABASE IF EXISTS bench WITH (FORCE)", "-c", "CREATE DATABASE bench"], self.env)
        self.env["TAKT_DATABASE_URL"] = self.env["TAKT_DATABASE_URL"].rsplit("/", 1)[0] + "/bench"
        self.env["PGDATABASE"] = "bench"
        self.env["TAKT_SIGNING_KEYS"] = re.search(r"whsec_\S+", self.takt("keys", "generate"))[0]
        self.takt("migrate")
        self.start_nginx()
        self.env["BENCH_REDIS_PORT"] = self.start_redis("everysec")
        self.env["BENCH_REDIS_ALWAYS_PORT"] = self.start_redis("always")

    def takt(self, *arguments, timeout=600):
        return run([os.path.join(BUILD, "takt"), *arguments], self.env, cwd=self.folder, timeout=timeout)

    def bench(self, *arguments):
        """takt bench …: {(bench, measure): value}."""
        return {(row["bench"], row["measure"]): row["value"] for row in json.loads(self.takt("bench", *arguments, "--json"))}

    def configure(self, text):
        """A takt.yaml, applied; its path."""
        path = os.path.join(self.folder, "takt.yaml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        self.takt("apply", "--prune", "--config", path)
        return path

    def service(self, config, *arguments):
        return subprocess.Popen([os.path.join(BUILD, "takt"), *arguments, "--config", config, "--log-level", "warn"], env=self.env)

    def idle_service(self, config, *arguments, seconds=20):
        """(resident MiB, share of a core) of a service that has nothing to do, ten seconds after its start."""
        process = self.service(config, *arguments)
        time.sleep(10)

        def used():
            seconds = 0.0
            for thread in glob.glob(f"/proc/{process.pid}/task/*/schedstat"):  # in nanoseconds, where stat counts in hundredths
                with open(thread, encoding="utf-8") as stat:
                    seconds += int(stat.read().split()[0]) / 1e9
            with open(f"/proc/{process.pid}/status", encoding="utf-8") as status:
                resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))
            return seconds, resident / 1024

        before, _ = used()
        time.sleep(seconds)
        after, resident = used()
        process.terminate()
        process.wait(60)
        return resident, (after - before) / seconds

    def spawn(self, command):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        atexit.register(process.wait, 10)
        atexit.register(process.terminate)

    def start_nginx(self):
        port = free_port()
        configuration = os.path.join(self.folder, "nginx.conf")
        with open(configuration, "w", encoding="utf-8") as file:
            file.write(f"""worker_processes 1; daemon off; pid {self.folder}/nginx.pid; error_log {self.folder}/nginx.log;
events {{ worker_connections 1024; }}
http {{ access_log off; keepalive_requests 1000000; client_body_temp_path {self.folder}; proxy_temp_path {self.folder};
fastcgi_temp_path {self.folder}; uwsgi_temp_path {self.folder}; scgi_temp_path {self.folder};
server {{ listen 127.0.0.1:{port}; location / {{ return 204; }} }} }}
""")
        self.spawn(["/usr/sbin/nginx", "-c", configuration, "-p", self.folder])
        until_open(port)
        self.env["BENCH_URL"] = f"http://127.0.0.1:{port}/"

    def start_redis(self, synced):
        port = free_port()
        folder = os.path.join(self.folder, "redis-" + synced)
        os.mkdir(folder)
        self.spawn(["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--appendonly", "yes", "--appendfsync", synced, "--save", ""])
        until_open(port)
        return str(port)


def median(values):
    return statistics.median(values)


def figure(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def table(columns, rows):
    cells = [columns] + [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for number, row in enumerate(cells):
        say("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |")
        if number == 0:
            say("| " + " | ".join("-" * width for width in widths) + " |")
