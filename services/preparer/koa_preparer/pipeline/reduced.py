"""What the preparer decides about a set of reduced products: values in, values out (facts 5.5)."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from koa_shared.contracts import FilePrepared, Product, Program, RawFile, Recipe, Timeline
from koa_shared.errors import Rejected
from koa_shared.instruments import Instrument
from koa_shared.products import Delivery, Reduced, by_koaid, time_of

from ..providers import Facts
from ..rules import Frame, Outcome, View, core_metadata
from ..rules.frame import Identity
from .frame import acquired_time, digests

TOLD = ("frame_id", "generation", "koaid", "instrument", "level", "origin", "path")
ROLES = {".fits": "fits", ".jpg": "preview", ".png": "preview"}


def rule_of(order: Delivery, instrument: Instrument) -> Reduced:
    """Return which files make a set; raises Rejected where no rule does."""
    for rule in instrument.reduced:
        if rule.level == order.level:
            return rule
    text = f"{instrument.name} does not say which files make level {order.level}: name them"
    raise Rejected(text, code="no_rule")


def sets_in(order: Delivery, instrument: Instrument, names: Sequence[str]) -> dict[str, list[str]]:
    """Return what there is of a delivery's sets: KOAID to names that tell it."""
    rule, prefixes = rule_of(order, instrument), [p.prefix for p in instrument.naming.prefixes]
    if order.koaid:
        return {order.koaid: [name for name in names if order.koaid in name]}
    found = by_koaid(names, prefixes, str(order.night))
    return {koaid: mine for koaid, mine in found.items() if rule.begun(mine, koaid)}


def content_of(products: Sequence[Product]) -> RawFile:
    """Return what a set is as a whole: digests of the sorted lines `sha256  name`.

    So content and names decide whether two sets are the same, never a date.
    """
    found = digests("".join(sorted(f"{one.sha256}  {one.name}\n" for one in products)).encode())
    return RawFile(size=sum(p.size for p in products), sha256=found.sha256, md5=found.md5)


def role_of(name: str) -> str:
    """Return what a file of a set is to those who ask for it."""
    return ROLES.get(PurePath(name.removesuffix(".gz")).suffix, "reduced")


def about(order: Delivery, products: Sequence[Product], rules: str) -> dict[str, Any]:
    """Return what a set is made of, and by what; its program is that of its raw frame."""
    software = f"{order.pipeline} {order.pipeline_version}"
    recipe = Recipe(software=software, rules=rules)
    told = {"products": [*products], "raw": content_of(products)}
    return told | {"program": Program(), "recipe": recipe}


def prepared(row: Any, told: dict[str, Any], newest: int, view: View | None) -> FilePrepared:
    """Return a set as the ingestor takes it: `newest` in ns, `view` of its first FITS file."""
    acquired, skew = acquired_time(newest, row.detected, None)
    at, core = time_of(row.koaid), dict[str, Any]()
    if view:
        identity, facts = Identity(row.koaid, at), Facts(prepared_at=row.detected)
        frame = Frame(**vars(view), identity=identity, facts=facts, data=memoryview(b""))
        core = core_metadata(frame, Outcome(), told["raw"].size)
    return FilePrepared(
        **{name: getattr(row, name) for name in TOLD}, **told, utdatetime=at, metadata=core,
        header=view.hdus[0].header.as_list() if view else [], findings=skew,
        timeline=Timeline.model_validate(row.timeline).merged(Timeline(acquired=acquired)),
    )  # fmt: skip
