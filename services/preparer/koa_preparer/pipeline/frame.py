"""What the preparer decides and makes of one file: values in, values out (design 6)."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from koa_shared import fits
from koa_shared.contracts import FilePrepared, Finding, Product
from koa_shared.errors import FrameFault
from koa_shared.fits import Structure, Value
from koa_shared.ids import safe_name

from ..preview import Image, PreviewSpec, previews
from ..rules import Frame, Outcome
from .metadata import Column, metadata_table
from .tables import extension_table, md5_table, warning

END = b"END".ljust(8)
SKEW = timedelta(seconds=60)  # how far a file may precede its broadcast (design 4)
HASHED = (".fits", ".jpg", ".metadata.table", ".tbl")  # what the MD5 table covers (facts 3.9)


class Digests(NamedTuple):
    """SHA-256 and MD5 in hex, and the bytes they are of."""

    size: int
    sha256: str
    md5: str


class Content(NamedTuple):
    """A product before it is stored: one or two buffers, one behind the other."""

    name: str
    role: str
    buffers: tuple[bytes | memoryview, ...]


def digests(*buffers: bytes | memoryview) -> Digests:
    """Return the digests of the buffers, one behind the other."""
    sha, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    for buffer in buffers:
        sha.update(buffer)
        md5.update(buffer)
    return Digests(sum(map(len, buffers)), sha.hexdigest(), md5.hexdigest())


def acquired_time(
    mtime_ns: int, detected: datetime, broadcast: datetime | None
) -> tuple[datetime, list[Finding]]:
    """Return when the raw file was last written (design 4).

    That is its own time, cut to milliseconds as all times on the wire, unless it can't be
    true: then it is the broadcast's stamp (or the detection), with CLOCK_SKEW.
    """
    mtime = datetime.fromtimestamp(mtime_ns // 1_000_000 / 1000, UTC)
    if mtime > detected:
        why = f"the file's time {mtime} lies after its detection"
    elif broadcast is not None and mtime < broadcast - SKEW:
        why = f"the file's time {mtime} lies over 60 s before its broadcast"
    else:
        return mtime, []
    return min(broadcast or detected, detected), [warning("CLOCK_SKEW", "read", why)]


def odd_structure(structure: Structure) -> list[Finding]:
    """Return what is odd about a complete file; it is kept byte for byte."""
    behind = f"{structure.trailing} bytes stand behind the last HDU"
    odd = (
        (structure.header_junk, "HEADER_JUNK", "the fill behind END is not blanks"),
        (structure.padding_missing, "PADDING_MISSING", "the last block is not filled up"),
        (structure.trailing, "TRAILING_BYTES", behind),
    )
    return [warning(code, "structure", text) for there, code, text in odd if there]


def checksum_findings(data: memoryview, structure: Structure) -> list[Finding]:
    """Return CHECKSUM_MISMATCH for each HDU whose sums do not fit its bytes."""
    wrong = [(hdu, fits.verify_checksums(data, hdu)) for hdu in structure.hdus]
    texts = [f"HDU {h.index} {h.name}: {' and '.join(c)} do not match" for h, c in wrong if c]
    return [warning("CHECKSUM_MISMATCH", "structure", text) for text in texts]


def storable(koaid: str) -> str:
    """Return the KOAID; raises FrameFault if it can't be part of a name."""
    if safe_name(koaid) != koaid:
        raise FrameFault("INVALID_KOAID", f"{koaid!r} is no KOAID", "identity")
    return koaid


def read_header(raw: bytes) -> fits.Header:
    """Return the header in these bytes, which hold an END card."""
    ends = (at for at in range(0, len(raw), fits.CARD) if raw[at : at + 8] == END)
    return fits.Header(raw[: next(ends)])


def archived_header(
    data: memoryview, structure: Structure, updates: Sequence[tuple[str, Value, str]]
) -> bytes:
    """Return the primary header with KOA's keywords and correct checksums."""
    primary = structure.hdus[0]
    header = fits.edit_header(bytes(data[primary.start : primary.data_start]), updates)
    if "CHECKSUM" not in primary.header and "DATASUM" not in primary.header:
        return header
    total = fits.datasum(data[primary.data_start : primary.data_end])
    return fits.with_checksum(header, total)


def preview_products(frame: Frame, spec: PreviewSpec) -> tuple[list[Content], list[Finding]]:
    """Return the previews; what can't be drawn is a finding, never a fault."""
    try:
        pairs = [(fits.pixels(frame.data, hdu), hdu.header.get("BSCALE")) for hdu in frame.hdus]
        images = [
            Image(pixels, scale if isinstance(scale, int | float) else 1.0)
            for pixels, scale in pairs
            if pixels is not None
        ]
        made = previews(frame.identity.koaid, spec, images)
    except Exception as error:  # noqa: BLE001 (any pixel content may come)
        text = f"{type(error).__name__}: {error}"[:500]
        return [], [warning("MAKE_JPG_ERROR", "preview", text)]
    return [Content(name, "preview", (jpeg,)) for name, jpeg in made], []


def small_products(
    frame: Frame, outcome: Outcome, columns: Sequence[Column], size: int
) -> tuple[list[Content], list[Finding]]:
    """Return raw header, extension tables and metadata; `size` is of KOAID.fits in bytes."""
    koaid, primary, view = frame.identity.koaid, frame.hdus[0], memoryview(frame.data)
    raw = bytes(view[primary.start : primary.data_start])
    contents, findings = [Content(f"{koaid}.raw_header", "raw_header", (raw,))], []
    tables = [hdu for hdu in frame.hdus if "TABLE" in hdu.kind]
    for hdu in tables if frame.instrument.extension_tables else ():
        match extension_table(koaid, hdu.index, view[hdu.start : hdu.end]):
            case Finding() as found:
                findings.append(found)
            case (name, text):
                contents.append(Content(name, "table", (text,)))
            case None:
                pass
    # What stands in the metadata (facts 3.1, step 17): what a rule has mended is read
    # from the rule, not from the card.
    values = {card.keyword: primary.header.get(card.keyword) for card in primary.header.cards}
    values |= {keyword: value for keyword, (value, _) in outcome.keywords.items()}
    values |= {"FILESIZE_MB": round(size / 1e6, 4)} | outcome.extra
    unreadable = {card.keyword for card in primary.header.cards if card.unreadable}
    text, remarks = metadata_table(values, columns, unreadable - outcome.keywords.keys())
    contents.append(Content(f"{koaid}.metadata.table", "metadata", (text,)))
    return contents, findings + remarks


def md5_product(koaid: str, stored: Mapping[str, Digests]) -> Content:
    """Return KOAID.md5sum.table over the products it covers in KOA (facts 3.9)."""
    covered = [(name, found.md5) for name, found in stored.items() if name.endswith(HASHED)]
    return Content(f"{koaid}.md5sum.table", "md5", (md5_table(covered),))


def manifest(prepared: FilePrepared) -> Content:
    """Return KOAID.manifest.json: all that the catalogue can be rebuilt from."""
    body = prepared.model_dump(mode="json")
    text = json.dumps(body, separators=(",", ":"), sort_keys=True).encode()
    return Content(f"{prepared.koaid}.manifest.json", "manifest", (text,))


def product(name: str, role: str, key: str, found: Digests) -> Product:
    """Return a stored product as the contract tells it."""
    return Product(name=name, role=role, key=key, **found._asdict())


def stored_header(cards: Sequence[Sequence[Value]]) -> fits.Hdu:
    """Return a primary HDU with a header that was stored as a list, and no data."""
    raw, end = b"", b"END".ljust(fits.CARD)
    for keyword, value, _ in cards:
        with suppress(ValueError):  # of NAXISn and malformed ones no card can be made
            raw += read_header(fits.edit_header(end, [(str(keyword), value, "")])).raw
    return fits.Hdu(0, "", "PRIMARY", fits.Header(raw), 0, 0, 0, 8, ())
