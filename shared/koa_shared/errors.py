"""Everything that can go wrong, as classes with a code.

KoaError
├── Rejected            the caller's request is wrong; trying again changes nothing
│   ├── Unauthorized, Forbidden, NotFound, Conflict
├── Unavailable         this service can't now; try again
FrameFault              the file is at fault: the frame ends INVALID
NotYet                  nothing is wrong, it is too early: look again after `delay`
DependencyDown          something else is at fault: costs the frame no attempt
LeaseLost               another worker holds the job now; drop the work
"""

from http import HTTPStatus

__all__ = [
    "Conflict",
    "DependencyDown",
    "Forbidden",
    "FrameFault",
    "KoaError",
    "LeaseLost",
    "NotFound",
    "NotYet",
    "Rejected",
    "Unauthorized",
    "Unavailable",
]


class KoaError(Exception):
    """The service could not do it."""

    code = "internal_error"
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    retryable = True

    def __init__(self, detail: str = "", *, code: str | None = None) -> None:
        super().__init__(detail or self.title)
        self.code = code or self.code

    @property
    def title(self) -> str:
        """The first line of the class's docstring."""
        return (self.__class__.__doc__ or "").strip().splitlines()[0]


class Rejected(KoaError):
    """The request can't be accepted as it is."""

    code = "rejected"
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    retryable = False


class Unauthorized(Rejected):
    """A bearer token is needed."""

    code = "unauthorized"
    status = HTTPStatus.UNAUTHORIZED


class Forbidden(Rejected):
    """The token does not have the role this needs."""

    code = "forbidden"
    status = HTTPStatus.FORBIDDEN


class NotFound(Rejected):
    """There is no such thing here."""

    code = "not_found"
    status = HTTPStatus.NOT_FOUND


class Conflict(Rejected):
    """It is not in a state that allows this."""

    code = "conflict"
    status = HTTPStatus.CONFLICT


class Unavailable(KoaError):
    """The service can't do this now."""

    code = "unavailable"
    status = HTTPStatus.SERVICE_UNAVAILABLE


class FrameFault(Exception):
    """The file is at fault; its frame ends INVALID with this code and reason."""

    def __init__(self, code: str, message: str, step: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.step = step


class NotYet(Exception):
    """Too early; look again after `delay` seconds, at no cost."""

    def __init__(self, reason: str, delay: float) -> None:
        super().__init__(reason)
        self.delay = delay


class DependencyDown(Exception):
    """A dependency (database, S3, peer, schedule, disk) is at fault."""

    def __init__(self, dependency: str, reason: str) -> None:
        super().__init__(f"{dependency}: {reason}")
        self.dependency = dependency


class LeaseLost(Exception):
    """The fencing token is no longer ours."""
