"""Fault points: the literal and the code are one; the judge of chaos runs is independent."""

import ast
from collections import Counter
from pathlib import Path

from koa_shared.testing import FAULT_POINTS

ROOT = Path(__file__).parents[2]
# Where calls leave the process or commit, and how: each stands in a `with faults.around`.
LEAVES = {
    "shared/koa_shared/db.py": "session.commit",
    "shared/koa_shared/objects.py": "function",
    "shared/koa_shared/client.py": "self._http.request",
    "shared/koa_shared/disks.py": "function",
    "services/monitor/koa_monitor/sources/base.py": "hear",
}


def product() -> list[Path]:
    return [f for top in ("services", "shared") for f in sorted((ROOT / top).rglob("*.py"))]


def guards(tree: ast.AST) -> list[tuple[str, ast.With]]:
    """Return every `with faults.around("CALL", ...)`, and its block."""
    return [
        (str(item.context_expr.args[0].value), node)
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        for item in node.items
        if isinstance(item.context_expr, ast.Call)
        and ast.unparse(item.context_expr.func) == "faults.around"
        and isinstance(item.context_expr.args[0], ast.Constant)
    ]


def calls(tree: ast.AST, name: str) -> list[int]:
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [node.lineno for node in found if ast.unparse(node.func) == name]


def naked(text: str, name: str) -> set[int]:
    """Return the lines that call `name` outside of a guard."""
    tree = ast.parse(text)
    guarded = {line for _, block in guards(tree) for line in calls(block, name)}
    return set(calls(tree, name)) - guarded


def test_a_naked_call_is_seen() -> None:
    text = 'with faults.around("s3", "x"):\n    function()\nfunction()\n'
    assert naked(text, "function") == {3}


def test_each_point_of_the_literal_is_used_exactly_once() -> None:
    used = Counter(name for f in product() for name, _ in guards(ast.parse(f.read_text())))
    pairs = [f"{name}:{when}" for name in used.elements() for when in ("before", "after")]
    assert sorted(pairs) == sorted(FAULT_POINTS)


def test_each_call_that_leaves_has_its_points() -> None:
    for file, name in LEAVES.items():
        text = (ROOT / file).read_text()
        assert calls(ast.parse(text), name), f"{file} calls no {name}"
        assert naked(text, name) == set(), file


def test_nothing_commits_or_leaves_but_the_adapters() -> None:
    for file in product():
        if {"testing", "simulator", "migrations"}.isdisjoint(file.parts):
            name = str(file.relative_to(ROOT))
            assert name in LEAVES or not calls(ast.parse(file.read_text()), "session.commit")


def imported(path: Path) -> set[str]:
    """Return the top-level names that a module imports; "" is a relative import."""
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("" if node.level else (node.module or "").partition(".")[0])
    return found


def test_the_judge_imports_nothing_of_the_product() -> None:
    names = imported(ROOT / "tests" / "chaos" / "checker.py")
    assert "sqlite3" in names
    assert {n for n in names if n in ("", "tests", "importlib") or n.startswith("koa_")} == set()
