"""RabbitMQ restarted, killed, away, silent, alarmed, impatient: items are accepted all the while and end done."""
import time

from chaos import CONFIG, EVERY_SECOND, ChaosTest, eventually
from parts import RabbitMQ, listens, until


class BrokerFaults(ChaosTest):
    def tearDown(self):
        if not listens(self.rabbitmq.port):
            self.rabbitmq.start()
        super().tearDown()

    def restart(self, end):
        self.running(CONFIG + EVERY_SECOND)
        load = self.load(100)
        eventually(lambda: len(self.ledger.of("/work")) > 50)
        time.sleep(RabbitMQ.SETTLES)
        begin = self.now() + 1
        end()
        time.sleep(2)
        self.rabbitmq.start()
        back = time.monotonic()
        count = len(self.ledger.of("/work"))
        eventually(lambda: len(self.ledger.of("/work")) > count + 20, 45, "work after the restart")
        recovery = time.monotonic() - back
        accepted = load.stop()
        self.check_slots(begin, self.now())
        self.takt("jobs", "pause", "every")
        self.check_accepted(accepted)
        self.assertEqual([p.poll() for p in self.processes], [None] * 3, "no service ended")
        print(f"recovered {recovery:.1f} s after the broker listened")

    def test_R1_broker_restarted_under_load(self):
        self.restart(self.rabbitmq.stop)

    def test_R1b_broker_killed_under_load(self):
        self.restart(self.rabbitmq.kill)

    def test_R2_broker_away_items_are_accepted_and_nobody_spins(self):
        proxy = self.through_proxy("rabbitmq")
        self.running()
        load = self.load(50)
        eventually(lambda: len(self.ledger.of("/work")) > 20)
        proxy.refuse = True
        self.assertGreater(proxy.cut(), 0)
        time.sleep(1)
        before, accepted = [self.cpu_seconds(p) for p in (self.worker, self.archive)], len(load.accepted)
        time.sleep(8)
        used = [self.cpu_seconds(p) - b for p, b in zip((self.worker, self.archive), before)]
        self.assertGreater(len(load.accepted) - accepted, 200, "items are accepted without the broker")
        self.assertLess(max(used) / 8, 0.05, f"CPU seconds of worker and archive in 8 s: {used}")
        proxy.refuse = False
        self.check_accepted(load.stop())

    def test_R3_half_open_connection_is_noticed_within_two_heartbeats(self):
        proxy = self.through_proxy("rabbitmq")
        self.running()
        load = self.load(50)
        eventually(lambda: len(self.ledger.of("/work")) > 20)
        proxy.silent = True
        began = time.monotonic()
        eventually(lambda: "broker lost" in self.log_of(self.worker), 10, "the worker's notice")
        self.assertLess(time.monotonic() - began, 2 * 2 + 2.5, "two heartbeats of 2 s, and the check between them")
        proxy.silent = False
        proxy.cut()
        self.check_accepted(load.stop())

    def test_R3b_confirm_that_never_comes(self):
        """As a quorum queue may do that has just changed its leader: the connection lives, one message is nowhere."""
        proxy = self.through_proxy("rabbitmq")
        self.running(CONFIG.replace("heartbeat: 2s", "heartbeat: 60s"))
        self.enqueue("work")
        self.drained()
        time.sleep(1)  # the dispatcher has asked how long the queues are; the next time is in 10 s
        proxy.silent = True
        self.enqueue("work")
        eventually(lambda: "no confirm within 2s" in self.log_of(self.dispatcher), 5, "the dispatcher's notice")
        proxy.mend()
        eventually(lambda: len(self.ledger.of("/work")) == 2, 5, "the item's delivery")
        self.drained()
        self.check_invariants()

    def test_R4_memory_alarm_blocks_publishers_and_health_says_why(self):
        self.running()
        load = self.load(50)
        eventually(lambda: len(self.ledger.of("/work")) > 20)
        try:
            self.rabbitmq.ctl("set_vm_memory_high_watermark", "0.00001")
            eventually(lambda: self.metric(self.dispatcher, 'takt_broker_blocked{connection="publisher"}') == 1, 20, "the metric of the alarm")
        finally:
            self.rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")
        eventually(lambda: self.metric(self.dispatcher, 'takt_broker_blocked{connection="publisher"}') == 0, 20, "the end of the alarm")
        self.check_accepted(load.stop())

    def test_R5_consumer_timeout_shorter_than_a_handler(self):
        self.running(CONFIG.replace("timeout: 5s", "timeout: 60s"))
        self.rabbitmq.ctl("eval", "application:set_env(rabbit, consumer_timeout, 3000).")
        self.rabbitmq.ctl("eval", "application:set_env(rabbit, channel_tick_interval, 1000).")
        try:
            self.worker.kill()
            worker = self.start("worker")
            self.ledger.behave["/work"] = lambda nth: (time.sleep(12) or 200, {}, b"")
            item = self.enqueue("work")
            eventually(lambda: "broker lost" in self.log_of(worker), 30, "the broker's impatience")
            eventually(lambda: self.state(item) == "done", 40, "the item's end")
        finally:
            self.rabbitmq.ctl("eval", "application:set_env(rabbit, consumer_timeout, 1800000).")
            self.rabbitmq.ctl("eval", "application:set_env(rabbit, channel_tick_interval, 60000).")
        self.assertEqual(len(self.ledger.of("/work")), 1, "the long handler kept its lease and did not run twice")
        self.ledger.behave.pop("/work")
        self.check_accepted([item])

    def test_R8_queue_deleted_while_running(self):
        self.running()
        load = self.load(50)
        eventually(lambda: len(self.ledger.of("/work")) > 20)
        self.channel().queue_delete("takt.ticks.default")
        count = len(self.ledger.of("/work"))
        eventually(lambda: len(self.ledger.of("/work")) > count + 50, 40, "work through the restored queue")
        self.check_accepted(load.stop())

    def test_R9_dead_letter_queue_missing_or_full(self):
        self.running()
        channel = self.channel()
        self.archive.kill()
        self.rabbitmq.ctl("set_policy", "-p", self.vhost, "full", "^takt.dead$", '{"max-length":2,"overflow":"reject-publish"}', "--apply-to", "queues")
        try:
            # A quorum queue tells its publishers that it is full once it is: the first letters are more than it should hold.
            for _ in range(5):
                self.enqueue("hopeless")
            eventually(lambda: self.queue_depth(channel, "takt.dead") == 5, what="a queue that is full")
            for _ in range(12):
                self.enqueue("hopeless")
            eventually(lambda: self.one("SELECT count(*) FROM takt.ended_items WHERE state = 3") == 17, what="the dead items")
            eventually(lambda: self.metric(self.dispatcher, 'takt_publish_failed_total{outcome="refused"}'), 20, "a refused letter in the metrics")
            self.assertGreater(self.one("SELECT count(*) FROM takt.dead_letter_outbox"), 0, "the outbox keeps what was refused")
            eventually(lambda: "a message was refused" in self.log_of(self.dispatcher), 10, "the end of the connection that was refused on")
        finally:
            self.rabbitmq.ctl("clear_policy", "-p", self.vhost, "full")
        channel.queue_delete("takt.dead")
        self.start("dlq", "archive")
        until(lambda: self.one("SELECT count(*) FROM takt.dead_letter_outbox") == 0, 40, "the emptying of the outbox")
        # Those that the deleted queue held are gone with it: an operator deleted confirmed messages. All others are there.
        eventually(lambda: self.one("SELECT count(*) FROM takt.dead_letters") >= 12, what="what the outbox kept")
