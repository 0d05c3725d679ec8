"""File work on the instruments' disks: contained, and a hung mount hangs alone (design 5, 8)."""

import asyncio
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from koa_shared.disks import THREADS, Disks, Pulse, contained
from koa_shared.errors import DependencyDown, FrameFault
from koa_shared.metrics import Metrics
from koa_shared.retry import Circuits

KCWI, NIRES = "/s/sdata1400/a.fits", "/s/sdata1500/a.fits"


@pytest.fixture
def disks() -> Disks:
    return Disks(Circuits(Metrics("monitor")))


@pytest.fixture
def hang() -> Iterator[threading.Event]:
    """A call that waits for this hangs until the test ends."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "sdata1400"
    (root / "night").mkdir(parents=True)
    (root / "night" / "a.fits").write_bytes(b"x")
    (tmp_path / "sdata1400-secret").mkdir()
    (tmp_path / "sdata1400-secret" / "b.fits").write_bytes(b"secret")
    return root


def test_what_lies_under_a_root_is_contained(root: Path) -> None:
    found = contained(f"{root}/night/../night/a.fits", ["/nowhere", str(root)])
    assert found == os.path.realpath(root / "night" / "a.fits")
    assert contained(f"{root}/not/yet.fits", [str(root)])  # that it is missing is told later


@pytest.mark.parametrize(
    "path",
    ["../sdata1400-secret/b.fits", "night/../../sdata1400-secret/b.fits", "../x", "/etc/passwd"],
)
def test_what_leads_out_is_refused(root: Path, path: str) -> None:
    with pytest.raises(FrameFault) as caught:
        contained(os.path.join(root, path), [str(root)])  # noqa: PTH118 (as it came)
    assert caught.value.code == "FILEPATH_REJECT"


@pytest.mark.parametrize("kind", ["file", "directory", "chain"])
def test_a_link_that_leads_out_is_refused(root: Path, kind: str) -> None:
    secret = root.parent / "sdata1400-secret"
    (root / "link.fits").symlink_to(secret / "b.fits")
    (root / "dir").symlink_to(secret)
    (root / "chain.fits").symlink_to(root / "dir" / "b.fits")
    path = {"file": "link.fits", "directory": "dir/b.fits", "chain": "chain.fits"}[kind]
    assert (root / path).read_bytes() == b"secret"
    with pytest.raises(FrameFault, match="outside the data roots"):
        contained(str(root / path), [str(root)])


def test_a_root_that_is_a_link_itself_is_no_way_out(root: Path) -> None:
    (root.parent / "mount").symlink_to(root)
    assert contained(str(root.parent / "mount" / "night" / "a.fits"), [str(root.parent / "mount")])
    assert contained(str(root / "night" / "a.fits"), [str(root.parent / "mount")])


def test_without_roots_nothing_is_contained(root: Path) -> None:
    with pytest.raises(FrameFault):
        contained(str(root / "night" / "a.fits"), [])


async def test_what_a_function_returns_and_raises_comes_through(disks: Disks) -> None:
    assert await disks.run(KCWI, "KCWI", lambda: 7) == 7

    def missing() -> int:
        return os.stat("/nowhere/at/all").st_size  # noqa: PTH116

    with pytest.raises(FileNotFoundError):
        await disks.run(KCWI, "KCWI", missing)
    assert disks.paused() == frozenset()


async def until(ask: Callable[[], object], seconds: float = 25.0) -> None:
    async with asyncio.timeout(seconds):
        while not ask():  # noqa: ASYNC110 (who answers knows of no event)
            await asyncio.sleep(0.005)


async def test_a_hung_mount_pauses_its_own_instrument_and_comes_back(
    disks: Disks, hang: threading.Event
) -> None:
    await disks.run(KCWI, "KCWI", lambda: 0)
    await disks.run(NIRES, "NIRES", lambda: 0)
    with pytest.raises(DependencyDown, match="no answer") as caught:
        await disks.run(KCWI, "KCWI", lambda: hang.wait(30), limit=0.05)
    assert caught.value.dependency == "disk:/s/sdata1400"
    assert disks.paused() == {"KCWI"}
    assert await disks.run(NIRES, "NIRES", lambda: 7, limit=1.0) == 7
    await asyncio.sleep(0.3)  # longer than the circuit alone would be open
    assert disks.paused() == {"KCWI"}
    hang.set()
    await until(lambda: not disks.paused(), 1.0)
    assert await disks.run(KCWI, "KCWI", lambda: 8) == 8


async def test_all_threads_of_a_mount_may_hang_and_no_other_mount_waits(
    disks: Disks, hang: threading.Event
) -> None:
    stuck = [disks.run(KCWI, "KCWI", lambda: hang.wait(30), limit=0.1) for _ in range(THREADS + 2)]
    results = await asyncio.gather(*stuck, return_exceptions=True)
    assert all(isinstance(result, DependencyDown) for result in results)
    start = time.monotonic()
    assert await disks.run(NIRES, "NIRES", lambda: 7) == 7
    assert time.monotonic() - start < 10, "the others hang for 30 s"
    assert disks.paused() == {"KCWI"}
    hang.set()
    await until(lambda: not disks.paused())
    assert await disks.run(KCWI, "KCWI", lambda: 9) == 9


async def test_what_never_began_does_not_run_later(disks: Disks, hang: threading.Event) -> None:
    ran = threading.Event()
    stuck = [disks.run(KCWI, "KCWI", lambda: hang.wait(30), limit=0.05) for _ in range(THREADS)]
    await asyncio.gather(*stuck, return_exceptions=True)
    with pytest.raises(DependencyDown):
        await disks.run(KCWI, "KCWI", ran.set, limit=0.05)
    hang.set()
    await until(lambda: not disks.paused())
    assert await disks.run(KCWI, "KCWI", lambda: 1) == 1
    assert not ran.is_set()


@pytest.mark.parametrize("number", ["EIO", "ESTALE", "ENOTCONN", "ETIMEDOUT"])
async def test_a_sick_mount_is_no_fault_of_the_file(disks: Disks, number: str) -> None:
    def sick() -> None:
        raise OSError(getattr(errno, number), "sick")

    with pytest.raises(DependencyDown) as caught:
        await disks.run(KCWI, "KCWI", sick)
    assert caught.value.dependency == "disk:/s/sdata1400"


@pytest.mark.parametrize("number", ["ENOENT", "EACCES", "EISDIR", "ENAMETOOLONG"])
async def test_a_fault_of_the_file_is_no_fault_of_the_mount(disks: Disks, number: str) -> None:
    def broken() -> None:
        raise OSError(getattr(errno, number), "broken")

    with pytest.raises(OSError, match="broken"):
        await disks.run(KCWI, "KCWI", broken)
    assert disks.paused() == frozenset()


async def test_data_roots_have_threads_of_their_own(disks: Disks) -> None:
    def thread() -> str:
        return threading.current_thread().name

    names = {
        path: (await disks.run(path, "X", thread)).rsplit("_", 1)[0]
        for path in ("/s/sdata900/a", "/s/sdata901/a", "/sdata900/a", "/k2/dcs/x", "/k2/ao/x")
    }
    assert len(set(names.values())) == 5
    again = (await disks.run("/s/sdata900/b/c", "Y", thread)).rsplit("_", 1)[0]
    assert again == names["/s/sdata900/a"]


def reading(pulse: Pulse, chunks: int, pause: float) -> Callable[[], int]:
    """Return a read that takes long, and shows that it is alive all the time."""

    def read() -> int:
        for _ in range(chunks):
            time.sleep(pause)
            pulse.beat()
        return chunks

    return read


async def test_a_slow_read_may_take_longer_than_the_limit(disks: Disks) -> None:
    pulse = Pulse()
    assert await disks.run(KCWI, "KCWI", reading(pulse, 8, 0.05), 0.2, pulse) == 8
    pulse = Pulse()
    with pytest.raises(DependencyDown):
        await disks.run(KCWI, "KCWI", reading(pulse, 1, 0.5), 0.2, pulse)


async def test_a_mount_that_hangs_keeps_one_call_waiting(
    disks: Disks, hang: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others give their slots back as soon as it is silent; one is enough to look."""
    monkeypatch.setattr("koa_shared.disks.SILENT", 0.3)
    begun = time.monotonic()

    async def call() -> float:
        with pytest.raises(DependencyDown):
            await disks.run(KCWI, "KCWI", lambda: hang.wait(30), 5.0)
        return time.monotonic() - begun

    waited = sorted(await asyncio.gather(*(call() for _ in range(THREADS + 2))))
    assert len(waited) == THREADS + 2
    assert waited[-2] < 4, "all but one"
    assert 5 <= waited[-1] < 15
    assert disks.paused() == {"KCWI"}


async def test_a_hung_read_does_not_end_the_one_beside_it(
    disks: Disks, hang: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("koa_shared.disks.SILENT", 0.2)
    stuck = asyncio.create_task(disks.run(KCWI, "KCWI", lambda: hang.wait(30), 1.0))
    await asyncio.sleep(0.05)
    pulse = Pulse()
    assert await disks.run(KCWI, "KCWI", reading(pulse, 12, 0.05), 1.0, pulse) == 12
    assert disks.paused() == {"KCWI"}
    with pytest.raises(DependencyDown):
        await stuck


async def test_who_waits_behind_slow_reads_is_not_given_up(
    disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("koa_shared.disks.SILENT", 0.2)
    pulses = [Pulse() for _ in range(THREADS)]
    slow = [disks.run(KCWI, "KCWI", reading(p, 20, 0.05), 0.5, p) for p in pulses]
    *counts, last = await asyncio.gather(*slow, disks.run(KCWI, "KCWI", lambda: 7, 0.5))
    assert (counts, last) == ([20] * THREADS, 7)
    assert disks.paused() == frozenset()
