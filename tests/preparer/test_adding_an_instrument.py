"""docs/instruments.md adds an instrument, and so does this, word by word."""

import os
import re
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from koa_preparer.pipeline.frame import preview_products, small_products
from koa_preparer.pipeline.instruments import open_instruments
from koa_preparer.providers import Facts
from koa_preparer.rules import Frame, View, core_metadata, identify, run_rules
from koa_shared.fits import edit_header, read_structure

PAGE = (Path(__file__).parents[2] / "docs" / "instruments.md").read_text()
CHAPTER = PAGE.partition("## Adding an instrument\n")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", CHAPTER, re.DOTALL)
HEADER, FILE = (next(text for kind, text in BLOCKS if kind == k) for k in ("text", "toml"))
PATH = "/s/sdata1900/owl1/2026nov23/owl0042.fits"
AT = datetime(2026, 11, 23, 10, 25, 7, tzinfo=UTC)


@pytest.fixture
def written(tmp_path: Path, make_file: Any) -> tuple[Path, bytes]:
    """The page's files in a directory: `owl/OWL.toml`, and the frame."""
    (tmp_path / "owl").mkdir()
    (tmp_path / "owl" / "OWL.toml").write_text(FILE)
    image = np.full((20, 30), 7, ">i4")
    image[0, :5] = 240_000
    raw = make_file(tomllib.loads(HEADER), image)
    (tmp_path / "owl0042.fits").write_bytes(raw)
    return tmp_path, raw


def follows(output: list[str], told: list[str]) -> bool:
    """Tell whether the output is what is told, where `...` stands for any lines."""
    pattern = "\n".join(r"(?:.*\n)*?.*" if line == "..." else re.escape(line) for line in told)
    return re.fullmatch(pattern, "\n".join(output)) is not None


def test_follows() -> None:
    assert follows(["a", "b", "c"], ["a", "...", "c"])
    assert follows(["a", "b"], ["a", "..."])
    assert not follows(["a", "b", "c"], ["a", "c"])
    assert not follows(["a", "b"], ["...", "c", "..."])


def test_the_commands_say_what_the_page_says(written: tuple[Path, bytes]) -> None:
    folder, _ = written
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    steps = [text for kind, text in BLOCKS if kind == "console"]
    commands = [part.splitlines() for text in steps for part in text.split("$ ")[1:]]
    assert len(commands) == 5
    for command, *told in commands:
        done = subprocess.run(
            command, shell=True, cwd=folder, env=os.environ | {"PATH": path}, text=True,
            capture_output=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), command
        assert follows(done.stdout.splitlines(), told), done.stdout


def test_a_frame_goes_through(written: tuple[Path, bytes]) -> None:
    folder, raw = written
    instruments, columns = open_instruments(folder / "owl", None)
    owl, hdus = instruments["OWL"], read_structure(raw).hdus
    assert set(instruments) - {"OWL"} == set(open_instruments(None, None)[0])
    view = View(hdus, PATH, AT, owl)
    identity = identify(view)
    frame = Frame(
        hdus=hdus, path=PATH, mtime=AT, instrument=owl, values=view.values, identity=identity,
        facts=Facts(prepared_at=AT), data=raw,
    )  # fmt: skip
    outcome = run_rules(frame, owl.rules)
    assert identity.koaid == "OW.20261123.37496.50"
    assert {f.code for f in outcome.findings} == {"PROPINT_ERROR"}  # nobody was asked
    wanted = {
        "KOAID": "OW.20261123.37496.50.fits", "OFNAME": "owl0042.fits", "INSTRUME": "OWL",
        "UT": "10:24:56.50", "KOAIMTYP": "flatlamp", "ELAPTIME": 10.0, "WAVEBLUE": 400,
        "WAVECNTR": 480, "WAVERED": 550, "SEMESTER": "2026B", "PROGID": "U123",
        "IMAGEMD": 7.0, "NPIXSAT": 5, "DATLEVEL": 0,
    }  # fmt: skip
    edited = edit_header(raw, hdus[0], outcome.updates)
    header = read_structure(edited + raw[hdus[0].data_start :]).hdus[0].header
    assert {key: header.get(key) for key in wanted} == wanted
    assert header.get("SHUTTER") == "open"

    contents, findings = small_products(frame, outcome, columns["OWL"], len(raw))
    assert findings == []
    names, _, _, _, row = b"".join(contents[-1].buffers).decode().splitlines()
    cells = dict(zip(names[1:].replace("|", " ").split(), _cells(names, row), strict=True))
    told = {"KOAID": wanted["KOAID"], "SHUTTER": "open", "WAVERED": "550.0", "WAVEUNIT": "nm"}
    told |= {"ELAPTIME": "10.0", "KOAIMTYP": "flatlamp", "PROPINT": "18", "DEC": "-00:30:00.0"}
    assert {key: cells[key] for key in told} == told
    core = core_metadata(frame, outcome, len(raw))
    assert (core["wave_red"], core["wave_unit"], core["exposure"]) == (550.0, "nm", 10.0)
    assert (core["ra"], core["dec"]) == (58.0, -0.5)
    made, odd = preview_products(frame)
    assert ([content.name for content in made], odd) == (["OW.20261123.37496.50.jpg"], [])


def _cells(names: str, row: str) -> list[str]:
    starts = [at for at, char in enumerate(names) if char == "|"]
    return [row[at:end].strip() for at, end in pairwise(starts)]
