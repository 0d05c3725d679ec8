"""Who sees what, of real services: the walk, the stream, and what the logs say."""

import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.walk import (
    BLIND,
    FOLDER,
    PLANTED,
    PROJECT,
    SCHEDULE,
    SERVICES,
    SIGHTED,
    Scene,
    check_parts,
    check_that_all_is_seen,
    check_that_guesses_are_alike,
    check_that_no_route_tells,
    check_verbs,
    told,
)

from .conftest import BLOCK, Frame, Site, running
from .test_malformed import frame as new_frame

pytestmark = pytest.mark.timeout(280)


class LiveScene(Scene):
    """An installation, with frames that were prepared and archived."""

    def __init__(self, site: Site) -> None:
        self.site = site
        folder = site.stack.var / "tokens"
        self.tokens_file = folder / "tokens.toml"
        known = {name: (folder / name).read_text().strip() for name in ("producer", "observer")}
        known |= {"operator": (folder / "operator").read_text().strip()}
        self.tokens = known | {"nobody": "", "wrong": secrets.token_urlsafe(32)}
        self._play()

    def ask(self, role: str, method: str, service: str, path: str, **more: Any) -> httpx.Response:
        headers = self.bearer(role) | more.pop("headers", {})
        url = self.site.stack.url(service) + path
        return self.site.http.request(method, url, headers=headers, **more)

    def _end(self, path: str, status: str) -> Frame:
        body = {"path": path, "instrument": "NIRES"}
        answer = self.ask("producer", "POST", "monitor", "/v1/files", json=body)
        assert answer.status_code == 202, answer.text
        where = f"/v1/frames/{answer.json()['frame_id']}"

        def ended() -> Frame | None:
            found = self.ask("operator", "GET", "ingestor", where)
            here = found.status_code == 200 and found.json()["status"] == status
            return found.json() if here else None

        return self.site.wait(ended, 20, f"{path} {status}")

    def _play(self) -> None:
        site = self.site
        path, data = new_frame(f"{FOLDER}/hushfile.fits", **PLANTED)
        site.write(path, data)
        self.good = self._end(path, "COMPLETE")
        self.program = self.good["program"]["semid"]
        assert self.program.endswith(f"_{PROJECT}")
        bad = f"{FOLDER}/hushbad.fits"
        site.write(bad, new_frame(f"{FOLDER}/other.fits", **PLANTED)[1])
        self.bad = self._end(bad, "INVALID")
        self.add_owner()
        self.tell()
        site.write(path, data[:-BLOCK] + bytes([1]) * BLOCK)  # the same KOAID, other bytes
        conflict = self._end(path, "INVALID")
        where, deed = f"/v1/frames/{conflict['frame_id']}/accept", {"as": "version"}
        deed["why"] = "hushwhy"
        assert self.ask("operator", "POST", "ingestor", where, json=deed).is_success


@pytest.fixture(scope="module")
def scene(var: Path) -> Iterator[LiveScene]:
    schedule = var.parent / "schedule.toml"
    schedule.write_text(SCHEDULE)
    with running(var, dev=False, env={"KOA_SCHEDULE": str(schedule)}) as site:
        yield LiveScene(site)


def stream(scene: LiveScene, role: str, last: int) -> httpx.Response:
    """Return what a caller hears of the stream within a second."""
    url = scene.site.stack.url("ingestor") + "/v1/stream"
    headers, text = {"Last-Event-ID": str(last)} | scene.bearer(role), b""
    with httpx.stream("GET", url, headers=headers, trust_env=False, timeout=1) as answer:
        try:
            for chunk in answer.iter_raw():
                text += chunk
        except httpx.ReadTimeout:
            pass
        return httpx.Response(answer.status_code, headers=answer.headers, content=text)


@pytest.mark.parametrize("role", BLIND)
@pytest.mark.parametrize("service", SERVICES)
def test_no_route_tells_a_secret(scene: LiveScene, service: str, role: str) -> None:
    scene.tell()
    check_that_no_route_tells(scene, service, role)


@pytest.mark.parametrize("role", BLIND)
def test_the_stream_tells_no_secret(scene: LiveScene, role: str) -> None:
    answer = stream(scene, role, 0)
    assert not told(answer)
    assert answer.status_code == (401 if role == "wrong" else 200)
    assert role == "wrong" or b"event: COMPLETE" in answer.content


@pytest.mark.parametrize("role", BLIND)
def test_a_right_guess_is_answered_like_a_wrong_one(scene: LiveScene, role: str) -> None:
    check_that_guesses_are_alike(scene, role)


@pytest.mark.parametrize("role", SIGHTED)
def test_who_may_sees_it_all(scene: LiveScene, role: str) -> None:
    scene.tell()
    check_that_all_is_seen(scene, role, told(stream(scene, role, 0)))


def test_verbs_and_parts_of_a_file(scene: LiveScene) -> None:
    check_verbs(scene)
    check_parts(scene)


def test_no_key_is_logged(scene: LiveScene) -> None:
    """Behind all of the above, and once a key of the object store is wrong."""
    stack, wrong = scene.site.stack, secrets.token_urlsafe(32)
    keys = {name: token for name, token in scene.tokens.items() if token}
    keys |= {"right": stack.environment()["KOA_S3_SECRET_KEY"], "not right": wrong}
    stack.kill("preparer", signal.SIGTERM)
    stack.env["KOA_S3_SECRET_KEY"] = wrong
    stack.start("preparer")
    stack.wait_ready("preparer")
    path, data = new_frame(f"{FOLDER}/hushlater.fits")
    scene.site.write(path, data)
    body, log = {"path": path, "instrument": "NIRES"}, stack.var / "log" / "preparer.log"
    assert scene.ask("producer", "POST", "monitor", "/v1/files", json=body).status_code == 202
    scene.site.wait(lambda: "SignatureDoesNotMatch" in log.read_text(), 20, "a refusal")
    for service in SERVICES:
        text = (stack.var / "log" / f"{service}.log").read_text(errors="replace")
        assert {name for name, key in keys.items() if key in text} == set(), service
        assert "bearer" not in text.lower()
