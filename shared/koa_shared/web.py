"""What the three HTTP services have in common: errors, tokens, health, metrics."""

import hashlib
import hmac
import tomllib
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Annotated, Any, Protocol

import structlog
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from . import logs
from .config import ServiceConfig, is_loopback
from .contracts import Problem
from .errors import DependencyDown, Forbidden, KoaError, Unauthorized
from .metrics import Metrics

__all__ = [
    "Caller",
    "ServiceContext",
    "Tokens",
    "build_app",
    "caller",
    "needs",
    "serve",
]

logger = structlog.get_logger("koa_shared")

PROBLEM = "application/problem+json"
# The longest honest body is a FilePrepared with 20,000 header cards, about 3 MB.
MAX_BODY = 16 << 20


class Caller(BaseModel):
    """Who calls: a name, a role, and the programs whose data it may see."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "anonymous"
    role: str = "public"
    programs: frozenset[str] = frozenset()
    all_programs: bool = False


class Tokens:
    """The tokens a service accepts, read again when their file changes.

    TOML: `[[token]]` with name, role (producer, operator, observer), sha256 (of the
    token, hex), programs (SEMIDs).
    """

    def __init__(self, path: Path | None, *, dev: bool) -> None:
        self._path, self._dev = path, dev
        self._stamp = 0
        self._known: list[tuple[str, Caller]] = []
        self._read()

    def _read(self) -> None:
        if (
            self._path is None
            or (stamp := self._path.stat().st_mtime_ns) == self._stamp
        ):
            return
        rows = tomllib.loads(self._path.read_text()).get("token", [])
        self._known = [
            (row["sha256"], Caller(**{k: v for k, v in row.items() if k != "sha256"}))
            for row in rows
        ]
        self._stamp = stamp

    def find(self, authorization: str | None, client: str | None) -> Caller:
        """Return who presents this Authorization header; raises Unauthorized."""
        if self._dev and client is not None and is_loopback(client):
            return Caller(name="dev", role="operator", all_programs=True)
        if authorization is None:
            return Caller()
        self._read()
        digest = hashlib.sha256(
            authorization.removeprefix("Bearer ").encode()
        ).hexdigest()
        found = [c for known, c in self._known if hmac.compare_digest(known, digest)]
        if not found:
            raise Unauthorized("this token is not known here")
        return found[0]


class ServiceContext(Protocol):
    """What `web` needs of a service's context."""

    metrics: Metrics

    def alive(self) -> bool:
        """Tell whether the service's loops turn."""

    async def ready(self) -> None:
        """Raise unless the service's own database can be used."""

    async def details(self) -> dict[str, Any]:
        """Tell the state of peers, S3, sources, disks."""


def caller(request: Request) -> Caller:
    """Who sent this request."""
    host = request.client.host if request.client else None
    found: Caller = request.app.state.tokens.find(
        request.headers.get("authorization"), host
    )
    return found


def needs(role: str) -> Callable[[Request], Caller]:
    """Return a dependency that lets in callers with this role (and operators)."""

    def check(request: Request) -> Caller:
        who = caller(request)
        if who.role == "public":
            raise Unauthorized(f"a token with the role {role} is needed")
        if who.role not in (role, "operator"):
            raise Forbidden(f"this needs the role {role}")
        return who

    return check


def problem(
    status: int, code: str, title: str, detail: str, *, retryable: bool, **more: Any
) -> JSONResponse:
    """Return an RFC 9457 answer."""
    body = Problem(
        type=f"urn:koa:problem:{code}", title=title, status=status, detail=detail,
        code=code, retryable=retryable, **more,
    )  # fmt: skip
    headers = {"Retry-After": "5"} if status == 503 else None
    return JSONResponse(
        body.model_dump(mode="json", exclude_none=True),
        status,
        media_type=PROBLEM,
        headers=headers,
    )


async def _koa_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, KoaError)
    return problem(
        int(error.status), error.code, error.title, str(error),
        retryable=error.retryable,
    )  # fmt: skip


async def _dependency_down(_: Request, error: Exception) -> Response:
    logger.warning("A request met a dependency that is down", why=str(error))
    return problem(
        503,
        "dependency_down",
        "Something this needs is down",
        str(error),
        retryable=True,
    )


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [{"loc": list(e["loc"]), "msg": e["msg"]} for e in error.errors()]
    detail = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in errors)
    return problem(
        422, "invalid_request", "The request does not fit the contract", detail,
        retryable=False, errors=errors,
    )  # fmt: skip


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(
        error.status_code, "http_error"
    )
    return problem(
        error.status_code, code, str(error.detail), str(error.detail), retryable=False
    )


async def _unexpected(_: Request, error: Exception) -> Response:
    logger.error("A request failed", exc_info=error)
    return problem(
        500, "internal_error", "The service failed", "the log has the reason",
        retryable=True,
    )  # fmt: skip


HANDLERS: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
    KoaError: _koa_error,
    DependencyDown: _dependency_down,
    RequestValidationError: _invalid,
    HTTPException: _http,
    Exception: _unexpected,
}


class Gate:
    """ASGI middleware: binds the trace, refuses bodies that are too large."""

    def __init__(self, app: ASGIApp, service: str) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        logs.bind(
            self.service, headers.get(b"traceparent", b"").decode("latin-1") or None
        )
        length = headers.get(b"content-length", b"0")
        chunked = b"transfer-encoding" in headers
        if chunked or not length.isdigit() or int(length) > MAX_BODY:
            answer = problem(
                413, "body_too_large", "The body is too large",
                f"at most {MAX_BODY} bytes, with a Content-Length", retryable=False,
            )  # fmt: skip
            await answer(scope, receive, send)
            return
        await self.app(scope, receive, send)


health = APIRouter(tags=["health"])


@health.get("/livez", summary="Whether the service's loops turn")
async def livez(request: Request) -> Response:
    """Answer 200 while every loop turns, else 503."""
    alive = request.app.state.context.alive()
    return JSONResponse({"alive": alive}, 200 if alive else 503)


@health.get("/readyz", summary="Whether the service can take requests")
async def readyz(request: Request, verbose: str | None = None) -> Response:
    """Answer 200 when the own database can be used; `?verbose` tells everything."""
    context: ServiceContext = request.app.state.context
    body: dict[str, Any] = {"ready": True, "dev": request.app.state.config.dev}
    try:
        await context.ready()
    except Exception as error:  # noqa: BLE001 (whatever it is, it is the answer)
        body |= {"ready": False, "why": str(error)}
    if verbose is not None:
        body |= await context.details()
    return JSONResponse(body, 200 if body["ready"] else 503)


@health.get("/metrics", summary="Prometheus metrics")
async def metrics(request: Request) -> Response:
    """Answer with the metrics in text format."""
    registry = request.app.state.context.metrics.registry
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]
AnyCaller = Annotated[Caller, Depends(caller)]


def build_app(
    service: str, config: ServiceConfig, lifespan: Lifespan, *routers: APIRouter
) -> FastAPI:
    """Return the application of one service, with everything they share."""
    app = FastAPIOffline(
        title=f"koa-{service}",
        description=f"KOA RTI: the {service}",
        version="1",
        lifespan=lifespan,
        redoc_url=None,
        exception_handlers=HANDLERS,
        responses={"4XX": {"model": Problem}, "5XX": {"model": Problem}},
    )
    app.state.config = config
    app.state.tokens = Tokens(config.tokens_file, dev=config.dev)
    app.add_middleware(Gate, service=service)
    for router in (health, *routers):
        app.include_router(router)
    return app


def serve(app: FastAPI, config: ServiceConfig) -> None:
    """Run until SIGTERM; in-flight requests get 5 s, work its own 8 s after that."""
    if config.dev:
        logger.warning(
            "KOA_DEV=1: every caller on this machine is operator and sees all data"
        )
    uvicorn.run(
        app, host=config.host, port=config.port, log_config=None,
        timeout_graceful_shutdown=2, server_header=False, timeout_keep_alive=75,
    )  # fmt: skip
