"""The metadata table, against KOA's tables and the archive's own product."""

import csv
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from koa_preparer.pipeline.frame import small_products
from koa_preparer.pipeline.metadata import (
    Column,
    columns_of,
    metadata_table,
    read_keyword_table,
)
from koa_preparer.providers import Facts
from koa_preparer.rules import Frame, Outcome, core_metadata, run_rules
from koa_preparer.rules.catalogue import COLUMNS
from koa_preparer.rules.frame import Identity
from koa_shared.contracts import Severity
from koa_shared.fits import read_structure
from koa_shared.instruments import InstrumentError, load_instruments

SHARED = Path(__file__).parents[2].parent / "shared"
TABLES = SHARED / "keyword-tables"
SAMPLE = SHARED / "koa-output" / "NR.20190615.12571.36.metadata.table"
needs_tables = pytest.mark.skipif(not TABLES.is_dir(), reason="no ../shared")
needs_sample = pytest.mark.skipif(not SAMPLE.is_file(), reason="no ../shared")

# Facts 3.8: columns, char, integer, double, date, not null, checked, characters a line.
FACTS_3_8 = {
    "DEIMOS": (486, 231, 105, 150, 0, 10, 8, 9970),
    "ESI": (293, 121, 75, 96, 1, 11, 7, 5672),
    "GUIDER": (153, 48, 17, 87, 1, 9, 7, 2948),
    "HIRES": (371, 179, 68, 124, 0, 10, 113, 8156),
    "KCWI": (616, 217, 204, 195, 0, 12, 9, 13625),
    "KPF": (264, 161, 38, 65, 0, 11, 9, 7695),
    "LRIS": (420, 187, 78, 155, 0, 11, 12, 9318),
    "MOSFIRE": (365, 134, 90, 141, 0, 15, 13, 8889),
    "NIRC2": (557, 200, 160, 197, 0, 11, 12, 12030),
    "NIRES": (223, 78, 29, 115, 1, 14, 13, 6538),
    "NIRSPEC": (388, 162, 51, 174, 1, 12, 15, 11318),
    "OSIRIS": (506, 182, 110, 213, 1, 14, 29, 11240),
    "LWS": (19, 15, 2, 2, 0, 10, 6, 793),
    "NIRC": (19, 15, 2, 2, 0, 10, 6, 793),
}


def column(keyword: str = "KEY", kind: str = "char", width: int = 16, **of: Any) -> Any:
    table = {"keyword": keyword, "type": kind, "width": width, **of}
    return Column.model_validate(table)


def cell(value: Any, **of: Any) -> tuple[str, list[str]]:
    """Return the cell's text and the codes, for one value in one column."""
    only = column(**of)
    table, findings = metadata_table({only.keyword: value}, [only])
    assert {f.severity for f in findings} <= {Severity.WARNING}
    assert all(f.step == "metadata" and only.keyword in f.message for f in findings)
    row = table.decode().splitlines()[4]
    assert len(row) == only.size + 1
    return row[1:].rstrip(), [finding.code for finding in findings]


# --- KOA's definition files ---------------------------------------------------------


@needs_tables
@pytest.mark.parametrize("name", FACTS_3_8)
def test_table_is_read_as_facts_3_8_count_it(name: str) -> None:
    columns = read_keyword_table(TABLES / f"KOA_{name}_Keyword_Table.txt")
    types = [column.type for column in columns]
    table, _ = metadata_table({}, columns)
    lines = table.decode("ascii").split("\n")
    assert (
        len(columns),
        *(types.count(t) for t in ("char", "integer", "double", "date")),
        sum(not column.nulls_allowed for column in columns),
        sum(column.check for column in columns),
        len(lines[0]),
    ) == FACTS_3_8[name]
    assert [len(line) - len(lines[0]) for line in lines[:5]] == [0, 0, 0, 0, -1]
    assert lines[5:] == [""]
    assert "\t" not in table.decode()


@needs_tables
def test_discrete_values_of_both_spellings() -> None:
    hires = read_keyword_table(TABLES / "KOA_HIRES_Keyword_Table.txt")
    named = {column.keyword: column for column in hires}
    assert named["MOSMODE"].discrete[-1] == "B, G, R"  # a JSON list: commas inside
    assert "A15" in named["DECKNAME"].discrete
    kpf = read_keyword_table(TABLES / "KOA_KPF_Keyword_Table.txt")
    assert next(c for c in kpf if c.keyword == "KOAIMTYP").discrete[1] == "bias"


def write(path: Path, *rows: dict[str, str]) -> Path:
    """Write a definition file that has only the columns that are read, and one more."""
    text = (
        "FITSKeyword Source MetadataDatatype MetadataWidth NullsAllowed ValidateFormat "
        "CheckValues InputFormat MinValue MaxValue DiscreteValues Notes"
    )
    names = text.split()
    lines = ["\t".join(names)]
    lines += ["\t".join(row.get(n, "") for n in names).rstrip("\t") for row in rows]
    path.write_bytes("\r\n".join(lines).encode() + b"\r\n")
    return path


KOAID = {"FITSKeyword": "KOAID", "MetadataDatatype": "char", "MetadataWidth": "32"}


def test_rows_added_downstream_and_short_rows(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.txt",
        KOAID | {"NullsAllowed": "N", "CheckValues": " Y"},
        KOAID | {"FITSKeyword": "RA2000", "Source": "NexScI"},
        KOAID | {"FITSKeyword": ""},
        KOAID | {"FITSKeyword": "UT", "InputFormat": "time", "ValidateFormat": " Y"},
        KOAID | {"FITSKeyword": "UTC", "InputFormat": "time", "ValidateFormat": "N"},
    )
    koaid, ut, utc = read_keyword_table(path)
    assert (koaid.keyword, koaid.nulls_allowed, koaid.check) == ("KOAID", False, True)
    assert (ut.keyword, ut.nulls_allowed, ut.input_format) == ("UT", True, "time")
    assert utc.input_format == ""


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [KOAID | {"FITSKeyword": "UT"}],
        [KOAID, KOAID],
        [KOAID | {"MetadataDatatype": "text"}],
        [KOAID | {"MetadataWidth": "0"}],
        [KOAID | {"MetadataWidth": "wide"}],
        [KOAID | {"MinValue": "nan"}],
    ],
)
def test_unusable_table_names_its_file(tmp_path: Path, rows: Any) -> None:
    with pytest.raises(InstrumentError, match=r"odd\.txt"):
        read_keyword_table(write(tmp_path / "odd.txt", *rows))
    with pytest.raises(InstrumentError, match=r"none\.txt"):
        read_keyword_table(tmp_path / "none.txt")
    (tmp_path / "odd.txt").write_text("no\ttable\na\tb\n")
    with pytest.raises(InstrumentError, match=r"odd\.txt"):
        read_keyword_table(tmp_path / "odd.txt")


def test_core_columns_carry_what_facts_3_3_adds() -> None:
    named = {column.keyword: column for column in columns_of("ANY")}
    added = (
        "KOAID INSTRUME DATE-OBS UTC UT SEMESTER PROGID PROGINST PROGPI PROGTITL "
        "PROPINT DATLEVEL DQA_DATE DQA_VERS IMAGEMN IMAGESD IMAGEMD NPIXSAT OA OFNAME "
        "FRAMENO WXDOMHUM WXDOMTMP WXDWPT WXOUTHUM WXOUTTMP WXPRESS WXWNDIR WXWNDSP "
        "WXTIME GUIDFWHM GUIDTIME FILESIZE_MB KOAIMTYP"
    )
    assert set(added.split()) <= set(named)
    not_null = {"KOAID", "DATE-OBS", "PROPINT", "PROGID", "PROGINST", "PROGPI"}
    assert all(not named[keyword].nulls_allowed for keyword in not_null)
    assert named["PROGTITL"].width == 210
    assert named["DATE-OBS"].input_format == "date"


# The values of facts 3.10; KCWI's are its IMTYPE, of the published table's list.
KINDS = (
    "fcscal bias dark focus flatlamp arclamp object undefined trace bias_lamp_on dark_lamp_on "
    "object_lamp_on fpc svc contbars domeflat twiflat solar polcal flatlampoff calib domearc"
)
# What an instrument has no keyword for, in the header or of the archive.
NOT_TOLD = {
    "camera": {"HIRES", "KPF", "LRIS", "MOSFIRE"},
    "filter": {"KPF", "LRIS"},
    "mode": {"GUIDER"},
    "object": {"GUIDER"},
    "observer": {"GUIDER"},
    "spec_res": {"GUIDER", "KPF", "MOSFIRE", "OSIRIS"},
    "image_mean": {"DEIMOS", "GUIDER", "HIRES", "KPF", "LRIS", "OSIRIS"},
    "npixsat": {"GUIDER", "KPF"},
}
NOT_TOLD |= dict.fromkeys(("image_sd", "image_median"), NOT_TOLD["image_mean"])
INSTRUMENTS = sorted(set(FACTS_3_8) - {"LWS", "NIRC"})


def published(name: str) -> list[dict[str, str]]:
    path = TABLES / f"KOA_{name}_Keyword_Table.txt"
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_core_columns_take_every_image_type() -> None:
    kinds = next(c for c in columns_of("ANY") if c.keyword == "KOAIMTYP")
    assert kinds.check
    assert set(KINDS.split()) <= set(kinds.discrete)


@needs_tables
@pytest.mark.parametrize("name", INSTRUMENTS)
def test_core_columns_cover_what_the_archive_shows_first(name: str) -> None:
    """TAP_principal marks the columns that KOA shows unasked."""
    shown = [row["FITSKeyword"] for row in published(name) if row["TAP_principal"] == "Y"]
    named = {c.keyword: c for c in columns_of(name, None, load_instruments()[name].columns)}
    assert {keyword for keyword in shown if keyword} <= named.keys()
    for column in read_keyword_table(TABLES / f"KOA_{name}_Keyword_Table.txt"):
        core = named.get(column.keyword)
        text = column.type == "char" and column.keyword != "MJD-OBS"  # DEIMOS: a number as text
        if core and column.keyword in shown and text:
            assert core.type in ("char", "date"), f"{column.keyword} holds text"
            assert core.input_format or core.width >= min(column.width, 32)
        if not column.nulls_allowed:
            assert core, f"{column.keyword} is never null and no core column"


@needs_tables
@pytest.mark.parametrize("name", INSTRUMENTS)
def test_catalogue_reads_keywords_that_the_instrument_has(name: str) -> None:
    known = {row["FITSKeyword"] for row in published(name)} | {"UT", "UTC", "KOAIMTYP", "PROGID"}
    own = load_instruments()[name].catalogue
    for column, keywords in (pair for kind in COLUMNS.values() for pair in kind.items()):
        if name not in NOT_TOLD.get(column, ()):
            assert known.intersection(own.get(column, keywords)), column


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_wavelengths_have_the_unit_of_facts_3_11(maker: Any, make_file: Any, name: str) -> None:
    microns = ("GUIDER", "MOSFIRE", "NIRC2", "NIRSPEC")
    unit = "micron" if name in microns else "nm" if name == "OSIRIS" else "angstrom"
    raw, when = make_file({"WAVEBLUE": 1.5}), datetime(2020, 1, 1, tzinfo=UTC)
    frame = Frame(
        hdus=read_structure(raw).hdus, path="/x/f.fits", mtime=when, data=raw,
        instrument=maker.instruments[name], identity=Identity("XX.20200101.00000.00", when),
        facts=Facts(prepared_at=when),
    )  # fmt: skip
    columns = [column("WAVEBLUE", "double"), *(c for c in columns_of("A") if "UNIT" in c.keyword)]
    [_, table], _ = small_products(frame, Outcome(), columns, 2880)
    assert b"".join(table.buffers).decode().splitlines()[4].split() == ["1.5", unit]
    assert core_metadata(frame, Outcome(), 2880)["wave_unit"] == unit


def test_columns_of_an_instrument(tmp_path: Path) -> None:
    own = [
        {"keyword": "RA", "type": "double", "width": 24},
        {"keyword": "LENSLET", "type": "char", "width": 8, "discrete": ["a", "b"]},
    ]
    core = columns_of("ANY")
    columns = columns_of("NEW", tmp_path, own)
    keywords = [c.keyword for c in columns]
    assert keywords == [c.keyword for c in core] + ["LENSLET"]
    assert columns[keywords.index("RA")] == column("RA", "double", 24)
    assert columns[-1].discrete == ("a", "b")
    assert columns_of("NEW", None) == core
    write(tmp_path / "KOA_NEW_Keyword_Table.txt", KOAID)
    assert [c.keyword for c in columns_of("NEW", tmp_path, own)] == ["KOAID"]
    for wrong in ({}, {"colour": "red"}, {"type": "text"}, {"width": 0}):
        odd = own[0] | wrong if wrong else {}
        with pytest.raises(InstrumentError, match="NEW: column"):
            columns_of("NEW", None, [odd])


# --- The archive's own product ------------------------------------------------------


def typed(kind: str, text: str) -> Any:
    if text == "null":
        return None
    convert = {"integer": int, "double": float}.get(kind, str)
    return convert(text) if text else ""


def split(line: str, widths: list[int]) -> list[str]:
    at, cells = 1, []
    for width in widths:
        cells.append(line[at : at + width].rstrip())
        at += width + 1
    return cells


@needs_sample
def test_real_nires_table_is_made_again_byte_for_byte() -> None:
    old = SAMPLE.read_bytes()
    lines = old.decode("ascii").splitlines()
    widths = [len(part) for part in lines[0][1:-1].split("|")]
    keywords, kinds = split(lines[0], widths), split(lines[1], widths)
    texts = split(lines[4], widths)
    values = dict(zip(keywords, map(typed, kinds, texts), strict=True))
    values["EXTEND"] = {"T": True, "F": False}[values["EXTEND"]]

    columns = read_keyword_table(TABLES / "KOA_NIRES_Keyword_Table.txt")
    today, findings = metadata_table(values, columns)
    row = today.decode().splitlines()[4]
    assert [column.keyword for column in columns] == keywords
    assert split(row, [column.size for column in columns]) == texts
    assert findings == []

    # Facts 8.2: two widths changed since; and 15 columns took no null, now 14 do.
    was: dict[str, dict[str, Any]] = {"OBSERVER": {"width": 68}}
    was |= {"GUIDFWHM": {"width": 16}, "FILESIZE_MB": {"nulls_allowed": False}}
    then = [column.model_copy(update=was.get(column.keyword)) for column in columns]
    assert metadata_table(values, then) == (old, [])


@needs_sample
def test_real_nires_frame_gives_the_archives_row(maker: Any, dump: Any) -> None:
    """From the raw header through the rules; the pixels and the night are made up."""
    raw = dump("NIRES/NR.20190615.12571.36_from_metadata.txt").raw
    frame = maker.frame("NIRES", raw, "/s/sdata1500/nires9/2019jun15/s190615_0020.fits")
    outcome = run_rules(frame, frame.instrument.rules)
    columns = columns_of("NIRES", TABLES)
    [_, table], findings = small_products(frame, outcome, columns, 18_904_300)
    assert table.name == "NR.20190615.12571.36.metadata.table"
    old, widths = SAMPLE.read_text().splitlines(), [column.size for column in columns]
    then = split(old[4], [len(part) for part in old[0][1:-1].split("|")])
    lines = b"".join(table.buffers).decode("ascii").split("\n")
    assert [len(line) for line in lines] == [6538, 6538, 6538, 6538, 6537, 0]  # facts 3.8
    pairs = zip(columns, then, split(lines[4], widths), strict=True)
    other = {column.keyword for column, was, now in pairs if was != now}
    made_up = {"IMAGEMN", "IMAGESD", "IMAGEMD", "DQA_DATE", "DQA_VERS", "OA"}
    made_up |= {"PROGPI", "PROGINST", "PROGTITL"}  # nobody tells about the proposal
    lost = {"CHNAME9", "DTHCOORD"}  # the dump lacks a leading blank and a blank card
    assert other == made_up | lost
    assert [finding.code for finding in findings] == []


def test_five_lines_typed_from_facts_8_2() -> None:
    columns = [
        column("KOAID", "char", 25, nulls_allowed=False),
        column("EXTEND", "char", 1),
        column("CD1_1", "double", 21),
        column("BLANK", "char", 5),
        column("FILTER", "char", 4),
        column("PROPINT", "integer", 7, nulls_allowed=False),
    ]
    values: dict[str, Any] = {
        "KOAID": "NR.20190615.12571.36.fits",
        "EXTEND": True,
        "CD1_1": -4.16500198582894e-05,
        "BLANK": "",
        "PROPINT": 18,
        "OTHER": "not in the table",
    }
    table, findings = metadata_table(values, columns)
    assert findings == []
    assert table.decode().split("\n") == [
        "|KOAID                    |EXTEND|CD1_1                |BLANK|FILTER|PROPINT|",
        "|char                     |char  |double               |char |char  |integer|",
        "|                         |      |                     |     |      |       |",
        "|                         |null  |null                 |null |null  |       |",
        " NR.20190615.12571.36.fits T      -4.16500198582894e-05       null   18     ",
        "",
    ]


# --- Values: facts 3.8, "Situation / Result" -----------------------------------------


@pytest.mark.parametrize("value", [None, "", "null", "NaN", "-NaN", "#### Error ###"])
def test_no_value_where_there_must_be_one(value: Any) -> None:
    for kind in ("char", "integer", "double", "date"):
        assert cell(value, kind=kind, nulls_allowed=False) == (
            "null",
            ["METADATA_ERROR"],
        )


@pytest.mark.parametrize(
    "value", [None, "null", "NaN", "-NaN", "#### Error ###", float("nan"), float("inf")]
)
def test_no_value_where_there_may_be_none(value: Any) -> None:
    for kind in ("char", "integer", "double", "date"):
        assert cell(value, kind=kind) == ("null", [])


def test_blank_stays_blank() -> None:
    for kind in ("char", "integer", "double", "date"):
        assert cell("", kind=kind) == ("", [])
        assert cell("   ", kind=kind) == ("", [])


def test_equinox_without_value_is_zero() -> None:
    assert cell(None, keyword="EQUINOX", kind="double") == ("0.0", [])
    assert cell("#### Error ###", keyword="EQUINOX", kind="double") == ("0.0", [])
    assert cell(None, keyword="EPOCH", kind="double") == ("null", [])
    assert cell(
        None,
        keyword="EQUINOX",
        kind="double",
        nulls_allowed=False,
        check=True,
        min=1855,
    ) == ("0.0", ["MD_RANGE_ERROR"])


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("char", True, "T"),
        ("char", False, "F"),
        ("char", 58.0, "58.0"),
        ("char", 7, "7"),
        ("char", " leading", " leading"),
        ("char", "a|b", "a|b"),
        ("char", "two\nlines\tand\x00more", "two lines and more"),
        ("char", "Müller", "M&#252;ller"),
        ("double", 100, "100.0"),
        ("double", "100", "100.0"),
        ("double", " 1.5E3 ", "1500.0"),
        ("double", 1.41291034446565, "1.41291034446565"),
        ("double", 1e-06, "1e-06"),
        ("double", True, "1.0"),
        ("integer", 20, "20"),
        ("integer", "0020", "20"),
        ("integer", 20.0, "20"),
        ("integer", -32, "-32"),
        ("integer", "12345678901234567890123", "12345678901234567890123"),
        ("date", "2019-06-15", "2019-06-15"),
    ],
)
def test_values_that_fit(kind: str, value: Any, text: str) -> None:
    assert cell(value, kind=kind, width=40) == (text, [])


@pytest.mark.parametrize("kind", ["integer", "double"])
@pytest.mark.parametrize("value", ["abc", "1_000", "0x10", "1 2", "١٢", "nan", "1.0D5", "9" * 5000])
def test_text_in_a_number_column(kind: str, value: str) -> None:
    assert cell(value, kind=kind, width=40) == ("null", ["METADATA_ERROR"])


@pytest.mark.parametrize(("value", "text"), [(3.7, "3"), (-3.7, "-3"), ("3.7", "3")])
def test_float_in_an_integer_column(value: Any, text: str) -> None:
    assert cell(value, kind="integer") == (text, ["MD_TRUNCATE"])


def test_large_integers_are_exact() -> None:
    assert cell(2**53 + 1, kind="integer") == (str(2**53 + 1), [])
    assert cell(str(2**53 + 1), kind="integer") == (str(2**53 + 1), [])


def test_text_longer_than_its_column() -> None:
    assert cell("abcdef", width=4, keyword="KEY") == ("abcd", ["MD_TRUNCATE"])
    assert cell("abcdef", width=1, keyword="KEYWORD") == ("abcdef", [])  # raised to 7


@pytest.mark.parametrize(
    ("value", "width", "text"),
    [
        (1.23456789012345678, 8, "1.234567"),
        (-1.17769134972044e-06, 16, "-1.177691349e-06"),
        (1.2345e-100, 8, "1.2e-100"),
        (0.10000000001, 8, "0.1"),
        (1234567.8, 8, "1234567."),
        (12345678.9, 8, "12345678"),
    ],
)
def test_double_longer_than_its_column(value: float, width: int, text: str) -> None:
    assert cell(value, kind="double", width=width) == (text, [])


def test_number_that_no_text_can_shorten_is_null() -> None:
    assert cell(123456789.5, kind="double", width=8) == ("null", ["MD_TRUNCATE"])
    assert cell(123456789, kind="integer", width=8) == ("null", ["MD_TRUNCATE"])


FITTING: dict[str, list[Any]] = {
    "": ["anything goes"],
    "date": ["2019-06-15"],
    "time": ["03:29:31.36"],
    "angle": ["03:52:00.00", "+45:00:00.0", "-00 12 30", "12h30m15.2s", 58.0],
}
ODD: dict[str, list[Any]] = {
    "date": ["2019-13-15", "15/06/19", "2019-06-15T03:29:31", 20190615],
    "time": ["03:29:31", "24:00:00.00", "99:99:99.99"],
    "angle": ["12:61:00", "north", True],
}


@pytest.mark.parametrize("form", FITTING)
def test_input_format(form: str) -> None:
    for value in FITTING[form]:
        assert cell(value, input_format=form) == (str(value), [])
    for value in ODD.get(form, []):
        assert cell(value, input_format=form) == ("null", ["METADATA_ERROR"])


def test_type_is_checked_where_there_is_no_input_format() -> None:
    """Facts 7.3 P6: production's fall back to the data type never happens."""
    assert cell("15.06.2019", kind="date") == ("null", ["METADATA_ERROR"])


@pytest.mark.parametrize(
    ("value", "codes"), [(-1, ["MD_RANGE_ERROR"]), (0, []), (10, ["MD_RANGE_ERROR"])]
)
def test_range(value: int, codes: list[str]) -> None:
    limits = {"min": 0, "max": 9}
    assert cell(value, kind="integer", check=True, **limits) == (str(value), codes)
    assert cell(value, kind="integer", **limits) == (str(value), [])


def test_discrete_values() -> None:
    of: dict[str, Any] = {"check": True, "discrete": ("object", "B, G")}
    assert cell("Object", **of) == ("Object", [])
    assert cell("b, g", **of) == ("b, g", [])
    assert cell("dark", **of) == ("dark", ["MD_DISCRETE_VAL_ERROR"])
    assert cell("dark", check=False, discrete=("object",)) == ("dark", [])
    assert cell(None, **of) == ("null", [])


def test_unreadable_card() -> None:
    columns = [column("A"), column("B", nulls_allowed=False), column("C")]
    values: Any = {"A": "junk", "B": "junk", "C": "fine"}
    table, findings = metadata_table(values, columns, unreadable={"A", "B", "Z"})
    assert table.decode().splitlines()[4].split() == ["null", "null", "fine"]
    assert [(f.code, f.message[0]) for f in findings] == [
        ("MD_HEADER_KEYWORD_UNREADABLE", "A"),
        ("MD_HEADER_KEYWORD_UNREADABLE", "B"),
        ("METADATA_ERROR", "B"),
    ]
