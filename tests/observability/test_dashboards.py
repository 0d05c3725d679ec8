"""Dashboards: committed as built, of metrics that exist; those that need history have it here."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import ROOT, promtool, selectors
from .test_rules import RECORDED, known

FOLDER = ROOT / "helm" / "dashboards"
BUILD = runpy.run_path(str(FOLDER / "build.py"))
BOARDS = sorted(BUILD["BOARDS"])


def queries(name: str) -> list[tuple[str, str]]:
    """Return (title and legend, query) of a board."""
    return [
        (f"{panel['title']}: {target['legendFormat']}", target["expr"])
        for panel in BUILD["board"](name)["panels"]
        for target in panel.get("targets", ())
    ]


ALL = [(f"{name}: {title}", query) for name in BOARDS for title, query in queries(name)]


@pytest.mark.parametrize("name", BOARDS)
def test_committed_as_built(name: str) -> None:
    built = BUILD["text"](name)
    assert (FOLDER / f"{name}.json").read_text() == built, "make format writes it anew"


def test_no_other_dashboard_is_there() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == BOARDS


@pytest.mark.parametrize(("title", "query"), ALL, ids=[title for title, _ in ALL])
def test_names_exist(title: str, query: str) -> None:
    series, found = known(), selectors(query)
    assert [name for name, labels in found if name not in series or labels - series[name]] == []
    assert set(re.findall(r"\bkoa:[\w:]+", query)) <= RECORDED


@pytest.mark.parametrize("name", BOARDS)
def test_panels_lie_side_by_side(name: str) -> None:
    taken = set[tuple[int, int]]()
    for panel in BUILD["board"](name)["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y)
                 for x in range(place["w"]) for y in range(place["h"])}  # fmt: skip
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells


# What needs nights of history: ten days of one frame every ten minutes, half of them late.

LATENCY = "koa_acquisition_to_availability_seconds"
DAY = 24 * 6
SERIES = {
    f'{LATENCY}_count{{instrument="ESI",level="0",origin="live"}}': 1,
    f'{LATENCY}_bucket{{instrument="ESI",level="0",origin="live",le="30.0"}}': 0.5,
    f'{LATENCY}_bucket{{instrument="ESI",level="0",origin="live",le="60.0"}}': 0.5,
    f'{LATENCY}_bucket{{instrument="ESI",level="0",origin="live",le="90.0"}}': 1,
    f'{LATENCY}_bucket{{instrument="ESI",level="0",origin="live",le="+Inf"}}': 1,
    'koa_raw_bytes_total{instrument="ESI"}': 1000,
}
EXPECTED = {
    "Frames": DAY, "Within 60 s": 0.5, "99 % within": 60 + 30 * 0.98,
    "Bytes of raw files": 1000 * DAY,
}  # fmt: skip
HISTORY = [(title, query) for title, query in queries("night") if "mean of 7" in title]


def test_which_need_history() -> None:
    assert sorted(title.split(":")[0] for title, _ in HISTORY) == sorted(EXPECTED)


def test_nights_before(tmp_path: Path) -> None:
    checks: list[dict[str, Any]] = []
    for title, query in HISTORY:
        sample = {"labels": "{}", "value": EXPECTED[title.split(":")[0]]}
        plain = query.replace("$instrument", ".*")
        # Rounded: seven means of increases are no round numbers.
        checks.append(
            {"expr": f"round({plain}, 0.01)", "eval_time": "10d", "exp_samples": [sample]}
        )
    series = [{"series": s, "values": f"0+{step}x1500"} for s, step in SERIES.items()]
    test = {"interval": "10m", "input_series": series, "promql_expr_test": checks}
    file = tmp_path / "history.yaml"
    file.write_text(yaml.safe_dump({"evaluation_interval": "10m", "tests": [test]}))
    assert "SUCCESS" in promtool("test", "rules", file)
