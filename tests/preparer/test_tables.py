"""Tables beside a frame: extensions as IPAC text, MD5 sums."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import ascii as asciitable
from astropy.io import fits

from koa_preparer.pipeline import tables
from koa_preparer.pipeline.tables import extension_table, md5_table
from koa_shared.contracts import Finding, Severity

OUTPUT = Path(__file__).parents[2].parent / "shared" / "koa-output"
KOAID = "DE.20190615.12571.36"


def unit(hdu: Any) -> bytes:
    """Return the bytes of an extension as they lie in a file."""
    out = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(out)
    return out.getvalue()[2880:]


def binary(name: str = "DesiSlits") -> Any:
    columns = [
        fits.Column("SLIT", "J", array=[1, 2]),
        fits.Column("NAME", "20A", array=["alpha  two", ""]),
        fits.Column("RATIO", "E", array=[1.1, np.nan]),
        fits.Column("POSITION", "2D", array=[[1.5, -2], [1e-6, 3]]),
        fits.Column("AVERYVERYLONGNAME", "1L", array=[True, False]),
    ]
    return fits.BinTableHDU.from_columns(columns, name=name)


def made(hdu: Any, index: int = 3) -> tuple[str, str]:
    result = extension_table(KOAID, index, unit(hdu))
    assert isinstance(result, tuple), result
    return result[0], result[1].decode("ascii")


def refused(data: bytes) -> str:
    result = extension_table(KOAID, 1, data)
    assert isinstance(result, Finding)
    assert (result.code, result.severity, result.step) == (
        "EXT_HEADER_FILE_ERROR",
        Severity.WARNING,
        "tables",
    )
    return result.message


def test_binary_table_facts_3_9() -> None:
    name, text = made(binary())
    assert name == f"{KOAID}.ext3.DESISLITS.tbl"
    rows = [
        ("|SLIT", "|NAME", "|RATIO", "|POSITION", "|AVERYVERYLONGNAME"),
        ("|char", "|char", "|char", "|char", "|char"),
        ("|", "|", "|", "|", "|"),
        ("|", "|", "|", "|", "|"),
        (" 1", " alpha  two", " 1.1", " [ 1.5 -2. ]", " True"),
        (" 2", " ", " nan", " [1.e-06 3.e+00]", " False"),
    ]
    # Widths: a lone letter tells none (24), `20A` tells 20, `2D` and `L` less than 16.
    widths = (25, 21, 25, 17, 18)
    lines = ["".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    lines = [line + "|" for line in lines[:4]] + lines[4:]
    assert text.split("\n") == ["\\ Extended Header Name: DESISLITS", *lines, ""]


def test_text_is_ipac() -> None:
    """Another reader finds what astropy's FITS reader finds."""
    _, text = made(binary())
    table = asciitable.read(text.splitlines(), format="ipac")
    assert table.colnames == ["SLIT", "NAME", "RATIO", "POSITION", "AVERYVERYLONGNAME"]
    assert list(table["SLIT"]) == ["1", "2"]
    assert list(table["AVERYVERYLONGNAME"]) == ["True", "False"]


def test_ascii_table() -> None:
    columns = [
        fits.Column("ID", "I4", array=np.array([1, 20]), ascii=True),
        fits.Column("WHO", "A18", array=["me", "you"], ascii=True),
        fits.Column("FLUX", "F8.3", array=np.array([1.5, 2.25]), ascii=True),
    ]
    _, text = made(fits.TableHDU.from_columns(columns, name="T"))
    lines = text.splitlines()
    assert lines[1] == f"|{'ID':16}|{'WHO':18}|{'FLUX':24}|"
    assert lines[5] == f" {'1':16} {'me':18} {'1.5':24}"
    assert lines[6] == f" {'20':16} {'you':18} {'2.25':24}"


def test_name_of_the_file() -> None:
    assert made(binary("Object Cat"), 1)[0] == f"{KOAID}.ext1.OBJECT_CAT.tbl"
    assert made(binary("../A/B"), 12)[0] == f"{KOAID}.ext12._A_B.tbl"


def test_table_without_a_name_has_no_file() -> None:
    assert extension_table(KOAID, 1, unit(binary(""))) is None


def test_rows_stay_aligned_whatever_a_cell_holds() -> None:
    columns = [
        fits.Column("MATRIX", "40D", array=[np.arange(40.0), np.zeros(40)]),
        fits.Column("ODD", "30A", array=["two\nlines", "tab\there"]),
        fits.Column("VLA", "PJ()", array=np.array([[1, 2], [3]], dtype=object)),
    ]
    _, text = made(fits.BinTableHDU.from_columns(columns, name="X"))
    lines = text.splitlines()
    assert len(lines) == 7
    assert len({len(line) for line in lines[1:5]}) == 1
    assert {len(line) - len(lines[1]) for line in lines[5:]} == {-1}
    assert all(line.index("two lines") == lines[1].index("ODD") for line in lines[5:6])
    assert "tab here" in lines[6]


def test_empty_table() -> None:
    columns = [fits.Column("A", "16A"), fits.Column("B", "J")]
    _, text = made(fits.BinTableHDU.from_columns(columns, name="X", nrows=0))
    assert len(text.splitlines()) == 5


@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyWarning")
def test_last_block_without_padding_and_header_with_junk() -> None:
    data = unit(binary())
    size = 2 * (4 + 20 + 4 + 16 + 1)
    header = len(data) - 2880
    assert extension_table(KOAID, 3, data[: header + size]) == extension_table(KOAID, 3, data)
    end = data.index(b"END" + b" " * 77)
    junk = data[: end + 80] + b"\xff\x00" * ((header - end - 80) // 2) + data[header:]
    assert len(junk) == len(data)
    assert extension_table(KOAID, 3, memoryview(junk)) == extension_table(KOAID, 3, data)


def broken(old: bytes, new: bytes) -> bytes:
    data = unit(binary())
    assert data.count(old) == 1
    return data.replace(old, new)


@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyWarning")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 5760,
        unit(binary())[:100],
        broken(b"= '20A     '", b"= 'nonsense'"),
        broken(b"TFIELDS =                    5", b"TFIELDS =                  five"),
    ],
)
def test_damaged_table_is_a_finding(data: bytes) -> None:
    assert refused(data).startswith("HDU 1: ")


def test_too_long_a_table_is_a_finding() -> None:
    rows = tables.MAX_TABLE // 17
    big = fits.BinTableHDU.from_columns(
        [fits.Column("A", "1B", array=np.zeros(rows, np.uint8))], name="X"
    )
    assert "too long" in refused(unit(big))
    assert "too many" in refused(bytes(tables.MAX_DATA + 1))


def test_md5_table_facts_8_1() -> None:
    digests = {"X.metadata.table": "c" * 32, "X.fits": "a" * 32, "X.jpg": "b" * 32}
    assert md5_table(digests.items()) == (
        b"%b  X.fits\n%b  X.jpg\n%b  X.metadata.table\n" % (b"a" * 32, b"b" * 32, b"c" * 32)
    )
    assert md5_table([]) == b""


@pytest.mark.skipif(not OUTPUT.is_dir(), reason="no ../shared")
def test_real_md5_table_is_made_again() -> None:
    real = (OUTPUT / "NR.20190615.12571.36.md5sum.table").read_bytes()
    lines = [line.split() for line in real.decode().splitlines()]
    entries = [(name, md5) for md5, name in lines]
    assert len(entries) == 3
    assert md5_table(reversed(entries)) == real
