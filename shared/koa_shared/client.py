"""The typed client of the three services; the services and `koa` use the same one."""

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
from httpx._types import QueryParamTypes
from pydantic import BaseModel, ValidationError

from . import logs
from .contracts import (
    Accepted,
    EventBatch,
    FilePrepared,
    FileWritten,
    FrameView,
    Page,
    Problem,
    Submission,
    Submitted,
)
from .errors import DependencyDown, Rejected

__all__ = ["Client", "Ingestor", "Monitor", "PeerRefused", "Preparer", "open_http"]

Model = TypeVar("Model", bound=BaseModel)

# A peer answers after one commit; 10 s is a hung peer. Connecting is loopback or WAN.
TIMEOUT = httpx.Timeout(10.0, connect=3.0)
FOR_GOOD = (400, 409, 422)


class PeerRefused(Rejected):
    """The peer refused it for good, with our problem document."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail, code=problem.code)
        self.problem = problem


def open_http(
    token: str | None = None, ca_file: Path | None = None
) -> httpx.AsyncClient:
    """Return one HTTP client for all peers of a process; connections are kept."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    verify: Any = True
    if ca_file is not None:
        import ssl  # noqa: PLC0415 (only where peers are remote)

        verify = ssl.create_default_context(cafile=str(ca_file))
    return httpx.AsyncClient(
        headers=headers, timeout=TIMEOUT, verify=verify, trust_env=False,
        limits=httpx.Limits(max_keepalive_connections=20, keepalive_expiry=300),
    )  # fmt: skip


def problem_of(response: httpx.Response) -> Problem | None:
    """Return our problem document if that is what the body is."""
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:
        return None


class Client:
    """One service as a peer: every answer is a model, every fault has a class."""

    def __init__(self, name: str, url: str, http: httpx.AsyncClient) -> None:
        self.name, self.url, self._http = name, url.rstrip("/"), http

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, Any] | None = None,
    ) -> httpx.Response:
        """Send one request.

        Raises PeerRefused for a refusal for good (400, 409, 422 with our document and
        `retryable: false`; design 2), DependencyDown for everything else.
        """
        headers = {"traceparent": trace} if (trace := logs.traceparent()) else {}
        content = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = body.model_dump_json(exclude_unset=True)
        query: QueryParamTypes = {
            k: v for k, v in (params or {}).items() if v is not None
        }
        try:
            response = await self._http.request(
                method, self.url + path, content=content, params=query, headers=headers
            )
        except httpx.HTTPError as error:
            raise DependencyDown(self.name, repr(error)) from error
        if response.is_success:
            return response
        problem = problem_of(response)
        if problem and not problem.retryable and response.status_code in FOR_GOOD:
            raise PeerRefused(problem)
        text = problem.detail if problem else response.text[:200]
        raise DependencyDown(self.name, f"answered {response.status_code}: {text}")

    async def call(
        self, answer: type[Model], method: str, path: str, **kwargs: Any
    ) -> Model:
        """Send one request and return its answer as a model."""
        response = await self.request(method, path, **kwargs)
        try:
            return answer.model_validate_json(response.content)
        except ValidationError as error:
            raise DependencyDown(self.name, f"answered nonsense: {error}") from error

    async def json(self, method: str, path: str, **kwargs: Any) -> Any:
        """Send one request and return its answer as it is."""
        return (await self.request(method, path, **kwargs)).json()


class Monitor(Client):
    """The monitor's API."""

    async def submit(self, submission: Submission) -> Submitted:
        """Name a file that should be archived."""
        return await self.call(Submitted, "POST", "/v1/files", body=submission)


class Preparer(Client):
    """The preparer's API."""

    async def announce(self, file: FileWritten) -> Accepted:
        """Say that a file is written; 202 and 200 are the same success."""
        return await self.call(Accepted, "POST", "/v1/files", body=file)


class Ingestor(Client):
    """The ingestor's API."""

    async def hand_over(self, frame: FilePrepared) -> Accepted:
        """Say that a frame's products lie in staging."""
        return await self.call(Accepted, "POST", "/v1/frames", body=frame)

    async def tell(self, batch: EventBatch) -> None:
        """Tell what happened to frames, sources and directories."""
        await self.request("POST", "/v1/events", body=batch)

    async def frame(self, name: str, version: int | None = None) -> FrameView:
        """Return a frame by frame_id or KOAID."""
        return await self.call(
            FrameView, "GET", f"/v1/frames/{name}", params={"version": version}
        )

    async def frames(self, **filters: Any) -> Page[FrameView]:
        """Return one page of frames, newest acquired first."""
        return await self.call(Page[FrameView], "GET", "/v1/frames", params=filters)

    async def stream(
        self, last_event_id: str | None = None
    ) -> AsyncIterator[Sequence[str]]:
        """Yield (id, event, data) of the live stream."""
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        async with self._http.stream(
            "GET", f"{self.url}/v1/stream", headers=headers, timeout=httpx.Timeout(60)
        ) as response:
            response.raise_for_status()
            fields: dict[str, str] = {}
            async for line in response.aiter_lines():
                if line == "" and "data" in fields:
                    yield fields.get("id", ""), fields.get("event", ""), fields["data"]
                    fields = {}
                elif ":" in line and not line.startswith(":"):
                    key, _, value = line.partition(":")
                    fields[key] = value.removeprefix(" ")
