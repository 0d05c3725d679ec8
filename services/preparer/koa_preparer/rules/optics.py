"""Rules about wavelengths, slits and scales that no table can tell (facts 3.11)."""

import math
import re

from koa_shared.fits import Value

from .frame import Effects, Frame, Note, number_of, sets
from .registry import Keys, Table, rule


@rule("slit_name")
def slit_name(frame: Frame, *, keyword: str, fixed: Table, lengths: dict[str, float]) -> Effects:
    """SLITWIDT and SLITLEN, arcsec, of ESI's masks, such as `0.75_arcsec`.

    `fixed` holds masks by part of their name, `lengths` those of others by OBSMODE;
    without a length there is no slit.
    """
    name, length = frame.text(keyword).lower(), lengths.get(frame.text("OBSMODE"))
    slit: dict[str, Value] = {"SLITWIDT": None, "SLITLEN": length}
    if length is not None:
        widths = map(number_of, name.split("_")[:2] if "_" in name else ())
        slit["SLITWIDT"] = next((width for width in widths if width and width > 0), None)
        rows = frame.instrument.tables[fixed].items()
        slit |= next((row for part, row in rows if part in name), {})
    yield from sets(**slit)


@rule("resolution")
def resolution(frame: Frame, *, constant: float) -> Effects:
    """SPECRES, a constant by the slit width, rounded to 10."""
    width = frame.number("SLITWIDT")
    yield from sets(SPECRES=round(constant / width, -1) if width else None)


@rule("kcwi_optics")
def kcwi_optics(frame: Frame, *, gratings: Table, scales: Table) -> Effects:
    """WAVE* (angstroms), SPECRES and scales of KCWI."""
    tables, camera = frame.instrument.tables, frame.text("CAMERA").lower()
    side, slicer = "R" if camera == "red" else "B", frame.text("IFUNAM").lower()
    grating = tables[gratings].get(frame.text(f"{side}GRATNAM").lower(), {})
    waves = dict[str, Value].fromkeys(("WAVEBLUE", "WAVECNTR", "WAVERED"))
    wave = frame.number(f"{side}CWAVE")
    if wave and wave > 0 and slicer in grating:
        centre, half = round(wave), grating["SPAN"] / 2
        blue, red = round(centre - half), round(centre + half)
        if frame.text(f"{side}NASNAM").lower() == "mask":
            # Nod and shuffle uses the middle third, to full 100 angstroms.
            third = math.ceil(int((red - blue) / 3) / 100) * 100
            blue, red = centre - third, centre + third
        waves = {"WAVEBLUE": blue, "WAVECNTR": centre, "WAVERED": red}
    scale = tables[scales].get(camera, {}).get("scale", 0) * _binning(frame) or None
    yield from sets(**waves, SPECRES=grating.get(slicer), SPATSCAL=scale, DISPSCAL=scale)


def _binning(frame: Frame) -> int:
    """Return the first axis's binning, of `2,2` or 2; 0 if there is none."""
    found = re.match(r"([0-9]{1,3})\s*(,|$)", frame.text("BINNING"))
    return int(found[1]) if found else 0


WCS = (
    *("CTYPE1", "CTYPE2", "RADECSYS", "CRPIX1", "CRPIX2", "CRVAL1", "CRVAL2"),
    *("CD1_1", "CD1_2", "CD2_1", "CD2_2"),
)


@rule("wcs")
def wcs(frame: Frame, *, camera: str, cameras: Table, scale_to: Keys = ()) -> Effects:
    """World coordinates from pointing and rotator (NIRC2 images, KCWI's fpc).

    `cameras` holds `scale` (arcsec per pixel) and `pa_zero` (degrees); `scale_to` are
    keywords that tell the scale.
    """
    row = frame.instrument.tables[cameras].get(frame.text(camera).lower())
    angle, ra, dec = _position_angle(frame), frame.degrees("RA"), frame.degrees("DEC")
    shape = frame.hdus[0].shape
    if row is None or math.isnan(angle) or ra is None or dec is None or len(shape) < 2:
        yield Note("SET_WCS_ERROR", f"No {camera}, ROTMODE, angle or position of use.")
        yield from sets(**dict.fromkeys((*WCS, *scale_to)))
        return
    scale = row["scale"] * ((_binning(frame) or 1) if row.get("binned") else 1)
    turn = math.radians(row["pa_zero"] - angle)
    cos, sin = (round(scale * f(turn) / 3600, 12) for f in (math.cos, math.sin))
    system = "FK5" if frame.number("EQUINOX") == 2000 else "FK4"
    yield from sets(CTYPE1="RA---TAN", CTYPE2="DEC--TAN", RADECSYS=system)
    yield from sets(CRPIX1=(shape[-1] + 1) / 2, CRPIX2=(shape[-2] + 1) / 2, CRVAL1=ra, CRVAL2=dec)
    yield from sets(CD1_1=-cos, CD1_2=-sin, CD2_1=-sin, CD2_2=cos)
    yield from sets(**dict.fromkeys(scale_to, round(scale, 6)))


def _position_angle(frame: Frame) -> float:
    """Return the rotator's angle on the sky in degrees by ROTMODE, NaN if unknown."""
    numbers = (frame.number(*keys) for keys in (("ROTPOSN",), ("PARANTEL", "PARANG"), ("EL",)))
    rotator, parallactic, el = (math.nan if n is None else n for n in numbers)
    modes = {"posi": rotator, "vert": rotator + parallactic, "stat": rotator + parallactic - el}
    angle = modes.get(frame.text("ROTMODE").lower()[:4], math.nan)
    return angle if math.isfinite(angle) else math.nan
