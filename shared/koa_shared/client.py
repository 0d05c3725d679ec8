"""The typed client of the three services; the services and `koa` use the same one."""

import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, RootModel, ValidationError

from . import contracts, faults, logs
from .errors import DependencyDown, Rejected

Model = TypeVar("Model", bound=BaseModel)

# A peer answers after one commit; 10 s is a hung peer. Connecting is loopback or WAN.
TIMEOUT = httpx.Timeout(10.0, connect=3.0)
FOR_GOOD = (400, 409, 422)  # with our document and `retryable: false` (design 2)


class PeerRefused(Rejected):
    """The peer refused it for good, with our problem document."""


class PeerFault(DependencyDown):
    """The peer answered, but not as it should."""

    def __init__(self, name: str, status: int, reason: str) -> None:
        super().__init__(name, f"answered {status} {reason}")
        self.status = status


def open_http(token: str | None = None, ca_file: Path | None = None) -> httpx.AsyncClient:
    """Return one HTTP client for all peers of a process; connections are kept."""
    return httpx.AsyncClient(
        headers={"Authorization": f"Bearer {token}"} if token else {},
        timeout=TIMEOUT,
        verify=ssl.create_default_context(cafile=ca_file) if ca_file else True,
        limits=httpx.Limits(max_keepalive_connections=20, keepalive_expiry=300),
        trust_env=False,
    )


class Client:
    """One service as a peer: every answer is a model, every fault has a class."""

    def __init__(self, name: str, url: str, http: httpx.AsyncClient) -> None:
        self.name, self.url, self._http = name, url.rstrip("/"), http

    async def request(
        self, method: str, path: str, /, *, body: BaseModel | None = None, **params: Any
    ) -> httpx.Response:
        """Send one request; keywords that are not None become the query.

        Raises PeerRefused for a refusal for good, DependencyDown for everything else.
        """
        headers = {"Content-Type": "application/json", "traceparent": logs.traceparent()}
        content = None if body is None else body.model_dump_json(exclude_unset=True)
        query = {name: value for name, value in params.items() if value is not None}
        try:
            with faults.around("peer", path):
                response = await self._http.request(
                    method, self.url + path, content=content, params=query, headers=headers
                )
        except httpx.HTTPError as error:
            raise DependencyDown(self.name, repr(error)) from error
        if response.is_success:
            return response
        try:
            problem = contracts.Problem.model_validate_json(response.content)
        except ValidationError:  # not from one of ours
            raise PeerFault(self.name, response.status_code, response.text[:200]) from None
        if not problem.retryable and response.status_code in FOR_GOOD:
            raise PeerRefused(problem.detail, code=problem.code)
        raise PeerFault(self.name, response.status_code, f"{problem.code}: {problem.detail}")

    async def call(self, answer: type[Model], method: str, path: str, /, **more: Any) -> Model:
        """Send one request and return its answer as a model."""
        response = await self.request(method, path, **more)
        try:
            return answer.model_validate_json(response.content)
        except ValidationError as error:
            raise DependencyDown(self.name, f"answered nonsense: {error}") from error

    async def json(self, method: str, path: str, /, **more: Any) -> Any:
        """Send one request and return its answer as it is."""
        return (await self.request(method, path, **more)).json()

    async def order(self, path: str, **options: Any) -> Any:
        """Give an operator's order; None leaves an option out."""
        given = RootModel[dict[str, Any]]({k: v for k, v in options.items() if v is not None})
        return await self.json("POST", f"/v1/{path}", body=given)


class Monitor(Client):
    """The monitor's API."""

    async def submit(self, submission: contracts.Submission) -> contracts.Submitted:
        """Name a file that should be archived."""
        return await self.call(contracts.Submitted, "POST", "/v1/files", body=submission)


class Preparer(Client):
    """The preparer's API."""

    async def announce(self, file: contracts.FileWritten) -> contracts.Accepted:
        """Say that a file is written; 202 and 200 are the same success."""
        return await self.call(contracts.Accepted, "POST", "/v1/files", body=file)


class Ingestor(Client):
    """The ingestor's API."""

    async def hand_over(self, frame: contracts.FilePrepared) -> contracts.Accepted:
        """Say that a frame's products lie in staging."""
        return await self.call(contracts.Accepted, "POST", "/v1/frames", body=frame)

    async def tell(self, batch: contracts.EventBatch) -> None:
        """Tell what happened to frames, sources and directories."""
        await self.request("POST", "/v1/events", body=batch)

    async def frames(self, **filters: Any) -> contracts.Page[contracts.FrameView]:
        """Return one page of frames, newest acquired first."""
        return await self.call(contracts.Page[contracts.FrameView], "GET", "/v1/frames", **filters)

    async def stream(self, last: str | None = None) -> AsyncIterator[tuple[str, str, str]]:
        """Yield (id, event, data) of the live stream, from behind the id `last`."""
        headers, url = {"Last-Event-ID": last} if last else {}, f"{self.url}/v1/stream"
        async with self._http.stream("GET", url, headers=headers, timeout=60) as response:
            response.raise_for_status()
            fields: dict[str, str] = {}
            async for line in response.aiter_lines():
                key, _, value = line.partition(":")
                if line == "" and "data" in fields:
                    yield fields.get("id", ""), fields.get("event", ""), fields["data"]
                    fields = {}
                elif key:
                    fields[key] = value.removeprefix(" ")
