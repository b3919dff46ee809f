"""Celery on RabbitMQ, prefork with two processes, acknowledged late, no results kept; for HTTP fifty threads.

    celery_peer.py [http]
"""
import base64, hashlib, hmac, http.client, json, mmap, os, signal, struct, subprocess, sys, tempfile, threading, time, urllib.parse

from billiard import current_process
from celery import Celery
from celery.signals import worker_process_init

COUNT = int(os.environ.get("BENCH_COUNT", "100000")) // 5
COUNTER = os.environ.setdefault("CELERY_PEER_COUNTER", tempfile.mkstemp(prefix="celery-peer-")[1])
PROCESSES, SLOT = 2, 8

app = Celery("celery_peer", broker=os.environ["TAKT_AMQP_URL"])
app.conf.update(task_acks_late=True, task_ignore_result=True, task_default_queue="celery-peer", worker_prefetch_multiplier=100,
                worker_send_task_events=False, worker_enable_remote_control=False, broker_connection_retry=False, worker_hijack_root_logger=True)
counted = None


@worker_process_init.connect
def open_counter(**_):
    """Each process counts in its own slot, so that counting costs no lock."""
    global counted
    with open(COUNTER, "r+b") as file:
        counted = mmap.mmap(file.fileno(), 0)


def count(slot):
    struct.pack_into("q", counted, slot, struct.unpack_from("q", counted, slot)[0] + 1)


@app.task(name="work")
def work(_n, _pad):
    count(current_process().index * SLOT)


own, lock = threading.local(), threading.Lock()


@app.task(name="post")
def post(n, pad):
    """Signs and posts as a job would, on its thread's connection."""
    if not hasattr(own, "connection"):
        own.connection = http.client.HTTPConnection(urllib.parse.urlsplit(os.environ["BENCH_URL"]).netloc)
    body, stamp = json.dumps({"n": n, "pad": pad}).encode(), str(int(time.time()))
    signature = base64.b64encode(hmac.new(b"k" * 32, f"msg_{n}.{stamp}.".encode() + body, hashlib.sha256).digest()).decode()
    own.connection.request("POST", "/", body, {"content-type": "application/json", "webhook-id": f"msg_{n}", "webhook-timestamp": stamp,
                                               "webhook-signature": "v1," + signature})
    own.connection.getresponse().read()
    with lock:
        if counted is None:
            open_counter()
        count(0)


def main():
    over_http = sys.argv[1:] == ["http"]
    task, pool = (post, ["threads", "-c", "50"]) if over_http else (work, ["prefork", "-c", str(PROCESSES)])
    with open(COUNTER, "r+b") as file:
        file.write(bytes(PROCESSES * SLOT))
    with app.connection_for_write() as connection:
        connection.default_channel.queue_declare("celery-peer", durable=True, auto_delete=False)
        connection.default_channel.queue_purge("celery-peer")
    with app.producer_pool.acquire() as producer:
        for n in range(COUNT):
            task.apply_async((n, "p" * 170), producer=producer)
    with open(COUNTER, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as slots:
        total = lambda: sum(struct.unpack_from("q", slots, i * SLOT)[0] for i in range(PROCESSES))
        worker = subprocess.Popen([sys.executable, "-m", "celery", "-A", "celery_peer", "worker", "-P", *pool, "-l", "ERROR",
                                   "--without-gossip", "--without-mingle", "--without-heartbeat"], cwd=os.path.dirname(os.path.abspath(__file__)), stdout=subprocess.DEVNULL, start_new_session=True)
        while total() == 0:  # its start is not counted
            if worker.poll() is not None:
                sys.exit("celery: the worker ended")
            time.sleep(0.002)
        first, began = total(), time.monotonic()
        while total() < COUNT:
            time.sleep(0.002)
        print(f"RESULT {(COUNT - first) / (time.monotonic() - began):.3f}")
    worker.terminate()
    try:
        worker.wait(10)
    except subprocess.TimeoutExpired:  # its warm shutdown hangs now and then; all tasks are done
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait(10)
    os.unlink(COUNTER)


if __name__ == "__main__":
    main()
