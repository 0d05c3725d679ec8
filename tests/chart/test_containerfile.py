"""The Containerfile: lint, and in step with services and chart."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chart.conftest import CHART, ROOT, SERVICES

TEXT = (ROOT / "Containerfile").read_text()
TARGETS = dict(re.findall(r"^FROM run AS (\w+)\n(.*?)(?=^FROM|\Z)", TEXT, re.MULTILINE | re.DOTALL))


def test_lint() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [hadolint, "--no-color", ROOT / "Containerfile"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


def test_one_target_per_service() -> None:
    assert set(TARGETS) == set(SERVICES)


@pytest.mark.parametrize("service", SERVICES)
def test_a_target_is_its_service(service: str) -> None:
    config = importlib.import_module(f"koa_{service}.config").Config
    assert f"EXPOSE {config.model_fields['port'].default}\n" in TARGETS[service]
    assert f'ENTRYPOINT ["koa-{service}"]' in TARGETS[service]
    (build,) = re.findall(
        rf"^FROM build AS build-{service}\n(.*?)\n\n", TEXT, re.MULTILINE | re.DOTALL
    )
    assert set(re.findall(r"requirements/(\w+)\.lock", build)) == {service}
    assert "--require-hashes" in build


def test_the_user_is_the_charts() -> None:
    (user,) = re.findall(r"^USER (\d+):\1$", TEXT, re.MULTILINE)
    helpers = (CHART / "templates" / "_helpers.tpl").read_text()
    assert set(re.findall(r"(?:runAs\w+|fsGroup): (\d+)", helpers)) == {user}


def test_only_sources_reach_the_build() -> None:
    lines = (ROOT / ".containerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    copied = set(re.findall(r"^COPY (?!--from)(.+) \S+$", TEXT, re.MULTILINE))
    assert {word.split("/")[0] for line in copied for word in line.split()} == {
        rule.removeprefix("!") for rule in rules[1:] if rule.startswith("!")
    }
