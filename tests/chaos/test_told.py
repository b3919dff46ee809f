"""What is away is told where people and monitors look, within five seconds: by commands, readiness and metrics."""
import json
import time

from chaos import ChaosTest, eventually
from harness import until
from told import TOLD, ToldTest


class Told(ChaosTest, ToldTest):
    def whole(self, part):
        proxy = self.through_proxy(part)
        self.running()
        self.complete()
        return proxy

    def cut(self, proxy):
        proxy.refuse = True
        self.assertGreater(proxy.cut(), 0)
        return time.monotonic() + TOLD

    def test_the_broker_that_is_away(self):
        proxy = self.whole("rabbitmq")
        self.cut(proxy)
        self.told(self.dispatcher, "not_ready", *(f"NOT READY: {kind} " for kind in ("dispatcher", "worker", "archive")), "broker", times=3)
        self.assertIn("FAULT broker: ", self.takt("check", expect=1))
        proxy.mend()
        eventually(lambda: self.troubles() == {}, 20, "no trouble once it is back")
        self.assertIn("all good", self.takt("check"))

    def test_the_database_that_is_away(self):
        proxy = self.whole("postgresql")
        end = self.cut(proxy)
        for service in (self.dispatcher, self.worker, self.archive):
            parts = until(end, lambda service=service: not (answer := json.loads(self.get(service, "/readyz")))["ready"] and answer["parts"], "readiness")
            self.assertIn("PostgreSQL", " ".join(part["detail"] for part in parts.values() if not part["ok"]))
            until(end, lambda service=service: "takt_database_up 0" in self.get(service, "/metrics"), "metrics")
        for command in (["status"], ["jobs"], ["services"], ["dlq", "list"]):
            self.assertIn("database: connection to server", self.takt(*command, expect=1))
        self.assertIn("FAULT database: ", self.takt("check", expect=1))
        proxy.mend()
        eventually(lambda: json.loads(self.get(self.worker, "/readyz"))["ready"], 20, "readiness once it is back")
        eventually(lambda: self.troubles() == {}, 20, "no trouble once it is back")
