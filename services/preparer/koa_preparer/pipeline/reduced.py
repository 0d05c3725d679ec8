"""What the preparer decides about a set of reduced products: values in, values out (facts 5.5)."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from koa_shared.contracts import FilePrepared, Product, Program, RawFile, Recipe, Timeline
from koa_shared.instruments import Instrument
from koa_shared.products import Delivery, Reduced, by_koaid, time_of

from ..providers import Facts
from ..rules import Frame, Outcome, View, core_metadata
from ..rules.frame import Identity
from .frame import acquired_time, digests

TOLD = ("frame_id", "generation", "koaid", "instrument", "level", "origin", "path")
ROLES = {".fits": "fits", ".jpg": "preview", ".png": "preview"}


def rule_of(order: Delivery, instrument: Instrument) -> Reduced:
    """Return which files make a set; raises LookupError where no rule does."""
    for rule in instrument.reduced:
        if rule.level == order.level:
            return rule
    raise LookupError(f"{instrument.name} does not say which files make level {order.level}")


def sets_in(order: Delivery, instrument: Instrument, names: Sequence[str]) -> dict[str, list[str]]:
    """Return what there is of a delivery's sets: KOAID to names that tell it."""
    if order.koaid:
        named = [name for name in names if order.koaid in name]
        return {order.koaid: [*named_files(order)] or named}
    rule, prefixes = rule_of(order, instrument), [p.prefix for p in instrument.naming.prefixes]
    found = by_koaid(names, prefixes, str(order.night))
    return {koaid: mine for koaid, mine in found.items() if rule.begun(mine, koaid)}


def named_files(order: Delivery) -> dict[str, None]:
    """Return the files that an order names, in its order."""
    return dict.fromkeys(order.files or order.manifest)


def content_of(products: Sequence[Product]) -> RawFile:
    """Return what a set is as a whole: digests of the sorted lines `sha256  name`.

    So content and names decide whether two sets are the same, never a date.
    """
    found = digests("".join(sorted(f"{one.sha256}  {one.name}\n" for one in products)).encode())
    return RawFile(size=sum(p.size for p in products), sha256=found.sha256, md5=found.md5)


def role_of(name: str) -> str:
    """Return what a file of a set is to those who ask for it."""
    return ROLES.get(PurePath(name.removesuffix(".gz")).suffix, "reduced")


def core_of(view: View, koaid: str, size: int) -> dict[str, Any]:
    """Return the catalogue's core columns from a product's own header; `size` in bytes."""
    facts, identity = Facts(prepared_at=view.mtime), Identity(koaid, time_of(koaid))
    frame = Frame(**vars(view), identity=identity, facts=facts, data=memoryview(b""))
    return core_metadata(frame, Outcome(), size)


def prepared(  # noqa: PLR0913 (keyword-only)
    row: Any, *, order: Delivery, attempt: int, products: Sequence[Product],
    newest: int, view: View | None, rules: str,
) -> FilePrepared:  # fmt: skip
    """Return a whole set as the ingestor takes it; its program is that of its raw frame."""
    raw, koaid = content_of(products), str(row.koaid)
    acquired, skew = acquired_time(newest, row.detected, None)
    told = {name: getattr(row, name) for name in TOLD}
    software = f"{order.pipeline} {order.pipeline_version}"
    return FilePrepared(
        **told, attempt=attempt, utdatetime=time_of(koaid), products=[*products], raw=raw,
        metadata=core_of(view, koaid, raw.size) if view else {},
        header=view.hdus[0].header.as_list() if view else [], program=Program(), findings=skew,
        timeline=Timeline.model_validate(row.timeline).merged(Timeline(acquired=acquired)),
        recipe=Recipe(software=software, rules=rules),
    )  # fmt: skip
