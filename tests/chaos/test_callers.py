"""Callers, operators and handlers that do what they can against an installation on a sound machine; random_run.py says what must hold."""
import os
import time

import random_run


class Callers(random_run.RandomRun):
    seconds = float(os.environ.get("TAKT_CHAOS_SECONDS", "20"))

    def test_C_callers_delay_nobody_and_what_is_accepted_is_handled_as_it_was_enqueued(self):
        print(f"seed {random_run.SEED}, {self.seconds:.0f} s of callers alone")
        self.begin()
        self.sound_from = time.monotonic()
        self.watch(2)
        begin = time.time()
        self.watch(self.seconds)
        self.windows.append((begin, time.time()))
        self.end()
