"""Quick looks (level 1): what a pipeline at the summit makes of a frame, seconds later."""

import asyncio
import io
from pathlib import Path, PurePosixPath

import numpy as np
import structlog

from ..client import Koa
from ..errors import DependencyDown, KoaError
from .frames import Exposure, templates

__all__ = ["quick_look", "reduce"]

logger = structlog.get_logger("koa_simulator")

SECONDS = 3.0  # a light pipeline takes so long
BIN = 4  # pixels that become one, along both axes
PIPELINE = {"pipeline": "simulated quick look", "pipeline_version": "1"}


def quick_look(data: bytes) -> bytes:
    """Return a frame's first image in bins of BIN x BIN pixels, less its median (counts)."""
    from astropy.io import fits  # noqa: PLC0415 (0.3 s that a start need not take)

    with fits.open(io.BytesIO(data)) as hdus:
        image = next(hdu.data for hdu in hdus if hdu.is_image and hdu.header["NAXIS"] > 1)
        header = hdus[0].header.copy()
    pixels = image.reshape(-1, *image.shape[-2:])[0].astype(np.float32)
    rows, columns = (side // BIN for side in pixels.shape)
    binned = pixels[: rows * BIN, : columns * BIN].reshape(rows, BIN, columns, BIN).mean((1, 3))
    for keyword in ("NEXTEND", "CHECKSUM", "DATASUM"):
        header.remove(keyword, ignore_missing=True)
    header.add_history(f"quick look: means of {BIN} x {BIN} pixels, less their median")
    file = io.BytesIO()
    fits.PrimaryHDU(binned - np.median(binned), header).writeto(file, checksum=True)
    return file.getvalue()


async def reduce(root: Path, exposure: Exposure) -> None:
    """Write a frame's quick look below `root` and tell the preparer of it."""
    await asyncio.sleep(SECONDS)
    try:
        await asyncio.to_thread(_deliver, root, exposure)
    except (DependencyDown, KoaError, OSError) as error:
        logger.warning("Quick look is not delivered", path=exposure.path, why=str(error))


def _deliver(root: Path, exposure: Exposure) -> None:
    disk = PurePosixPath(*PurePosixPath(exposure.path).parts[:3])  # /s/sdata904
    directory = disk / "redux" / str(exposure.koaid)
    name = templates()[exposure.instrument].quick_look.format(koaid=exposure.koaid)
    file = root / str(directory / name).lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(quick_look(b"".join(exposure.parts)))
    told = {"instrument": exposure.instrument, "level": 1, "koaid": exposure.koaid}
    with Koa() as koa:
        koa.deliver(str(directory), **told, **PIPELINE)
    logger.info("Quick look is delivered", path=f"{directory}/{name}")
