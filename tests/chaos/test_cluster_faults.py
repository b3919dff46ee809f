"""Three RabbitMQ nodes; the one that leads the queues dies under load."""
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
