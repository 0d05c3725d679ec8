"""Table extensions of a frame as IPAC text."""

import io
from typing import Any

import numpy as np
import pytest
from astropy.io import ascii as asciitable
from astropy.io import fits

from koa_preparer.pipeline import tables
from koa_preparer.pipeline.tables import extension_text


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


def made(hdu: Any) -> str:
    return extension_text(hdu.name, unit(hdu)).decode("ascii")


def test_binary_table_facts_3_9() -> None:
    text = made(binary())
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
    text = made(binary())
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
    text = made(fits.TableHDU.from_columns(columns, name="T"))
    lines = text.splitlines()
    assert lines[1] == f"|{'ID':16}|{'WHO':18}|{'FLUX':24}|"
    assert lines[5] == f" {'1':16} {'me':18} {'1.5':24}"
    assert lines[6] == f" {'20':16} {'you':18} {'2.25':24}"


def test_rows_stay_aligned_whatever_a_cell_holds() -> None:
    columns = [
        fits.Column("MATRIX", "40D", array=[np.arange(40.0), np.zeros(40)]),
        fits.Column("ODD", "30A", array=["two\nlines", "tab\there"]),
        fits.Column("VLA", "PJ()", array=np.array([[1, 2], [3]], dtype=object)),
    ]
    text = made(fits.BinTableHDU.from_columns(columns, name="X"))
    lines = text.splitlines()
    assert len(lines) == 7
    assert len({len(line) for line in lines[1:5]}) == 1
    assert {len(line) - len(lines[1]) for line in lines[5:]} == {-1}
    assert all(line.index("two lines") == lines[1].index("ODD") for line in lines[5:6])
    assert "tab here" in lines[6]


def test_empty_table() -> None:
    columns = [fits.Column("A", "16A"), fits.Column("B", "J")]
    text = made(fits.BinTableHDU.from_columns(columns, name="X", nrows=0))
    assert len(text.splitlines()) == 5


@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyWarning")
def test_last_block_without_padding_and_header_with_junk() -> None:
    data = unit(binary())
    size = 2 * (4 + 20 + 4 + 16 + 1)
    header = len(data) - 2880
    assert extension_text("X", data[: header + size]) == extension_text("X", data)
    end = data.index(b"END" + b" " * 77)
    junk = data[: end + 80] + b"\xff\x00" * ((header - end - 80) // 2) + data[header:]
    assert len(junk) == len(data)
    assert extension_text("X", memoryview(junk)) == extension_text("X", data)


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
def test_damaged_table_is_refused(data: bytes) -> None:
    with pytest.raises(Exception, match=r"."):
        extension_text("X", data)


def test_too_long_a_table_is_refused() -> None:
    rows = tables.MAX_TABLE // 17
    big = fits.BinTableHDU.from_columns(
        [fits.Column("A", "1B", array=np.zeros(rows, np.uint8))], name="X"
    )
    with pytest.raises(ValueError, match="too long"):
        made(big)
    with pytest.raises(ValueError, match="too many"):
        extension_text("X", bytes(tables.MAX_DATA + 1))
