"""A flood of forged ticks, and many replays of a genuine one, beside genuine work."""
import threading
import time

import pika

from chaos import CONFIG, ChaosTest, eventually


class MessageFaults(ChaosTest):
    def test_M4_flood_of_forged_ticks_leaves_genuine_work_its_rate(self):
        self.install(CONFIG.replace("batch_size: 10", "batch_size: 100"))  # a job's default
        self.start("dispatcher")
        worker = self.start("worker")
        worker_began = time.monotonic()
        load = self.load(100)
        eventually(lambda: len(self.ledger.of("/work")) > 50)
        begin = len(self.ledger.of("/work"))
        time.sleep(6)
        without = len(self.ledger.of("/work")) - begin
        ended, sent = threading.Event(), [0]

        def flood():
            connection = pika.BlockingConnection(pika.URLParameters(self.amqp_url))
            channel = connection.channel()
            properties = pika.BasicProperties(content_type="application/json", delivery_mode=2,
                                              headers={"webhook-id": "forged", "webhook-timestamp": str(int(time.time())), "webhook-signature": "v1," + "A" * 43 + "="})
            while not ended.is_set():
                for _ in range(100):
                    channel.basic_publish("takt.ticks", "default", b'{"id":"forged","job":"work"}', properties)
                    sent[0] += 1
                connection.process_data_events()
                if self.queue_too_long(channel):
                    ended.wait(0.05)
            connection.close()

        thread = threading.Thread(target=flood, daemon=True)
        thread.start()
        time.sleep(1)
        begin = len(self.ledger.of("/work"))
        time.sleep(6)
        beside = len(self.ledger.of("/work")) - begin
        ended.set()
        thread.join(20)
        self.assertGreaterEqual(beside, 0.8 * without, f"deliveries in 6 s without and beside {sent[0]} forged ticks: {without}, {beside}")
        self.assertGreater(sent[0], 1000)
        self.assertLessEqual(self.queue_depth(self.channel(), "takt.quarantine"), 10_000, "the quarantine is bounded")
        self.assertIsNone(worker.poll())
        lines = self.log_of(worker).count("tick quarantined reason=bad_signature")
        self.assertLessEqual(lines, time.monotonic() - worker_began + 1, "finding 34: more than a line a second")
        print(f"{without} deliveries in 6 s without, {beside} beside {sent[0]} forged ticks")
        self.check_accepted(load.stop())

    @staticmethod
    def queue_too_long(channel):
        return channel.queue_declare("takt.ticks.default", passive=True).method.message_count > 500

    def test_M2_thousand_replays_of_a_genuine_tick(self):
        self.install(CONFIG)
        worker = self.start("worker")
        channel = self.channel()
        tick = {"id": f"external-{self.name}", "job": "work", "items": [{"payload": {"n": 1}}]}
        for _ in range(1000):
            self.publish(channel, tick)
        eventually(lambda: self.queue_depth(channel, "takt.ticks.default") == 0, 60)
        eventually(lambda: self.log_of(worker).count("tick duplicate") == 999, 30, "999 duplicates")
        self.assertEqual(self.one("SELECT count(*) FROM takt.runs WHERE tick_id = %s", tick["id"]), 1)
        self.assertEqual(len(self.ledger.of("/work")), 1)
