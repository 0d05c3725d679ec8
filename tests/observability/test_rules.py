"""The alert rules: their form, their unit tests, and names that exist."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from koa_shared.simulator.observe import ALERTS, configure, hastened
from koa_shared.simulator.stack import Stack

from .conftest import (
    COMING,
    NAMES,
    RULE_TESTS,
    RULES,
    RUNBOOKS,
    promtool,
    rules_of,
    selectors,
    tool,
)
from .metrics_page import catalogue

FILES = sorted(ALERTS.glob("*.yaml"))
ALERT_RULES = [(stem, rule) for stem, rules in RULES.items() for rule in rules if "alert" in rule]
RECORDED = {rule["record"] for rules in RULES.values() for rule in rules if "record" in rule}
IN_FULL = re.compile(r"(?:\d+(?:ms|[smhdwy]))+")


def known() -> dict[str, set[str]]:
    """Return the series that the services show, with their labels."""
    series = dict(COMING)
    for name, (metric, _) in catalogue().items():
        labels = set(metric._labelnames)
        more = ("_bucket", "_sum", "_count") if metric._type == "histogram" else ("",)
        series |= {name + end: labels | ({"le"} if end == "_bucket" else set()) for end in more}
    return series


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_promtool_takes_them(path: Path) -> None:
    assert f"{len(rules_of(path))} rules found" in promtool("check", "rules", path)


@pytest.mark.parametrize("path", sorted(RULE_TESTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_silent_then_firing(path: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", path.name, cwd=path.parent)


@pytest.mark.parametrize("path", sorted(RULE_TESTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_is_silent_one_minute_before_it_fires(path: Path) -> None:
    for test in yaml.safe_load(path.read_text())["tests"]:
        checks = test["alert_rule_test"]
        for before, after in pairwise(checks):
            if "exp_alerts" in after:
                assert "exp_alerts" not in before
                passed = milliseconds(after["eval_time"]) - milliseconds(before["eval_time"])
                assert passed == 60_000, test["name"]


@pytest.mark.parametrize(("stem", "rule"), ALERT_RULES)
def test_form(stem: str, rule: dict[str, Any]) -> None:
    name, notes = rule["alert"], rule["annotations"]
    assert re.fullmatch(rf"Koa{stem.capitalize()}([A-Z][a-z]+)+", name)
    assert IN_FULL.fullmatch(rule["for"])
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert set(notes) == {"summary", "description", "runbook_url"}
    assert "{{" not in notes["summary"]
    assert notes["runbook_url"] == f"docs/runbooks/{name}.md"


def test_alerts_runbooks_and_rule_tests_are_one_to_one() -> None:
    books = {path.stem for path in RUNBOOKS.glob("*.md")} - {"README"}
    silent, firing = set[str](), set[str]()
    for path in RULE_TESTS.glob("*.yaml"):
        for test in yaml.safe_load(path.read_text())["tests"]:
            for check in test["alert_rule_test"]:
                (firing if "exp_alerts" in check else silent).add(check["alertname"])
    assert sorted(books) == NAMES
    assert sorted(firing) == NAMES
    assert sorted(silent) == NAMES


@pytest.mark.parametrize(
    ("name", "expression"),
    [(r.get("alert") or r["record"], r["expr"]) for rules in RULES.values() for r in rules],
)
def test_names_exist(name: str, expression: str) -> None:
    series = known()
    found = selectors(expression)
    wrong = [(metric, labels - series.get(metric, set())) for metric, labels in found]
    assert [metric for metric, _ in wrong if metric not in series] == []
    assert [pair for pair in wrong if pair[1]] == []
    recorded = set(re.findall(r"\bkoa:[\w:]+", expression))
    assert recorded <= RECORDED
    assert found or recorded


def test_what_is_coming_has_not_come() -> None:
    assert set(COMING) & set(catalogue()) == set(), "take it out of COMING"


def test_what_make_observe_configures_is_valid(tmp_path: Path) -> None:
    configure(Stack(tmp_path), tmp_path)
    assert "SUCCESS" in promtool("check", "config", tmp_path / "prometheus.yml")
    copied = {path.name: path.read_text() for path in (tmp_path / "rules").iterdir()}
    assert copied == {path.name: path.read_text() for path in FILES}
    assert "SUCCESS" in tool("amtool", "check-config", tmp_path / "alertmanager.yml")


# Time that runs faster.

TRAPS = """groups:
  - name: g-5m
    interval: 30s
    rules:
      - alert: A5m
        expr: x_5m{le="5m",a="[a-z]"}[1h:5m] > 60 and rate(y[1h30m] offset 2d) < 5 * 60
        for: 10m
        labels: { severity: 5m }
        annotations:
          summary: has not for 5m
          description: "for: 5m"
"""
FASTER = """groups:
  - name: g-5m
    interval: 30s
    rules:
      - alert: A5m
        expr: x_5m{le="5m",a="[a-z]"}[60000ms:5000ms] > 60 and rate(y[90000ms] offset 2880000ms) < 5 * 60
        for: 10000ms
        labels: { severity: 5m }
        annotations:
          summary: has not for 5m
          description: "for: 5m"
"""  # noqa: E501


def test_durations_are_divided_and_nothing_else() -> None:
    assert hastened(TRAPS, 60) == FASTER


SPAN = re.compile(r"(?<=\[)[^]]*(?=\])|(?<=offset )\w+")
UNITS = {"ms": 1, "s": 10**3, "m": 60 * 10**3, "h": 3600 * 10**3, "d": 86400 * 10**3}


def milliseconds(duration: str) -> int:
    parts = re.findall(r"(\d+)(ms|s|m|h|d)", duration)
    return sum(int(number) * UNITS[unit] for number, unit in parts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_duration_of_the_rules_is_divided(path: Path, tmp_path: Path) -> None:
    faster = tmp_path / path.name
    faster.write_text(hastened(path.read_text(), 60))
    promtool("check", "rules", faster)
    pairs = list(zip(rules_of(path), rules_of(faster), strict=True))
    for before, after in pairs:
        # Brackets and offsets hold nothing but durations in these rules, and no other place does.
        spans = [re.findall(SPAN, rule["expr"]) for rule in (before, after)]
        spans = [[*found, *filter(None, [rule.get("for")])]
                 for found, rule in zip(spans, (before, after), strict=True)]  # fmt: skip
        assert [milliseconds(d) for d in spans[0]] == [60 * milliseconds(d) for d in spans[1]]
        bare = [{**rule, "for": "", "expr": re.sub(SPAN, "", rule["expr"])}
                for rule in (before, after)]  # fmt: skip
        assert bare[0] == bare[1]
