"""Ranges and media types of downloads (RFC 9110 14)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koa_ingestor.downloads import byte_range, media_type
from koa_ingestor.errors import RangeNotSatisfiable


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("", None),
        ("bytes=0-99", (0, 100)),
        ("bytes=0-0", (0, 1)),
        ("bytes=99-99", (99, 1)),
        ("bytes=10-19", (10, 10)),
        ("bytes=90-", (90, 10)),
        ("bytes=0-", (0, 100)),
        ("bytes=50-1000000", (50, 50)),
        ("bytes=-1", (99, 1)),
        ("bytes=-100", (0, 100)),
        ("bytes=-1000000", (0, 100)),
        ("bytes=-", None),
        ("bytes=1-2,4-5", None),  # several: the whole may be answered
        ("lines=1-2", None),
        ("bytes=a-b", None),
        ("bytes= 1-2", None),
        ("bytes=1-2 ", None),
        ("BYTES", None),
        ("bytes=20-10", None),  # an invalid range is to be ignored
    ],
)
def test_a_range_of_100_bytes(header: str | None, expected: tuple[int, int] | None) -> None:
    assert byte_range(header, 100) == expected


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=1000-", "bytes=-0"])
def test_what_lies_outside(header: str) -> None:
    with pytest.raises(RangeNotSatisfiable) as caught:
        byte_range(header, 100)
    assert (caught.value.status, caught.value.retryable) == (416, False)


def test_nothing_lies_in_an_empty_file() -> None:
    for header in ("bytes=0-", "bytes=-1", "bytes=0-0"):
        with pytest.raises(RangeNotSatisfiable):
            byte_range(header, 0)
    assert byte_range(None, 0) is None


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 200))
def test_a_range_is_what_slicing_gives(first: int, last: int, size: int) -> None:
    data = bytes(n % 251 for n in range(size))
    try:
        found = byte_range(f"bytes={first}-{last}", size)
    except RangeNotSatisfiable:
        assert first >= size
        return
    if found is None:
        assert last < first
        return
    start, length = found
    assert data[start : start + length] == data[first : last + 1]
    assert 0 < length <= size - start


def test_a_superscript_is_no_digit() -> None:
    assert byte_range("bytes=²-", 100) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("KB.20251208.43200.00.fits", "application/fits"),
        ("KB.20251208.43200.00.jpg", "image/jpeg"),
        ("KB.20251208.43200.00.metadata.table", "text/plain"),
        ("KB.20251208.43200.00.ext1.X.tbl", "text/plain"),
        ("KB.20251208.43200.00.manifest.json", "application/json"),
        ("KB.20251208.43200.00.raw_header", "application/octet-stream"),
        ("page.html", "text/html"),
    ],
)
def test_media_types(name: str, expected: str) -> None:
    assert media_type(name) == expected
