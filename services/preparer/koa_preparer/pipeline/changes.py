"""What another preparation of a frame would change: values in, values out."""

from collections.abc import Sequence
from typing import Any

from koa_shared.contracts import FilePrepared, Finding


def _told(version: FilePrepared | None, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return what a preparation says: keywords by name, all else behind its kind and a dot."""
    found: dict[str, Any] = {"status": "COMPLETE" if version else "INVALID"}
    found |= {f"finding.{finding.code}": finding.severity for finding in findings}
    if version is None:
        return found
    program, kept = version.program.model_dump(mode="json"), version.products
    return (
        found
        | {"koaid": version.koaid}
        | {str(card[0]): card[1] for card in version.header}
        | {f"catalogue.{name}": value for name, value in version.metadata.items()}
        | {f"program.{name}": value for name, value in program.items()}
        # The manifest tells times and generation: it always differs.
        | {f"product.{p.name}": p.sha256[:12] for p in kept if p.role != "manifest"}
    )


def changes(
    old: tuple[FilePrepared | None, Sequence[Finding]],
    new: tuple[FilePrepared | None, Sequence[Finding]],
) -> dict[str, list[Any]]:
    """Return [before, after] of all that differs; None is what there is not.

    A preparation is its message, None if the frame was or would be refused, and its findings.
    """
    before, after = _told(*old), _told(*new)
    if new[0] is None:  # what would be refused has no products to compare
        before = {k: v for k, v in before.items() if k == "status" or k.startswith("finding.")}
    names = dict.fromkeys([*after, *before])
    pairs = {name: [before.get(name), after.get(name)] for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
