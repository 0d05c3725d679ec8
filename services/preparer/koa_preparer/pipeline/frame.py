"""What the preparer decides and makes of one file: values in, values out (design 6)."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from koa_shared import fits
from koa_shared.contracts import FilePrepared, Finding
from koa_shared.errors import FrameFault
from koa_shared.ids import safe_name

from ..preview import Shot, pictures, preview
from ..rules import Frame, Outcome
from .metadata import Column, metadata_table
from .tables import extension_text, noting, warning

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
    stamp = broadcast or detected
    if mtime <= detected and (broadcast is None or mtime >= broadcast - SKEW):
        return mtime, []
    why = f"the file's time {mtime} does not fit broadcast ({stamp}) and detection ({detected})"
    return min(stamp, detected), [warning("CLOCK_SKEW", "read", why)]


def odd_structure(structure: fits.Structure) -> list[Finding]:
    """Return what is odd about a complete file; it is kept byte for byte."""
    return [warning(code, "structure", text) for code, text in structure.odd.items()]


def checksum_findings(data: memoryview, structure: fits.Structure) -> list[Finding]:
    """Return CHECKSUM_MISMATCH for each HDU whose sums do not fit its bytes."""
    found = []
    for index, hdu in enumerate(structure.hdus):
        if wrong := " and ".join(fits.verify_checksums(data, hdu)):
            text = f"HDU {index} {hdu.name}: {wrong} do not match"
            found.append(warning("CHECKSUM_MISMATCH", "structure", text))
    return found


def waivers(findings: Sequence[Finding], waived: Mapping[str, str]) -> list[Finding]:
    """Return WAIVED for each finding that an operator lets pass, with who and why."""
    let = {f.code: f.step for f in findings if f.code in waived}
    return [warning("WAIVED", step, f"{code} by {waived[code]}") for code, step in let.items()]


def reasons(row: Any, found: Digests, findings: Sequence[Finding]) -> bytes:
    """Return why a frame is INVALID, as it lies beside its file in quarantine."""
    names = ("frame_id", "generation", "instrument", "path", "origin")
    told = {name: getattr(row, name) for name in names} | found._asdict()
    told["findings"] = [finding.model_dump(mode="json") for finding in findings]
    return json.dumps(told, indent=1).encode()


def storable(koaid: str) -> str:
    """Return the KOAID; raises FrameFault if it can't be part of a name."""
    if safe_name(koaid) != koaid:
        raise FrameFault("INVALID_KOAID", f"{koaid!r} is no KOAID", "identity")
    return koaid


def read_header(raw: bytes) -> fits.Header:
    """Return what `fits.edit_header` wrote."""
    return fits.Header(fits.read_cards(raw.rstrip()[: -len("END")]))


def preview_products(frame: Frame) -> tuple[list[Content], list[Finding]]:
    """Return the previews the instrument has; what can't be drawn is a finding."""
    koaid, made, findings = frame.identity.koaid, list[Content](), list[Finding]()
    for picture in filter(lambda one: frame.holds(one.when), frame.instrument.preview):
        with noting(findings, "MAKE_JPG_ERROR", "preview", f"no preview{picture.name}"):
            images = ((n, hdu, fits.pixels(frame.data, hdu)) for n, hdu in enumerate(frame.hdus))
            shots = [Shot(n, hdu, pixels) for n, hdu, pixels in images if pixels is not None]
            for end, rows in pictures(picture, shots):
                jpeg = preview(rows, picture.stretch, picture.turn)
                made.append(Content(f"{koaid}{end}.jpg", "preview", (jpeg,)))
    return made, findings


def small_products(
    frame: Frame, outcome: Outcome, columns: Sequence[Column], size: int
) -> tuple[list[Content], list[Finding]]:
    """Return raw header, extension tables and metadata; `size` is of KOAID.fits in bytes."""
    koaid, header, view = frame.identity.koaid, frame.hdus[0].header, memoryview(frame.data)
    raw = bytes(view[: frame.hdus[0].data_start])
    contents, findings = [Content(f"{koaid}.raw_header", "raw_header", (raw,))], list[Finding]()
    for index, hdu in enumerate(frame.hdus if frame.instrument.extension_tables else ()):
        if "TABLE" in hdu.kind and hdu.name:
            with noting(findings, "EXT_HEADER_FILE_ERROR", "tables", f"HDU {index}"):
                name = hdu.name.upper()
                text = extension_text(name, view[hdu.start : hdu.end])
                file = f"{koaid}.ext{index}.{safe_name(name)}.tbl"
                contents.append(Content(file, "table", (text,)))
    # What stands in the metadata (facts 3.1, step 17): what a rule has mended is read
    # from the rule, not from the card.
    values = {keyword: header.get(keyword) for keyword in {c.keyword for c in header.cards}}
    values |= {keyword: value for keyword, (value, _) in outcome.keywords.items()}
    values |= {"FILESIZE_MB": round(size / 1e6, 4), "WAVEUNIT": frame.instrument.wave_unit}
    values |= outcome.extra
    unreadable = {card.keyword for card in header.cards if card.unreadable}
    text, remarks = metadata_table(values, columns, unreadable - outcome.keywords.keys())
    contents.append(Content(f"{koaid}.metadata.table", "metadata", (text,)))
    return contents, findings + remarks


def md5_product(koaid: str, stored: Mapping[str, Any], ends: tuple[str, ...] = HASHED) -> Content:
    """Return KOAID.md5sum.table over the products it covers in KOA (facts 3.9, 8.1)."""
    covered = sorted(name for name in stored if name.endswith(ends))
    text = "".join(f"{stored[name].md5}  {name}\n" for name in covered)
    return Content(f"{koaid}.md5sum.table", "md5", (text.encode("ascii"),))


def manifest(prepared: FilePrepared) -> Content:
    """Return KOAID.manifest.json: all that the catalogue can be rebuilt from."""
    text = prepared.model_dump_json().encode()
    return Content(f"{stem(prepared.koaid, prepared.level)}.manifest.json", "manifest", (text,))


def stem(koaid: str, level: int) -> str:
    """Return how names of files about a frame begin."""
    return f"{koaid}.lev{level}" if level else koaid


def stored_header(cards: Sequence[Sequence[fits.Value]]) -> fits.Hdu:
    """Return a primary HDU with a header that was stored as a list, and no data."""
    return fits.Hdu(fits.Header(fits.Card(str(card[0]), card[1], "") for card in cards))
