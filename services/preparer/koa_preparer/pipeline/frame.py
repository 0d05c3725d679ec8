"""What the preparer decides and makes of one file: values in, values out (design 6)."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from koa_shared import fits
from koa_shared.contracts import FilePrepared, Finding, Product, Severity, utcnow
from koa_shared.errors import FrameFault
from koa_shared.fits import Structure, Value
from koa_shared.ids import safe_name

from ..preview import Image, PreviewSpec, previews
from ..rules import Frame, Outcome
from .metadata import Column, metadata_table
from .tables import extension_table, md5_table

__all__ = [
    "Content",
    "Digests",
    "acquired_time",
    "archived_header",
    "checksum_findings",
    "digests",
    "manifest",
    "odd_structure",
    "small_products",
    "storable",
]

END = b"END".ljust(8)
SKEW = timedelta(seconds=60)  # how far a file may precede its broadcast (design 4)


@dataclass(frozen=True, slots=True)
class Digests:
    """SHA-256 and MD5 in hex, and the bytes they are of."""

    size: int
    sha256: str
    md5: str


@dataclass(frozen=True, slots=True)
class Content:
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
    return Digests(sum(len(b) for b in buffers), sha.hexdigest(), md5.hexdigest())


def warning(code: str, step: str, message: str) -> Finding:
    """Return a finding that only stands on record."""
    return Finding(code=code, severity=Severity.WARNING, step=step, message=message)


def acquired_time(
    mtime_ns: int, detected: datetime, broadcast: datetime | None
) -> tuple[datetime, Finding | None]:
    """Return when the raw file was last written (design 4).

    The file's own time, unless it lies after its detection or over 60 s before the
    broadcast's stamp: then the stamp is used (or the detection), with CLOCK_SKEW.
    """
    mtime = datetime.fromtimestamp(mtime_ns / 1e9, UTC)
    instead = min(broadcast or detected, detected)
    if mtime > detected:
        why = f"the file's time {mtime:%H:%M:%S.%f} lies after its detection"
    elif broadcast is not None and mtime < broadcast - SKEW:
        why = f"the file's time {mtime} lies over 60 s before its broadcast"
    else:
        return mtime, None
    return instead, warning("CLOCK_SKEW", "read", why)


def odd_structure(structure: Structure) -> list[Finding]:
    """Return what is odd about a complete file; it is kept byte for byte."""
    found = []
    if structure.header_junk:
        text = "the fill behind END is not blanks"
        found.append(warning("HEADER_JUNK", "structure", text))
    if structure.padding_missing:
        text = "the last data unit is not filled up to a block"
        found.append(warning("PADDING_MISSING", "structure", text))
    if structure.trailing:
        text = f"{structure.trailing} bytes stand behind the last HDU"
        found.append(warning("TRAILING_BYTES", "structure", text))
    return found


def checksum_findings(data: memoryview, structure: Structure) -> list[Finding]:
    """Return CHECKSUM_MISMATCH for each HDU whose sums do not fit its bytes."""
    return [
        warning(
            "CHECKSUM_MISMATCH", "structure",
            f"HDU {hdu.index} {hdu.name}: {' and '.join(cards)} do not match",
        )
        for hdu in structure.hdus
        if (cards := fits.verify_checksums(data, hdu))
    ]  # fmt: skip


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


def preview_products(
    frame: Frame, koaid: str, spec: PreviewSpec
) -> tuple[list[Content], list[Finding]]:
    """Return the previews; what can't be drawn is a finding, never a fault."""
    try:
        images = [
            Image(pixels, _scale(frame.hdus[hdu.index].header.get("BSCALE")))
            for hdu in frame.hdus
            if (pixels := fits.pixels(frame.data, hdu)) is not None
        ]
        made = previews(koaid, spec, images)
    except Exception as error:  # noqa: BLE001 (any pixel content may come)
        text = f"{type(error).__name__}: {error}"[:500]
        return [], [warning("MAKE_JPG_ERROR", "preview", text)]
    return [Content(name, "preview", (jpeg,)) for name, jpeg in made], []


def _scale(value: Value) -> float:
    return float(value) if isinstance(value, int | float) and value else 1.0


def table_products(
    frame: Frame, koaid: str
) -> tuple[list[Content], list[Finding]]:
    """Return the text tables of the named table extensions."""
    contents: list[Content] = []
    findings: list[Finding] = []
    view = memoryview(frame.data)
    for hdu in frame.hdus:
        if "TABLE" not in hdu.kind:
            continue
        made = extension_table(koaid, hdu.index, view[hdu.start : hdu.end])
        if isinstance(made, Finding):
            findings.append(made)
        elif made is not None:
            contents.append(Content(made[0], "table", (made[1],)))
    return contents, findings


def small_products(
    frame: Frame, outcome: Outcome, columns: Sequence[Column], size: int
) -> tuple[list[Content], list[Finding]]:
    """Return the raw header, the extension tables and the metadata table."""
    koaid = frame.identity.koaid
    primary = frame.hdus[0]
    raw = bytes(memoryview(frame.data)[primary.start : primary.data_start])
    contents, findings = table_products(frame, koaid)
    values = metadata_values(frame, outcome, size)
    unreadable = {c.keyword for c in primary.header.cards if c.unreadable}
    table, remarks = metadata_table(values, columns, unreadable)
    contents += [
        Content(f"{koaid}.raw_header", "raw_header", (raw,)),
        Content(f"{koaid}.metadata.table", "metadata", (table,)),
    ]
    return contents, findings + remarks


def metadata_values(frame: Frame, outcome: Outcome, size: int) -> dict[str, Value]:
    """Return the values that the metadata table is made of (facts 3.1, step 17)."""
    header = frame.hdus[0].header
    values = {card.keyword: card.value for card in reversed(header.cards)}
    values |= {keyword: value for keyword, (value, _) in outcome.keywords.items()}
    values["FILESIZE_MB"] = round(size / 1e6, 4)
    return values | outcome.extra


def md5_product(koaid: str, stored: Mapping[str, Digests]) -> Content:
    """Return KOAID.md5sum.table over the products it covers in KOA (facts 3.9)."""
    covered = [
        (name, found.md5)
        for name, found in stored.items()
        if name.endswith((".fits", ".jpg", ".metadata.table", ".tbl"))
    ]
    return Content(f"{koaid}.md5sum.table", "md5", (md5_table(covered),))


def manifest(prepared: FilePrepared) -> Content:
    """Return KOAID.manifest.json: all that the catalogue can be rebuilt from."""
    body = prepared.model_dump(mode="json")
    text = json.dumps(body, separators=(",", ":"), sort_keys=True).encode()
    return Content(f"{prepared.koaid}.manifest.json", "manifest", (text,))


def product(content: Content, key: str, found: Digests) -> Product:
    """Return a stored product as the contract tells it."""
    return Product(
        name=content.name, role=content.role, key=key, size=found.size,
        sha256=found.sha256, md5=found.md5,
    )  # fmt: skip


def still_growing(since: datetime, limit: float) -> float | None:
    """Return the delay before an incomplete file is read again, None to give up."""
    waited = (utcnow() - since).total_seconds()
    return None if waited >= limit else min(max(waited / 2, 0.05), 5.0)
