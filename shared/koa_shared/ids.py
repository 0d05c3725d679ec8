"""Identities: of a frame on the road (frame_id) and in the archive (KOAID)."""

import re
from datetime import date, time
from typing import Literal
from uuid import UUID, uuid5

# Fixed for ever: another value would give every file a second identity.
NAMESPACE = UUID("6f4a1c58-6a86-5c0f-9a55-0c7b1d1d7f10")

Fraction = Literal["production", "padded"]


def normal_path(path: str) -> str:
    """Return the announced path as the archive knows it (facts 1.2, step 5)."""
    return f"/s{path}" if path.startswith("/sdata") else path


def frame_id(path: str, size: int, mtime_ns: int) -> str:
    """Return the identity of one written file: UUIDv5 of path, size and mtime."""
    return str(uuid5(NAMESPACE, f"{normal_path(path)}\n{size}\n{mtime_ns}"))


def set_id(delivery: str, level: int, koaid: str) -> str:
    """Return the identity of a set of reduced products: of a repeated delivery it is the same."""
    return str(uuid5(UUID(delivery), f"{level}\n{koaid}"))


def koaid(
    prefix: str, ut_date: date, ut: time, suffix: str = "", fraction: Fraction = "production"
) -> str:
    """Return the KOAID `PP.YYYYMMDD.SSSSS.FF` (facts 2.2).

    The archive takes the first two digits of the *unpadded* microseconds, so that
    .08 s is `80`; KOAIDs must equal the archive's, hence that is the default.
    `padded` gives the true hundredths (`08`).
    """
    seconds = ut.hour * 3600 + ut.minute * 60 + ut.second
    digits = str(ut.microsecond) if fraction == "production" else f"{ut.microsecond:06}"
    return f"{prefix}.{ut_date:%Y%m%d}.{seconds:05}.{digits[:2]:0>2}{suffix}"


def safe_name(text: str) -> str:
    """Return `text` fit for a file name: letters, digits and `._-`, never hidden."""
    return re.sub(r"[^A-Za-z0-9._+-]", "_", text).lstrip(".") or "_"
