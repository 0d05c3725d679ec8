"""A collector of traces: an HTTP server that takes OTLP and reads it."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2


class Collector:
    """What it was sent: spans as dictionaries, in `spans`; use it as a `with` block."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.take(self.path, body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def take(self, path: str, body: bytes) -> None:
        assert path == "/v1/traces"
        told = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
        for resource in told.resource_spans:
            about = {a.key: a.value.string_value for a in resource.resource.attributes}
            self.spans += [
                {
                    "service": about["service.name"], "name": span.name,
                    "trace": span.trace_id.hex(), "id": span.span_id.hex(),
                    "parent": span.parent_span_id.hex(), "error": span.status.code == 2,
                    "start": span.start_time_unix_nano, "end": span.end_time_unix_nano,
                    "about": {a.key: a.value.string_value for a in span.attributes},
                }
                for scope in resource.scope_spans
                for span in scope.spans
            ]  # fmt: skip

    def trace(self, frame_id: str) -> list[dict[str, Any]]:
        """Return all spans of the trace of a frame."""
        ids = {span["trace"] for span in self.spans if span["about"].get("frame_id") == frame_id}
        return [span for span in self.spans if span["trace"] in ids]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._server.shutdown()
        self._server.server_close()
