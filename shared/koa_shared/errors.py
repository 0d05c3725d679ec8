"""Everything that can go wrong, as classes with a code.

KoaError                an answer of the API: code, HTTP status, retryable
├── Rejected            the request is wrong; trying again changes nothing
│   └── Unauthorized, Forbidden, NotFound, Conflict
FrameFault              the file is at fault: the frame ends INVALID
NotYet                  nothing is wrong, it is too early: look again after `delay`
DependencyDown          something else is at fault: costs the frame no attempt
LeaseLost               another worker holds the job now; drop the work
"""


class KoaError(Exception):
    """The service could not do it."""

    code = "internal_error"
    status = 500
    retryable = True

    def __init__(self, detail: str = "", *, code: str | None = None) -> None:
        self.title = (type(self).__doc__ or "").split("\n")[0]
        self.code = code or self.code
        super().__init__(detail or self.title)


class Rejected(KoaError):
    """The request can't be accepted as it is."""

    code, status, retryable = "rejected", 422, False


class Unauthorized(Rejected):
    """A bearer token is needed."""

    code, status = "unauthorized", 401


class Forbidden(Rejected):
    """The token does not have the role this needs."""

    code, status = "forbidden", 403


class NotFound(Rejected):
    """There is no such thing here."""

    code, status = "not_found", 404


class Conflict(Rejected):
    """It is not in a state that allows this."""

    code, status = "conflict", 409


class FrameFault(Exception):
    """The file is at fault; its frame ends INVALID with this code and reason."""

    def __init__(self, code: str, message: str, step: str = "read") -> None:
        super().__init__(message)
        self.code, self.step = code, step


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
