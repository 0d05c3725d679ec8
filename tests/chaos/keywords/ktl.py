"""A `ktl` module whose keyword server is a file: every monitor hears the same broadcasts.

KOA_CHAOS_KEYWORDS names the file; its lines are {"t", "service", "keyword", "value"}.  Who
starts later finds the last values; while FILE.dead is there, nobody answers.
"""

import json
import os
import threading
import time
from datetime import datetime
from pathlib import Path

from koa_shared.testing.keywords import FakeKtl, KeywordServer

FILE = Path(os.environ["KOA_CHAOS_KEYWORDS"])
DEAD = FILE.with_suffix(".dead")
POLL = 0.01  # s
BEATS = ("DISP1CLK", "ITERATION")
_server = KeywordServer()
cache = FakeKtl(_server).cache


def _take(line: bytes, *, tell: bool) -> None:
    told = json.loads(line)
    stamp = datetime.fromisoformat(told["t"])
    if tell:
        _server.put(told["service"], told["keyword"], told["value"], stamp)
    else:
        _server.values[told["service"], told["keyword"]] = (told["value"], stamp.timestamp())


def _follow() -> None:
    beat = 0.0
    with FILE.open("rb") as file:
        first, rest = True, b""
        while True:
            _server.offline = DEAD.exists()
            *lines, rest = (rest + file.read()).split(b"\n")
            for line in lines:
                _take(line, tell=not (first or _server.offline))
            if first:
                _started.set()
            first = False
            if time.monotonic() > beat + 0.5 and not _server.offline:
                beat = time.monotonic()
                for service in {service for service, _ in list(_server.values)}:
                    for keyword in BEATS:
                        _server.put(service, keyword, str(beat))
            time.sleep(POLL)


_started = threading.Event()
threading.Thread(target=_follow, daemon=True).start()
_started.wait(10)
