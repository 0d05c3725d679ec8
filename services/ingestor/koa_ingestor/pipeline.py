"""What the ingestor decides: values in, values out."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from koa_shared.contracts import FilePrepared, Product

__all__ = ["Claimed", "Verdict", "archive_key", "judge", "promotion_order"]


class Verdict(StrEnum):
    """What becomes of a prepared frame."""

    NEW = "new"
    RESUME = "resume"
    WAIT = "wait"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True)
class Claimed:
    """A version of a KOAID: whose it is, of which bytes, and whether it is kept."""

    version: int
    frame_id: str
    generation: int
    raw_sha256: str
    committed: bool


def judge(
    frame: FilePrepared, versions: Sequence[Claimed], *, accepted: bool
) -> tuple[Verdict, Claimed | None]:
    """Compare a frame with what its KOAID holds already (design 4, "same bytes").

    `accepted` is an operator's word that other raw bytes are the next version.
    """
    for held in versions:
        if (held.frame_id, held.generation) == (frame.frame_id, frame.generation):
            return Verdict.RESUME, held
    kept = [v for v in versions if v.committed]
    if any(v.frame_id == frame.frame_id for v in kept):
        return Verdict.NEW, None
    for held in kept:
        if held.raw_sha256 == frame.raw.sha256:
            return Verdict.DUPLICATE, held
    if kept and not accepted:
        return Verdict.CONFLICT, kept[-1]
    for held in versions:
        if not held.committed and held.frame_id != frame.frame_id:
            return Verdict.WAIT, held
    return Verdict.NEW, None


def archive_key(frame: FilePrepared, version: int, name: str) -> str:
    """Return where a product is kept (design 6)."""
    day = frame.koaid.split(".")[1]
    return (
        f"{frame.instrument}/{day}/lev{frame.level}/{frame.koaid}/v{version}/{name}"
    )


def promotion_order(products: Sequence[Product]) -> list[Product]:
    """Return the products, the largest first: the others are done beside it."""
    return sorted(products, key=lambda product: -product.size)
