"""Write `docs/metrics.md` from the code: what each service counts, and with which labels."""

import importlib
import re
from pathlib import Path
from typing import Any

from prometheus_client.metrics import MetricWrapperBase

from koa_shared.metrics import Metrics

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "metrics.md"
SERVICES = ("monitor", "preparer", "ingestor")
# Each label has its values from a closed set; none holds a frame's name or a person's text.
LABELS = {
    "code": "codes of findings, as the code and the instrument files name them",
    "decision": "`accepted`, `duplicate`, `ignored`",
    "dependency": "`database`, `s3`, the peers, `schedule`, `proposal`, `weather1`, `weather2`, "
    "`disk:` and the mount of an announced path",
    "hop": "the hops of `koa_ingestor.metrics.HOPS`",
    "instrument": "names of the instrument files",
    "kind": "`database`, `job`, `s3`",
    "level": "`0`, `1`, `2`",
    "name": "names in the tokens file",
    "operation": "names of functions (database), of queues (job), or what is asked of s3",
    "origin": "`live`, `recovered`, `manual`, `reprocess`, `canary`",
    "outcome": "how an attempt ends: `done`, `not_yet`, `dependency`, `failed`, `parked`, "
    "`stopped`, `lease_lost`, `unsettled`",
    "policy": "`staging`, `quarantine`, `versions`",
    "queue": "names of the lanes",
    "root": "data roots of the instrument files",
    "service": "`monitor`, `preparer`, `ingestor`",
    "source": "names of sources in the instrument files",
    "state": "of campaigns and their frames, as `koa campaign show` tells it",
    "status": "the nine statuses",
    "step": "of attempts the queue; of frames on their way the step, as `koa status` shows it",
    "type": "`science`, `calibration`",
    "version": "the version that runs",
}
HEAD = """# Metrics

Each service answers `GET /metrics` in Prometheus' text format, without a token.
Who asks for OpenMetrics gets a frame's trace as exemplar of the latency, too.
This page is written by `make format` from the code; a test compares.
A histogram has the series `_bucket`, `_sum` and `_count`; a counter begins at 0 with its process.
Alerts are in [helm/alerts](../helm/alerts), one runbook for each in [runbooks](runbooks).

"""
UNITS = {
    "timestamp_seconds": "seconds since 1970", "seconds": "seconds", "bytes": "bytes",
    "bytes_total": "bytes", "total": "count", "info": "1", "open": "0 or 1",
    "pending": "0 or 1", "scheduled": "0 or 1", "connected": "0 or 1",
}  # fmt: skip


def registered(service: str) -> dict[str, MetricWrapperBase]:
    """Return a service's metrics by the name that Prometheus shows."""
    room = vars(importlib.import_module(f"koa_{service}.metrics"))
    classes: list[Any] = [v for v in room.values() if isinstance(v, type)]
    (own,) = (c for c in classes if issubclass(c, Metrics) and c is not Metrics)
    found = own().registry._collector_to_names
    return {
        m._name + "_total" * (m._type == "counter"): m
        for m in found
        if isinstance(m, MetricWrapperBase)
    }


def catalogue() -> dict[str, tuple[MetricWrapperBase, list[str]]]:
    """Return every metric, and which services have it."""
    all_: dict[str, tuple[MetricWrapperBase, list[str]]] = {}
    for service in SERVICES:
        for name, metric in registered(service).items():
            all_.setdefault(name, (metric, []))[1].append(service)
    return dict(sorted(all_.items()))


def unit(name: str) -> str:
    """Return what a metric's number counts, by its name."""
    ends = [end for end in UNITS if name.endswith(f"_{end}")]
    return UNITS[max(ends, key=len)] if ends else "count"


def page() -> str:
    """Return the page."""
    lines = ["| name | type | unit | labels | services | meaning |", "|---|---|---|---|---|---|"]
    for name, (metric, services) in catalogue().items():
        labels = ", ".join(f"`{label}`" for label in metric._labelnames) or "-"
        where = "all" if len(services) == len(SERVICES) else ", ".join(services)
        kind, text = metric._type, re.sub(r"\|", "/", metric._documentation)
        lines.append(f"| `{name}` | {kind} | {unit(name)} | {labels} | {where} | {text} |")
    lines += ["", "## Labels", "", "| label | values |", "|---|---|"]
    lines += [f"| `{label}` | {values} |" for label, values in LABELS.items()]
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
