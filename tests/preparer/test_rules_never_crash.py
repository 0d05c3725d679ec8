"""No header makes a rule of any instrument raise, nor what is made of its results.

The instruments are whatever is shipped: their files tell which keywords and values matter.
"""

import re
from datetime import UTC, datetime, time
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from koa_preparer.pipeline.frame import small_products
from koa_preparer.pipeline.metadata import columns_of
from koa_preparer.providers import Facts, Night, Proposal, Slot, Weather
from koa_preparer.rules import Frame, View, core_metadata, identify, program_of, run_rules
from koa_preparer.rules.frame import Identity
from koa_shared.errors import FrameFault
from koa_shared.fits import edit_header, read_structure
from koa_shared.instruments import Instrument, load_instruments

INSTRUMENTS = load_instruments()
PATHS = ["/s/sdata1/x/n0001.fits", "/s/x/mira/a_B/n0001.fits", "/n'\"{0}%s[*].fits.gz"]
MTIME = datetime(2020, 3, 4, 5, 6, 7, tzinfo=UTC)
NIGHT = Night(
    slots=(Slot(project="U1"), Slot(project="?", start=time(9))), sunrise=time(16), sunset=time(5)
)
KEYWORD = re.compile(r"[A-Z][A-Z0-9_-]{,7}")
ODD = [
    *("", " ", "#### Error ###", "NaN", "-nan", "null", "Infinity", "-inf", "1e999", "T", "0x10"),
    *("{OFNAME}", "%s%n", "[*?", "\\1", "../../etc", "None", "00:00:60.0", "24:00:00", "-00:30:00"),
    *("2019-02-30", "31/12/99", "99999-01-01", "٣", "é", "2,2", "0,0", "(", "_", "1_1", "9" * 60),
]
NUMBERS = [0, 1, -1, 2**63, -(10**60), 1e308, -1e308, 5e-324, 1e-20, 45.0, 0.5, 65535, 18000]
SAMPLES = [None, "u1", ">i2", ">i4", ">f4", ">f8"]


def texts_of(part: Any) -> set[str]:
    """All texts that stand in a part of an instrument's file, patterns too."""
    if isinstance(part, dict):
        return set().union(*map(texts_of, part), *map(texts_of, part.values()))
    if isinstance(part, list | tuple):
        return set().union(*map(texts_of, part))
    return {part.pattern if isinstance(part, re.Pattern) else str(part)}


def words_of(instrument: Instrument) -> tuple[list[str], list[str], list[list[tuple[str, Any]]]]:
    """The keywords that an instrument's file names, the values, and both as conditions."""
    texts = texts_of(instrument.model_dump())
    names = {name for text in texts for name in KEYWORD.findall(text)}
    always = {"BSCALE", "BZERO", "KOAID", "SATURATE", "EQUINOX", "RA", "DEC", "OUTDIR", "EXTNAME"}
    parts = {text.strip("!*") for text in texts}
    return sorted(names | always), sorted(parts), conditions_of(instrument.model_dump())


def conditions_of(part: Any) -> list[list[tuple[str, Any]]]:
    """The conditions in a part of an instrument's file, as keywords with values that fit."""
    if isinstance(part, list | tuple):
        return [found for one in part for found in conditions_of(one)]
    if not isinstance(part, dict):
        return []
    fits = list[tuple[str, Any]]()
    for key, test in part.items():
        if KEYWORD.fullmatch(key):
            value = (test or ("",))[0] if isinstance(test, tuple) else test
            value = value.get("min", 0) if isinstance(value, dict) else value
            fits.append((key, value.strip("!*") if isinstance(value, str) else value))
    return [fits] * bool(fits) + conditions_of(list(part.values()))


def raw_card(keyword: str, value: Any, form: str) -> bytes:
    """One card of 80 bytes in one of the ways instruments and accidents write them."""
    if form == "junk":
        return f"{keyword:8}{value!r}".encode("latin-1", "replace")[:80].ljust(80, b"\xff")
    if form == "number":
        text = f"{str(value).strip():>20}"
    elif form == "open":
        text = f"'{value}"
    else:
        text = "'{:8}'".format(str(value).replace("'", "''")[:60])
    return f"{keyword:8}= {text} / what".encode("latin-1", "replace")[:80].ljust(80)


def hdu_of(fixed: dict[str, Any], cards: list[bytes], data: bytes) -> bytes:
    """An HDU; the cards of its structure stand before the odd ones."""
    head = [f"{k:8}= {v:>20}".encode().ljust(80) for k, v in fixed.items()]
    raw = b"".join([*head, *cards, b"END"])
    return raw.ljust(-(-len(raw) // 2880) * 2880) + data.ljust(-(-len(data) // 2880) * 2880, b"\0")


WORDS = {name: words_of(instrument) for name, instrument in INSTRUMENTS.items()}


@st.composite
def files(draw: Any, name: str) -> bytes:
    """Return a file: odd cards, repeated or not, images or not, in up to four HDUs."""
    keywords, values, conditions = WORDS[name]
    value = st.one_of(
        st.sampled_from(values), st.sampled_from(values), st.sampled_from(ODD),
        st.sampled_from(NUMBERS), st.integers(-200, 200), st.floats(), st.text(max_size=30),
    )  # fmt: skip
    form = st.sampled_from(["text", "text", "number", "number", "open", "junk"])
    one = st.builds(raw_card, st.sampled_from(keywords), value, form)
    fitting = st.lists(st.sampled_from(conditions), max_size=8)
    hdus = []
    for index in range(draw(st.integers(1, 4))):
        shape = draw(st.sampled_from([(4,), (30, 40), (25, 21), (2, 3, 4), (1, 1)]))
        kind = draw(st.sampled_from(SAMPLES))
        image = np.arange(np.prod(shape)).reshape(shape).astype(kind or "u1")
        if kind and kind[1] == "f":
            image.flat[0] = draw(st.sampled_from([np.nan, np.inf, 1e30]))
        bits = image.itemsize * 8 * (-1 if image.dtype.kind == "f" else 1)
        table = bool(index) and draw(st.booleans())
        axes = {f"NAXIS{n}": size for n, size in enumerate(reversed(shape), 1)}
        first = {"XTENSION": "'BINTABLE'" if table else "'IMAGE   '"} if index else {"SIMPLE": "T"}
        fixed: dict[str, Any] = first | {"BITPIX": 8, "NAXIS": 0}
        if kind and not table:
            fixed |= {"BITPIX": bits, "NAXIS": len(shape)} | axes
        cards = draw(st.lists(one, max_size=40 if index == 0 else 10))
        cards += [
            raw_card(key, fit, "text" if isinstance(fit, str) else "number")
            for condition in draw(fitting)
            for key, fit in condition
        ]
        cards = [c for c in cards if c[:8].strip() not in (b"NAXIS1", b"NAXIS2", b"NAXIS3")]
        hdus.append(hdu_of(fixed, cards, image.tobytes() if kind and not table else b""))
    return b"".join(hdus)


FACTS = [
    Facts(prepared_at=MTIME),
    Facts(prepared_at=MTIME, night=NIGHT, missing=("proposal", "weather")),
    Facts(
        prepared_at=MTIME, night=NIGHT, override="2019A_C272", weather=Weather(values={}),
        proposal=Proposal(title="é" * 200, propint=10**9),
    ),
]  # fmt: skip


def examine(name: str, raw: bytes, path: str, facts: Facts) -> Frame:
    """Return the frame; one that has no identity is given one, so that its rules run."""
    hdus, instrument = read_structure(raw).hdus, INSTRUMENTS[name]
    view = View(hdus, path, MTIME, instrument)
    try:
        identity = identify(view)
    except FrameFault:
        identity = Identity(f"{instrument.naming.prefixes[0].prefix}.20200304.18367.00", MTIME)
    return Frame(
        hdus=hdus, path=path, mtime=MTIME, instrument=instrument, values=view.values,
        identity=identity, facts=facts, data=raw,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # astropy's, about extension headers
@pytest.mark.parametrize("name", INSTRUMENTS)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_header_makes_a_rule_raise(name: str, data: Any) -> None:
    raw = data.draw(files(name))
    path, facts = data.draw(st.sampled_from(PATHS)), data.draw(st.sampled_from(FACTS))
    frame = examine(name, raw, path, facts)
    outcome = run_rules(frame, frame.instrument.rules)
    assert [f.message for f in outcome.findings if f.code == "RULE_CRASHED"] == []
    edit_header(raw, frame.hdus[0], outcome.updates)
    core_metadata(frame, outcome, 1)
    program_of(frame, outcome)
    small_products(frame, outcome, columns_of(name, None, frame.instrument.columns), 1)
