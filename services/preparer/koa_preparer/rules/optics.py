"""Rules about wavelengths, slits and scales that no table can tell (facts 3.11)."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from koa_shared.fits import Value

from .frame import Effect, Frame, Note, Set
from .registry import TableName, rule

WAVES = ("WAVEBLUE", "WAVECNTR", "WAVERED")


@rule("passband")
def passband(frame: Frame) -> Iterator[Effect]:
    """WAVE* of NIRC2, microns, from the filter's MINWAVE, CENWAVE, MAXWAVE."""
    blue, centre, red = map(frame.number, ("MINWAVE", "CENWAVE", "MAXWAVE"))
    if blue == 0:  # the wheels move, or no filter is in
        if red == 0 and centre == 0:
            centre = red = None
        blue = 0.9 if red == 5 else None
    for keyword, value in zip(WAVES, (blue, centre, red), strict=True):
        yield Set(keyword, value)


@rule("slit_name")
def slit_name(
    frame: Frame, *, keyword: str, fixed: TableName, lengths: Mapping[str, float]
) -> Iterator[Effect]:
    """SLITWIDT and SLITLEN, arcsec, of ESI's masks, such as `0.75_arcsec`.

    `fixed` holds masks by part of their name, `lengths` those of others by OBSMODE;
    without a length there is no slit.
    """
    name, length = frame.text(keyword).lower(), lengths.get(frame.text("OBSMODE"))
    rows = (row for part, row in frame.instrument.tables[fixed].items() if part in name)
    widths = (w for text in name.split("_")[:2] if "_" in name and (w := _width(text)))
    row: Mapping[str, Any] = {} if length is None else {"SLITLEN": length}
    if row:
        row = {**row, "SLITWIDT": next(widths, None), **next(rows, {})}
    yield Set("SLITWIDT", row.get("SLITWIDT"))
    yield Set("SLITLEN", row.get("SLITLEN"))


def _width(text: str) -> float | None:
    try:
        width = float(text)
    except ValueError:
        return None
    return width if 0 < width < math.inf else None


@rule("resolution")
def resolution(frame: Frame, *, constant: float) -> Iterator[Effect]:
    """SPECRES, a constant by the slit width, rounded to 10."""
    width = frame.number("SLITWIDT")
    yield Set("SPECRES", round(constant / width, -1) if width else None)


@rule("kcwi_optics")
def kcwi_optics(
    frame: Frame, *, gratings: TableName, slicers: TableName, scales: TableName
) -> Iterator[Effect]:
    """WAVE* (angstroms), SPECRES, scales and slit of KCWI."""
    tables, camera = frame.instrument.tables, frame.text("CAMERA").lower()
    side = "R" if camera == "red" else "B"
    slicer = frame.text("IFUNAM").lower()
    slit = tables[slicers].get(slicer, {})
    grating = tables[gratings].get(frame.text(f"{side}GRATNAM").lower()) if slit else None
    centre, waves = frame.number(f"{side}CWAVE"), tuple[Value, ...]((None,) * 3)
    if grating and centre and centre > 0:
        masked = frame.text(f"{side}NASNAM").lower() == "mask"
        waves = _kcwi_waves(round(centre), grating["span"], masked=masked)
    scale = tables[scales].get(camera, {})
    waves = tuple(scale.get(key, value) for key, value in zip(WAVES, waves, strict=True))
    binning = _binning(frame)
    pixel = scale["scale"] * binning if scale and binning else None
    values = (*waves, grating[slicer] if grating else None, pixel, pixel)
    keywords = (*WAVES, "SPECRES", "SPATSCAL", "DISPSCAL")
    for keyword, value in zip(keywords, values, strict=True):
        yield Set(keyword, value)
    yield Set("SLITWIDT", slit.get("SLITWIDT"))
    yield Set("SLITLEN", slit.get("SLITLEN"))


def _kcwi_waves(centre: int, span: float, *, masked: bool) -> tuple[int, int, int]:
    blue, red = round(centre - span / 2), round(centre + span / 2)
    if masked:  # nod and shuffle uses the middle third, to full 100 angstroms
        third = math.ceil(int((red - blue) / 3) / 100) * 100
        blue, red = centre - third, centre + third
    return blue, centre, red


def _binning(frame: Frame) -> int | None:
    """Return the first axis's binning, of `2,2` or 2."""
    text = frame.text("BINNING").split(",")[0].strip()
    number = int(text) if text.isdecimal() and text.isascii() and len(text) < 4 else 0
    return number or None


@rule("wcs")
def wcs(frame: Frame, *, camera: str, cameras: TableName, iraf: bool = False) -> Iterator[Effect]:
    """World coordinates from pointing and rotator (NIRC2 images, KCWI's fpc).

    `cameras` holds `scale` (arcsec per pixel) and `pa_zero` (degrees); `iraf` adds the
    keywords that only NIRC2 has.
    """
    row = frame.instrument.tables[cameras].get(frame.text(camera).lower())
    angle, place = _position_angle(frame), _pointing(frame)
    values: dict[str, Value] = dict.fromkeys(WCS + (IRAF if iraf else ()))
    if row is None or angle is None or place is None:
        yield Note("SET_WCS_ERROR", f"No {camera}, ROTMODE, angle or position of use.")
    else:
        scale = row["scale"] * ((_binning(frame) or 1) if row.get("binned") else 1)
        values |= place | _matrix(scale, math.radians(row["pa_zero"] - angle))
        if iraf:
            values |= IRAF_VALUES | dict.fromkeys(PIXEL_SCALES, round(scale, 6))
    for keyword, value in values.items():
        yield Set(keyword, value)


PIXEL_SCALES = ("PIXSCALE", "PIXSCAL1", "PIXSCAL2")
IRAF_VALUES: dict[str, Value] = {
    "WAT0_001": "system=image",
    "WAT1_001": "wtype=tan axtype=ra",
    "WAT2_001": "wtype=tan axtype=dec",
    "WCSDIM": 2,
    "LTM1_1": 1.0,
    "LTM2_2": 1.0,
}
IRAF = (*PIXEL_SCALES, *IRAF_VALUES)
WCS = (
    *("CRPIX1", "CRPIX2", "CRVAL1", "CRVAL2", "CTYPE1", "CTYPE2"),
    *("CD1_1", "CD1_2", "CD2_1", "CD2_2", "RADECSYS"),
)


def _position_angle(frame: Frame) -> float | None:
    """Return the rotator's angle on the sky in degrees, by ROTMODE."""
    parallactic = frame.number("PARANTEL")
    if parallactic is None:
        parallactic = frame.number("PARANG")
    rotator, el = frame.number("ROTPOSN"), frame.number("EL")
    parts: dict[str, list[float | None]] = {
        "posi": [rotator],
        "vert": [rotator, parallactic],
        "stat": [rotator, parallactic, None if el is None else -el],
    }
    terms = parts.get(frame.text("ROTMODE").lower()[:4], [None])
    known = [term for term in terms if term is not None]
    angle = sum(known)
    return angle if len(known) == len(terms) and math.isfinite(angle) else None


def _pointing(frame: Frame) -> dict[str, Value] | None:
    ra, dec = frame.degrees("RA", hours=True), frame.degrees("DEC")
    shape = frame.hdus[0].shape
    if ra is None or dec is None or len(shape) < 2:
        return None
    return {
        "CRPIX1": (shape[-1] + 1) / 2,
        "CRPIX2": (shape[-2] + 1) / 2,
        "CRVAL1": ra,
        "CRVAL2": dec,
        "CTYPE1": "RA---TAN",
        "CTYPE2": "DEC--TAN",
        "RADECSYS": "FK5" if frame.number("EQUINOX") == 2000 else "FK4",
    }


def _matrix(scale: float, angle: float) -> dict[str, Value]:
    """Return the CD matrix for arcsec per pixel and an angle in radians."""
    cos, sin = (scale * f(angle) / 3600 for f in (math.cos, math.sin))
    values = {"CD1_1": -cos, "CD1_2": -sin, "CD2_1": -sin, "CD2_2": cos}
    return {keyword: round(value, 12) for keyword, value in values.items()}
