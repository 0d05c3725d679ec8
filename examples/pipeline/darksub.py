"""Dark subtraction for NIRC2, started by the archive's live stream: a pipeline to copy.

`Follower` turns changes of the archive into events of the Keck DRP framework and keeps the
cursor; `DarkSubtraction` is the pipeline, an event table of three primitives.  Another
instrument changes the constants and the primitives, and leaves `Follower` as it is.

    python darksub.py --directory /s/sdata904/redux --work ~/darksub

Where the archive is, and the token, stand in the environment (KOA_INGESTOR_URL,
KOA_PREPARER_URL, KOA_TOKEN_FILE), as for the command `koa`.
"""

import argparse
import json
import logging
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import numpy as np
from astropy.io import fits
from keckdrpframework.config.framework_config import ConfigClass
from keckdrpframework.core.framework import Framework
from keckdrpframework.models.arguments import Arguments
from keckdrpframework.pipelines.base_pipeline import BasePipeline
from keckdrpframework.primitives.base_primitive import BasePrimitive

from koa_shared.client import Koa, PeerFault
from koa_shared.contracts import FrameView
from koa_shared.errors import DependencyDown

NAME, VERSION = "darksub", "1.0.0"
INSTRUMENT = "NIRC2"
DARKS = 5  # of a night, the nearest in time; more gain little beside the object's own noise
DETECTOR = ("ITIME", "COADDS", "SAMPMODE", "MULTISAM", "NAXIS1", "NAXIS2")  # equal in a dark
LONGEST_AWAY = timedelta(days=7)  # the archive keeps the stream's ids so long
PAUSE = 5.0  # seconds until what is away is asked for again
REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)  # somebody must act: end
ROOM = timedelta(days=1)  # a frame may become available long after it was taken
IDS = UUID("0b0f5f0e-52a3-5f0c-8f5e-1f6a5b1f2a60")  # ours: gives a delivery the same id again
STATISTICS = ("IMAGEMN", "IMAGESD", "IMAGEMD", "SIG2NOIS")  # of the raw pixels

log = logging.getLogger(NAME)
quiet = logging.getLogger("DRPF")


def product_path(directory: Path, frame: FrameView) -> Path:
    """Return where the product of a frame's version lies; the name is KOA's of this level."""
    return directory / f"{frame.koaid}.v{frame.version}" / f"{frame.koaid}_drp.fits"


def darks_of(koa: Koa, frame: FrameView) -> list[FrameView]:
    """Return the archived darks of the frame's night and exposure time, the nearest first."""
    night = archived(koa, night=frame.night, type="dark")
    found = [dark for dark in night if is_as_long(dark, frame)]
    return sorted(found, key=lambda dark: abs(taken(dark) - taken(frame)))


def archived(koa: Koa, **filters: Any) -> Iterator[FrameView]:
    """Yield our instrument's raw frames that are available, the newest first."""
    return koa.frames(instrument=INSTRUMENT, level=0, status="COMPLETE", **filters)


def taken(frame: FrameView) -> float:
    """Return when the frame was written, in seconds."""
    return frame.timeline.acquired.timestamp() if frame.timeline.acquired else 0.0


def is_as_long(one: FrameView, other: FrameView) -> bool:
    """Tell whether two exposures took the same time: to 2 %, as true times scatter."""
    times = [frame.metadata.get("exposure") or 0.0 for frame in (one, other)]
    return math.isclose(*times, rel_tol=0.02)


class Unobtainable(Exception):
    """The archive does not give this file, now and later."""


class Fetch(BasePrimitive):
    """Bring the frame and its darks here; each file's SHA-256 is the archive's, or it fails."""

    def _pre_condition(self) -> bool:
        return not self.action.args.product.exists()  # made before a restart: register it

    def _perform(self) -> Arguments:
        args, koa, work = self.action.args, self.context.koa, self.context.work
        args.raw = self._file(koa, args.frame, work)
        for dark in darks_of(koa, args.frame):
            with suppress(Unobtainable):  # another dark will do
                path = self._file(koa, dark, work)
                if detector_of(path) == detector_of(args.raw):
                    args.darks.append((dark, path))
            if len(args.darks) == DARKS:
                break
        return args

    def _file(self, koa: Koa, frame: FrameView, work: Path) -> Path:
        """Return the frame's FITS file; what is here and whole is not fetched again."""
        name, directory = f"{frame.koaid}.fits", work / str(frame.night)
        done = next(koa.download([frame], directory, products=name), None)
        if done is None or done.frame.version != frame.version:
            raise Unobtainable(f"{frame.koaid} is no longer version {frame.version}")
        if isinstance(done.error, PeerFault) and done.error.status == HTTPStatus.UNAUTHORIZED:
            raise done.error
        if done.error:  # no repeat mends it: it is proprietary, or damaged
            raise Unobtainable(f"{name}: {done.error}")
        return done.path


def detector_of(path: Path) -> list[Any]:
    """Return how the detector was read."""
    header = fits.getheader(path)
    return [header.get(keyword) for keyword in DETECTOR]


class SubtractDark(BasePrimitive):
    """Write object minus the median of the darks as 32-bit floats, in counts of all coadds."""

    def _pre_condition(self) -> bool:
        return not self.action.args.product.exists()

    def _perform(self) -> Arguments:
        args = self.action.args
        dark = np.median([fits.getdata(path) for _, path in args.darks], axis=0)
        with fits.open(args.raw) as raw:
            pixels = (raw[0].data - dark).astype(np.float32)
            header = reduced_header(raw[0].header, args)
        args.product.parent.mkdir(parents=True, exist_ok=True)
        draft = args.product.with_suffix(".part")
        with draft.open("wb") as file:
            fits.PrimaryHDU(pixels, header).writeto(file, checksum=True)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(args.product)  # whole or not at all, whenever we are killed
        return args


def reduced_header(raw: fits.Header, args: Arguments) -> fits.Header:
    """Return the raw header with what was done to the pixels, and what was not."""
    header = raw.copy()
    for keyword in ("BSCALE", "BZERO", "CHECKSUM", "DATASUM", *STATISTICS):
        header.remove(keyword, ignore_missing=True)
    header["DATE"] = (f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}", "this file was written (UTC)")
    header["DATLEVEL"] = (1, "reduced, quick look")
    header["DRPNAME"], header["DRPVERS"] = (NAME, "pipeline"), (VERSION, "its version")
    header["NDARKS"] = (len(args.darks), "darks, their median was subtracted")
    header.add_history(f"{NAME} {VERSION}: raw minus the median of {len(args.darks)} darks")
    for kind, frame in (("raw", args.frame), *(("dark", dark) for dark, _ in args.darks)):
        [digest] = [p["sha256"] for p in frame.products if p["name"] == f"{frame.koaid}.fits"]
        header.add_history(f"{kind} {frame.koaid}.fits version {frame.version}, SHA-256")
        header.add_history(digest)
    header.add_history("not done: linearity, flat field, bad pixels, distortion")
    return header


class Register(BasePrimitive):
    """Tell the archive of the product; it reads the file and answers when that is on record."""

    def _perform(self) -> Arguments:
        args, frame = self.action.args, self.action.args.frame
        delivery = uuid5(IDS, f"{frame.frame_id} v{frame.version} {NAME} {VERSION}")
        told = self.context.koa.deliver(
            f"{self.context.announced}/{args.product.parent.name}",
            instrument=INSTRUMENT, level=1, koaid=frame.koaid, pipeline=NAME,
            pipeline_version=VERSION, delivery=str(delivery), files=[args.product.name],
        )  # fmt: skip
        args.receipt.parent.mkdir(exist_ok=True)
        args.receipt.write_text(told.model_dump_json())
        log.info("%s is delivered: %s", args.name, told)
        return args


class DarkSubtraction(BasePipeline):
    """What follows what: event, primitive, state, next event."""

    event_table = {  # noqa: RUF012 (the framework's way)
        "available": ("Fetch", None, "fetched"),
        "fetched": ("SubtractDark", None, "reduced"),
        "reduced": ("Register", None, None),
    }

    def pre_SubtractDark(self, action: Any, context: Any) -> bool:  # noqa: N802 (theirs, too)
        """Go on only with a dark; the frame is looked at again when the next one comes."""
        args = action.args
        if not (args.darks or args.product.exists()):
            log.info("%s waits for a dark of %g s", args.name, args.frame.metadata["exposure"])
            return False
        return True


class Follower:
    """Gives each frame that becomes available to the framework, and remembers how far it is."""

    def __init__(self, koa: Koa, directory: Path, announced: str, work: Path) -> None:
        self._koa, self._directory, self._work = koa, directory, work
        self._cursor = work / "cursor.json"
        config = ConfigClass()
        config.properties |= {"logger_config_file": None, "event_timeout": 0.01}
        config.properties |= {"print_trace": False}
        self._framework = Framework(DarkSubtraction, config)
        self._framework.on_error = self._failed
        for part in (self._framework, self._framework.context, self._framework.pipeline):
            part.logger = quiet  # what failed is told once, below
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the framework took it
        context = self._framework.context
        context.koa, context.work, context.announced = koa, work, announced
        self._fault: Exception | None = None
        work.mkdir(parents=True, exist_ok=True)

    def _failed(self, action: Any, context: Any, fault: Exception) -> None:
        self._fault = fault

    def run(self) -> None:
        """Follow the stream from behind what is done; raises what says that it can't now."""
        last, since = self._where()
        for change in self._koa.stream(last, log.warning):
            if change.frame is None:  # `reset`: the archive has forgotten what came meanwhile
                frames = archived(self._koa, type="object", since=since - ROOM)
            else:
                frames = self._ready(change.frame)
            for frame in frames:
                self._reduce(frame)
            since = self._keep(change.id)

    def _where(self) -> tuple[str, datetime]:
        """Return the id behind which to go on, and when that was."""
        if not self._cursor.exists():
            return "0", datetime.now(UTC) - LONGEST_AWAY
        known = json.loads(self._cursor.read_text())
        return known["id"], datetime.fromisoformat(known["at"])

    def _keep(self, last: str) -> datetime:
        """Remember that everything up to an id is done."""
        now, draft = datetime.now(UTC), self._cursor.with_suffix(".new")
        draft.write_text(json.dumps({"id": last, "at": now.isoformat()}))
        draft.replace(self._cursor)
        return now

    def _ready(self, frame: FrameView) -> Iterator[FrameView]:
        """Yield what can be reduced now: the frame, or all that waited for this dark."""
        if (frame.instrument, frame.level, frame.status) != (INSTRUMENT, 0, "COMPLETE"):
            return
        kind = frame.metadata.get("koaimtyp")  # None where our token may not see the frame
        if kind == "object":
            yield frame
        elif kind == "dark":
            night = archived(self._koa, night=frame.night, type="object")
            yield from (other for other in night if is_as_long(other, frame))

    def _reduce(self, frame: FrameView) -> None:
        """Run the pipeline on one frame; raises what says that a part of the world is away."""
        receipt = self._work / "delivered" / f"{frame.frame_id}.v{frame.version}.json"
        if receipt.exists():
            return
        args = Arguments(name=frame.koaid, frame=frame, darks=[], receipt=receipt)
        args.product, self._fault = product_path(self._directory, frame), None
        self._framework.append_event("available", args)
        self._framework.main_loop()
        if self._fault and is_of_the_world(self._fault):
            raise self._fault
        if self._fault:  # this frame's own: the others go on
            log.error("%s is not reduced", frame.koaid, exc_info=self._fault)


def is_of_the_world(fault: Exception) -> bool:
    """Tell whether a repeat may succeed: the archive is away, a disk is full."""
    is_disk = isinstance(fault, OSError) and fault.errno is not None  # astropy's own have none
    return is_disk or isinstance(fault, DependencyDown)


def main() -> None:
    """Run until it is told to stop."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--directory", type=Path, required=True, help="where products are kept")
    parser.add_argument("--announced", help="how the archive's preparer names it; the same")
    parser.add_argument("--work", type=Path, required=True, help="raw files, and the cursor")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    quiet.setLevel(logging.CRITICAL)
    with Koa() as koa:
        announced = args.announced or os.fspath(args.directory.resolve())
        if "redux" not in Path(announced).parts:  # a rescan would take products for raw frames
            parser.error("products are kept below a directory named redux")
        follower = Follower(koa, args.directory, announced, args.work)
        while True:
            try:
                follower.run()
            except (DependencyDown, OSError) as fault:
                if getattr(fault, "status", 0) in REFUSED or not is_of_the_world(fault):
                    parser.exit(1, f"{NAME}: {fault}\n")
                log.warning("Waiting: %s", fault)
                time.sleep(PAUSE)


if __name__ == "__main__":
    main()
