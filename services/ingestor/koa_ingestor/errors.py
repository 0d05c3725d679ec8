"""What can go wrong in the ingestor alone."""

from koa_shared.errors import Forbidden, NotFound, Rejected


class UnknownFrame(NotFound):
    """No frame has this frame_id or KOAID."""

    code = "unknown_frame"


class NotArchived(NotFound):
    """The frame is known, but it is not (yet) available, or has no such product."""

    code = "not_archived"


class Proprietary(Forbidden):
    """The data are proprietary; a token that names their program is needed."""

    code = "proprietary"


class RangeNotSatisfiable(Rejected):
    """The range lies outside the file."""

    code, status = "range_not_satisfiable", 416


class VerificationFailed(Exception):
    """An archived object is not what was declared."""

    finding = "VERIFICATION_FAILED"
