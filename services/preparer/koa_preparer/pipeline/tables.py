"""Tables beside a frame as IPAC text, and what is noticed while they are made."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from astropy.io import fits

from koa_shared.contracts import Finding, Severity

MAX_TABLE = 16 * 2**20  # bytes of text, a second of a core; the FITS file has larger ones
MAX_DATA = 4 * MAX_TABLE  # bytes of an HDU that is read at all
MIN_WIDTH, UNKNOWN_WIDTH = 16, 24  # facts 3.1, step 18
Lines = Iterable[Sequence[str]]


def warning(code: str, step: str, message: str) -> Finding:
    """Return a finding that only stands on record."""
    return Finding(code=code, severity=Severity.WARNING, step=step, message=message)


@contextmanager
def noting(findings: list[Finding], code: str, step: str, what: str) -> Iterator[None]:
    """Make a finding, never a fault, of whatever happens: data may hold anything."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 see above
        text = f"{what}: {type(error).__name__}: {error}"[:500]
        findings.append(warning(code, step, text))


def ipac_text(widths: Iterable[int], heads: Lines, rows: Lines) -> str:
    """Return IPAC text: the cells of `heads` stand between bars, of `rows` behind blanks."""
    head = "".join(f"|{{:{width}}}" for width in widths)
    row = head.replace("|", " ")
    lines = [f"{head}|".format(*cells) for cells in heads] + [row.format(*cells) for cells in rows]
    return "\n".join(lines) + "\n"


def extension_text(name: str, hdu: bytes | memoryview) -> bytes:
    """Return a table extension as text (facts 3.9); a damaged one raises anything."""
    if len(hdu) > MAX_DATA:
        raise ValueError(f"{len(hdu)} bytes are too many for a text table")
    data = bytes(hdu).ljust(-(-len(hdu) // 2880) * 2880, b"\0")
    binary = data.startswith(b"XTENSION= 'BINTABLE'")
    table = (fits.BinTableHDU if binary else fits.TableHDU).fromstring(data)
    names = [str(name or "") for name in table.columns.names]
    widths = list(map(_width, names, map(str, table.columns.formats)))
    _check_size(widths, len(table.data))
    columns = [list(map(_cell, table.data.field(n))) for n in range(len(names))]
    # A cell that is too long widens its column: each row stands where the header says.
    widths = [max([width, *map(len, cells)]) for width, cells in zip(widths, columns, strict=True)]
    _check_size(widths, len(table.data))
    blanks = [""] * len(names)
    heads = (names, ["char"] * len(names), blanks, blanks)  # all `char`, as in production
    text = ipac_text(widths, heads, zip(*columns, strict=True))
    return f"\\ Extended Header Name: {name}\n{text}".encode("ascii", "replace")


def _check_size(widths: Sequence[int], rows: int) -> None:
    if (sum(widths) + len(widths) + 2) * (rows + 4) > MAX_TABLE:
        raise ValueError(f"{rows} rows of {len(widths)} columns are too long a text")


def _cell(value: object) -> str:
    """Return the value on one line (numpy shows arrays on several)."""
    text = str(value)
    return text if text.isprintable() else " ".join(re.split(r"[\x00-\x20]+", text))


def _width(name: str, form: str) -> int:
    """Return the width a FITS format tells: `A20` and `20A` do, `F8.3` does not."""
    told = next((part for part in (form[1:], form[:-1]) if part.isdigit()), None)
    return max(MIN_WIDTH, int(told or UNKNOWN_WIDTH), len(name))
