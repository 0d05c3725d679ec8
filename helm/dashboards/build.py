"""The dashboards: `panels.toml`, written as Grafana's JSON beside it.

`python helm/dashboards/build.py` writes them anew; a test compares.
"""

import json
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BOARDS: dict[str, list[dict[str, Any]]] = tomllib.loads((HERE / "panels.toml").read_text())
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
VARIABLES = dict.fromkeys(BOARDS, ("instrument", "koa_instrument_scheduled"))
VARIABLES["service"] = ("service", "koa_build_info")
COLUMNS, NUMBER, GRAPH = 24, 4, 8  # Grafana's grid; heights of a number's panel and a graph's
AT_ONE_TIME = ("bargauge", "stat", "table")


def nights(query: str) -> list[list[str]]:
    """Return a query with @ for the window: of the last day, and the mean of those before."""
    before = " + ".join(query.replace("@", f"[1d] offset {n}d") for n in range(1, 8))
    return [["last night", query.replace("@", "[1d]")], ["mean of 7 before", f"({before}) / 7"]]


def queries(row: dict[str, Any]) -> list[list[str]]:
    """Return the legends and queries of a panel."""
    given = [[legend, " ".join(query.split())] for legend, query in row["queries"]]
    return nights(given[0][1]) if row.get("nights") else given


def panel(row: dict[str, Any]) -> dict[str, Any]:
    """Return one panel, or a row's title, without its place."""
    if "row" in row:
        return {"type": "row", "title": row["row"], "panels": []}
    kind = row["kind"]
    shape = kind if kind in ("heatmap", "table") else "time_series"
    targets = [
        {
            "refId": chr(ord("A") + number), "expr": query, "legendFormat": legend,
            "format": shape, "instant": kind in AT_ONE_TIME,
            # The traces of late frames, as dots in the graph.
            "exemplar": kind == "timeseries" and "availability_seconds_bucket" in query,
        }
        for number, (legend, query) in enumerate(queries(row))
    ]  # fmt: skip
    fields = {"defaults": {"unit": row["unit"]}, "overrides": []}
    about = {"type": kind, "title": row["title"], "datasource": SOURCE, "fieldConfig": fields}
    return about | {"targets": targets}


def placed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the panels of a board, from left to right and then down."""
    panels, x, y, high = list[dict[str, Any]](), 0, 0, 0
    for number, row in enumerate(rows, 1):
        wide = row.get("width", COLUMNS)
        if x + wide > COLUMNS:
            x, y = 0, y + high
        high = 1 if "row" in row else NUMBER if row["kind"] == "stat" else GRAPH
        place = {"x": x, "y": y, "w": wide, "h": high}
        panels.append(panel(row) | {"id": number, "gridPos": place})
        x += wide
    return panels


def board(name: str) -> dict[str, Any]:
    """Return one dashboard."""
    variable, metric = VARIABLES[name]
    chosen = {
        "name": variable, "type": "query", "query": f"label_values({metric}, {variable})",
        "includeAll": True, "multi": True, "allValue": ".*", "refresh": 2, "datasource": SOURCE,
        "current": {"text": "All", "value": "$__all"},
    }  # fmt: skip
    source = {"name": "datasource", "type": "datasource", "query": "prometheus"}
    return {
        "uid": f"koa-{name}", "title": f"KOA {name.capitalize()}", "tags": ["koa"],
        "schemaVersion": 39, "editable": False, "timezone": "utc", "refresh": "30s",
        "time": {"from": "now-12h", "to": "now"}, "panels": placed(BOARDS[name]),
        "templating": {"list": [source, chosen]},
    }  # fmt: skip


def text(name: str) -> str:
    """Return one dashboard's file."""
    return json.dumps(board(name), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    for each in BOARDS:
        (HERE / f"{each}.json").write_text(text(each))
