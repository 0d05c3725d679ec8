"""Previews: what an observer sees in the picture."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture
from pydantic import ValidationError

from koa_preparer.preview import PreviewSpec, preview

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
    picture = Picture.open(io.BytesIO(jpeg))
    assert (picture.format, picture.mode) == ("JPEG", "L")
    return np.asarray(picture)


def show(pixels: Any, **options: Any) -> Any:
    return opened(preview(np.asarray(pixels), **options))


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
    dark = show(stored, negative=True)
    assert dark[90:110, 440:460].mean() < np.median(dark) - 50


def test_same_pixels_same_bytes() -> None:
    assert preview(sky(900, 1100)) == preview(sky(900, 1100))


@pytest.mark.parametrize("table", [{"method": "mosaik"}, {"stretch": "log"}, {"a": 1}])
def test_wrong_spec_is_refused_when_it_is_read(table: Any) -> None:
    with pytest.raises(ValidationError):
        PreviewSpec.model_validate(table)
