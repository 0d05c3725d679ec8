"""What benchmarks share: percentiles, and figures that are kept for the plots."""

import json
import os
from pathlib import Path
from typing import Any

# Where the figures of a run go; `python tests/bench/plot.py` draws them.
KEEP = Path(os.environ.get("BENCH_DIR") or "var/bench")


def percentile(values: list[float], share: float) -> float:
    """Return the value that `share` of the values do not exceed."""
    return sorted(values)[min(len(values) - 1, round(share * (len(values) - 1)))]


def save(name: str, figures: Any) -> None:
    """Keep the figures of one benchmark."""
    KEEP.mkdir(parents=True, exist_ok=True)
    (KEEP / f"{name}.json").write_text(json.dumps(figures, indent=1))
