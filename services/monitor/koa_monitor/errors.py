"""What can go wrong in the monitor alone."""

from koa_shared.errors import NotFound, Rejected


class UnknownSource(NotFound):
    """No source of that name is heard here."""

    code = "unknown_source"


class UnknownInstrument(Rejected):
    """The instrument is not configured, or can't be told from the path."""

    code = "unknown_instrument"


class FileMissing(Rejected):
    """There is no such file."""

    code = "FITS_NOT_FOUND"
