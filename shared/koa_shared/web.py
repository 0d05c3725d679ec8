"""What the three HTTP services have in common: errors, tokens, health, metrics."""

import hashlib
import tomllib
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Body, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from . import logs
from .config import ServiceConfig, is_loopback
from .contracts import Done, Problem
from .errors import DependencyDown, Forbidden, KoaError, Unauthorized

logger = structlog.get_logger("koa_shared")

# The longest honest body is a FilePrepared with 20,000 header cards, about 3 MB.
MAX_BODY = 16 << 20


class Caller(BaseModel, frozen=True, extra="forbid"):
    """Who calls: a name, a role, and the programs whose data it may see."""

    name: str = "anonymous"
    role: str = "public"
    programs: frozenset[str] = frozenset()
    all_programs: bool = False

    @property
    def sees_all(self) -> bool:
        """Whether no frame is hidden from this caller."""
        return self.all_programs or self.role == "operator"


class Tokens:
    """The tokens a service accepts, read again when their file changes.

    TOML: `[[token]]` with name, role (producer, operator, observer), sha256 (of the
    token, hex), programs (SEMIDs).
    """

    def __init__(self, path: Path | None, *, dev: bool) -> None:
        self._path, self._dev, self._stamp = path, dev, 0
        self._known: dict[str, Caller] = {}
        self._read()

    def _read(self) -> None:
        if self._path is None or (stamp := self._path.stat().st_mtime_ns) == self._stamp:
            return
        rows = tomllib.loads(self._path.read_text()).get("token", [])
        self._known = {row.pop("sha256"): Caller(**row) for row in rows}
        self._stamp = stamp

    def find(self, authorization: str | None, client: str) -> Caller:
        """Return who presents this Authorization header; raises Unauthorized."""
        if self._dev and is_loopback(client):
            return Caller(name="dev", role="operator")
        if authorization is None:
            return Caller()
        try:
            self._read()
        except (OSError, ValueError, LookupError) as error:  # half-written, or mistyped
            logger.error("Tokens can't be read; those known before count", why=str(error))
        # How long the look-up of a digest takes tells nothing about a token.
        digest = hashlib.sha256(authorization.removeprefix("Bearer ").encode()).hexdigest()
        if (found := self._known.get(digest)) is None:
            raise Unauthorized("this token is not known here")
        return found


def caller(request: Request) -> Caller:
    """Who sent this request."""
    tokens: Tokens = request.app.state.tokens
    host = request.client.host if request.client else ""
    return tokens.find(request.headers.get("authorization"), host)


def context(request: Request) -> Any:
    """Return the service that the application belongs to."""
    return request.app.state.context


Ctx = Annotated[Any, Depends(context)]
AnyCaller = Annotated[Caller, Depends(caller)]


def needs(role: str) -> Any:
    """Let in callers with this role, and operators."""

    def check(who: AnyCaller) -> Caller:
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
    headers = {"Retry-After": "5"} if status == 503 else None
    return JSONResponse(body, status, headers, "application/problem+json")


async def answer_error(_: Request, error: Exception) -> Response:
    """Return the problem document that tells what went wrong."""
    detail = str(error)
    match error:
        case KoaError(status=status, code=code, title=title, retryable=retryable):
            return problem(status, code, title, detail, retryable=retryable)
        case DependencyDown():
            logger.warning("A request met a dependency that is down", why=detail)
            title = "Something this needs is down"
            return problem(503, "dependency_down", title, detail, retryable=True)
        case RequestValidationError():
            errors = [{"loc": list(e["loc"]), "msg": e["msg"]} for e in error.errors()]
            detail = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in errors)
            title = "The request does not fit the contract"
            return problem(422, "invalid_request", title, detail, errors=errors)
        case HTTPException(status_code=status):  # of the router: no such path, or method
            title = HTTPStatus(status).phrase
            return problem(status, title.lower().replace(" ", "_"), title, str(error.detail))
        case _:
            logger.error("A request failed", exc_info=error)
            detail, title = "the log has the reason", "The service failed"
            return problem(500, "internal_error", title, detail, retryable=True)


ERRORS = (KoaError, DependencyDown, RequestValidationError, HTTPException, Exception)


class Gate:
    """ASGI middleware: binds the trace, refuses bodies that are too large."""

    def __init__(self, app: ASGIApp, service: str) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        app = self.app
        if scope["type"] == "http":
            headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
            logs.bind(self.service, headers.get(b"traceparent", ""))
            length = int(headers.get(b"content-length") or 0)
            if b"transfer-encoding" in headers or length > MAX_BODY:
                detail = f"at most {MAX_BODY} bytes, with a Content-Length"
                app = problem(413, "body_too_large", "The body is too large", detail)
        await app(scope, receive, send)


health = APIRouter(tags=["health"])


@health.get("/livez", summary="Whether the service's loops turn")
async def livez(request: Request) -> Response:
    """Answer 200 while every loop turns, else 503."""
    alive = request.app.state.context.workshop.is_alive()
    return JSONResponse({"alive": alive}, 200 if alive else 503)


@health.get("/readyz", summary="Whether the service can take requests")
async def readyz(request: Request, verbose: str | None = None) -> Response:
    """Answer 200 when the own database can be used; `?verbose` tells everything."""
    state = request.app.state
    body: dict[str, Any] = {"ready": True, "dev": state.config.dev}
    try:
        await state.context.ready()
    except Exception as error:  # noqa: BLE001 (whatever it is, we are not ready)
        body |= {"ready": False, "why": str(error)}
    if verbose is not None:
        body |= await state.context.details()
    return JSONResponse(body, 200 if body["ready"] else 503)


@health.get("/metrics", summary="Prometheus metrics")
async def metrics(request: Request) -> Response:
    """Answer with the metrics in text format."""
    text = generate_latest(request.app.state.context.metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


operators = APIRouter(prefix="/v1", tags=["operators"])


@operators.get("/audit", response_model=list[Done], summary="What operators did")
async def audit(ctx: Ctx, _: Operator, target: str | None = None) -> Any:
    """Return the last 200 deeds, of one target or of all, newest first."""
    return await ctx.db.read(ctx.store.audit.last, target)


groups = APIRouter()  # of the services where frames end ERROR


@groups.post("/parked/{fingerprint}/retry", summary="Try again all that failed alike")
async def retry_group(fingerprint: str, ctx: Ctx, who: Operator, why: Why = "") -> dict[str, int]:
    """Every frame that is ERROR here with this fingerprint; what fails alike counts anew."""
    deed = (who.name, why)
    return {"retried": await ctx.db.write(ctx.store.retry_group, fingerprint, deed)}


def build_app(service: str, config: ServiceConfig, lifespan: Any, router: APIRouter) -> FastAPI:
    """Return the application of one service, with everything they share."""
    app = FastAPIOffline(
        title=f"koa-{service}",
        version="1",
        lifespan=lifespan,
        redoc_url=None,
        exception_handlers=dict.fromkeys(ERRORS, answer_error),
        responses={"4XX": {"model": Problem}, "5XX": {"model": Problem}},
    )
    app.state.config, app.state.tokens = config, Tokens(config.tokens_file, dev=config.dev)
    app.add_middleware(Gate, service=service)
    app.include_router(health)
    app.include_router(operators)
    app.include_router(router)
    return app
