"""Runs in the observatory's pod: judges what became of its frames; prints JSON.

Beside the checker of `make chaos` it needs the observatory's ledger and these variables:
MONITOR, PREPARER, INGESTOR (URLs of the databases), S3, ACCESS_KEY, SECRET_KEY.
"""

import json
import os
import sys
from pathlib import Path

import checker  # type: ignore[import-not-found]  # lies beside it, in the pod
from minio import Minio

from koa_shared.simulator.ledger import read_ledger

LEDGER = Path("/tmp/ledger.jsonl")  # as the checker reads it
SETTLED = ("ended", "frames_end", "nothing_waits", "untold")


def main() -> None:
    """Print how many frames there are, whether all has ended, and every broken promise."""
    entries = read_ledger(Path("/var/sim/ledger.jsonl"))
    with LEDGER.open("w") as out:
        for entry in entries:
            line = entry.model_dump(mode="json", include={
                "path", "sha256", "size", "closed_at", "broadcast_at",
            })  # fmt: skip
            out.write(json.dumps(line) + "\n")
    names = ("monitor", "preparer", "ingestor")
    history = checker.History.read(LEDGER, {name: os.environ[name.upper()] for name in names})
    # A canary is no observatory's; `helm test` has judged it.
    canaries = {name for name, row in history.frames.items() if row["origin"] == "canary"}
    canaries |= {history.frames[name]["path"] for name in canaries}
    if "settled" in sys.argv:
        found = [b for rule in SETTLED for b in getattr(checker, rule)(history)]
    else:
        keys = os.environ["ACCESS_KEY"], os.environ["SECRET_KEY"]
        client = Minio(os.environ["S3"], *keys, cert_check=False, region="us-east-1")
        found = checker.check(history, checker.MinioBucket(client))
    latest = [row["timeline"] for row in history.frames.values() if row["origin"] == "live"]
    print(json.dumps({
        "taken": len(entries), "frames": len(history.frames) - len(canaries) // 2,
        "archived": len(history.versions), "live": len(latest),
        "breaches": [list(b) for b in found if b.frame not in canaries],
    }))  # fmt: skip


main()
