"""Structured logs: a fixed sentence and keys, JSON or readable lines."""

import logging
import re
import secrets
import sys

import structlog
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars

__all__ = ["bind", "configure_logging", "new_trace", "traceparent"]

_TRACEPARENT = re.compile(r"^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")


def configure_logging(service: str, style: str = "json", level: str = "INFO") -> None:
    """Send all logs, uvicorn's and libraries' too, to stdout in one style."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer(colors=False)
        if style == "console"
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                renderer,
            ],
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    # One line per request says nothing the frame's own lines don't say.
    for name in ("uvicorn.access", "httpx", "httpcore", "alembic"):
        logging.getLogger(name).setLevel("WARNING")
    bind_contextvars(service=service)


def new_trace() -> str:
    """Return a fresh W3C traceparent."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def traceparent() -> str | None:
    """Return the traceparent bound to what is running now."""
    value = get_contextvars().get("traceparent")
    return value if isinstance(value, str) else None


def bind(service: str, trace: str | None, **keys: object) -> None:
    """Bind a frame's identity to every later line of this task."""
    clear_contextvars()
    if trace is None or not _TRACEPARENT.match(trace):
        trace = new_trace()
    bind_contextvars(service=service, traceparent=trace, **keys)
