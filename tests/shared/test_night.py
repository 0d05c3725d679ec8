"""`koa night`: a directory against the manifest, and the page to print."""

import hashlib
import json
from pathlib import Path

from typer.testing import CliRunner

from koa_shared.cli.__main__ import main
from koa_shared.cli.night import verify
from koa_shared.contracts import utcnow
from koa_shared.reports import Kept

DATA = {"a.fits": b"a" * 10, "b.fits": b"b" * 10, "c.fits": b"c" * 10}
KEPT = [
    Kept(koaid=n[0], version=1, name=n, size=len(d), sha256=hashlib.sha256(d).hexdigest())
    for n, d in DATA.items()
]


def fill(folder: Path) -> None:
    for name, data in DATA.items():
        (folder / name[0]).mkdir()
        (folder / name[0] / name).write_bytes(data)


def saved(folder: Path) -> Path:
    report = {
        "night": "2025-12-08", "made": utcnow().isoformat(), "verdict": "complete",
        "reasons": ["<all> is there"], "instruments": [], "worst": [], "findings": [],
        "latencies": [],
    }  # fmt: skip
    file = folder / "night.json"
    manifest = [entry.model_dump(mode="json") for entry in KEPT]
    file.write_text(json.dumps({"report": report, "manifest": manifest}))
    return file


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
