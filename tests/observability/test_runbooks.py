"""Runbooks: four headings, at most a page, and commands that exist."""

import importlib
import re
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from koa_shared.cli.__main__ import main
from koa_shared.web import health

from .conftest import RUNBOOKS, selectors
from .metrics_page import SERVICES
from .test_rules import RECORDED, known

BOOKS = sorted(RUNBOOKS.glob("Koa*.md"))
ALL = [*BOOKS, RUNBOOKS / "README.md"]
PAGE = 60  # lines
VERBS = {
    command.name or getattr(command.callback, "__name__", "")
    for command in main.registered_commands
}
each = pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_form(path: Path) -> None:
    text = path.read_text()
    assert text.startswith(f"# {path.stem}\n")
    headings = ["Meaning", "Impact", "Diagnosis", "Mitigation"]
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == headings
    assert text.count("\n") <= PAGE
    diagnosis = text.split("## Diagnosis")[1].split("## Mitigation")[0]
    assert "```sh\n" in diagnosis, "nothing to paste"


def code_of(text: str) -> list[str]:
    """Return what stands in code, in blocks line by line."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [line for block in blocks for line in block.splitlines()] + inline


@each
def test_verbs_exist(path: Path) -> None:
    used = {m[1] for c in code_of(path.read_text()) if (m := re.match(r"koa (\w+)", c.strip()))}
    assert used <= VERBS


@each
def test_metrics_exist(path: Path) -> None:
    text, series = path.read_text(), known()
    found = [
        (name, labels) for name, labels in selectors(text) if not name.startswith("koa_ingestor")
    ]
    assert [
        (n, labels) for n, labels in found if labels - series.get(n, {"?"}) or n not in series
    ] == []
    assert set(re.findall(r"\bkoa:[\w:]+", text)) <= RECORDED


def routes(service: str) -> set[str]:
    """Return the paths that a service answers, a word for each part in braces."""
    router = importlib.import_module(f"koa_{service}.api").router
    found = [r.path for r in (*router.routes, *health.routes) if isinstance(r, APIRoute)]
    return {re.sub(r"\{\w+\}", "X", path) for path in found}


@each
def test_addresses_exist(path: Path) -> None:
    for service in SERVICES:
        used = re.findall(rf"\${service.upper()}(/[\w/]*)", path.read_text())
        plain = {re.sub(r"\b[A-Z_]{2,}\b", "X", address) for address in used}
        assert plain <= routes(service)


@each
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target
