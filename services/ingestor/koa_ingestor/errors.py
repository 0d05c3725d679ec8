"""What can go wrong in the ingestor alone."""

from http import HTTPStatus

from koa_shared.errors import Conflict, Forbidden, KoaError, NotFound

__all__ = [
    "NeedsReprocess",
    "NotArchived",
    "Proprietary",
    "RangeNotSatisfiable",
    "UnknownFrame",
    "VerificationFailed",
]


class UnknownFrame(NotFound):
    """No frame has this frame_id or KOAID."""

    code = "unknown_frame"


class NotArchived(NotFound):
    """The frame is known, but not available yet."""

    code = "not_archived"


class Proprietary(Forbidden):
    """The data are proprietary; a token that names their program is needed."""

    code = "proprietary"


class NeedsReprocess(Conflict):
    """Another KOAID is written into the products: the preparer must make them anew."""

    code = "needs_reprocess"


class RangeNotSatisfiable(KoaError):
    """The range lies outside the file."""

    code = "range_not_satisfiable"
    status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
    retryable = False


class VerificationFailed(Exception):
    """An archived object is not what was declared."""
