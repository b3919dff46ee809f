"""Three RabbitMQ nodes; the one that leads the queues dies under load."""
import os
import signal
import time

from chaos import CONFIG, ChaosTest, eventually
from cluster import Cluster
from proxy import Proxy


class ClusterFaults(ChaosTest):
    def delete_queues(self):
        pass  # the cluster goes as a whole

    def test_R6_quorum_leader_lost(self):
        cluster = Cluster()
        self.addCleanup(cluster.close)
        # What a load balancer before the nodes does: connections go to one that lives.
        balancer = Proxy(("127.0.0.1", cluster.nodes[0].port))
        self.proxies.append(balancer)
        self.environment["TAKT_AMQP_URL"] = f"amqp://takt:{cluster.password}@127.0.0.1:{balancer.port}/%2f"
        self.install(CONFIG)
        for service in (("dispatcher",), ("worker",), ("dlq", "archive")):
            self.start(*service)
        load = self.load(50)
        eventually(lambda: len(self.ledger.of("/work")) > 50, what="work through the cluster")
        leader = cluster.node_leading("takt.ticks.default", cluster.nodes[0])
        living = next(node for node in cluster.nodes if node is not leader)
        died = time.monotonic()
        leader.kill()
        balancer.target = ("127.0.0.1", living.port)
        if leader is cluster.nodes[0]:
            balancer.cut()
        count = len(self.ledger.of("/work"))
        eventually(lambda: len(self.ledger.of("/work")) > count + 30, 30, "work without the leader")
        recovery = time.monotonic() - died
        self.assertIsNot(cluster.node_leading("takt.ticks.default", living), leader)
        leader.start()
        time.sleep(1)
        self.check_accepted(load.stop())
        print(f"work again {recovery:.1f} s after the leader of the queue was killed")

    def cluster_and_worker(self):
        """A cluster, a dispatcher connected to its first node, and a worker by way of the proxy, connected to the second, where its
        queue of wake ticks lies therefore."""
        cluster = Cluster()
        self.addCleanup(cluster.close)
        self.staying, self.falling, self.third = cluster.nodes
        balancer, workers = Proxy(("127.0.0.1", self.staying.port)), Proxy(("127.0.0.1", self.falling.port))
        self.proxies += [balancer, workers]

        def through(proxy):
            self.environment["TAKT_AMQP_URL"] = f"amqp://takt:{cluster.password}@127.0.0.1:{proxy.port}/%2f"

        through(balancer)
        self.install(CONFIG)
        dispatcher = self.start("dispatcher")
        through(workers)
        worker = self.start("worker")
        eventually(lambda: self.wake_consumers() == 1, what="a consumer of wake ticks")
        self.assertIs(cluster.node_leading("takt.ticks.default", self.staying), self.staying)
        for _ in range(20):
            self.done_at_once()
        return dispatcher, worker, workers

    def wake_consumers(self):
        rows = [line.split("\t") for line in self.staying.ctl("list_consumers", "--no-table-headers", "queue_name").splitlines()]
        return sum(1 for row in rows if row[0] == "takt.wakes.default")

    def done_at_once(self):
        """An item that is alone, and so waits for its own wake-up; in seconds."""
        began, item = time.monotonic(), self.enqueue("work")
        eventually(lambda: self.state(item) == "done", what=f"item {item}")
        return time.monotonic() - began

    def test_R6b_the_node_that_holds_the_queue_of_wake_ticks_is_away(self):
        """Its queue is lost with it, and the broker goes on: so must wake-ups, the way of ticks."""
        dispatcher, worker, workers = self.cluster_and_worker()
        self.falling.kill()
        workers.target = ("127.0.0.1", self.third.port)
        workers.cut()
        eventually(lambda: "wake queue left out" in self.log_of(worker), what="a worker that knows of it")
        times = sorted(self.done_at_once() for _ in range(60))
        self.assertIn("messages detoured", self.log_of(dispatcher))
        self.assertNotIn("broker lost", self.log_of(dispatcher))
        self.assertLess(times[30], 0.5, "a wake tick that is lost is made again after ten seconds, and a scan after 0.2 s finds its item")
        print(f"while it was away: median {1000 * times[30]:.0f} ms, longest {1000 * times[-1]:.0f} ms")
        self.falling.start()
        eventually(lambda: self.wake_consumers() == 1, 30, "a consumer of wake ticks again")
        self.done_at_once()

    def test_R6c_the_node_that_holds_the_queue_of_wake_ticks_hangs_and_then_dies(self):
        """Nobody is connected to it: what it takes and does not answer goes the way of ticks, and no connection is given up."""
        dispatcher, worker, workers = self.cluster_and_worker()
        workers.target = ("127.0.0.1", self.staying.port)
        workers.cut()
        eventually(lambda: "broker lost" in self.log_of(worker) and self.wake_consumers() == 1, what="the worker on another node")
        self.done_at_once()
        lost = self.log_of(worker).count("broker lost")
        pid = self.falling.pid()
        os.kill(pid, signal.SIGSTOP)
        try:
            times = sorted(self.done_at_once() for _ in range(60))
        finally:
            os.kill(pid, signal.SIGCONT)
        self.assertIn('why="no answer"', self.log_of(dispatcher))
        self.assertLess(times[30], 0.5)
        self.assertLess(times[-1], 3)
        print(f"while it hung: median {1000 * times[30]:.0f} ms, longest {1000 * times[-1]:.0f} ms")
        self.falling.kill()
        eventually(lambda: self.wake_consumers() == 0, what="a queue of wake ticks that is away")
        times = sorted(self.done_at_once() for _ in range(30))
        self.assertLess(times[15], 0.5)
        self.assertNotIn("broker lost", self.log_of(dispatcher))
        self.assertEqual(self.log_of(worker).count("broker lost"), lost)
