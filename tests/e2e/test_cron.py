"""The cron dialect against two readings of it that are not ours: a brute-force oracle over every daylight-saving change,
and the croniter library over fields and dates."""
import json
import os
import random
import subprocess
import unittest
from datetime import datetime, timedelta, timezone

from croniter import croniter

from cron_oracle import Oracle, utc
from harness import BINARY

# A few days around both changes of 2026, in zones that change at different hours, by different amounts, or not at all.
ZONES = {
    "Europe/Madrid": [utc(2026, 3, 27), utc(2026, 10, 23)],
    "America/New_York": [utc(2026, 3, 6), utc(2026, 10, 30)],
    "Australia/Lord_Howe": [utc(2026, 4, 3), utc(2026, 10, 2)],
    "America/Santiago": [utc(2026, 4, 3), utc(2026, 9, 4)],
    "Africa/Casablanca": [utc(2026, 2, 13), utc(2026, 3, 20)],
    "Asia/Beirut": [utc(2026, 3, 27), utc(2026, 10, 23)],
    "America/Mexico_City": [utc(2026, 4, 3), utc(2026, 10, 23)],
    "UTC": [utc(2026, 2, 26), utc(2026, 12, 30)],
}
EXPRESSIONS = [
    "* * * * *", "*/5 * * * *", "*/30 * * * *", "7 * * * *", "0 */2 * * *", "15 */3 * * *", "*/20 2 * * *", "* 2 * * *", "30 2 * * *", "0 2 * * *", "0 3 * * *",
    "15,45 1 * * *", "30 1 * * *", "0,30 1-3 * * *", "59 1 * * *", "0 0 * * *", "30 0 * * *", "59 23 * * *", "0 0-6 * * *", "0 9 * * MON-FRI", "30 2 * * SUN", "0 2 L * *",
    "10 2 * * 0L", "5 2 * * SUN#1", "5 2 * * SUN#4", "0 1 1W * *", "0 2 31W * *", "0 3 LW * *", "0 2 L-2 * *", "0 12 1,15 * 5", "0 12 */2 * 5", "0 12 1-7 * *", "30 2 29 3 *",
    "30 2 25 10 *", "0 4 * jan-jun,OCT *", "20-40/10 2 * * *", "5/25 2-4/2 * * *", "0 0 ? * 6",
]
SPAN = timedelta(days=4)
# One in so many is compared: all of them, but under sanitizers, where a process takes a quarter of a second to start.
EVERY = int(os.environ.get("TAKT_CRON_EVERY", "1"))


def takt(expression, zone, begin, count):
    done = subprocess.run([BINARY, "cron", "next", expression, "--zone", zone, "--from", begin.strftime("%Y-%m-%dT%H:%M:%SZ"), "--count", str(count), "--json"],
                          capture_output=True, text=True, timeout=60, check=True)
    return [datetime.fromisoformat(row["at"].replace("Z", "+00:00")) for row in json.loads(done.stdout)]


class CronAgainstOthers(unittest.TestCase):
    def test_daylight_saving_against_a_brute_force_oracle(self):
        compared = slots = 0
        oracles = {expression: Oracle(expression) for expression in EXPRESSIONS}
        for expression, zone, begin in [(e, z, b) for e in EXPRESSIONS for z, begins in ZONES.items() for b in begins][::EVERY]:
            expected = oracles[expression].fires(zone, begin, begin + SPAN)
            got = [time for time in takt(expression, zone, begin, len(expected) + 1) if time <= begin + SPAN]
            self.assertEqual(got, expected, f"{expression} in {zone} from {begin}")
            compared += 1
            slots += len(expected)
        print(f"{compared} combinations, {slots} slots")
        self.assertGreater(compared, 500 // EVERY)

    def test_fields_and_dates_against_croniter(self):
        rng = random.Random(20261121)

        def field(low, high):
            kind = rng.randrange(5)
            first = rng.randint(low, high)
            if kind == 0:
                return "*"
            if kind == 1:
                return f"*/{rng.randint(2, max(2, high // 3))}"
            if kind == 2:
                return f"{first}-{rng.randint(first, high)}"
            if kind == 3:
                return ",".join(str(n) for n in sorted({rng.randint(low, high) for _ in range(3)}))
            return str(first)

        for _ in range(300 // EVERY):
            # croniter joins day and weekday by "or" even when one begins with a star and a step; so at most one is restricted.
            days = (field(1, 28), "*") if rng.random() < 0.5 else ("*", field(0, 6))
            expression = f"{field(0, 59)} {field(0, 23)} {days[0]} {field(1, 12)} {days[1]}"
            begin = utc(2024, 1, 1) + timedelta(minutes=rng.randrange(3 * 525600))
            reference = croniter(expression, begin)
            expected = [reference.get_next(datetime).astimezone(timezone.utc) for _ in range(20)]
            self.assertEqual(takt(expression, "UTC", begin, 20), expected, expression)
