"""What the observability tests share: the rule files, Debian's promtool."""

import os
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from koa_shared.simulator.observe import ALERTS

ROOT = Path(__file__).parents[2]
RUNBOOKS = ROOT / "docs" / "runbooks"
RULE_TESTS = Path(__file__).parent / "rules"
# Metrics that other branches of work bring; empty it when they are merged.
COMING: dict[str, set[str]] = {}


def rules_of(path: Path) -> list[dict[str, Any]]:
    """Return the rules of a file, in order."""
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


RULES = {path.stem: rules_of(path) for path in sorted(ALERTS.glob("*.yaml"))}
NAMES = sorted({rule["alert"] for rules in RULES.values() for rule in rules if "alert" in rule})


def tool(name: str, *arguments: object, cwd: Path = ROOT) -> str:
    """Return what promtool or amtool says; fail the test if it is not content."""
    if not shutil.which(name):
        why = f"{name} is not here: apt-get install prometheus prometheus-alertmanager"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    command = [name, *map(str, arguments)]
    run = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


promtool = partial(tool, "promtool")


def selectors(text: str) -> list[tuple[str, set[str]]]:
    """Return the metrics a query or page names, each with the labels that it matches."""
    found = re.findall(r"\b(koa_[a-z0-9_]+)(?:\{([^}]*)\})?", text)
    return [(name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", labels))) for name, labels in found]
