"""OpenTelemetry: a span for each step of a frame, within it one for each call that it makes.

KOA_OTLP_ENDPOINT and the extra `otel` switch it on; parents travel as traceparents.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from structlog.contextvars import get_contextvars

Timer = Callable[[str], AbstractContextManager[Any]]
ABOUT = ("frame_id", "koaid", "instrument")  # of the public view: a collector is no archive
SEND_SECONDS, END_SECONDS = 2.0, 0.5  # for one batch; for what is left when a service ends
_STEP: ContextVar[Any] = ContextVar("step", default=None)  # what calls are made within


def _about() -> dict[str, str]:
    bound = get_contextvars()
    return {name: str(bound[name]) for name in ABOUT if name in bound}


class Traces:
    """Spans to a collector, by OTLP over HTTP; one that is away costs spans, never a frame."""

    def __init__(self, service: str, endpoint: str = "", ca_file: Path | None = None) -> None:
        self._is_on = bool(endpoint)
        if not endpoint:
            return
        from opentelemetry import trace as api
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk import trace as sdk
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._api, self._sdk, self._carrier = api, sdk, TraceContextTextMapPropagator()
        about = {"service.name": f"koa-{service}", "service.version": version("koa-rti")}
        where, ca = f"{endpoint.rstrip('/')}/v1/traces", str(ca_file) if ca_file else None
        provider = sdk.TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
        self._out = BatchSpanProcessor(OTLPSpanExporter(where, ca, timeout=SEND_SECONDS))
        provider.add_span_processor(self._out)
        self._provider, self._start = provider, provider.get_tracer("koa_rti").start_span

    def begin(self, name: str, trace: str) -> tuple[str, Callable[[str], None]]:
        """Begin a step of a traceparent; return its own, and what ends it, told its outcome."""
        if not (self._is_on and trace):  # housekeeping has none
            return trace, lambda _: None
        into: dict[str, str] = {}
        span = self._start(name, self._carrier.extract({"traceparent": trace}))
        within = self._api.set_span_in_context(span)
        self._carrier.inject(into, within)
        _STEP.set(within)

        def end(outcome: str) -> None:
            span.set_attributes(_about() | {"outcome": outcome})
            if outcome not in ("done", "not_yet", "stopped"):
                span.set_status(self._api.StatusCode.ERROR, outcome)
            span.end()

        return into["traceparent"], end

    def timer(self, kind: str, timer: Timer) -> Timer:
        """Return a timer of calls that also shows them in their step, if there is one."""

        @contextmanager
        def both(operation: str) -> Iterator[None]:
            span = self._start(f"{kind} {operation}", _STEP.get(), self._api.SpanKind.CLIENT)
            try:
                with timer(operation):
                    yield
            except BaseException as error:
                span.set_status(self._api.StatusCode.ERROR, type(error).__name__)
                raise
            finally:
                span.end()

        if not self._is_on:
            return timer
        return lambda operation: both(operation) if _STEP.get() else timer(operation)

    def frame(self, trace: str, *times: datetime | None) -> None:
        """Show a frame's whole way (start, end) as the span that all traces begin with."""
        if not (self._is_on and all(times)):
            return
        start, end = (int(at.timestamp() * 1e9) for at in times if at)
        context = self._api.SpanContext(
            int(trace[3:35], 16), int(trace[3:19], 16), is_remote=False,
            trace_flags=self._api.TraceFlags(int(trace[-2:], 16)),
        )  # fmt: skip
        self._out.on_end(self._sdk.ReadableSpan(
            "frame", context, resource=self._provider.resource, attributes=_about(),
            start_time=start, end_time=end,
        ))  # fmt: skip

    def close(self) -> None:
        """Send what is left."""
        if self._is_on:
            last = threading.Thread(target=self._out.shutdown, daemon=True)
            last.start()
            last.join(END_SECONDS)
