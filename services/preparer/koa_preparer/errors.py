"""What can go wrong in the preparer alone."""

from koa_shared.errors import Conflict, KoaError, NotFound


class UnknownFrame(NotFound):
    """No such frame was ever announced here."""

    code = "unknown_frame"


class NotAnEnd(Conflict):
    """The frame is still on its way; only an end can be left."""

    code = "not_an_end"


class NoDirectory(KoaError):
    """The directory is not there, or can't be seen from here yet."""

    code, status = "no_directory", 503


class RawGone(Exception):
    """The raw file has changed and the archive has no copy of what was recorded."""
