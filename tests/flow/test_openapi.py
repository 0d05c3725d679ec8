"""Every operation of the three OpenAPI documents does what its document says.

Schemathesis makes up requests that fit the contract and such that don't; answers must be
documented ones, and what does not fit must be refused.
"""

import hashlib
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from schemathesis.engine import from_schema
from schemathesis.engine.events import NonFatalError
from schemathesis.python import asgi

from koa_ingestor.app import create_app as create_ingestor
from koa_ingestor.config import Config as IngestorConfig
from koa_monitor.app import create_app as create_monitor
from koa_monitor.config import Config as MonitorConfig
from koa_preparer.app import create_app as create_preparer
from koa_preparer.config import Config as PreparerConfig

TOKEN = "an-operator"


EXAMPLES = 10  # of each operation, beside what covers the limits of its parameters


def monitor(var: Path, **more: Any) -> Any:
    (var / "night.jsonl").write_text("")
    return create_monitor(
        MonitorConfig(
            var=var, control=f"replay:{var}/night.jsonl", path_map=f"/s={var}", **PEERS, **more
        )
    )


PEERS: dict[str, Any] = {"ingestor_url": "http://127.0.0.1:9", "preparer_url": "http://127.0.0.1:9"}
S3: dict[str, Any] = {
    "s3_endpoint": "http://127.0.0.1:9",
    "s3_access_key": "a",
    "s3_secret_key": "b",
}
APPS: dict[str, Callable[..., Any]] = {
    "monitor": monitor,
    "preparer": lambda **more: create_preparer(PreparerConfig(**more, **S3)),
    "ingestor": lambda **more: create_ingestor(IngestorConfig(**more, **S3)),
}  # fmt: skip
CONFIG = {
    "headers": {"Authorization": f"Bearer {TOKEN}"},
    "seed": 1,
    "generation": {"max-examples": EXAMPLES},
    "phases": {"stateful": {"enabled": False}},
    # A stream does not end by itself.
    "operations": [{"include-path": "/v1/stream", "request-timeout": 0.2}],
}  # fmt: skip


@pytest.fixture
def open_app(
    tmp_path: Path, migrated: Callable[[str, str], str], request: pytest.FixtureRequest
) -> Callable[[str, str], Any]:
    """Give the application of a service in this process, on a fresh database."""

    def open_(service: str, engine: str) -> Any:
        tokens, url = tmp_path / "tokens.toml", migrated(engine, service)
        digest = hashlib.sha256(TOKEN.encode()).hexdigest()
        tokens.write_text(f'[[token]]\nname = "x"\nrole = "operator"\nsha256 = "{digest}"\n')
        if engine == "postgresql":
            url = request.getfixturevalue("postgresql")(url)
        else:
            copy = shutil.copy(url.removeprefix("sqlite:///"), tmp_path / "copy.db")
            url = f"sqlite:///{copy}"
        return APPS[service](var=tmp_path, tokens_file=tokens, database_url=url)

    return open_


def is_ruled_out(check: Any, told: Any, case_id: str) -> bool:
    """Tell whether valid data were refused for what they mean, not for their shape."""
    answer = told.interactions[case_id].response
    rule = check.name == "positive_data_acceptance" and answer is not None
    return rule and answer.json()["code"] != "invalid_request"


def is_of_python(fault: Exception) -> bool:
    """Tell whether the tool fell over Python's own gh-106905: it parses in several threads."""
    return isinstance(fault, SystemError) and sys.version_info < (3, 11, 5)


SITES = [(service, "sqlite") for service in APPS] + [("ingestor", "postgresql")]


@pytest.mark.parametrize(("service", "engine"), SITES)
def test_contract(open_app: Callable[[str, str], Any], service: str, engine: str) -> None:
    config = schemathesis.Config.from_dict(CONFIG)
    app = open_app(service, engine)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=config)
    sent, wrong = Counter[str](), dict[str, str]()
    for event in from_schema(schema).execute():
        if isinstance(event, NonFatalError) and not is_of_python(event.value):
            wrong[event.label] = repr(event.value)
        if (told := getattr(event, "recorder", None)) is None:
            continue
        for case_id, checks in told.checks.items():
            case = told.cases[case_id].value
            sent[case.operation.label] += 1
            for check in checks:
                if check.failure_info is not None and not is_ruled_out(check, told, case_id):
                    failure = check.failure_info.failure
                    key = f"{case.operation.label}: {failure.title}"
                    answer = told.interactions[case_id].response
                    text = (failure.message, check.failure_info.code_sample, answer and answer.text)
                    wrong.setdefault(key, "\n".join(map(str, text)))
    asgi.shutdown_lifespans()
    print(service, engine, sum(sent.values()), "requests")
    assert not wrong, "\n\n".join(f"{key}\n{text}" for key, text in wrong.items())
    paths = schema.raw_schema["paths"]
    assert set(sent) == {f"{verb.upper()} {path}" for path in paths for verb in paths[path]}


HUGE = ("1" + "0" * 30, "9" * 5000, "-1" + "0" * 30)
LONGEST = {"/v1/stream": 0.3}  # s; it does not end by itself
ODD = ("%00", "%ED%A0%80", "%F0%9F%94%AD", "..%2F..%2Fx", "a%0d%0aX-Y: z")


@pytest.mark.parametrize(("service", "engine"), SITES)
def test_numbers_without_end_and_odd_letters(
    open_app: Callable[[str, str], Any], service: str, engine: str
) -> None:
    """In every parameter of every GET, one at a time; and in Last-Event-ID."""
    app, sent = open_app(service, engine), 0
    with asgi.get_client(app) as http:
        http.headers["Authorization"] = f"Bearer {TOKEN}"
        for path, verbs in app.openapi()["paths"].items():
            for parameter in verbs.get("get", {}).get("parameters", ()):
                for value in (*HUGE, *ODD):
                    where, more = path, {"path": "", "query": f"?{parameter['name']}={value}"}
                    headers = {"last-event-id": value} if parameter["in"] == "header" else {}
                    if parameter["in"] == "path":
                        where = path.replace(f"{{{parameter['name']}}}", value)
                    url = where.replace("{name}", "x").replace("{product}", "y")
                    url += more.get(parameter["in"], "")
                    try:
                        answer = http.get(url, headers=headers, timeout=LONGEST.get(path, 30))
                    except requests.ReadTimeout:  # before it began: this machine is busy
                        assert path in LONGEST, url
                        continue
                    assert answer.status_code < 500, (url, headers, answer.text)
                    assert not answer.headers.get("x-y")
                    sent += 1
    asgi.shutdown_lifespans()
    assert sent >= len(HUGE)
