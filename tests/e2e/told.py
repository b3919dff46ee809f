"""What an operator is told of a fault, by whom, and how soon."""
import json
import time

from harness import TaktTest, eventually

TOLD = 5  # seconds


class ToldTest(TaktTest):
    def troubles(self):
        return {one["what"]: one["text"] for one in json.loads(self.takt("status", "--json"))["troubles"]}

    def told(self, dispatcher, what, *parts, check=1, times=1):
        """By each of the four, within five seconds in all, with these words; takt check exits with `check`; the metric counts `times`."""
        end = time.monotonic() + TOLD
        for name, ask in (("status", lambda: self.takt("status")), ("check", lambda: self.takt("check", expect=check)),
                          ("readiness", lambda: self.get(dispatcher, "/readyz")), ("metrics", lambda: self.get(dispatcher, "/metrics"))):
            wanted = [f'takt_troubles{{what="{what}"}} {times}'] if name == "metrics" else parts
            eventually(lambda ask=ask, wanted=wanted: all(part in ask() for part in wanted), end - time.monotonic(), f"{parts} told by {name}")

    def complete(self):
        return eventually(lambda: self.troubles() == {}, TOLD, "a whole installation")

    def started_with(self, environment, *arguments, wait="started"):
        before, self.environment = self.environment, environment
        try:
            return self.start(*arguments, wait=wait)
        finally:
            self.environment = before
