"""`koa night`: a directory against the manifest, and the page to print."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from koa_shared.cli.__main__ import main
from koa_shared.cli.night import answer, render, verify
from koa_shared.reports import Kept, NightReport

DATA = {"a.fits": b"a" * 10, "b.fits": b"b" * 10, "c.fits": b"c" * 10}
KEPT = [
    Kept(koaid=n[0], version=1, name=n, size=len(d), sha256=hashlib.sha256(d).hexdigest())
    for n, d in DATA.items()
]


def fill(folder: Path) -> None:
    for name, data in DATA.items():
        (folder / name[0]).mkdir()
        (folder / name[0] / name).write_bytes(data)


REPORT: dict[str, Any] = {
    "night": "2025-12-08", "made": "2025-12-09T08:00:00Z", "verdict": "complete",
    "reasons": ["<all> is there"], "instruments": [], "worst": [], "findings": [], "latencies": [],
}  # fmt: skip


def saved(folder: Path) -> Path:
    file = folder / "night.json"
    manifest = [entry.model_dump(mode="json") for entry in KEPT]
    file.write_text(json.dumps({"report": REPORT, "manifest": manifest}))
    return file


SETS: dict[str, Any] = {
    "instrument": "KCWI", "level": 2, "announced": 7, "archived": 3, "invalid": 1, "duplicate": 1,
    "parked": 0, "unfinished": 2, "missing": 4, "pipelines": ["KCWI_DRP 1.1.0"], "found": 0,
    "bytes": 10, "exposure_seconds": None, "types": [], "hours": [0] * 24, "inventory": None,
    "gaps": 0, "verdict": "incomplete", "reasons": [], "latency": {
        "at": None, "frames": 3, "within_minute": 1, "p50": 61.5, "p90": 62.0, "p99": 63.0,
        "max": 63.25,
    },
}  # fmt: skip


def test_products_have_a_part_of_their_own(tmp_path: Path) -> None:
    report = NightReport.model_validate(REPORT | {"instruments": [SETS, SETS | {"level": 0}]})
    told = answer({"report": report, "manifest": KEPT}, tmp_path / "night.html", None)
    [line] = [line for line in told["summary"].splitlines() if line.startswith("products")]
    assert line == (
        "products  KCWI level 2  KCWI_DRP 1.1.0  came 7, archived 3, invalid 1, duplicate 1, "
        "unfinished 2, missing 4; p50 61.50 s, max 63.25 s"
    )
    page = (tmp_path / "night.html").read_text()
    part = page.partition("<h2>Reduced products</h2>")[2].partition("<h2>")[0]
    cells = re.findall(r"<td[^>]*>([^<]*)", part)
    assert cells == [
        "KCWI", "2", "KCWI_DRP 1.1.0", "7", "3", "1", "1", "0", "2", "4", "61.50", "63.25",
    ]  # fmt: skip
    assert "<dt>frames announced</dt><dd>7</dd>" in page  # those of raw frames


def test_verify_leaves_reduced_sets_alone(tmp_path: Path) -> None:
    fill(tmp_path)
    apart = tmp_path / "lev2" / "K.1"
    apart.mkdir(parents=True)
    (apart / "x_s2d.fits").write_bytes(b"x")
    assert verify(KEPT, tmp_path)["extra"] == []


def test_a_page_stays_one_that_can_be_printed() -> None:
    """A browser takes 18 s to load 100,000 rows, and does not print them."""
    many = [KEPT[0].model_copy(update={"koaid": f"K{n:06}"}) for n in range(10_001)]
    report = NightReport.model_validate(REPORT)
    page = render("night.html", {"report": report, "manifest": many, "verify": {}})
    assert page.count("<td>K") == 10_000
    assert "10001 in all" in page
    assert "Here are the first 10,000; <code>koa night 2025-12-08 --json</code> has all" in page


def test_a_whole_directory_has_nothing_amiss(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"no FITS file")
    assert verify(KEPT, tmp_path) == {
        "files": 3, "missing": [], "differing": [], "extra": [], "by_size_only": 0,
    }  # fmt: skip


def test_missing_flipped_and_extra_files_are_named(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "a" / "a.fits").unlink()
    (tmp_path / "b" / "b.fits").write_bytes(b"b" * 9 + b"c")
    (tmp_path / "d.fits").write_bytes(b"d")
    told = verify(KEPT, tmp_path)
    assert (told["missing"], told["differing"], told["extra"]) == (
        ["a.fits"], ["b/b.fits"], ["d.fits"],
    )  # fmt: skip


def test_a_file_whose_digest_is_hidden_is_compared_by_size(tmp_path: Path) -> None:
    (tmp_path / "a.fits").write_bytes(b"x" * 10)
    hidden = [KEPT[0].model_copy(update={"sha256": None})]
    told = verify(hidden, tmp_path)
    assert (told["differing"], told["by_size_only"]) == ([], 1)
    (tmp_path / "a.fits").write_bytes(b"x" * 11)
    assert verify(hidden, tmp_path)["differing"] == ["a.fits"]


def test_a_saved_report_is_enough_without_any_service(tmp_path: Path) -> None:
    data, page, file = tmp_path / "data", tmp_path / "night.html", saved(tmp_path)
    data.mkdir()
    fill(data)
    order = ["night", "2025-12-08", "--from", str(file), "--verify", str(data)]
    assert CliRunner().invoke(main, [*order, "--html", str(page)]).exit_code == 0
    (data / "a" / "a.fits").unlink()
    done = CliRunner().invoke(main, order)
    assert (done.exit_code, "a.fits" in done.output) == (1, True)
    assert CliRunner().invoke(main, ["night", "2025-12-09", *order[2:4]]).exit_code == 1
    text = page.read_text()
    assert "&lt;all&gt; is there" in text
    assert "<script" not in text
    assert "http://" not in text
