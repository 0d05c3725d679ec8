"""Who sees what, of the three services in this process, on both engines: the walk."""

import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from koa_ingestor.app import create_app as create_ingestor
from koa_ingestor.config import Config as IngestorConfig
from koa_monitor.app import create_app as create_monitor
from koa_monitor.config import Config as MonitorConfig
from koa_monitor.sources import Broadcast
from koa_preparer.app import create_app as create_preparer
from koa_preparer.config import Config as PreparerConfig
from koa_shared.contracts import EventBatch, FilePrepared, FileWritten, utcnow
from koa_shared.db import Database
from tests.walk import (
    BLIND,
    FOLDER,
    PI,
    PLANTED,
    PROJECT,
    SERVICES,
    SIGHTED,
    TITLE,
    Scene,
    check_parts,
    check_that_all_is_seen,
    check_that_guesses_are_alike,
    check_that_no_route_tells,
    check_verbs,
)

KOAID = "NR.20251208.43200.00"
DATA = " ".join(PLANTED.values()).encode().ljust(2880)
NOWHERE = "http://127.0.0.1:9"
OpenDatabase = Callable[..., Database]
New = Callable[..., Any]


class Objects:
    """An object store that holds one product under any key."""

    async def insist_on(self, bucket: str) -> None:
        """There is every bucket."""

    async def copy(self, source: tuple[str, str], target: tuple[str, str]) -> None:
        """It is there already."""

    async def digest(self, bucket: str, key: str) -> tuple[int, str]:
        return len(DATA), hashlib.sha256(DATA).hexdigest()

    async def stream(self, bucket: str, key: str, at: int, size: int) -> AsyncIterator[bytes]:
        yield DATA[at : at + size]


class LocalScene(Scene):
    """Services in this process; what they know was told to them by messages."""

    def __init__(self, var: Path, database: OpenDatabase, stack: ExitStack) -> None:
        self.tokens = {r: secrets.token_urlsafe(32) for r in ("wrong", *BLIND[2:], "operator")}
        self.tokens["nobody"], self.tokens_file = "", var / "tokens.toml"
        self.tokens_file.write_text(
            "".join(
                f'[[token]]\nname = "{role}"\nrole = "{role}"\n'
                f'sha256 = "{hashlib.sha256(self.tokens[role].encode()).hexdigest()}"\n'
                for role in (*BLIND[2:], "operator")
            )
        )
        (var / "night").write_text("")
        more: dict[str, Any] = {"var": var, "tokens_file": self.tokens_file}
        s3: dict[str, Any] = {"s3_endpoint": NOWHERE, "s3_access_key": "a", "s3_secret_key": "b"}
        urls = {name: database(name).url for name in SERVICES}
        monitor = MonitorConfig(
            control=f"replay:{var}/night", path_map=f"/s={var}", preparer_url=NOWHERE,
            ingestor_url=NOWHERE, database_url=urls["monitor"], **more,
        )  # fmt: skip
        preparer = PreparerConfig(ingestor_url=NOWHERE, database_url=urls["preparer"], **s3, **more)
        ingestor = IngestorConfig(database_url=urls["ingestor"], **s3, **more)
        self.apps = {
            "monitor": create_monitor(monitor), "preparer": create_preparer(preparer),
            "ingestor": create_ingestor(ingestor),
        }  # fmt: skip
        self.clients = {
            name: stack.enter_context(TestClient(app, client=("10.0.0.9", 1)))
            for name, app in self.apps.items()
        }
        context = self.apps["ingestor"].state.context
        context.objects = context.worker.objects = Objects()

    def ask(self, role: str, method: str, service: str, path: str, **more: Any) -> httpx.Response:
        headers = self.bearer(role) | more.pop("headers", {})
        answer: httpx.Response = self.clients[service].request(
            method, path, headers=headers, **more
        )
        return answer

    def seen(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("operator", "GET", "ingestor", f"/v1/frames/{name}").json()
        return found

    def play(self, file: FileWritten, prepared: FilePrepared, batch: EventBatch) -> None:
        for service, path, message in (
            ("preparer", "/v1/files", file), ("ingestor", "/v1/frames", prepared),
            ("ingestor", "/v1/events", batch),
        ):  # fmt: skip
            body = message.model_dump(mode="json", exclude_unset=True)
            answer = self.ask("producer", "POST", service, path, json=body)
            assert answer.is_success, answer.text
        value = f"{FOLDER}/hushlast.fits"
        heard = Broadcast("nires_spec", "nsds", "LASTFILE", value, utcnow(), initial=False, read={})
        portal = self.clients["monitor"].portal
        assert portal is not None
        portal.call(self.apps["monitor"].state.context.hear, heard)
        until = time.monotonic() + 10
        while self.seen(KOAID)["status"] != "COMPLETE" and time.monotonic() < until:
            time.sleep(0.05)
        self.good, self.bad = self.seen(KOAID), self.seen(batch.events[0].frame_id)
        assert self.good["status"] == "COMPLETE"
        self.program = self.good["program"]["semid"]
        self.add_owner()
        self.tell()
        deed = {"why": "hushwhy"}
        where = f"/v1/frames/{self.bad['frame_id']}/retry"
        assert self.ask("operator", "POST", "ingestor", where, json=deed).is_success


@pytest.fixture
def scene(
    tmp_path: Path, database: OpenDatabase, new_file: New, new_prepared: New, new_event: New
) -> Iterator[LocalScene]:
    file = new_file(path=f"{FOLDER}/hushfile.fits", instrument="NIRES", origin="manual")
    digests = {"sha256": hashlib.sha256(DATA).hexdigest(), "md5": "a" * 32}
    product = {"name": f"{KOAID}.fits", "role": "fits", "size": len(DATA), "key": "k"} | digests
    prepared = new_prepared(
        file, koaid=KOAID, products=[product], header=[[k, v, ""] for k, v in PLANTED.items()],
        metadata={"koaimtyp": "object", "targname": PLANTED["TARGNAME"], "ra": 187.7059304},
        program={"semid": f"2025B_{PROJECT}", "pi": PI, "title": TITLE},
    )  # fmt: skip
    other = new_file(path=f"{FOLDER}/hushbad.fits", instrument="NIRES")
    batch = EventBatch(events=[new_event(other, "ERROR")])
    with ExitStack() as stack:
        scene = LocalScene(tmp_path, database, stack)
        scene.play(file, prepared, batch)
        yield scene


def test_strangers_and_others(scene: LocalScene) -> None:
    for role in BLIND:
        for service in SERVICES:
            check_that_no_route_tells(scene, service, role)
        check_that_guesses_are_alike(scene, role)
    check_verbs(scene)


def test_who_may_sees_it_all(scene: LocalScene) -> None:
    for role in SIGHTED:
        check_that_all_is_seen(scene, role, set())
    check_parts(scene)
