"""What the three HTTP services have in common: problems, tokens, health (design 4, 10)."""

import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from koa_shared import logs, web
from koa_shared.config import ServiceConfig
from koa_shared.contracts import Problem
from koa_shared.errors import Conflict, DependencyDown, NotFound, Unauthorized
from koa_shared.metrics import Metrics
from koa_shared.web import MAX_BODY, AnyCaller, Operator, Producer, Tokens, build_app

Shape = re.compile(r"^urn:koa:problem:\w+$")
router = APIRouter(prefix="/v1")


class Body(BaseModel):
    """A message."""

    model_config = ConfigDict(extra="forbid")
    number: int


@router.get("/who")
async def who(caller: AnyCaller) -> dict[str, Any]:
    return {"name": caller.name, "role": caller.role, "all": caller.sees_all}


@router.post("/produce")
async def produce(body: Body, _: Producer) -> int:
    return body.number


@router.post("/operate")
async def operate(caller: Operator) -> str:
    return caller.name


@router.put("/who")
async def rename(_: Operator) -> None:
    pass


@router.get("/trace")
async def trace() -> str:
    return logs.traceparent()


@router.get("/raise/{name}")
async def fail(name: str) -> None:
    raise {
        "missing": NotFound("no frame 7"),
        "conflict": Conflict("it runs", code="not_an_end"),
        "down": DependencyDown("database", "secret detail"),
        "bug": ZeroDivisionError("secret detail"),
    }[name]


class Context:
    """What the health routes ask."""

    def __init__(self) -> None:
        self.metrics, self.workshop, self.fault = Metrics("monitor"), self, ""
        self.alive = True

    def is_alive(self) -> bool:
        return self.alive

    async def ready(self) -> None:
        if self.fault:
            raise DependencyDown("database", self.fault)

    async def details(self) -> dict[str, Any]:
        return {"circuits": {"s3": "closed"}}


def write_tokens(path: Path, **tokens: str) -> None:
    """Write a tokens file: `secret="role"`, the name being the role."""
    path.write_text(
        "".join(
            f'[[token]]\nname = "{role}"\nrole = "{role}"\n'
            f'sha256 = "{hashlib.sha256(secret.encode()).hexdigest()}"\n'
            f'programs = ["2025B_C001"]\n'
            for secret, role in tokens.items()
        )
    )


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    write_tokens(path, make="producer", run="operator", look="observer")
    return path


@pytest.fixture
def context() -> Context:
    return Context()


Open = Callable[..., httpx.AsyncClient]


@pytest.fixture
async def open_client(tokens: Path, context: Context) -> AsyncIterator[Open]:
    """Open clients of an app in this process: `open_client(client="10.0.0.1", dev=True)`."""
    clients = []

    def open_(client: str = "10.0.0.9", **more: Any) -> httpx.AsyncClient:
        config = ServiceConfig(port=8001, tokens_file=tokens, **more)
        app = build_app("monitor", config, None, router)
        app.state.context = context
        transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(client, 1))
        clients.append(httpx.AsyncClient(transport=transport, base_url="http://monitor"))
        return clients[-1]

    yield open_
    for client in clients:
        await client.aclose()


@pytest.fixture
def http(open_client: Open) -> httpx.AsyncClient:
    return open_client()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def problem_of(answer: httpx.Response) -> Problem:
    assert answer.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(answer.content)
    assert problem.status == answer.status_code
    assert problem.type == f"urn:koa:problem:{problem.code}"
    assert problem.title
    assert problem.detail
    return problem


@pytest.mark.parametrize(
    ("method", "path", "token", "status", "code", "retryable"),
    [
        ("GET", "/nowhere", "", 404, "not_found", False),
        ("GET", "/v1/raise/missing", "", 404, "not_found", False),
        ("DELETE", "/v1/who", "", 405, "method_not_allowed", False),
        ("GET", "/v1/raise/conflict", "", 409, "not_an_end", False),
        ("GET", "/v1/raise/down", "", 503, "dependency_down", True),
        ("GET", "/v1/raise/bug", "", 500, "internal_error", True),
        ("POST", "/v1/operate", "", 401, "unauthorized", False),
        ("POST", "/v1/operate", "wrong", 401, "unauthorized", False),
        ("GET", "/v1/who", "wrong", 401, "unauthorized", False),
        ("POST", "/v1/operate", "make", 403, "forbidden", False),
        ("POST", "/v1/operate", "look", 403, "forbidden", False),
    ],
)
async def test_problems(
    http: httpx.AsyncClient, method: str, path: str, token: str, status: int, code: str,
    *, retryable: bool,
) -> None:  # fmt: skip
    answer = await http.request(method, path, headers=bearer(token) if token else {})
    problem = problem_of(answer)
    assert (problem.status, problem.code, problem.retryable) == (status, code, retryable)
    assert "secret detail" not in answer.text
    assert answer.headers.get("allow") == ("GET, PUT" if status == 405 else None)
    assert (answer.headers.get("retry-after") is not None) is (status == 503)


@pytest.mark.parametrize(
    "body",
    ['{"number": "x"}', "{", "", '{"number": 1, "more": 2}', "[1]", '{"\\ud800": 1}', "\x00"],
)
async def test_what_does_not_fit_the_contract(http: httpx.AsyncClient, body: str) -> None:
    headers = bearer("make") | {"Content-Type": "application/json"}
    problem = problem_of(await http.post("/v1/produce", content=body, headers=headers))
    assert (problem.status, problem.code, problem.retryable) == (422, "invalid_request", False)
    assert problem.errors


async def test_a_body_that_is_too_large_is_not_read(http: httpx.AsyncClient) -> None:
    read = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal read
        read += 1
        yield b"x"

    for length in ({"Content-Length": str(MAX_BODY + 1)}, {"Transfer-Encoding": "chunked"}):
        answer = await http.post("/v1/produce", content=chunks(), headers=bearer("make") | length)
        assert problem_of(answer).status == 413
    assert read == 0


async def test_roles(http: httpx.AsyncClient) -> None:
    for token, role, sees_all in (
        ("make", "producer", False), ("run", "operator", True), ("look", "observer", False),
    ):  # fmt: skip
        found = (await http.get("/v1/who", headers=bearer(token))).json()
        assert found == {"name": role, "role": role, "all": sees_all}
    assert (await http.get("/v1/who")).json()["role"] == "public"
    for token in ("make", "run"):
        answer = await http.post("/v1/produce", json={"number": 7}, headers=bearer(token))
        assert answer.json() == 7
    assert (await http.post("/v1/operate", headers=bearer("run"))).json() == "operator"


@pytest.mark.parametrize(
    "header", ["make", "Bearer", "Bearer ", "Basic make", "bearer  make", "Bearer make2", "é"]
)
async def test_what_is_no_token(http: httpx.AsyncClient, header: str) -> None:
    headers = [(b"Authorization", header.encode())]
    answer = await http.post("/v1/operate", headers=headers)
    assert answer.status_code in (401, 403)


async def test_tokens_are_read_again_when_their_file_changes(
    http: httpx.AsyncClient, tokens: Path
) -> None:
    assert (await http.post("/v1/operate", headers=bearer("run"))).status_code == 200
    write_tokens(tokens, walk="operator")
    os.utime(tokens, ns=(1, 1))
    assert (await http.post("/v1/operate", headers=bearer("run"))).status_code == 401
    assert (await http.post("/v1/operate", headers=bearer("walk"))).status_code == 200


async def status_of(http: httpx.AsyncClient, token: str) -> int:
    return (await http.post("/v1/operate", headers=bearer(token))).status_code


async def test_a_tokens_file_that_is_gone_lets_nobody_in(
    http: httpx.AsyncClient, tokens: Path
) -> None:
    text = tokens.read_text()  # noqa: ASYNC240 (a few bytes)
    tokens.unlink()  # noqa: ASYNC240
    assert await status_of(http, "run") == 401
    tokens.write_text(text)  # noqa: ASYNC240
    assert await status_of(http, "run") == 200


@pytest.mark.parametrize("bad", ["", "[[token", "[[token]]\nname = 'x'", "[[tokens]]", "\udcff"])
async def test_a_tokens_file_that_cannot_be_read_leaves_the_known_for_a_minute(
    http: httpx.AsyncClient, tokens: Path, monkeypatch: pytest.MonkeyPatch, bad: str,
) -> None:  # fmt: skip
    assert await status_of(http, "run") == 200
    tokens.write_bytes(bad.encode("utf-8", "surrogateescape"))  # noqa: ASYNC240
    assert await status_of(http, "run") == 200
    monkeypatch.setattr(web, "GRACE", 0.0)  # the minute is over
    assert await status_of(http, "run") == 401
    write_tokens(tokens, run="operator")
    assert await status_of(http, "run") == 200


SHA = hashlib.sha256(b"a").hexdigest()
BAD_ROWS = {
    "sha256 = 'SHORT-SECRET'": r"token\.0\.sha256",
    f"sha256 = '{SHA.upper()}'": r"token\.0\.sha256",
    f"sha256 = '{SHA}'\nprogrammes = ['X']": r"token\.0\.programmes",
    f"sha256 = '{SHA}'\nexpires = 2026-01-01": r"token\.0\.expires",
    f"sha256 = '{SHA}'\nexpires = 2026-01-01T00:00:00": r"token\.0\.expires",
    "": r"token\.0\.sha256",
}  # fmt: skip


@pytest.mark.parametrize("row", BAD_ROWS)
def test_a_tokens_file_that_is_bad_at_the_start_says_what_is_wrong(
    tmp_path: Path, row: str
) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(f"[[token]]\nname = 'n'\nrole = 'operator'\n{row}\n")
    with pytest.raises(ValueError, match=BAD_ROWS[row]) as caught:
        Tokens(path, dev=False)
    assert "SECRET" not in str(caught.value)


def test_roles_that_there_are_not_and_files_that_there_are_not(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    write_tokens(path, run="root")
    with pytest.raises(ValueError, match=r"token\.0\.role"):
        Tokens(path, dev=False)
    with pytest.raises(FileNotFoundError):
        Tokens(tmp_path / "nothing", dev=False)


async def test_tokens_expire_and_the_metric_tells_when(
    http: httpx.AsyncClient, tokens: Path
) -> None:
    def expiring(secret: str, at: datetime) -> str:
        digest = hashlib.sha256(secret.encode()).hexdigest()
        return (
            f'[[token]]\nname = "tonight"\nrole = "operator"\nsha256 = "{digest}"\n'
            f"expires = {at.isoformat()}\n"
        )

    now = datetime.now(UTC)
    text = expiring("old", now - timedelta(hours=1)) + expiring("new", now + timedelta(hours=1))
    tokens.write_text(text)  # noqa: ASYNC240 (a few bytes)
    assert await status_of(http, "old") == 401
    assert await status_of(http, "new") == 200
    shown = re.compile(r"^koa_token_expires_seconds{name=\"(.*)\"} (\S+)$", re.MULTILINE)
    told = shown.findall(await metrics(http))
    assert [name for name, _ in told] == ["tonight"]
    assert float(told[0][1]) == pytest.approx(-3600, abs=60)  # the soonest of a name
    write_tokens(tokens, run="operator")
    assert "koa_token_expires_seconds{" not in await metrics(http)


async def metrics(http: httpx.AsyncClient) -> str:
    return (await http.get("/metrics")).text


async def test_a_stranger_sends_no_body(http: httpx.AsyncClient) -> None:
    """It would be parsed before the route asks for a token."""
    read = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal read
        read += 1
        yield b'{"number": 7}'

    for token in ("", "wrong"):
        headers = {"Content-Length": "13"} | (bearer(token) if token else {})
        for path in ("/v1/produce", "/v1/who", "/nowhere"):
            answer = await http.post(path, content=chunks(), headers=headers)
            assert problem_of(answer).status == 401
            assert answer.headers["www-authenticate"] == "Bearer"
    assert read == 0


async def test_what_is_too_much_at_once_is_told_to_come_again(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "BODIES", 10)
    for _ in range(2):  # nothing of a refused request stays counted
        answer = await http.post("/v1/produce", json={"number": 7}, headers=bearer("make"))
        assert (problem_of(answer).code, problem_of(answer).retryable) == ("busy", True)
        assert answer.headers["retry-after"] == "5"
    monkeypatch.setattr(web, "BODIES", 100)
    for _ in range(20):
        answer = await http.post("/v1/produce", json={"number": 7}, headers=bearer("make"))
        assert answer.status_code == 200
    monkeypatch.setattr(web, "STRANGERS", 0)
    assert problem_of(await http.get("/v1/who")).code == "busy"
    assert (await http.get("/livez")).status_code == 200  # else it would be started anew
    assert (await http.get("/v1/who", headers=bearer("look"))).status_code == 200


async def test_dev_is_for_this_machine_only(open_client: Open) -> None:
    for host in ("127.0.0.1", "::1"):
        near = open_client(host, dev=True)
        assert (await near.get("/v1/who")).json() == {
            "name": "dev",
            "role": "operator",
            "all": True,
        }
    far = open_client("10.0.0.9", dev=True)
    assert (await far.get("/v1/who")).json()["role"] == "public"
    assert (await far.post("/v1/operate")).status_code == 401
    plain = open_client("127.0.0.1")
    assert (await plain.get("/v1/who")).json()["role"] == "public"


def test_a_caller_is_told_by_its_token_alone(tokens: Path) -> None:
    found = Tokens(tokens, dev=False)
    assert found.find("Bearer look", "").programs == {"2025B_C001"}
    assert found.find(None, "127.0.0.1").role == "public"
    with pytest.raises(Unauthorized):
        found.find("Bearer ", "127.0.0.1")


async def test_livez(http: httpx.AsyncClient, context: Context) -> None:
    assert (await http.get("/livez")).status_code == 200
    context.fault = "away"
    assert (await http.get("/livez")).status_code == 200  # a restart would not help
    context.alive = False
    assert (await http.get("/livez")).status_code == 503


async def test_readyz(http: httpx.AsyncClient, context: Context) -> None:
    answer = await http.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"ready": True, "dev": False})
    run = bearer("run")
    verbose = (await http.get("/readyz?verbose", headers=run)).json()
    assert verbose["circuits"] == {"s3": "closed"}
    for token, status in (("", 403), ("make", 403), ("look", 403), ("wrong", 401)):
        headers = bearer(token) if token else {}
        refused = await http.get("/readyz?verbose", headers=headers)
        assert problem_of(refused).status == status
        assert (await http.get("/readyz", headers=headers)).status_code == 200
    context.fault = "connection to db.keck refused"
    answer = await http.get("/readyz?verbose", headers=run)
    assert answer.status_code == 503
    assert answer.json()["ready"] is False
    assert "connection to db.keck refused" in answer.json()["why"]
    plain = await http.get("/readyz")
    assert (plain.status_code, plain.json()["ready"]) == (503, False)
    assert "db.keck" not in plain.text


async def test_metrics(http: httpx.AsyncClient, context: Context) -> None:
    context.metrics.frames.labels("KCWI", "COMPLETE", "live").inc()
    answer = await http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'koa_frames_total{instrument="KCWI",origin="live",status="COMPLETE"} 1.0' in answer.text
    # What Prometheus 2 asks for; it keeps exemplars.
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    answer = await http.get("/metrics", headers={"Accept": accept})
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")


async def test_docs_work_without_the_internet(http: httpx.AsyncClient) -> None:
    page = await http.get("/docs")
    assert page.status_code == 200
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", page.text)
    assets = re.findall(r"""(?:src|href)=["']([^"']+)""", page.text)
    assert any(asset.endswith(".js") for asset in assets)
    for asset in assets:
        assert (await http.get(asset)).status_code == 200, asset
    paths = (await http.get("/openapi.json")).json()["paths"]
    assert {"/v1/who", "/livez", "/readyz", "/metrics"} <= paths.keys()


async def test_the_trace_of_a_request_is_kept(http: httpx.AsyncClient) -> None:
    mine = logs.new_trace()
    assert (await http.get("/v1/trace", headers={"traceparent": mine})).json() == mine
    for bad in ({}, {"traceparent": "nonsense"}, {"traceparent": mine + "\x7f"}):
        fresh = (await http.get("/v1/trace", headers=bad)).json()
        assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fresh)
        assert fresh != mine
