"""Modules, functions and the whole stay small (style 5.2, design 3)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    f  # a migration is a list of tables, made by a tool
    for top in ("services", "shared")
    for f in (ROOT / top).rglob("*.py")
    if "migrations" not in f.parts
)
MAX_FILE, MAX_FUNCTION, MAX_PRODUCT = 400, 50, 7000
NO_PRODUCT = {"testing", "simulator", "migrations"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    first = node.body[0] if ast.get_docstring(node) else None
    doc = (first.end_lineno or 0) - first.lineno + 1 if first else 0
    return (node.end_lineno or 0) - node.lineno + 1 - doc


def too_long(text: str) -> list[str]:
    """What in a module is longer than the house allows."""
    found = [f"{text.count(chr(10))} lines"] if text.count("\n") > MAX_FILE else []
    return found + [
        f"{node.name}: {body_lines(node)} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and body_lines(node) > MAX_FUNCTION
    ]


def test_the_measure_measures() -> None:
    long = "def f():\n" + '    """Doc.\n\n    More.\n    """\n' + "    x = 1\n" * 50
    assert too_long(long) == ["f: 51 lines"]
    assert too_long("x = 1\n" * 401) == ["401 lines"]
    assert too_long("x = 1\n" * 400) == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_module_and_functions(path: Path) -> None:
    assert not too_long(path.read_text())


def code_lines(text: str) -> int:
    """Lines that hold code: no blank ones, no comments, no docstrings."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, kinds)]
    docs = [node.body[0] for node in nodes if ast.get_docstring(node)]
    told = {at for doc in docs for at in range(doc.lineno, (doc.end_lineno or 0) + 1)}
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and at not in told
        for at, line in enumerate(text.splitlines(), 1)
    )


def test_code_lines_are_code() -> None:
    assert code_lines('"""Doc."""\n\n# why\nx = 1\n\n\ndef f():\n    """Doc."""\n    y = 2\n') == 3


def test_product_as_a_whole(capsys: pytest.CaptureFixture[str]) -> None:
    product = [f for f in FILES if not NO_PRODUCT & set(f.relative_to(ROOT).parts)]
    total = sum(code_lines(f.read_text()) for f in product)
    physical = sum(f.read_text().count("\n") for f in product)
    with capsys.disabled():
        print(f"\nproduct Python: {total} lines of code, {physical} with docs and blanks")
    assert 0 < total <= MAX_PRODUCT, f"{total} lines of code"
