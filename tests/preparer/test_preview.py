"""Previews: what an observer sees in the picture."""

import gc
import io
import math
import time
import tracemalloc
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from astropy.io import fits as oracle
from PIL import Image
from pydantic import ValidationError

from koa_preparer.pipeline.frame import preview_products
from koa_preparer.preview import Shot, pictures, preview
from koa_preparer.rules import run_rules
from koa_shared.fits import Card, Hdu, Header
from koa_shared.instruments import Picture, RuleCall

STRETCHES: Any = ["asinh", "equalise", "sqrt"]
TYPES = ["u1", ">i2", ">i4", ">i8", ">f4", ">f8"]


def sky(rows: int = 1500, columns: int = 2000, sigma: float = 5) -> Any:
    """Return noise around 50 with a star in the upper right (high row, column)."""
    rng = np.random.default_rng(1)
    pixels = rng.normal(50, sigma, (rows, columns))
    y, x = np.mgrid[:rows, :columns]
    r2 = (y - rows * 0.8) ** 2 + (x - columns * 0.9) ** 2
    return pixels + 150 * np.exp(-r2 / (2 * 8**2))


def opened(jpeg: bytes) -> Any:
    picture = Image.open(io.BytesIO(jpeg))
    assert (picture.format, picture.mode) == ("JPEG", "L")
    return np.asarray(picture)


def shot(pixels: Any, name: str = "", number: int = 0, **cards: Any) -> Shot:
    header = Header(Card(keyword, value, "") for keyword, value in cards.items())
    return Shot(number, Hdu(header, name), np.asarray(pixels))


def drawn(shots: Sequence[Shot], **options: Any) -> dict[str, bytes]:
    """Return pictures by what stands behind the KOAID."""
    one = Picture(**options)
    return {name: preview(r, one.stretch, one.turn) for name, r in pictures(one, shots)}


def show(pixels: Any, scale: float = 1, **options: Any) -> Any:
    return opened(drawn([shot(pixels, BSCALE=scale)], **options)[""])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("stretch", STRETCHES)
def test_star_stands_where_a_fits_viewer_shows_it(dtype: str, stretch: Any) -> None:
    gray = show(sky().astype(dtype), stretch=stretch)
    assert gray.shape == (750, 1000)
    # Row 0 of the file is at the bottom: 0.8 of the height is 0.2 from the top.
    star = gray[147:153, 897:903].mean()
    assert star > 240
    background = np.median(gray)
    assert 10 < background < 200
    assert gray[590:610, 890:910].mean() < background + 25


def test_raw_bytes_of_a_file_are_taken_as_they_are() -> None:
    data = sky(300, 400).astype(">f4").tobytes()
    pixels = np.frombuffer(data, ">f4").reshape(300, 400)
    assert not pixels.flags.writeable
    assert show(pixels).shape == (300, 400)
    assert pixels.tobytes() == data


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1024, 1024), (1024, 1024)),
        ((1025, 1024), (512, 512)),
        ((4096, 2048), (1024, 512)),
        ((10, 20), (10, 20)),
        ((1, 5000), (1, 1000)),
        ((5000, 2), (1000, 1)),
        ((5000,), (1, 1000)),
        ((3,), (1, 3)),
        ((1, 1), (1, 1)),
    ],
)
def test_size(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    assert show(np.arange(np.prod(shape)).reshape(shape)).shape == size


@pytest.mark.parametrize("stretch", STRETCHES)
@pytest.mark.parametrize("width", [1000, 1024])  # the sample must see all columns
def test_ramp_uses_all_grays_in_order(stretch: Any, width: int) -> None:
    ramp = np.broadcast_to(np.arange(float(width)), (500, width))
    gray = show(ramp, stretch=stretch)[250].astype(int)
    assert gray[0] < 10
    assert gray[-1] > 245
    assert gray[-30] < 255
    assert np.diff(gray).min() >= -3  # JPEG is not exact
    assert len(np.unique(gray)) > 150


def test_asinh_shows_faint_things_equalise_ranks_and_sqrt_is_between() -> None:
    ramp = np.broadcast_to(np.arange(1000.0), (500, 1000))
    middle = {s: int(show(ramp, stretch=s)[250, 490:510].mean()) for s in STRETCHES}
    assert middle["equalise"] == pytest.approx(127, abs=4)
    assert middle["sqrt"] == pytest.approx(255 * 0.5**0.5, abs=8)
    assert middle["asinh"] == pytest.approx(255 * 2.312 / 2.998, abs=8)


def test_equalise_shows_two_levels_that_spikes_would_hide() -> None:
    pixels = np.full((400, 400), 1000, ">f4")
    pixels[:, 200:] = 1010
    pixels[::40, ::40] = 1e9
    gray = show(pixels, stretch="equalise")
    assert int(np.median(gray[:, 250:])) - int(np.median(gray[:, :150])) > 150


def test_middle_plane_of_a_cube() -> None:
    cube = np.zeros((2, 5, 100, 100), ">f4")
    cube[1, 2, 60:, :] = sky(40, 100) + 100
    gray = show(cube)
    assert gray[:40].mean() > 100
    assert gray[45:].mean() < 20


@pytest.mark.parametrize("stretch", STRETCHES)
def test_nan_is_black_and_hides_nothing_else(stretch: Any) -> None:
    pixels = sky(2048, 2048)
    clean = show(pixels, stretch=stretch).astype(int)
    pixels[::7, ::7] = np.nan
    pixels[:200, :] = np.nan
    pixels[300, 300], pixels[301, 500] = np.inf, -np.inf
    gray = show(pixels.astype(">f4"), stretch=stretch).astype(int)
    assert gray[-90:].max() < 12
    assert abs(np.median(gray[:-110]) - np.median(clean)) < 20
    assert (gray[:-110] < 5).mean() < (clean < 5).mean() + 0.02


@pytest.mark.parametrize("stretch", STRETCHES)
@pytest.mark.parametrize("value", [0, 7, -1e30, np.nan, np.inf, -np.inf, 1e308])
@pytest.mark.filterwarnings("error")
def test_constant_image_is_one_gray(value: float, stretch: Any) -> None:
    gray = show(np.full((1100, 50), value, ">f8"), stretch=stretch)
    assert gray.max() - gray.min() <= 1


@pytest.mark.parametrize("stretch", STRETCHES)
def test_star_on_an_empty_sky(stretch: Any) -> None:
    pixels = np.zeros((500, 500), ">i2")
    pixels[100:116, 100:108] = 5000
    pixels[100:108, 100:108] = 20000
    gray = show(pixels, stretch=stretch)
    assert gray[395, 104] > 200
    assert gray[395, 104] - gray[387, 104] > 25
    assert np.median(gray) < 40


@pytest.mark.parametrize("stretch", STRETCHES)
@pytest.mark.filterwarnings("error")
def test_any_bits_make_a_picture(stretch: Any) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        dtype = np.dtype(TYPES[seed % len(TYPES)])
        shape = rng.integers(1, 1500, 2)
        junk = rng.bytes(int(np.prod(shape)) * dtype.itemsize)
        show(np.frombuffer(junk, dtype).reshape(shape), stretch=stretch)


def test_scaling_keeps_the_picture_but_for_its_sign() -> None:
    """BZERO 32768, as of unsigned data, and a positive BSCALE change nothing."""
    stored = (sky(500, 500) * 100 - 32768).astype(">i2")
    true = stored.astype(">f8") * 0.5 + 16384
    difference = show(stored).astype(int) - show(true).astype(int)
    assert np.abs(difference).max() <= 2
    dark = show(stored, scale=-1)
    assert dark[90:110, 440:460].mean() < np.median(dark) - 50


def test_same_pixels_same_bytes() -> None:
    assert drawn([shot(sky(900, 1100))]) == drawn([shot(sky(900, 1100))])


@pytest.mark.parametrize(
    "table",
    [
        {"method": "mosaik"},
        {"stretch": "log"},
        {"layout": "detsec"},
        {"turn": "up"},
        {"name": "../x"},
        {"name": "{m}"},
        {"name": "{n:9d}"},
    ],
)
def test_wrong_picture_is_refused_when_it_is_read(table: Any) -> None:
    with pytest.raises(ValidationError):
        Picture.model_validate(table)


# --- Mosaics (facts 3.7) --------------------------------------------------------------
#
# A detector is painted whole: brighter to the right and upwards, with one bright mark in
# the lower right.  It is then cut up as the instrument's amplifiers read it.


def detector(rows: int, columns: int) -> Any:
    y, x = np.mgrid[:rows, :columns]
    scene = 4000.0 * x / columns + 2000.0 * y / rows
    scene[rows // 10 : rows // 5, columns * 3 // 4 : columns * 4 // 5] = 9000
    return scene


def cut(scene: Any, section: str, binning: int = 1) -> Any:
    """Return what an amplifier reads of a section: mirrored where its numbers fall."""
    x1, x2, y1, y2 = (int(n) for part in section[1:-1].split(",") for n in part.split(":"))
    low, high = sorted((y1, y2)), sorted((x1, x2))
    part = scene[
        (low[0] - 1) // binning : low[1] // binning, (high[0] - 1) // binning : high[1] // binning
    ]
    return part[:: -1 if y1 > y2 else 1, :: -1 if x1 > x2 else 1]


def read_out(part: Any, bias: float, before: int, behind: int) -> Any:
    """Return an amplifier's image: the bias differs, and rises from row to row."""
    dark = bias + np.linspace(0, 3000, len(part))[:, None]
    image = np.zeros((len(part), before + part.shape[1] + behind)) + dark
    image[:, before : before + part.shape[1]] += part
    image[:, before + part.shape[1]] += 5000  # charge left over: the first does not count
    return image.astype(">i2")


def compared(picture: Any, scene: Any, **options: Any) -> None:
    """Check that a mosaic shows what one image of the whole detector would."""
    expected = show(scene, **options).astype(int)
    assert picture.shape == expected.shape
    off = np.abs(picture.astype(int) - expected)
    assert np.median(off) <= 3
    assert (off > 30).mean() < 0.01  # at the mark's edges


LRIS = ["[1:96,1:200]", "[192:97,1:200]", "[193:288,1:200]", "[384:289,1:200]"]


def amplifiers(scene: Any, sections: Sequence[str], before: int = 25, behind: int = 40) -> Any:
    shots = []
    for n, section in enumerate(sections):
        part = cut(scene, section)
        data = f"[{before + 1}:{before + part.shape[1]},1:{len(part)}]"
        image = read_out(part, 1000.0 + 1200 * n, before, behind)
        shots.append(shot(image, f"VidInp{n + 1}", n + 1, DETSEC=section, DATASEC=data))
    return shots


MOSAIC: dict[str, Any] = {"layout": "DETSEC", "overscan": True}


def test_lris_blue_four_amplifiers() -> None:
    scene = detector(200, 384)
    shots = amplifiers(scene, LRIS)
    [(name, jpeg)] = drawn(shots, **MOSAIC).items()
    assert name == ""
    picture = opened(jpeg)
    assert picture.shape == (200, 384)  # neither prescan nor overscan
    compared(picture, scene)
    # Row 0 is at the bottom: the mark is below, right of the middle.
    assert picture[165:175, 292:302].min() > 240
    assert picture[10, 380] > picture[10, 5] + 60
    assert picture[10, 380] > picture[190, 380] + 30
    # The order of the HDUs does not matter.
    compared(opened(drawn(shots[::-1], **MOSAIC)[""]), scene)


def test_without_its_overscan_each_amplifier_has_another_gray() -> None:
    scene = detector(200, 384)
    raw = opened(drawn(amplifiers(scene, LRIS), layout="DETSEC")[""]).astype(int)
    assert raw.shape == (200, 384 + 4 * 65)
    assert raw[100, 5] + 50 < raw[100, 480]


def deimos(low: int = 0, width: int = 64, height: int = 128) -> list[str]:
    """Return the sections of two rows of four CCDs; the upper ones are read mirrored."""
    lower = [f"[{n * width + 1}:{n * width + width},{low + 1}:{height}]" for n in range(4)]
    upper = [f"[{n * width + width}:{n * width + 1},{2 * height}:{height + 1}]" for n in range(4)]
    return lower + upper


def test_deimos_two_rows_of_four_turned_so_that_spectra_lie() -> None:
    scene = detector(256, 256)
    shots = amplifiers(scene, deimos(), 12, 80)
    straight = opened(drawn(shots, **MOSAIC)[""])
    compared(straight, scene)
    picture = opened(drawn(shots, **MOSAIC, turn="left")[""]).astype(int)
    # What was below is at the right, what was right is at the top.
    assert np.abs(picture - np.rot90(straight).astype(int)).mean() < 4
    assert picture[52:62, 206:228].min() > 240
    assert picture[10, 100] > picture[250, 100] + 60


def test_both_amplifiers_of_a_ccd_each_with_half_of_it() -> None:
    scene = detector(256, 256)
    halves = []
    for section in deimos():
        x, y = section[1:-1].split(",")
        first, last = sorted(map(int, x.split(":")))
        middle = (first + last) // 2
        halves += [f"[{first}:{middle},{y}]", f"[{last}:{middle + 1},{y}]"]
    compared(opened(drawn(amplifiers(scene, halves, 12, 80), **MOSAIC)[""]), scene)


def test_a_missing_ccd_leaves_its_row_shorter_and_black_is_where_none_is() -> None:
    scene = detector(256, 256)
    shots = amplifiers(scene, deimos(), 12, 80)
    picture = opened(drawn(shots[:7], **MOSAIC)[""])
    assert picture.shape == (256, 256)
    assert picture[:124, 196:].max() < 10
    assert picture[140:, 196:].mean() > 100
    assert opened(drawn(shots[:4], **MOSAIC)[""]).shape == (128, 256)


def test_a_large_mosaic_is_sampled_in_one_scale() -> None:
    scene = detector(300, 1600)
    sections = [f"[{n * 400 + 1}:{n * 400 + 400},1:300]" for n in range(4)]
    picture = opened(drawn(amplifiers(scene, sections), **MOSAIC)[""])
    compared(picture, scene)
    assert picture.shape == (150, 800)
    assert picture[124:132, 604:636].min() > 235


@pytest.mark.parametrize(
    "section",
    [
        None,
        "",
        "junk",
        7,
        "[1:96]",
        "[0:0,0:0]",
        "[-5:900000000,-1:3]",
        "[9999999999999999:1,1:2]",
        "#### Error ###",
        "[1.5:2,1:2]",
        "[1:96,1:200]",  # a neighbour's
    ],
)
@pytest.mark.parametrize("keyword", ["DETSEC", "DATASEC"])
@pytest.mark.filterwarnings("error")
def test_a_wrong_section_spoils_no_picture(keyword: str, section: Any) -> None:
    shots = amplifiers(detector(200, 384), LRIS)
    cards = {card.keyword: card.value for card in shots[2].hdu.header.cards} | {keyword: section}
    shots[2] = shot(shots[2].pixels, "VidInp3", 3, **cards)
    picture = opened(drawn(shots, **MOSAIC)[""])
    assert picture.size >= 200 * 384
    every = [shot(s.pixels, "V", s.number, **{keyword: section}) for s in shots]
    side = opened(drawn(every, **MOSAIC)[""])
    assert max(side.shape) <= 1024
    assert side.size >= 200 * 384


def test_without_any_section_they_stand_side_by_side_in_the_files_order() -> None:
    shots = [shot(np.full((50, 60), level, ">i2")) for level in (300, 100, 400, 200)]
    picture = opened(drawn(shots, **MOSAIC)[""])
    assert picture.shape == (50, 240)
    middles = picture[25, 30::60].astype(int)
    assert [*np.argsort(middles)] == [1, 3, 0, 2]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", TYPES)
def test_any_bits_and_shapes_make_a_mosaic(kind: str) -> None:
    for seed in range(12):
        rng = np.random.default_rng(seed)
        shots = []
        for n in range(rng.integers(1, 7)):
            shape = rng.integers(1, [4, 300, 700][-rng.integers(1, 4) :])
            junk = np.frombuffer(rng.bytes(math.prod(shape) * np.dtype(kind).itemsize), kind)
            x1, x2, y1, y2 = rng.integers(-3, 400, 4)
            cards = {"DETSEC": f"[{x1}:{x2},{y1}:{y2}]", "DATASEC": f"[{y1}:{y2},1:{x1}]"}
            shots.append(shot(junk.reshape(shape), "X", n, BSCALE=rng.normal(), **cards))
        for turn in ("left", "right"):
            for stretch in STRETCHES:
                options = {**MOSAIC, "turn": turn, "stretch": stretch, "name": f"{turn}"}
                opened(drawn(shots, **options)[turn])


def kpf(names: Sequence[str], scene: Any, size: tuple[int, int]) -> list[Shot]:
    """Return amplifiers that read parts of a scene, in the order 1, 2 below and 3, 4 above."""
    height, width = size
    parts = [scene[y : y + height, x : x + width] for y in (0, height) for x in (0, width)]
    return [
        shot(part.astype(">f4"), name, n)
        for n, (name, part) in enumerate(zip(names, parts, strict=False), 1)
    ]


def test_kpf_green_of_two_amplifiers_red_of_four_and_ca_hk(maker: Any) -> None:
    scene = detector(200, 300)
    red = [f"RED_AMP{n}" for n in (1, 2, 3, 4)]
    shots = [
        *kpf(["GREEN_AMP1", "GREEN_AMP2"], scene, (200, 150)),
        *kpf(red, scene, (100, 150))[::-1],  # their names tell where they are
        shot(detector(60, 200).astype(">f4"), "CA_HK"),
        shot(np.ones((5, 5)), "EXPMETER_SCI"),
    ]
    made: dict[str, Any] = {}
    for one in maker.instruments["KPF"].preview:
        made |= {name: preview(r, one.stretch, one.turn) for name, r in pictures(one, shots)}
    assert [*made] == ["_green", "_red", "_ca_hk"]
    for name in ("_green", "_red"):
        compared(opened(made[name]), scene, stretch="sqrt")
    compared(opened(made["_ca_hk"]), detector(60, 200), stretch="sqrt")
    green, *_ = maker.instruments["KPF"].preview
    assert [*pictures(green, shots[2:])] == []  # a camera that was not read has none


def test_three_of_four_amplifiers_leave_a_black_quarter() -> None:
    scene = detector(200, 300)
    shots = kpf(["A1", "A2", "A3"], scene, (100, 150))
    picture = opened(drawn(shots, layout=[["A1", "A2"], ["A3", "A4"]])[""])
    assert picture.shape == (200, 300)
    assert picture[:95, 155:].max() < 10
    assert picture[:95, :145].mean() > 50


def test_each_image_by_itself_turned_as_hires_is() -> None:
    scene = detector(120, 60)
    flipped = "[60:1,1:120]"  # no mirror image: each stands for itself
    shots = [shot(scene * n, f"VidInp{n}", n, DETSEC=flipped) for n in (1, 2, 11)]
    made = drawn(shots, name="_CCD{n}_HDU{n:0>2}", turn="right")
    assert [*made] == ["_CCD1_HDU01", "_CCD2_HDU02", "_CCD11_HDU11"]
    straight = show(scene).astype(int)
    for jpeg in made.values():
        # What was below is at the left, what was right is at the bottom.
        assert np.abs(opened(jpeg) - np.rot90(straight, -1)).mean() < 4
    assert opened(made["_CCD1_HDU01"])[46:47, 14:22].min() > 240


# --- The previews of the instruments, as their files have them (facts 3.7) ------------


def raw_file(primary: dict[str, Any], image: Any = None, shots: Sequence[Shot] = ()) -> bytes:
    hdus: list[Any] = [oracle.PrimaryHDU(image)]
    hdus[0].header.update(primary | {"DATE-OBS": "2019-06-15", "UTC": "03:29:31.36"})
    for one in shots:
        hdus.append(oracle.ImageHDU(one.pixels, name=one.hdu.name))
        hdus[-1].header.update({card.keyword: card.value for card in one.hdu.header.cards})
    hdus.append(oracle.BinTableHDU.from_columns([oracle.Column("N", "J", array=[1])], name="T"))
    out = io.BytesIO()
    oracle.HDUList(hdus).writeto(out)
    return out.getvalue()


FLAT = np.full((40, 30), 7, ">i2")
STEM = "20190615.12571.36"
FOUR = [shot(FLAT, f"VidInp{n}", n, DETSEC=s) for n, s in enumerate(LRIS, 1)]
GUIDER = {"INSTRUME": "GUIDER", "CAMNAME": "MAGIQ", "TELESCOP": "Keck I"}
KPF = {"INSTRUME": "KPF", "OFNAME": f"KP.{STEM}.fits"}
PRODUCTS: dict[str, tuple[str, dict[str, Any], Any, Sequence[Shot], dict[str, Any]]] = {
    "DEIMOS-mosaic": ("DEIMOS", {"OUTDIR": "/s/deimos1"}, None, FOUR, {"DE": (40, 120)}),
    "DEIMOS-fcs": ("DEIMOS", {"OUTDIR": "/s/sdata1001/fcs"}, FLAT, (), {"DF": (30, 40)}),
    "ESI": ("ESI", {"INSTRUME": "ESI", "UT": "03:29:31.36"}, FLAT, (), {"ES": (30, 40)}),
    "GUIDER": ("GUIDER", GUIDER, FLAT, (), {"GR_MAGIQ": (30, 40)}),
    "HIRES": (
        "HIRES",
        {"INSTRUME": "HIRES"},
        None,
        FOUR[:3],
        {f"HI_CCD{n}_HDU0{n}": (40, 30) for n in (1, 2, 3)},
    ),
    "KCWI": ("KCWI", {"INSTRUME": "KCWI", "CAMERA": "red"}, FLAT, (), {"KR": (30, 40)}),
    "KPF": (
        "KPF",
        KPF,
        None,
        [shot(FLAT, name) for name in ("GREEN_AMP1", "GREEN_AMP2", "RED_AMP1", "CA_HK")],
        {"KP_green": (60, 40), "KP_red": (30, 40), "KP_ca_hk": (30, 40)},
    ),
    "LRIS-blue": ("LRIS", {"INSTRUME": "LRISBLUE"}, None, FOUR, {"LB": (120, 40)}),
    "LRIS-red": ("LRIS", {"INSTRUME": "LRIS"}, FLAT, (), {"LR": (30, 40)}),
    "MOSFIRE": ("MOSFIRE", {"INSTRUME": "MOSFIRE"}, FLAT, (), {"MF": (30, 40)}),
    "NIRC2": ("NIRC2", {"INSTRUME": "NIRC2", "LEV0TYPE": "final"}, FLAT, (), {"N2": (30, 40)}),
    "NIRC2-unp": (
        "NIRC2",
        {"INSTRUME": "NIRC2", "LEV0TYPE": "unprocessed"},
        np.stack([FLAT, FLAT]),
        (),
        {},
    ),
    "NIRES": ("NIRES", {"INSTRUME": "NIRES", "INSTR": "imag"}, FLAT, (), {"NI": (30, 40)}),
    "NIRSPEC": ("NIRSPEC", {"INSTRUME": "NIRSPEC", "CAMERA": "spec"}, FLAT, (), {"NS": (30, 40)}),
    "OSIRIS": ("OSIRIS", {"INSTRUME": "OSIRIS", "INSTR": "imag"}, FLAT, (), {"OI": (30, 40)}),
}


@pytest.mark.parametrize(
    ("instrument", "header", "image", "shots", "expected"),
    [pytest.param(*row, id=f"facts-3.7-{name}") for name, row in PRODUCTS.items()],
)
def test_names_and_sizes_of_the_previews(
    maker: Any, instrument: str, header: Any, image: Any, shots: Any, expected: Any
) -> None:
    raw = raw_file(header | {"CURRINST": instrument}, image, shots)
    frame = maker.frame(instrument, raw, "/s/sdata1/x/f.fits")
    contents, findings = preview_products(frame)
    assert findings == []
    assert {content.role for content in contents} <= {"preview"}
    sizes = {c.name: Image.open(io.BytesIO(c.buffers[0])).size for c in contents}
    names = {key: f"{key[:2]}.{STEM}{key[2:]}.jpg" for key in expected}
    assert sizes == {names[key]: size for key, size in expected.items()}
    assert len(contents) == len(expected)


STRETCHED = {
    "DEIMOS": ["asinh", "asinh"],
    "KCWI": ["equalise"],
    "LRIS": ["equalise", "asinh"],  # red, blue
    "KPF": ["sqrt"] * 3,
}


def test_stretches_of_the_instruments_facts_3_7(maker: Any) -> None:
    found = {n: [one.stretch for one in i.preview] for n, i in maker.instruments.items()}
    assert found == {n: STRETCHED.get(n, ["asinh"]) for n in maker.instruments}


# --- Time and memory (design 9) -------------------------------------------------------


def frames_of_real_size(name: str) -> list[Shot]:
    rng = np.random.default_rng(1)
    if name == "KPF":
        amplifier = rng.normal(1e6, 1000, (4110, 2094)).astype(">f4")
        names = ("GREEN_AMP1", "GREEN_AMP2", "RED_AMP1", "RED_AMP2")
        return [shot(amplifier, name) for name in names]
    ccd = rng.normal(1000, 30, (4096, 2140)).astype(">i2")
    sections = deimos(width=2048, height=4096)
    return [shot(ccd, "V", DETSEC=s, DATASEC="[13:2060,1:4096]") for s in sections]


@pytest.mark.parametrize("name", ["KPF", "DEIMOS"])
def test_140_mb_in_tens_of_ms_and_without_a_copy(maker: Any, name: str) -> None:
    shots, best = frames_of_real_size(name), math.inf
    layouts = maker.instruments[name].preview[: 3 if name == "KPF" else 1]

    def draw() -> list[bytes]:
        made = [(one, rows) for one in layouts for _, rows in pictures(one, shots)]
        return [preview(rows, one.stretch, one.turn) for one, rows in made]

    for _ in range(3):
        start = time.process_time()
        assert len(draw()) == {"KPF": 2, "DEIMOS": 1}[name]
        best = min(best, time.process_time() - start)
    assert best < 0.15
    tracemalloc.start()
    draw()
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["HIRES", "KPF", "LRIS-blue"])
def test_nothing_keeps_a_frames_bytes_alive(maker: Any, name: str) -> None:
    """A cycle of references would keep 140 MB until the collector comes by (design 9)."""
    instrument, header, image, shots, _ = PRODUCTS[name]
    raw = memoryview(bytearray(raw_file(header | {"CURRINST": instrument}, image, shots)))
    frame, alive = maker.frame(instrument, raw, "/s/sdata1/x/f.fits"), weakref.ref(raw)
    gc.disable()
    try:
        counted = RuleCall(rule="npixsat", params={"level": "7", "mosaic": True})
        assert run_rules(frame, [counted]).keywords["NPIXSAT"][0] == len(shots) * FLAT.size
        assert preview_products(frame)[0]
        del frame, raw
        assert alive() is None
    finally:
        gc.enable()
