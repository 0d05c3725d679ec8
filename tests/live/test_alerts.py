"""A real Prometheus scrapes the real services: faults raise their alerts, panels have data.

In the rules every duration is a sixtieth (`hastened`, which has tests of its own); thresholds
are as they are.  One installation: a short night, then three faults at once.
"""

import ast
import os
import re
import runpy
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from koa_shared.contracts import Origin, Status
from koa_shared.ids import frame_id
from koa_shared.instruments import load_instruments
from koa_shared.simulator.ledger import Entry
from koa_shared.simulator.observe import watching
from koa_shared.simulator.stack import SERVICES

from ..collector import Collector
from .conftest import Site, running

ROOT = Path(__file__).parents[2]
BOARDS = runpy.run_path(str(ROOT / "helm" / "dashboards" / "build.py"))
VARIABLES = {
    "$__rate_interval": "1m", "$__range": "2m", "$instrument": ".*", "$service": ".*",
}  # fmt: skip
SMALL = 300_000
SCHEDULED = ("KCWI",)  # all day and night, and the guiders with it
SCHEDULE = "".join(
    f'[[night]]\ninstrument = "{name}"\nslots = [{{ project = "C272", start = 00:00:00 }}]\n'
    "sunset = 00:00:00\nsunrise = 23:59:59\n"
    for name in SCHEDULED
)

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        not (shutil.which("prometheus-alertmanager") or os.environ.get("CI")),
        reason="prometheus and prometheus-alertmanager are not here",
    ),
]


class Watch:
    """Questions to Prometheus and Alertmanager."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Return what a query finds now; fail if it is wrong."""
        answer = self.site.get("prometheus", "/api/v1/query", query=query)
        assert answer.status_code == 200, f"{query}: {answer.text}"
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    def firing(self) -> set[tuple[str, ...]]:
        """Return (alert, and what it is about) of those that reached Alertmanager."""
        told = self.site.get("alertmanager", "/api/v2/alerts").json()
        about = ("alertname", "service", "dependency", "instrument", "source")
        return {tuple(a["labels"][k] for k in about if k in a["labels"]) for a in told}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def site(var: Path, collector: Collector) -> Iterator[Site]:
    var.mkdir(parents=True)
    (var / "schedule.toml").write_text(SCHEDULE)
    env = {
        "KOA_SCHEDULE": str(var / "schedule.toml"), "KOA_RESCAN_SECONDS": "5",
        "KOA_OTLP_ENDPOINT": collector.url,
    }  # fmt: skip
    with running(var, env=env) as site, watching(site.stack, by=60):
        yield site


def canary(site: Site, number: int) -> None:
    """Send a frame as the canary does: announced to the preparer, by no instrument."""
    [entry] = site.shoot("NIRES", size=SMALL, silent=True)
    stat = site.local(entry.path).stat()
    who = frame_id(entry.path, stat.st_size, stat.st_mtime_ns)
    file = {
        "frame_id": who, "instrument": "NIRES", "origin": "canary", "path": entry.path,
        "source": "canary", "size": stat.st_size, "mtime_ns": stat.st_mtime_ns,
        "detected": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip
    answer = site.post("preparer", "/v1/files", file)
    assert answer.status_code == 202, answer.text
    assert site.end_of(who)["status"] == "COMPLETE"


def night(site: Site) -> None:
    """Take exposures, twice with a scrape between, as a rate needs two points."""
    for number in range(2):
        entries: list[Entry] = []
        for instrument in ("KCWI", "ESI", "GUIDER", "NIRC2"):
            entries += site.shoot(instrument, size=SMALL)
        entries += site.shoot("ESI", size=SMALL, fault="text")
        site.ended([entry.path for entry in entries], 30)
        canary(site, number)
        time.sleep(2.5)


def park(site: Site) -> None:
    """Have a frame parked: its staging is emptied before the ingestor begins with it."""
    ingestor = site.stack.processes["ingestor"]
    ingestor.send_signal(signal.SIGSTOP)
    [entry] = site.shoot("ESI", size=SMALL)
    stat = site.local(entry.path).stat()
    who = frame_id(entry.path, stat.st_size, stat.st_mtime_ns)

    def staged() -> list[str]:
        found = site.s3.list_objects("koa-staging", f"{who}/", recursive=True)
        return [str(item.object_name) for item in found]

    site.wait(
        lambda: any(name.endswith("manifest.json") for name in staged()), 20, "the frame in staging"
    )
    for name in staged():
        site.s3.remove_object("koa-staging", name)
    ingestor.send_signal(signal.SIGCONT)
    assert site.end_of(who, 40)["status"] == "ERROR"


def test_a_good_night_is_silent_and_three_faults_are_told(site: Site) -> None:
    watch = Watch(site)
    # Prometheus looks for its targets some seconds after its start.
    site.wait(lambda: len(watch.ask("up == 1")) == len(SERVICES), 20, "the first scrapes")
    night(site)
    assert watch.ask('ALERTS{alertname=~"Koa.*",alertstate="firing"}') == []
    assert watch.firing() == set()

    park(site)  # the first fault
    site.stack.kill("s3")  # the second; a frame has to meet it
    site.shoot("ESI", size=SMALL)
    site.stack.kill("sim")  # the third: the IOC of all instruments
    guiders = [("GUIDER", source.name) for source in load_instruments()["GUIDER"].sources]
    kcwi = [("KCWI", s.name) for s in load_instruments()["KCWI"].sources if not s.test]
    expected = {
        ("KoaIngestorFrameParked", "ESI"),
        ("KoaServiceCircuitOpen", "preparer", "s3"),
        *(("KoaMonitorSourceDisconnected", *pair) for pair in (*guiders, *kcwi)),
    }

    def told() -> bool:
        return expected <= watch.firing()

    site.wait(told, 45, lambda: f"{expected}; there are {watch.firing()}")
    # What follows from these: the ingestor was away, the canary stopped, a frame waits; and
    # the disk is this machine's own.
    others = {name for name, *_ in watch.firing() - expected}
    assert others <= {
        "KoaServiceJobParked", "KoaServiceCircuitOpen", "KoaIngestorAbsent",
        "KoaIngestorCanaryFailing", "KoaIngestorFrameUnfinished", "KoaMonitorDiskFilling",
    }  # fmt: skip


def test_a_frame_is_one_trace_and_its_exemplar_leads_there(
    site: Site, collector: Collector
) -> None:
    """Below `frame`, which lasts as long as its latency, stand the steps of all services."""
    frame = next(f for f in site.frames(instrument="KCWI", status="COMPLETE"))
    steps = {
        "resolve": "frame", "announce": "frame", "prepare": "announce", "handover": "announce",
        "ingest": "handover",
    }  # fmt: skip

    def named(name: str) -> list[dict[str, Any]]:
        return [span for span in collector.trace(frame["frame_id"]) if span["name"] == name]

    site.wait(lambda: all(map(named, ("frame", *steps))), 20, lambda: str(collector.spans))
    (top,) = named("frame")
    assert (top["parent"], top["about"]["koaid"]) == ("", frame["koaid"])
    assert (top["end"] - top["start"]) / 1e9 == pytest.approx(frame["latency_seconds"], abs=0.01)
    for name, parent in steps.items():
        done = [span for span in named(name) if span["about"]["outcome"] == "done"]
        assert {span["parent"] for span in done} <= {span["id"] for span in named(parent)}, name
        calls = {s["name"] for s in collector.trace(frame["frame_id"])
                 if s["parent"] in {span["id"] for span in done}}  # fmt: skip
        assert any(call.startswith("database ") for call in calls), (name, calls)
        assert any(call.startswith("s3 ") for call in calls) == (name in ("prepare", "ingest"))
    services = {span["service"] for span in collector.trace(frame["frame_id"])}
    assert services == {f"koa-{service}" for service in SERVICES}

    what = {
        "query": "koa_acquisition_to_availability_seconds_bucket",
        "start": time.time() - 3600, "end": time.time(),
    }  # fmt: skip
    series = site.get("prometheus", "/api/v1/query_exemplars", **what).json()["data"]
    found = {e["labels"]["trace_id"] for one in series for e in one["exemplars"]}
    assert top["trace"] in found


def plain(query: str) -> str:
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return query


def test_every_query_of_the_dashboards_has_data(site: Site) -> None:
    """Runs after the faults above, as panels of faults need some."""
    watch, empty = Watch(site), []
    for name in BOARDS["BOARDS"]:
        for panel in BOARDS["board"](name)["panels"]:
            for target in panel.get("targets", ()):
                found = watch.ask(plain(target["expr"]))
                values = [row["value"][1] for row in found]
                if all(value == "NaN" for value in values):
                    empty.append((name, panel["title"], target["legendFormat"]))
    # Seven nights before this one: tests/observability/test_dashboards.py feeds them.
    unexpected = [place for place in empty if place[2] != "mean of 7 before"]
    assert not unexpected, "\n".join(map(str, unexpected))
    assert len(empty) == 4, "a query that needs history has data here"


def functions() -> set[str]:
    """Return the names of all functions of the product."""
    files = [f for top in ("services", "shared") for f in (ROOT / top).rglob("*.py")]
    trees = (ast.parse(file.read_text()) for file in files)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, kinds)}


def test_labels_hold_values_of_closed_sets_only(site: Site) -> None:
    instruments = load_instruments()
    lanes = {"resolve", "announce", "rescan", "prepare", "handover", "enrich", "ingest", "sweep"}
    lanes |= {"scrub", "campaign"}
    steps = {"announce", "known", "read", "upload", "handover", "promote"}
    upstreams = {"schedule", "proposal", "weather1", "weather2"}
    closed: dict[str, set[str]] = {
        "instrument": set(instruments),
        "source": {s.name for i in instruments.values() for s in i.sources},
        "policy": {"staging", "quarantine", "versions"},
        "state": {
            "running", "paused", "parked", "waiting", "ordered", "done", "failed", "skipped",
        },
        "root": {root for i in instruments.values() for root in i.roots},
        "service": set(SERVICES), "status": set(Status), "origin": set(Origin),
        "level": {"0", "1", "2"}, "kind": {"database", "job", "s3"}, "queue": lanes,
        "step": lanes | steps, "operation": functions() | lanes | {"bucket", "list"},
        "dependency": {"database", "s3", "preparer", "ingestor"} | upstreams,
    }  # fmt: skip
    source = "".join(
        f.read_text() for t in ("services", "shared") for f in (ROOT / t).rglob("*.py")
    )
    seen: dict[str, set[str]] = {}
    lines = 0
    for service in SERVICES:
        for line in site.get(service, "/metrics").text.splitlines():
            lines += not line.startswith("#")
            for label, value in re.findall(r'(\w+)="([^"]*)"', line):
                # Disks are mounts of announced paths: as many as the observatory has.
                if not re.fullmatch(r"disk:/s/sdata\d+", value):
                    seen.setdefault(label, set()).add(value)
    assert {label: seen[label] - allowed for label, allowed in closed.items()
            if seen.get(label, set()) - allowed} == {}  # fmt: skip
    assert [code for code in seen["code"] if f'"{code}"' not in source] == []
    assert seen["type"] <= {"science", "calibration"}
    # 12 instruments: a bound for their histograms, far from what Prometheus minds.
    assert lines < 8000
