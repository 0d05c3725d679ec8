"""Tables beside a frame: its table extensions as IPAC text, and the MD5 table."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from koa_shared.contracts import Finding, Severity
from koa_shared.ids import safe_name

# Bytes of one text table.  Making 16 MiB takes about a second of a core; what is
# larger is still in the FITS file.
MAX_TABLE = 16 * 2**20
MAX_DATA = 4 * MAX_TABLE  # bytes of an HDU that is read at all
BLOCK = 2880
MIN_WIDTH, UNKNOWN_WIDTH = 16, 24  # facts 3.1, step 18


def extension_table(
    koaid: str, index: int, hdu: bytes | memoryview
) -> tuple[str, bytes] | Finding | None:
    """Return name and text of `KOAID.ext{N}.{NAME}.tbl` (facts 2.5, 3.9).

    `hdu` are all bytes of a table extension, `index` is its number in the file.  None
    if it has no name; a finding if it can't be read or its text would be too long.
    """
    try:
        table = _open(hdu)
        if not table.name:
            return None
        name = safe_name(str(table.name))
        return f"{koaid}.ext{index}.{name}.tbl", _ipac(table)
    except Exception as error:  # noqa: BLE001 a damaged table raises anything
        return Finding(
            code="EXT_HEADER_FILE_ERROR",
            severity=Severity.WARNING,
            step="tables",
            message=f"HDU {index}: {type(error).__name__}: {error}"[:500],
        )


def _open(hdu: bytes | memoryview) -> Any:
    from astropy.io import fits  # noqa: PLC0415 0.7 s; see `warm`

    if len(hdu) > MAX_DATA:
        raise ValueError(f"{len(hdu)} bytes are too many for a text table")
    data = bytes(hdu).ljust(-(-len(hdu) // BLOCK) * BLOCK, b"\0")
    binary = data.startswith(b"XTENSION= 'BINTABLE'")
    kind = fits.BinTableHDU if binary else fits.TableHDU
    return kind.fromstring(data)


def _ipac(table: Any) -> bytes:
    """Return the text; all columns are `char`, as production has them.

    A cell that is too long widens its column: each row stands where the header says.
    """
    names = [str(name or "") for name in table.columns.names]
    widths = list(map(_width, names, map(str, table.columns.formats)))
    rows = len(table.data)
    _check_size(widths, rows)
    cells = [list(map(_text, table.data.field(n))) for n in range(len(names))]
    widths = [max([width, *map(len, column)]) for width, column in zip(widths, cells, strict=True)]
    _check_size(widths, rows)
    heads = (names, ["char"] * len(names), [""] * len(names), [""] * len(names))
    lines = [f"\\ Extended Header Name: {table.name}"]
    lines += [_line("|", head, widths) + "|" for head in heads]
    lines += [_line(" ", row, widths) for row in zip(*cells, strict=True)]
    return ("\n".join(lines) + "\n").encode("ascii", "replace")


def _check_size(widths: Sequence[int], rows: int) -> None:
    if (sum(widths) + len(widths) + 2) * (rows + 4) > MAX_TABLE:
        raise ValueError(f"{rows} rows of {len(widths)} columns are too long a text")


def _line(before: str, texts: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(f"{before}{t:{width}}" for t, width in zip(texts, widths, strict=True))


def _text(value: object) -> str:
    """Return the value on one line (numpy shows arrays on several)."""
    text = str(value)
    return text if text.isprintable() else " ".join(re.split(r"[\x00-\x20]+", text))


def _width(name: str, form: str) -> int:
    """Return the width a FITS format tells: `A20` and `20A` do, `F8.3` does not."""
    told = next((part for part in (form[1:], form[:-1]) if part.isdigit()), None)
    return max(MIN_WIDTH, int(told or UNKNOWN_WIDTH), len(name))


def md5_table(entries: Iterable[tuple[str, str]]) -> bytes:
    """Return the MD5 table of (name, hex digest), sorted by name (facts 8.1)."""
    lines = (f"{md5}  {name}\n" for name, md5 in sorted(entries))
    return "".join(lines).encode("ascii")


def warm() -> None:
    """Import what the first table would wait for: call it at start."""
    extension_table("", 1, b"")
