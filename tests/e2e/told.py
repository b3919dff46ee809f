"""What an operator is told of a fault, by whom, and how soon."""
import json
import time

from harness import PATIENCE, TaktTest, eventually, until

TOLD = 5  # seconds, times PATIENCE


class ToldTest(TaktTest):
    def troubles(self):
        return {one["what"]: one["text"] for one in json.loads(self.takt("status", "--json"))["troubles"]}

    def told(self, dispatcher, what, *parts, check=1, times=1, since=None):
        """By each of the four, within five seconds in all from `since` (a time.time(); else from now), with these words; takt check exits
        with `check`; the metric counts `times`."""
        end = time.monotonic() + (PATIENCE * TOLD if since is None else self.left(since))
        for name, ask in (("status", lambda: self.takt("status")), ("check", lambda: self.takt("check", expect=check)),
                          ("readiness", lambda: self.get(dispatcher, "/readyz")), ("metrics", lambda: self.get(dispatcher, "/metrics"))):
            wanted = [f'takt_troubles{{what="{what}"}} {times}'] if name == "metrics" else parts
            self.assertGreater(end, time.monotonic(), f"{parts} told by those before {name} too late")
            until(end, lambda ask=ask, wanted=wanted: (said := ask()) and all(part in said for part in wanted), f"{parts} told by {name}")

    @staticmethod
    def left(since):
        """Of the five seconds that began then."""
        return PATIENCE * TOLD - (time.time() - since)

    def first_at(self, path):
        """When the first attempt reached the destination."""
        return eventually(lambda: self.ledger.of(path), what=f"an attempt at {path}")[0]["time"]

    def complete(self):
        return eventually(lambda: self.troubles() == {}, TOLD, "a whole installation")

    def started_with(self, environment, *arguments, wait="started"):
        before, self.environment = self.environment, environment
        try:
            return self.start(*arguments, wait=wait)
        finally:
            self.environment = before
