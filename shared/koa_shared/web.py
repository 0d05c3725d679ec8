"""What the three HTTP services have in common: errors, tokens, health, metrics."""

import hashlib
import time
import tomllib
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, Body, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client.exposition import choose_encoder
from pydantic import AwareDatetime, BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from . import logs
from .config import ServiceConfig, is_loopback
from .contracts import Accepted, Problem, Sha256, Time, utcnow
from .errors import DependencyDown, Forbidden, KoaError, Unauthorized

logger = structlog.get_logger("koa_shared")

# The longest honest body is a FilePrepared with 20,000 header cards, about 3 MB.
MAX_BODY = 16 << 20
BODIES = 64 << 20  # bytes of all bodies at once; parsed, they take several times that
STRANGERS = 300  # requests at once without a token, of the 500 connections (service.serve)
GRACE = 60.0  # s for which tokens outlive a file that can't be read


class Done(BaseModel):
    """An operator's deed: who, when, why, what changed."""

    id: int
    at: Time
    who: str
    verb: str
    target: str = Field(description="a frame_id, a path, a source or an instrument")
    why: str
    changed: dict[str, Any] | None


class Caller(BaseModel, frozen=True, extra="forbid"):
    """Who calls: a name, a role, and the programs whose data it may see."""

    name: str = "anonymous"
    role: str = "public"
    programs: frozenset[str] = frozenset()

    @property
    def sees_all(self) -> bool:
        """Whether no frame is hidden from this caller."""
        return self.role == "operator"


class Token(Caller, frozen=True, extra="forbid", hide_input_in_errors=True):
    """One `[[token]]` of the tokens file; `sha256` is of the token."""

    name: str = Field(min_length=1, max_length=64)
    role: Literal["producer", "operator", "observer"]
    sha256: Sha256
    expires: AwareDatetime | None = None


class TokensFile(BaseModel, extra="forbid", hide_input_in_errors=True):
    """The tokens file; an empty one is half-written."""

    token: list[Token] = Field(min_length=1)


class Tokens:
    """The tokens a service accepts, read again when their file changes.

    A file that is gone lets nobody in.  One that can't be read (half-written, mistyped)
    leaves what was known for a minute.
    """

    def __init__(self, path: Path | None, *, dev: bool) -> None:
        self._path, self._dev, self._bad_since = path, dev, 0.0
        self._stamp: tuple[int, ...] | None = None
        self._known: dict[str, Token] = {}
        self._read()

    def _read(self) -> None:
        if self._path is None:
            return
        found = self._path.stat()
        stamp = (found.st_mtime_ns, found.st_ino, found.st_size)
        if stamp != self._stamp:
            told = TokensFile.model_validate(tomllib.loads(self._path.read_text())).token
            self._known, self._stamp = {token.sha256: token for token in told}, stamp
        self._bad_since = 0.0

    def _refresh(self) -> None:
        try:
            self._read()
        except (OSError, ValueError) as error:
            now = time.monotonic()
            if not self._bad_since:
                logger.error("The tokens file can't be read", why=str(error))
            self._bad_since = self._bad_since or now
            if isinstance(error, FileNotFoundError) or now > self._bad_since + GRACE:
                self._known, self._stamp = {}, None

    def seconds_left(self) -> dict[str, float]:
        """Return how long tokens that expire still count, by name; the soonest of a name."""
        self._refresh()
        told = [(token.expires, token.name) for token in self._known.values() if token.expires]
        return {name: (end - utcnow()).total_seconds() for end, name in sorted(told)[::-1]}

    def find(self, authorization: str | None, client: str) -> Caller:
        """Return who presents this Authorization header; raises Unauthorized."""
        if self._dev and is_loopback(client):
            return Caller(name="dev", role="operator")
        if authorization is None:
            return Caller()
        self._refresh()
        # Constant time: what is compared is a digest, which a caller can't choose; how long
        # its look-up takes tells nothing about a token.
        digest = hashlib.sha256(authorization.removeprefix("Bearer ").encode()).hexdigest()
        if (found := self._known.get(digest)) is None:
            raise Unauthorized("this token is not known here")
        if found.expires and found.expires <= utcnow():
            raise Unauthorized("this token has expired")
        return found


def caller(request: Request) -> Caller:
    """Who sent this request."""
    tokens: Tokens = request.app.state.tokens
    host = request.client.host if request.client else ""
    return tokens.find(request.headers.get("authorization"), host)


def is_stranger(request: Request) -> bool:
    """Tell whether this request comes without a token that is known."""
    try:
        return caller(request).role == "public"
    except Unauthorized:
        return True


def context(request: Request) -> Any:
    """Return the service that the application belongs to."""
    return request.app.state.context


Ctx = Annotated[Any, Depends(context)]
AnyCaller = Annotated[Caller, Depends(caller)]
Bearer = Annotated[Any, Depends(HTTPBearer(auto_error=False))]  # for /docs and OpenAPI


def needs(role: str) -> Any:
    """Let in callers with this role, and operators."""

    def check(who: AnyCaller, _: Bearer) -> Caller:
        if who.role == "public":
            raise Unauthorized(f"a token with the role {role} is needed")
        if who.role not in (role, "operator"):
            raise Forbidden(f"this needs the role {role}")
        return who

    return Depends(check)


Why = Annotated[str, Body(embed=True, description="the reason, for the record")]
Producer = Annotated[Caller, needs("producer")]
Operator = Annotated[Caller, needs("operator")]


def problem(
    status: int, code: str, title: str, detail: str, *, retryable: bool = False, **more: Any
) -> JSONResponse:
    """Return an RFC 9457 answer."""
    body = Problem(
        type=f"urn:koa:problem:{code}", title=title, status=status, detail=detail,
        code=code, retryable=retryable, **more,
    ).model_dump(mode="json", exclude_none=True)  # fmt: skip
    headers = {503: {"Retry-After": "5"}, 401: {"WWW-Authenticate": "Bearer"}}.get(status)
    return JSONResponse(body, status, headers, "application/problem+json")


async def answer_error(request: Request, error: Exception) -> Response:
    """Return the problem document that tells what went wrong."""
    detail = str(error)
    match error:
        case KoaError(status=status, code=code, title=title, retryable=retryable):
            return problem(status, code, title, detail, retryable=retryable)
        case DependencyDown():
            logger.warning("A request met a dependency that is down", why=detail)
            title = "Something this needs is down"
            detail = f"{error.dependency}; the log has the reason"  # hosts, paths
            return problem(503, "dependency_down", title, detail, retryable=True)
        case RequestValidationError():
            errors = [{"loc": list(e["loc"]), "msg": e["msg"]} for e in error.errors()]
            detail = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in errors)
            title = "The request does not fit the contract"
            return problem(422, "invalid_request", title, detail, errors=errors)
        case HTTPException(status_code=status):  # of the router: no such path, or method
            title = HTTPStatus(status).phrase
            answer = problem(status, title.lower().replace(" ", "_"), title, str(error.detail))
            if status == 405:  # of all routes of this path; the router knows one
                path = getattr(request.scope.get("route"), "path", "")
                verbs = request.app.openapi()["paths"].get(path, ["get"])
                answer.headers["Allow"] = ", ".join(sorted(verbs)).upper()
            return answer
        case _:
            logger.error("A request failed", exc_info=error)
            detail, title = "the log has the reason", "The service failed"
            return problem(500, "internal_error", title, detail, retryable=True)


ERRORS = (KoaError, DependencyDown, RequestValidationError, HTTPException, Exception)


class Gate:
    """ASGI middleware: binds the trace, turns away what would take too much memory."""

    def __init__(self, app: ASGIApp, service: str) -> None:
        self.app, self.service = app, service
        self.bodies, self.strangers = 0, 0  # bytes and requests that are here now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = Request(scope)
        logs.bind(self.service, request.headers.get("traceparent", ""))
        size, stranger = int(request.headers.get("content-length") or 0), is_stranger(request)
        if refusal := self._refusal(request, size, stranger=stranger):
            return await refusal(scope, receive, send)
        self.bodies, self.strangers = self.bodies + size, self.strangers + stranger
        try:
            await self.app(scope, receive, send)
        finally:
            self.bodies, self.strangers = self.bodies - size, self.strangers - stranger

    def _refusal(self, request: Request, size: int, *, stranger: bool) -> Response | None:
        """Decide what the routes' own checks would only see behind the body."""
        if "transfer-encoding" in request.headers or size > MAX_BODY:
            detail = f"at most {MAX_BODY} bytes, with a Content-Length"
            return problem(413, "body_too_large", "The body is too large", detail)
        if stranger and size:
            detail = "only who has a token may send a body"
            return problem(401, "unauthorized", "A bearer token is needed", detail)
        crowded = self.strangers + stranger > STRANGERS and request.url.path.startswith("/v1")
        if crowded or self.bodies + size > BODIES:
            return problem(503, "busy", "Too many requests at once", "try again", retryable=True)
        return None


health = APIRouter(tags=["health"])


@health.get("/livez", summary="Whether the service's loops turn")
async def livez(request: Request) -> Response:
    """Answer 200 while every loop turns, else 503."""
    alive = request.app.state.context.workshop.is_alive()
    return JSONResponse({"alive": alive}, 200 if alive else 503)


@health.get("/readyz", summary="Whether the service can take requests")
async def readyz(request: Request, verbose: str | None = None) -> Response:
    """Answer 200 when the own database can be used; `?verbose` tells operators everything."""
    state = request.app.state
    if verbose is not None and caller(request).role != "operator":
        raise Forbidden("`verbose` needs the role operator")
    body: dict[str, Any] = {"ready": True, "dev": state.config.dev}
    try:
        await state.context.ready()
    except Exception as error:  # noqa: BLE001 (whatever it is, we are not ready)
        why = "the own database can't be used" if verbose is None else str(error)
        body |= {"ready": False, "why": why}
    if verbose is not None:
        body |= await state.context.details()
    return JSONResponse(body, 200 if body["ready"] else 503)


@health.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Answer with the metrics in text format; in OpenMetrics, with exemplars, if asked for."""
    told = request.app.state.context.metrics
    told.token_expires.clear()
    for name, left in request.app.state.tokens.seconds_left().items():
        told.token_expires.labels(name).set(left)
    encode, kind = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(told.registry), media_type=kind)


KNOWN: dict[int | str, dict[str, Any]] = {200: {"model": Accepted, "description": "Known already"}}
PROBLEM: dict[str, Any] = {
    "description": "A problem document (RFC 9457)",
    "content": {"application/problem+json": {"schema": Problem.model_json_schema()}},
}


operators = APIRouter(prefix="/v1", tags=["operators"])


@operators.get("/audit", response_model=list[Done], summary="What operators did")
async def audit(ctx: Ctx, _: Operator, target: str | None = None) -> Any:
    """Return the last 200 deeds, of one target or of all, newest first."""
    return await ctx.db.read(ctx.store.audit.last, target)


groups = APIRouter(prefix="/v1", tags=["operators"])  # where frames end ERROR


@groups.post("/parked/{fingerprint}/retry", summary="Try again all that failed alike")
async def retry_group(fingerprint: str, ctx: Ctx, who: Operator, why: Why = "") -> dict[str, int]:
    """Every frame that is ERROR here with this fingerprint; what fails alike counts anew."""
    deed = (who.name, why)
    return {"retried": await ctx.db.write(ctx.store.retry_group, fingerprint, deed)}


def build_app(service: str, config: ServiceConfig, lifespan: Any, router: APIRouter) -> FastAPI:
    """Return the application of one service, with everything they share."""
    app = FastAPIOffline(
        title=f"koa-{service}", version="1", lifespan=lifespan, redoc_url=None,
        exception_handlers=dict.fromkeys(ERRORS, answer_error),
        responses={"4XX": PROBLEM, "5XX": PROBLEM},
    )  # fmt: skip
    app.state.config, app.state.tokens = config, Tokens(config.tokens_file, dev=config.dev)
    app.add_middleware(Gate, service=service)
    app.include_router(health)
    app.include_router(operators)
    if service != "monitor":
        app.include_router(groups)
    app.include_router(router)
    return app
