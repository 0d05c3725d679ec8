"""A simulated night: all cameras expose by themselves until it is told to stop."""

import asyncio
import random
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import structlog

from ..instruments import load_instruments
from .control import serve
from .dome import Dome, Order
from .frames import Camera, templates
from .ioc import Keywords

__all__ = ["Plan", "observe", "slowness"]

logger = structlog.get_logger("koa_simulator")

QUICK = 10e6  # bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does.

    `cadence` is the mean time between exposures of one camera in seconds, 0 for none
    but on demand; with the chance `burst`, `burst_size` come at once.  Frames above
    QUICK come slower in proportion, and in smaller bursts: long exposures fill large
    detectors.  `size` is in bytes, None the real one.  `reduce` is the
    chance that a quick look of what was seen on the sky is made and delivered.
    """

    root: Path
    var: Path
    instruments: tuple[str, ...] = ()
    instruments_dir: Path | None = None
    cadence: float = 0
    burst: float = 0
    burst_size: int = 10
    size: int | None = None
    seed: int = 0
    record: Path | None = None
    reduce: float = 0

    @property
    def ledger(self) -> Path:
        """Where the observatory's own record is."""
        return self.var / "ledger.jsonl"

    @property
    def control(self) -> Path:
        """Where the port is told."""
        return self.var / "control.json"


async def observe(plan: Plan) -> None:
    """Serve the keywords and take exposures until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    known = load_instruments(plan.instruments_dir)
    dome = Dome(known.values(), plan.root, plan.ledger, plan.seed, plan.record)
    keywords = Keywords(s for instrument in known.values() for s in instrument.sources)
    keywords.serve(dome.left)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(dome.close)
        await stack.enter_async_context(serve(dome, keywords.put, plan.control))
        tasks = [asyncio.create_task(keywords.beat())]
        if plan.cadence:
            names = plan.instruments or tuple(templates())
            tasks += [asyncio.create_task(_run(plan, dome, keywords, n)) for n in names]
        logger.info("Observatory is open", root=str(plan.root), cadence=plan.cadence)
        tasks.append(asyncio.create_task(_until(stop)))
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        for task in done:
            task.result()  # a camera that fails ends the night with its traceback
    logger.info("Observatory is closed")


async def _until(stop: asyncio.Event) -> None:
    await stop.wait()


async def _run(plan: Plan, dome: Dome, keywords: Keywords, instrument: str) -> None:
    template = templates()[instrument]
    async with asyncio.TaskGroup() as cameras:
        for source, camera in template.camera.items():
            if camera.auto:
                slow = slowness(camera, plan.size)
                cameras.create_task(_camera(plan, dome, keywords, source, slow))


def slowness(camera: Camera, size: int | None) -> float:
    """Return how many cadences there are from one exposure of a camera to the next."""
    return max(1.0, (size or camera.size) / QUICK)


async def _camera(plan: Plan, dome: Dome, keywords: Keywords, source: str, slow: float) -> None:
    chance = random.Random(f"{plan.seed} {source}")
    kinds = dome.kinds(source)
    weights = [kind.weight for kind in kinds.values()]
    wait = plan.cadence  # every camera is seen soon, the slow ones, too
    while True:
        await asyncio.sleep(wait * chance.uniform(0.5, 1.5))
        wait = plan.cadence * slow
        burst = chance.random() < plan.burst
        for _ in range(max(1, int(plan.burst_size / slow)) if burst else 1):
            kind = chance.choices(list(kinds), weights)[0]
            is_reduced = kinds[kind].position == "sky" and chance.random() < plan.reduce
            order = Order(source=source, kind=kind, size=plan.size, reduce=is_reduced)
            try:
                await dome.expose(order, keywords.put)
            except OSError as error:
                logger.error("Exposure is lost", source=source, error=str(error))
