"""Frames for the tests of the preparer: made-up ones, and real headers of ../shared."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from koa_preparer.providers import Facts
from koa_preparer.rules import Frame, Outcome, View, identify, run_rules
from koa_shared.fits import Value, parse_card, read_structure
from koa_shared.ids import Fraction
from koa_shared.instruments import Instrument, load_instruments

SHARED = Path(__file__).parents[2].parent / "shared"
MTIME = datetime(2020, 3, 4, 5, 6, 7, 890000, UTC)
PREPARED = datetime(2020, 3, 4, 5, 6, 9, tzinfo=UTC)


def card(keyword: str, value: Value) -> str:
    """Return one card, as plain as an instrument writes it."""
    if isinstance(value, bool):
        text = f"{'FT'[value]:>20}"
    elif isinstance(value, str):
        text = "'{:8}'".format(value.replace("'", "''"))
    else:
        text = f"{value!r:>20}"
    return f"{keyword:8}= {text}"[:80].ljust(80)


def file_of(
    header: Mapping[str, Value], image: Any = None, extensions: Sequence[str] = ()
) -> bytes:
    """Return a file with these cards; `image` is a big-endian array."""
    kinds = {"u1": 8, "i2": 16, "i4": 32, "i8": 64, "f4": -32, "f8": -64}
    shape = image.shape if image is not None else ()
    fixed: dict[str, Value] = {
        "SIMPLE": True,
        "BITPIX": kinds[image.dtype.str[1:]] if image is not None else 8,
        "NAXIS": len(shape),
    }
    fixed |= {f"NAXIS{n}": size for n, size in enumerate(reversed(shape), 1)}
    raw = _padded("".join(card(k, v) for k, v in (fixed | dict(header)).items()) + "END")
    data = image.tobytes() if image is not None else b""
    raw += data.ljust(-(-len(data) // 2880) * 2880, b"\0")
    for kind in extensions:
        cards: dict[str, Value] = {"XTENSION": kind, "BITPIX": 8, "NAXIS": 0}
        cards |= {"PCOUNT": 0, "GCOUNT": 1}
        raw += _padded("".join(card(k, v) for k, v in cards.items()) + "END")
    return raw


def _padded(text: str) -> bytes:
    return text.ljust(-(-len(text) // 2880) * 2880).encode("latin-1")


class Maker:
    """Makes frames of one instrument after another."""

    def __init__(self) -> None:
        self.instruments: Mapping[str, Instrument] = load_instruments()

    def view(
        self,
        name: str,
        header: Mapping[str, Value],
        path: str = "/s/sdata1/x/f.fits",
        image: Any = None,
        extensions: Sequence[str] = (),
    ) -> View:
        """Return the view of a made-up file."""
        hdus = read_structure(file_of(header, image, extensions)).hdus
        return View(hdus, path, MTIME, self.instruments[name])

    def frame(
        self,
        name: str,
        raw: bytes,
        path: str,
        facts: Facts | None = None,
        fraction: Fraction = "production",
    ) -> Frame:
        """Return the identified frame that some bytes are."""
        hdus = read_structure(raw).hdus
        view = View(hdus, path, MTIME, self.instruments[name])
        identity = identify(view, fraction)
        facts = facts or Facts(prepared_at=PREPARED)
        return Frame(
            hdus=hdus,
            path=path,
            mtime=MTIME,
            instrument=view.instrument,
            values=dict(view.values),
            identity=identity,
            facts=facts,
            data=raw,
        )

    def run(self, name: str, raw: bytes, path: str, facts: Facts | None = None) -> Outcome:
        """Return what the instrument's rules make of some bytes."""
        return run_rules(self.frame(name, raw, path, facts), self.instruments[name].rules)


@pytest.fixture(scope="session")
def maker() -> Maker:
    return Maker()


@pytest.fixture(scope="session")
def make_file() -> Callable[..., bytes]:
    return file_of


@dataclass(frozen=True)
class Dump:
    """A real header: `raw` as before the archive, `archived` what the archive set."""

    raw: bytes
    archived: Mapping[str, Value]


@pytest.fixture(scope="session")
def dump() -> Callable[..., Dump]:
    """Read a real header of ../shared/headers; skips the test where they are not."""
    path = SHARED / "tools" / "make_frame.py"
    if not path.exists():
        pytest.skip("../shared is not here")
    spec = importlib.util.spec_from_file_location("make_frame", path)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def read(name: str, sets: Sequence[str] = ()) -> Dump:
        file = str(SHARED / "headers" / name)
        cards = [parse_card(c.ljust(80).encode("latin-1")) for c in tool.read_dump(file)[1][0]]
        archived = {c.keyword: c.value for c in cards}
        # Stripping also takes raw keywords that share a name with the archive's.
        strip = "KOAID" in archived
        raw = b""
        for head, size, bits, table in tool.build(file, 1.0, sets=sets, strip_koa=strip):
            raw += head + tool.data_unit(size, bits, 1.0, 1, table)
        return Dump(raw, archived if strip else {})

    return read
