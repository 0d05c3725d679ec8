"""Downloads by real `koa` processes, of real frames over a wire that counts; the docs' examples."""

import io
import json
import os
import re
import signal
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from koa_shared.simulator.stack import BIN

from .conftest import Frame, Site, running, sha256

pytestmark = pytest.mark.timeout(180)

SIZE, FRAMES = 2_000_000, 4
DOCS = Path(__file__).parents[2] / "docs" / "client.md"


class Wire(socketserver.ThreadingTCPServer):
    """A proxy that counts what comes down, slows it, and breaks connections off."""

    daemon_threads, allow_reuse_address = True, True

    def __init__(self, upstream: int) -> None:
        super().__init__(("127.0.0.1", 0), Line)
        self.upstream, self.down, self.pause, self.cuts = upstream, 0, 0.0, 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Line(socketserver.BaseRequestHandler):
    """One connection."""

    def handle(self) -> None:
        wire = self.server
        assert isinstance(wire, Wire)
        with socket.create_connection(("127.0.0.1", wire.upstream)) as there, suppress(OSError):
            threading.Thread(target=self.up, args=(there,), daemon=True).start()
            came = 0
            while data := there.recv(1 << 16):
                time.sleep(wire.pause)
                if wire.cuts and came > SIZE // 2:
                    wire.cuts -= 1
                    break
                self.request.sendall(data)
                came, wire.down = came + len(data), wire.down + len(data)
            self.request.shutdown(socket.SHUT_RDWR)

    def up(self, there: socket.socket) -> None:
        with suppress(OSError):
            while data := self.request.recv(1 << 16):
                there.sendall(data)
            there.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def site(var: Path) -> Iterator[Site]:
    with running(var, dev=False) as site:
        token = (site.stack.var / "tokens" / "operator").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        site.http = httpx.Client(trust_env=False, timeout=20, headers=headers)
        yield site


@pytest.fixture(scope="module")
def frames(site: Site) -> list[Frame]:
    """Return the frames of a night, archived."""
    entries = site.shoot("NIRES", FRAMES, size=SIZE)
    found = site.ended([entry.path for entry in entries], 60)
    assert {frame["status"] for frame in found.values()} == {"COMPLETE"}
    return list(found.values())


@pytest.fixture
def wire(site: Site) -> Iterator[Wire]:
    with Wire(site.stack.port("ingestor")) as wire:
        threading.Thread(target=wire.serve_forever, args=(0.01,), daemon=True).start()
        yield wire
        wire.shutdown()


def environment(site: Site, role: str = "operator") -> dict[str, str]:
    token = {"KOA_TOKEN_FILE": str(site.stack.var / "tokens" / role)} if role else {}
    plain = {k: v for k, v in os.environ.items() if not k.startswith("KOA_")}
    return plain | {"PORT_OFFSET": str(site.stack.offset)} | token


class Getter:
    """`koa get` over the wire, into a directory of its own."""

    def __init__(self, site: Site, wire: Wire, into: Path) -> None:
        self.site, self.wire, self.into = site, wire, into

    def start(
        self, *words: str, role: str = "operator", limit: str = "unlimited"
    ) -> subprocess.Popen[str]:
        env = environment(self.site, role) | {"KOA_INGESTOR_URL": self.wire.url}
        order = [str(BIN / "koa"), "get", "--into", str(self.into), "--json", *words]
        command = ["sh", "-c", f'ulimit -f {limit}; exec "$@"', "koa", *order]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True)

    def end(self, process: subprocess.Popen[str], code: int = 0) -> dict[str, Any]:
        out, err = process.communicate(timeout=90)
        assert process.returncode == code, err
        told: dict[str, Any] = json.loads(out) if out else {}
        return told | {"said": err}

    def __call__(self, *words: str, code: int = 0, **more: str) -> dict[str, Any]:
        return self.end(self.start(*words, **more), code)

    def has(self, frames: list[Frame]) -> None:
        """Check that the files are those that the archive tells, and nothing else is there."""
        wanted = {p["name"]: p["sha256"] for frame in frames for p in fits(frame)}
        assert {p.name: sha256(p.read_bytes()) for p in self.into.iterdir()} == wanted

    def parts(self) -> int:
        """Return the bytes that are on the disk."""
        return sum(path.stat().st_size for path in self.into.iterdir())


@pytest.fixture
def get(site: Site, wire: Wire, tmp_path: Path) -> Getter:
    return Getter(site, wire, tmp_path / "night")


def fits(frame: Frame) -> list[dict[str, Any]]:
    return [product for product in frame["products"] if product["name"].endswith(".fits")]


def size(frames: list[Frame]) -> int:
    return sum(product["size"] for frame in frames for product in fits(frame))


def select(frames: list[Frame]) -> tuple[str, ...]:
    """Return the options that select these frames."""
    [night] = {frame["night"] for frame in frames}
    return ("--instrument", "NIRES", "--night", night, "--status", "COMPLETE")


def test_a_night_comes_once(get: Getter, frames: list[Frame]) -> None:
    told = get(*select(frames))
    assert (told["files"], told["fetched"], told["bytes"]) == (FRAMES, FRAMES, size(frames))
    get.has(frames)
    get.wire.down = 0
    told = get(*select(frames))
    assert (told["files"], told["fetched"], told["bytes"]) == (FRAMES, 0, 0)
    assert get.wire.down < 50_000, "more than a list of frames came down"
    get.has(frames)


def reduce(site: Site, raw: Frame, body: bytes) -> Frame:
    """Deliver a set of a raw frame; return its frame."""
    home, koaid = f"/s/sdata1500/nires9/redux/{len(body)}", raw["koaid"]
    for name in (f"{koaid}_s2d.fits.gz", f"{koaid}.log"):
        site.write(f"{home}/{name}", body + name.encode())
    order = {"instrument": "NIRES", "level": 1, "koaid": koaid, "directory": home}
    order |= {"pipeline": "quick look", "pipeline_version": "0.3"}
    answer = site.post("preparer", "/v1/products", order)
    assert answer.status_code == 202, answer.text
    made = site.end_of(answer.json()["came"][0]["frame_id"], 60)
    assert made["status"] == "COMPLETE", made
    return made


def test_a_reduced_set_comes_whole(get: Getter, frames: list[Frame]) -> None:
    def there() -> dict[str, bytes]:
        files = [path for path in get.into.rglob("*") if path.is_file()]
        return {str(path.relative_to(get.into)): path.read_bytes() for path in files}

    def has(made: Frame, version: int) -> bool:
        home, held = f"lev1/{made['koaid']}/v{version}", there()
        found = {name.rpartition("/")[2]: sha256(held[name]) for name in held if home in name}
        return found == {one["name"]: one["sha256"] for one in made["products"]}

    old, names = reduce(get.site, frames[0], b"old"), select(frames)
    get(*names, "--level", "1")
    assert has(old, 1)
    assert get(*names, "--level", "1")["bytes"] == 0
    new = reduce(get.site, frames[0], b"newer")
    assert get(*names, "--level", "1")["left_out"] == {"superseded": 1}
    assert has(new, 2)
    assert has(old, 1)  # not one file of it is among those of the other
    told = get(old["frame_id"], "--level", "1", code=1)
    assert f"another frame, {new['frame_id']}, holds a later one" in told["failed"][0]["reason"]
    get.into = get.into / "one"
    get(old["koaid"], "--level", "1", "--products", "*.log")
    assert [*there()] == [f"lev1/{old['koaid']}/v2/{old['koaid']}.log"]


def test_one_that_was_killed_is_gone_on_with(get: Getter, frames: list[Frame]) -> None:
    get.wire.pause = 0.02
    process = get.start(*select(frames), "--parallel", "2")
    until = time.monotonic() + 60
    while get.wire.down < size(frames) // 2 and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert get.end(process, -signal.SIGKILL)
    here, get.wire.pause, get.wire.down = get.parts(), 0, 0
    assert 0 < here < size(frames)
    told = get(*select(frames))
    assert told["bytes"] == size(frames) - here
    assert get.wire.down < told["bytes"] + 300_000, "more than the rest and a few late chunks"
    get.has(frames)


def test_two_at_once_share_the_work(get: Getter, frames: list[Frame]) -> None:
    get.wire.pause = 0.005
    both = [get.start(*select(frames)) for _ in range(2)]
    told = [get.end(process) for process in both]
    assert [row["files"] for row in told] == [FRAMES, FRAMES]
    assert sum(row["bytes"] for row in told) == size(frames)
    get.has(frames)


def test_a_connection_that_breaks_off_costs_no_byte(get: Getter, frames: list[Frame]) -> None:
    get.wire.cuts, names = 3, [frame["koaid"] for frame in frames]
    told = get(*names, "--parallel", "2")
    assert get.wire.cuts == 0
    assert told["bytes"] == size(frames)
    get.has(frames)


def test_a_flipped_byte_is_found_and_kept_beside(get: Getter, frames: list[Frame]) -> None:
    names = [frame["koaid"] for frame in frames[:2]]
    get(*names)
    file = get.into / f"{names[0]}.fits"
    good = file.read_bytes()
    file.write_bytes(bad := good[:5000] + bytes([good[5000] ^ 1]) + good[5001:])
    told = get(*names)
    assert (told["fetched"], told["bytes"]) == (1, len(good))
    [kept] = told["kept"]
    assert f"{file} had other content, now {Path(kept).name}" in told["said"]
    assert (file.read_bytes(), Path(kept).read_bytes()) == (good, bad)


def test_what_a_stranger_is_told(get: Getter, frames: list[Frame]) -> None:
    told = get(*select(frames), role="")
    assert (told["files"], told["left_out"]) == (0, {"proprietary": FRAMES})
    koaid = frames[0]["koaid"]
    told = get(koaid, role="", code=1)
    assert f"{koaid} is proprietary" in told["failed"][0]["reason"]
    assert f"koa: {koaid} is proprietary" in told["said"]
    token = get.site.stack.var / "tokens" / "wrong"
    token.write_text("not-a-token-that-anybody-knows")
    assert "is KOA_TOKEN_FILE right?" in get(koaid, role="wrong", code=1)["said"]
    assert get.parts() == 0


def test_what_there_is_not(get: Getter, frames: list[Frame]) -> None:
    koaid = frames[0]["koaid"]
    told = get(koaid, "--products", "*.nothing", code=1)
    assert told["failed"][0]["reason"] == f"{koaid} is COMPLETE, it has no product *.nothing"
    assert "no frame has the name n9.fits" in get("n9.fits", code=1)["said"]
    told = get(koaid, "--products", "*.md5sum.table")
    assert [path.name for path in get.into.iterdir()] == [f"{koaid}.md5sum.table"]


def test_a_disk_that_takes_no_more(get: Getter, frames: list[Frame]) -> None:
    names = [frame["koaid"] for frame in frames[:2]]
    said = get(*names, code=1, limit="1000")["said"]  # blocks of 512 bytes a file
    assert re.search(r"File too large: '.*\.fits'", said)
    assert "what has come is kept; repeat the command to go on" in said
    here = get.parts()
    assert get(*names)["bytes"] == size(frames[:2]) - here
    get.has(frames[:2])


def test_an_object_that_the_store_damaged(get: Getter) -> None:
    [entry] = get.site.shoot("ESI", size=400_000)
    frame = get.site.ended([entry.path], 30)[entry.path]
    koaid = frame["koaid"]
    key = f"ESI/{koaid.split('.')[1]}/lev0/{koaid}/v1/{koaid}.fits"
    good = get.site.s3.get_object("koa-archive", key).read()
    bad = good[:-3000] + bytes([good[-3000] ^ 1]) + good[-2999:]
    get.site.s3.put_object("koa-archive", key, io.BytesIO(bad), len(bad))
    told = get(koaid, code=1)
    assert "object_damaged" in told["failed"][0]["reason"]
    assert [path for path in get.into.iterdir() if not path.name.startswith(".")] == []


# -- the examples of the documentation -----------------------------------------------------

BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def observer(
    site: Site, frames: list[Frame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """Be somebody who has read the page: the environment, the directory."""
    monkeypatch.chdir(tmp_path)
    env = environment(site) | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return env


def real(text: str, frame: Frame) -> str:
    """Put names that exist here in the place of the examples'."""
    path = "/s/sdata1500/nires9/2026nov23/s261123_0001.fits"
    known = {"NR.20261123.45753.84": frame["koaid"], path: frame["path"]}
    for name, value in (known | {"2026-11-23": frame["night"]}).items():
        assert name in text
        text = text.replace(name, value)
    return text


def test_every_example_of_the_page_runs(
    frames: list[Frame], observer: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = BLOCK.findall(real(DOCS.read_text(), frames[0]))
    assert {kind for kind, _ in blocks} == {"python", "sh"}
    known: dict[str, Any] = {}
    for kind, text in blocks:
        if kind == "sh":
            subprocess.run(["bash", "-euo", "pipefail", "-c", text], env=observer, check=True)
        else:
            exec(compile(text, str(DOCS), "exec"), known)
    said = capsys.readouterr().out
    assert f"{frames[0]['koaid']} COMPLETE " in said
    assert f"tonight/{frames[0]['koaid']}.fits {fits(frames[0])[0]['size']} whole, 0 bytes" in said
    assert f"duplicate {frames[0]['frame_id']}" in said
    assert "404 unknown_frame ingestor: answered 404 unknown_frame" in said
    assert len([*Path("one").iterdir()]) == len(frames[0]["products"])
    assert "complete -o default -F" in Path("koa.bash").read_text()
