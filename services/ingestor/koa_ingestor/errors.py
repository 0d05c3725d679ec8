"""What can go wrong in the ingestor alone."""

from koa_shared.errors import Forbidden, KoaError, NotFound, Rejected


class UnknownFrame(NotFound):
    """No frame has this frame_id or KOAID."""

    code = "unknown_frame"


class UnknownPage(NotFound):
    """The night page has no such file."""

    code = "unknown_page"


class NotArchived(NotFound):
    """The frame is known, but it is not (yet) available, or has no such product."""

    code = "not_archived"


class VersionDeleted(NotFound):
    """Retention has deleted this version; a newer one holds the same raw bytes."""

    code, status = "version_deleted", 410


class Proprietary(Forbidden):
    """The data are proprietary; a token that names their program is needed."""

    code = "proprietary"


class RangeNotSatisfiable(Rejected):
    """The range lies outside the file."""

    code, status = "range_not_satisfiable", 416


class ObjectDamaged(KoaError):
    """The archived object is damaged and is not served."""

    code, retryable = "object_damaged", False

    def __init__(self, koaid: str, product: str, found: str) -> None:
        mend = f"an operator mends it with `koa reprocess {koaid}`, or restores the object"
        super().__init__(f"{product}: {found}; {mend} and asks for `koa scrub --now {koaid}`")


class VerificationFailed(Exception):
    """An archived object is not what was declared."""

    finding = "VERIFICATION_FAILED"
