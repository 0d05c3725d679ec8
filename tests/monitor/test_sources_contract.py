"""One contract for the keyword sources of all control systems (facts 1.1, 1.2, 1.5)."""

import asyncio
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import aioca
import pytest

from koa_monitor.config import Config
from koa_monitor.sources import Broadcast, KeywordSource, open_sources
from koa_monitor.sources.ktl import KtlSource
from koa_monitor.sources.mktl import MktlSource
from koa_shared.instruments import Heartbeat, Source
from koa_shared.testing.ioc import Ioc, use_loopback
from koa_shared.testing.keywords import FakeKtl, FakeMktl, KeywordServer

use_loopback()

SERVICE = "kbds"
BLUE = Source(
    name="kcwi_blue",
    service=SERVICE,
    keyword="LOUTFILE",
    heartbeat=Heartbeat(keyword="ITERATION", seconds=0.5),
)
ESI = Source(
    name="esi",
    service=SERVICE,
    keyword="WDISK",
    required="false",
    path="{OUTDIR}/{OUTFILE}{LFRAMENO:0>4}.fits",
)
ESI_BEATING = ESI.model_copy(update={"heartbeat": BLUE.heartbeat})
HUNG = ESI.model_copy(update={"path": "{OUTDIR}/{HUNG}.fits"})
START: dict[str, str | int] = {
    "LOUTFILE": "/s/start.fits",
    "ITERATION": 0,
    "WDISK": "true",
    "OUTDIR": "/s/sdata700",
    "OUTFILE": "e",
    "LFRAMENO": "7",
}


class Rig(Protocol):
    """A control system that a test can play with."""

    lossy: bool

    def open(self, source: Source) -> KeywordSource:
        """Return a source that hears this rig."""

    def put(self, keyword: str, value: str | int) -> None:
        """Set a keyword, and return when it is set."""

    async def burst(self, values: Sequence[str]) -> None:
        """Set LOUTFILE as fast as the server can tell of each value."""

    def stop(self) -> None:
        """Let the server vanish."""

    def start(self, **values: str) -> None:
        """Let the server return, with these values from the first moment on."""

    def close(self) -> None:
        """Clear away what one test's event loop left."""


class EpicsRig:
    """A real EPICS server."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.lossy = kind == "caproto"
        self.start()

    def open(self, source: Source) -> KeywordSource:
        return open_sources("epics", [source])[0]

    def put(self, keyword: str, value: str | int) -> None:
        self.ioc.put({f"koa:{SERVICE}:{keyword}": value})

    async def burst(self, values: Sequence[str]) -> None:
        for value in values:
            await aioca.caput(
                f"koa:{SERVICE}:LOUTFILE",
                value,
                datatype=aioca.DBR_CHAR_STR,
                wait=not self.lossy,
            )

    def stop(self) -> None:
        self.ioc.kill()

    def start(self, **values: str) -> None:
        pvs = {f"koa:{SERVICE}:{key}": x for key, x in (START | values).items()}
        self.ioc = Ioc(self.kind, pvs)

    def close(self) -> None:
        aioca.purge_channel_caches()


class FakeRig:
    """The fake `ktl` or `mktl`."""

    lossy = False

    def __init__(self, adapter: Callable[[Source, Any], KeywordSource], fake: type[Any]) -> None:
        self.server = KeywordServer()
        self.server.dead.add("HUNG")
        self.module = fake(self.server)
        self.told = threading.Semaphore(0)
        self.server.listen(lambda *_: self.told.release())
        self.adapter = adapter
        self.put("HUNG", "never")
        for keyword, value in START.items():
            self.put(keyword, value)

    def open(self, source: Source) -> KeywordSource:
        return self.adapter(source, self.module)

    def put(self, keyword: str, value: str | int) -> None:
        self.server.put(SERVICE, keyword, str(value))
        if not self.server.offline:  # else a source of the next test hears it, too
            assert self.told.acquire(timeout=5)

    async def burst(self, values: Sequence[str]) -> None:
        for value in values:
            self.put("LOUTFILE", value)

    def stop(self) -> None:
        self.server.offline = True

    def start(self, **values: str) -> None:
        for keyword, value in values.items():
            self.put(keyword, value)
        self.server.offline = False

    def close(self) -> None:
        pass


DAEMON = """
import json, sys
import mktl

start = json.loads(sys.argv[2])

class Daemon(mktl.Daemon):
    def describe_items(self):
        return {key.lower(): {"description": key, "type": "string"} for key in start}

daemon = Daemon(sys.argv[1], "koa", True)
def put(values):
    for key, value in values.items():
        daemon.store[key.lower()].publish(str(value))
    print("done", flush=True)

put(start)
for line in sys.stdin:
    put(json.loads(line))
"""


class MktlRig:
    """The real daemon of mKTL, where the package is installed by hand.

    Its discovery broadcasts, so run this in a network namespace of its own, with a
    route for broadcasts, and MKTL_HOME in a fresh directory.
    """

    lossy = False

    def __init__(self) -> None:
        self.start()

    def open(self, source: Source) -> KeywordSource:
        return open_sources("mktl", [source])[0]

    def _tell(self, line: str) -> None:
        assert self.daemon.stdin
        assert self.daemon.stdout
        self.daemon.stdin.write(line)
        self.daemon.stdin.flush()
        assert self.daemon.stdout.readline() == "done\n"

    def put(self, keyword: str, value: str | int) -> None:
        self._tell(json.dumps({keyword: value}) + "\n")

    async def burst(self, values: Sequence[str]) -> None:
        for value in values:
            self.put("LOUTFILE", value)

    def start(self, **values: str) -> None:
        self.daemon = subprocess.Popen(
            [sys.executable, "-c", DAEMON, SERVICE, json.dumps(START | values)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._tell("")

    def stop(self) -> None:
        self.daemon.kill()
        self.daemon.communicate()

    def close(self) -> None:
        pass


RIGS: dict[str, Callable[[], Rig]] = {
    "epics-softioc": lambda: EpicsRig("softioc"),
    "epics-caproto": lambda: EpicsRig("caproto"),
    "ktl-fake": lambda: FakeRig(KtlSource, FakeKtl),
    "mktl-fake": lambda: FakeRig(MktlSource, FakeMktl),
    "mktl-real": MktlRig,
}


@pytest.fixture(scope="module", params=RIGS)
def rigs(request: pytest.FixtureRequest) -> Iterator[Rig]:
    if request.param == "mktl-real" and not find_spec("mktl"):
        pytest.skip("mktl is not installed")
    rig = RIGS[request.param]()
    yield rig
    rig.stop()


@pytest.fixture
async def rig(rigs: Rig) -> AsyncIterator[Rig]:
    for keyword, value in START.items():
        rigs.put(keyword, value)
    beating = asyncio.create_task(beat(rigs))
    yield rigs
    beating.cancel()
    rigs.close()


async def beat(rig: Rig) -> None:
    while True:
        count = time.monotonic_ns() // 1_000_000 % 2**31
        with suppress(OSError, RuntimeError, AssertionError, ValueError):  # stopped
            rig.put("ITERATION", count)
        await asyncio.sleep(0.2)


class Listener:
    """The broadcasts that a source told, in order."""

    def __init__(self) -> None:
        self.heard: list[Broadcast] = []

    @property
    def changes(self) -> list[str]:
        return [x.value for x in self.heard if not x.initial]

    @property
    def connections(self) -> int:
        return sum(x.initial for x in self.heard)

    async def hear(self, broadcast: Broadcast) -> None:
        self.heard.append(broadcast)


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def running(source: KeywordSource, hear: Any = None) -> AsyncIterator[Listener]:
    listener = Listener()
    task = asyncio.create_task(source.run(hear or listener.hear))
    try:
        yield listener
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 5)


async def settled(listener: Listener) -> None:
    """Wait for the first value, and for what else belongs to the connection."""
    await until(lambda: listener.heard)
    await asyncio.sleep(0.1)


async def test_first_value_is_initial(rig: Rig) -> None:
    rig.put("LOUTFILE", "/s/before.fits")
    source = rig.open(BLUE)
    assert not source.connected
    async with running(source) as listener:
        await settled(listener)
        [first] = listener.heard
        assert first.initial
        told = (first.source, first.service, first.keyword, first.value, first.read)
        assert told == ("kcwi_blue", SERVICE, "LOUTFILE", "/s/before.fits", {})
        assert (source.connected, source.last_error) == (True, None)
        assert source.last == (first.value, first.time)


async def test_change_comes_with_value_and_the_servers_stamp(rig: Rig) -> None:
    path = f"/s/{'x' * 240}/kb1.fits"
    async with running(rig.open(BLUE)) as listener:
        await settled(listener)
        before = datetime.now(UTC)
        rig.put("LOUTFILE", path)
        after = datetime.now(UTC)
        time.sleep(0.2)  # noqa: ASYNC251 (a stamp of the client's would be late)
        await until(lambda: len(listener.heard) == 2)
        change = listener.heard[1]
        assert (change.value, change.initial) == (path, False)
        slack = timedelta(microseconds=2)  # a float of seconds holds no more
        assert before - slack <= change.time <= after + slack
        assert change.time.tzinfo is UTC


async def test_burst_is_heard_in_order(rig: Rig) -> None:
    count = 300 if rig.lossy else 5000
    values = [f"/s/{n}.fits" for n in range(count)]
    async with running(rig.open(BLUE)) as listener:
        await settled(listener)
        await rig.burst(values)
        await until(lambda: listener.changes and listener.changes[-1] == values[-1])
        if rig.lossy:  # the server itself skips some; what it told is in order
            order = [values.index(value) for value in listener.changes]
            assert order == sorted(order)
        else:
            assert listener.changes == values


async def test_slow_consumer_loses_nothing(rig: Rig) -> None:
    if rig.lossy:
        pytest.skip("the server drops updates")
    heard: list[str] = []
    gate = asyncio.Event()

    async def hear(broadcast: Broadcast) -> None:
        await gate.wait()
        heard.append(broadcast.value)

    source = rig.open(BLUE)
    async with running(source, hear):
        await until(lambda: source.last)
        values = [f"/s/{n}.fits" for n in range(200)]
        await rig.burst(values)
        await until(lambda: source.last and source.last[0] == values[-1])
        assert heard == []
        gate.set()
        await until(lambda: heard[1:] == values)


async def test_hear_that_raises_ends_nothing(rig: Rig) -> None:
    heard: list[str] = []

    async def hear(broadcast: Broadcast) -> None:
        heard.append(broadcast.value)
        raise RuntimeError("the ledger is full")

    async with running(rig.open(BLUE), hear):
        await until(lambda: heard)
        for path in ("/s/1.fits", "/s/2.fits"):
            rig.put("LOUTFILE", path)
            await until(lambda: path in heard)  # noqa: B023 (called at once)


async def test_disconnection_shows_and_reconnection_tells_the_value(rig: Rig) -> None:
    source = rig.open(BLUE)
    async with running(source) as listener:
        await settled(listener)
        rig.stop()
        await until(lambda: not source.connected)
        assert source.last_error
        count = len(listener.heard)
        rig.start(LOUTFILE="/s/meanwhile.fits")
        await until(lambda: source.connected, 60)
        await until(lambda: len(listener.heard) > count)
        value = listener.heard[count]
        assert (value.value, value.initial) == ("/s/meanwhile.fits", True)
        rig.put("LOUTFILE", "/s/after.fits")
        await until(lambda: listener.changes == ["/s/after.fits"])
        assert listener.connections == 2


async def test_source_that_starts_before_its_server(rig: Rig) -> None:
    rig.stop()
    source = rig.open(BLUE)
    async with running(source) as listener:
        await asyncio.sleep(0.5)
        assert (source.connected, listener.heard) == (False, [])
        rig.start()
        await until(lambda: source.connected, 60)
        await until(lambda: listener.heard)


async def test_callbacks_survive_garbage_collection(rig: Rig) -> None:
    async with running(rig.open(BLUE)) as listener:
        await settled(listener)
        gc.collect()
        rig.put("LOUTFILE", "/s/kept.fits")
        await until(lambda: listener.changes == ["/s/kept.fits"])


async def test_path_keywords_are_read_for_the_required_value_only(rig: Rig) -> None:
    source = rig.open(ESI)
    async with running(source) as listener:
        await settled(listener)
        rig.put("WDISK", "false")
        await until(lambda: len(listener.heard) == 2)
        first, change = listener.heard
        assert (first.value, first.read) == ("true", {})
        assert change.read == {"OUTDIR": "/s/sdata700", "OUTFILE": "e", "LFRAMENO": "7"}
        assert ESI.build_path(change.value, change.read) == "/s/sdata700/e0007.fits"


async def test_read_that_times_out_leaves_the_path_open(rig: Rig) -> None:
    source = rig.open(HUNG)
    async with running(source) as listener:
        await settled(listener)
        rig.put("WDISK", "false")
        rig.put("WDISK", "true")
        await until(lambda: listener.changes == ["false", "true"])
        assert listener.heard[1].read == {}
        assert source.connected


async def test_heartbeat_age_and_loss(rig: Rig) -> None:
    missing = BLUE.model_copy(update={"heartbeat": Heartbeat(keyword="OUTFILE", seconds=0.1)})
    alive, dead = rig.open(BLUE), rig.open(missing)
    async with running(alive) as beating, running(dead) as listener:
        await until(lambda: (dead.heartbeat_age or 0) > dead.beat_limit)
        await asyncio.sleep(1)
        await until(lambda: alive.heartbeat_age is not None and alive.heartbeat_age < 1)
        # A heartbeat that is dead for itself must not make the source flap.
        await until(lambda: dead.connected)
        await asyncio.sleep(2.5)
        assert dead.connected
        lost = 0 if isinstance(rig, EpicsRig) else 1  # EPICS tells itself what is connected
        assert (beating.connections, listener.connections) == (1, 1 + lost)
        rig.put("LOUTFILE", "/s/still.fits")
        await until(lambda: listener.heard[-1].value == "/s/still.fits")


async def test_broken_source_stops_no_other(rig: Rig) -> None:
    broken = rig.open(BLUE.model_copy(update={"name": "x", "keyword": "ABSENT"}))
    good = rig.open(BLUE)
    async with running(broken) as silence, running(good) as listener:
        await settled(listener)
        rig.put("LOUTFILE", "/s/good.fits")
        await until(lambda: listener.changes == ["/s/good.fits"])
        await until(lambda: broken.last_error)
        assert not broken.connected
        assert silence.heard == []


@pytest.fixture(params=["ktl-fake", "mktl-fake"])
def fake(request: pytest.FixtureRequest) -> FakeRig:
    rig = RIGS[request.param]()
    assert isinstance(rig, FakeRig)
    return rig


async def test_outdir_changed_between_the_reads(fake: FakeRig) -> None:
    reads: list[str] = []

    def change(keyword: str) -> None:
        reads.append(keyword)
        if reads.count("OUTFILE") == 1 and keyword == "OUTFILE":
            fake.server.put(SERVICE, "OUTDIR", "/s/sdata701")
            fake.server.put(SERVICE, "LFRAMENO", "8")

    async with running(fake.open(ESI)) as listener:
        await settled(listener)
        fake.server.read_hook = change
        fake.put("WDISK", "false")
        await until(lambda: len(listener.heard) == 2)
        read = listener.heard[1].read
        assert ESI.build_path("false", read) == "/s/sdata701/e0008.fits"


async def test_path_is_read_while_hear_is_busy(fake: FakeRig) -> None:
    reads: list[str] = []
    heard: list[Broadcast] = []
    gate = asyncio.Event()

    async def hear(broadcast: Broadcast) -> None:
        await gate.wait()
        heard.append(broadcast)

    source = fake.open(ESI)
    async with running(source, hear):
        await until(lambda: source.last)
        fake.server.read_hook = reads.append
        fake.put("WDISK", "false")
        await until(lambda: reads.count("LFRAMENO") == 2)
        fake.put("OUTDIR", "/s/of-the-next-frame")
        gate.set()
        await until(lambda: len(heard) == 2)
        assert heard[1].read["OUTDIR"] == "/s/sdata700"


async def test_path_that_never_settles_is_left_open(fake: FakeRig) -> None:
    count = 0

    def change(keyword: str) -> None:
        nonlocal count
        count += 1
        if keyword == "OUTDIR":
            fake.server.put(SERVICE, "OUTDIR", f"/s/{count}")

    source = fake.open(ESI)
    async with running(source) as listener:
        await settled(listener)
        fake.server.read_hook = change
        fake.put("WDISK", "false")
        await until(lambda: len(listener.heard) == 2)
        assert listener.heard[1].read == {}


async def test_ktl_takes_what_came_before_its_callback() -> None:
    rig = FakeRig(KtlSource, FakeKtl)
    async with running(rig.open(BLUE)) as listener:
        await settled(listener)
        rig.module.lag = 3  # two broadcasts wait in the history for the third
        await rig.burst(["/s/1.fits", "/s/2.fits", "/s/3.fits"])
        await until(lambda: len(listener.changes) == 3)
        assert listener.changes == ["/s/1.fits", "/s/2.fits", "/s/3.fits"]
        assert rig.module.heartbeats == {SERVICE: ("ITERATION", 2.5)}


async def test_one_cancellation_is_enough(fake: FakeRig) -> None:
    # Whatever the source is waiting for just then, a heartbeat or a read.
    for _ in range(50):
        task = asyncio.create_task(fake.open(ESI_BEATING).run(Listener().hear))
        await asyncio.sleep(0.005)
        fake.put("ITERATION", time.monotonic_ns())
        fake.put("WDISK", "false")
        await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=5)
        assert task in done


@pytest.mark.parametrize("control", ["ktl", "mktl"])
def test_absent_module_is_a_clear_sentence(control: str) -> None:
    if find_spec(control):
        pytest.skip(f"{control} is installed")
    with pytest.raises(ValueError, match=f"'{control}' can't be imported.*; "):
        open_sources(control, [BLUE])


@pytest.mark.parametrize("control", ["", "EPICS", "replay", "replay:", "tango"])
def test_unknown_control_system(control: str) -> None:
    with pytest.raises(ValueError, match=r"epics\|ktl\|mktl\|replay:"):
        Config(dev=True, control=control)


RECORDING = """\
{"t": "2025-12-08T09:06:38.000Z", "source": "kcwi_blue", "keyword": "LOUTFILE", \
"value": "/s/1.fits"}
{"t": 1765184799.0, "source": "esi", "keyword": "WDISK", "value": "false", \
"read": {"OUTDIR": "/s/sdata700", "OUTFILE": "e", "LFRAMENO": "7"}}

{"t": "2025-12-07T23:06:40-10:00", "source": "kcwi_blue", "keyword": "LOUTFILE", \
"value": "/s/2.fits"}
{"t": "2025-12-08T09:06:40.5Z", "source": "esi", "keyword": "WDISK", "value": "false"}
"""


@pytest.mark.parametrize(("speed", "gap"), [("10", 0.2), ("0", 2e-6)])
async def test_replay_speaks_the_night(tmp_path: Path, speed: str, gap: float) -> None:
    (tmp_path / "night.jsonl").write_text(RECORDING)
    control = f"replay:{tmp_path / 'night.jsonl'}@{speed}"
    blue, esi = open_sources(control, [BLUE, ESI])
    start = datetime.now(UTC)
    async with running(blue) as listener, running(esi) as other:
        await until(lambda: len(listener.heard) == len(other.heard) == 2)
        took = datetime.now(UTC) - start
        assert blue.connected
        first, second = listener.heard
        assert listener.changes == ["/s/1.fits", "/s/2.fits"]
        assert start <= first.time <= second.time <= datetime.now(UTC)
        assert second.time - first.time == timedelta(seconds=gap)
        assert took >= timedelta(seconds=gap)
        path = ESI.build_path("false", other.heard[0].read)
        assert path == "/s/sdata700/e0007.fits"
        assert other.heard[1].read == {}


async def test_replay_with_a_hear_that_raises(tmp_path: Path) -> None:
    (tmp_path / "night.jsonl").write_text(RECORDING)
    heard: list[str] = []

    async def hear(broadcast: Broadcast) -> None:
        heard.append(broadcast.value)
        raise RuntimeError("the ledger is full")

    (blue,) = open_sources(f"replay:{tmp_path / 'night.jsonl'}@0", [BLUE])
    async with running(blue, hear):
        await until(lambda: heard == ["/s/1.fits", "/s/2.fits"])


@pytest.mark.parametrize(
    ("text", "speed", "reason"),
    [
        (RECORDING, "fast", "valid number.*'fast'"),
        (RECORDING, "-1", "greater than or equal to 0.*'-1'"),
        (RECORDING + "{}", "1", "line 6"),
        (RECORDING + '{"t": "2025-12-08T09:06:40"', "1", "line 6"),
    ],
)
def test_replay_that_cant_be(tmp_path: Path, text: str, speed: str, reason: str) -> None:
    (tmp_path / "night.jsonl").write_text(text)
    with pytest.raises(ValueError, match=reason):
        open_sources(f"replay:{tmp_path / 'night.jsonl'}@{speed}", [BLUE])


def test_loopback_only() -> None:
    assert os.environ["EPICS_CA_ADDR_LIST"] == "127.0.0.1"
    assert os.environ["EPICS_CA_AUTO_ADDR_LIST"] == "NO"
