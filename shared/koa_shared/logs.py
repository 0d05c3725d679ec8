"""Structured logs: a fixed sentence and keys, JSON or readable lines."""

import logging
import re
import secrets
import sys

import structlog
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars
from structlog.stdlib import ProcessorFormatter
from structlog.types import Processor

_TRACEPARENT = re.compile(r"^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")


def configure_logging(service: str, style: str = "json") -> None:
    """Send all logs, uvicorn's and libraries' too, to stdout in one style (json, console)."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars, structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.format_exc_info,
    ]  # fmt: skip
    structlog.configure(
        processors=[*shared, ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    last: Processor = structlog.processors.JSONRenderer()
    if style == "console":
        last = structlog.dev.ConsoleRenderer(colors=False)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(ProcessorFormatter(processor=last, foreign_pre_chain=shared))
    logging.basicConfig(handlers=[handler], level="INFO", force=True)
    # One line per request says nothing the frame's own lines don't say.
    for name in ("uvicorn.access", "httpx", "httpcore", "alembic"):
        logging.getLogger(name).setLevel("WARNING")
    bind_contextvars(service=service)


def new_trace() -> str:
    """Return a fresh W3C traceparent; its span, the whole frame's, has the trace's first half."""
    trace = secrets.token_hex(16)
    return f"00-{trace}-{trace[:16]}-01"


def traceparent() -> str:
    """Return the traceparent bound to what is running now, a fresh one if there is none."""
    return str(get_contextvars().get("traceparent") or new_trace())


def bind(service: str, trace: str, **keys: object) -> None:
    """Bind a frame's identity to every later line of this task."""
    clear_contextvars()
    trace = trace if _TRACEPARENT.match(trace) else new_trace()
    bind_contextvars(service=service, traceparent=trace, **keys)
