"""Reduced products, levels 1 and 2: how a set is delivered, which files make it (facts 5.5)."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, timedelta
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .contracts import MAX_PATH, NUMBER, FrameId, Message, Sha256, Status
from .errors import FrameFault, Rejected
from .ids import safe_name

Koaid = Annotated[str, Field(max_length=64, pattern=r"^[A-Z0-9]{2}\.\d{8}\.\d{5}\.\d{2}(_\w+)?$")]
SCIENCE = ("object", "undefined")  # image types, as FilePrepared.is_science
KOAID = re.compile(r"(?<![A-Z0-9])[A-Z][A-Z0-9]\.\d{8}\.\d{5}\.\d{2}")
Text = Annotated[str, Field(min_length=1, max_length=64)]


class Incomplete(LookupError):
    """A file of a set is not there, or not yet."""


def time_of(koaid: str) -> datetime:
    """Return the UT that a KOAID tells, to the second; raises ValueError if there is no such."""
    _, day, seconds, *_ = koaid.split(".")
    return datetime.strptime(f"{day}Z", "%Y%m%d%z") + timedelta(seconds=int(seconds))


class Delivery(Message):
    """`POST /v1/products`: a pipeline has written one set, or (`night`) those of a directory.

    `files` and the keys of `manifest`, of SHA-256, are relative to `directory`.
    """

    instrument: Text
    level: Annotated[int, Field(ge=1, le=2), NUMBER]
    koaid: Koaid | None = Field(default=None, description="of the raw frame; or `night`")
    night: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")] | None = None
    pipeline: Text
    pipeline_version: Text
    directory: str = Field(max_length=MAX_PATH, pattern=r"^/[^\x00]*$")
    files: list[str] = Field(default=[], max_length=10_000, description="none: by our rules")
    manifest: dict[str, Sha256] = Field(default={}, description="none: made here")
    delivery: FrameId | None = Field(default=None, description="yours: makes a repeat the same")

    @property
    def listed(self) -> list[str]:
        """The files that it names."""
        return list(dict.fromkeys(self.files or self.manifest))

    def check(self) -> None:
        """Raise Rejected if it contradicts itself, or names what can't be."""
        names = (*self.files, *self.manifest)
        try:
            date.fromisoformat(self.night or "2000-01-01")
            time_of(self.koaid or "X.20000101.0")
        except ValueError as error:
            raise Rejected(str(error), code="no_date") from None
        wrong = {
            "say either `koaid` or `night`": bool(self.koaid) == bool(self.night),
            "`files` and `manifest` are of one set: say its `koaid`": self.night and names,
            "`manifest` names more than `files`": self.files and {*names} - {*self.files},
            "names of files are relative to `directory`, and lie in it": any(
                {".", "..", ""} & {*name.split("/")} or not name.isprintable() for name in names
            ),
        }
        for text, is_so in wrong.items():
            if is_so:
                raise Rejected(text, code="bad_delivery")


class Came(Message):
    """A set of a delivery, and where it is; `reason` tells why it is not archived."""

    frame_id: FrameId
    koaid: str
    level: int
    status: Status
    reason: str = ""


class Delivered(Message):
    """What became of a delivery: whole sets, and of a night what is expected and missing.

    Expected are the science frames of the night that this preparer has handed over.
    """

    delivery: FrameId
    instrument: str
    level: int
    night: str | None = None
    pipeline: str = Field(description="and its version")
    came: list[Came]
    expected: list[str] | None = Field(default=None, description="KOAIDs; None: one set")
    missing: list[str] | None = Field(default=None, description="of these, in no set that came")


class Reduced(BaseModel):
    """Which files make a set of one level: patterns of whole paths below its directory.

    `{koaid}` is the frame's.  A group `before` or `same` is a number that must be less than,
    or equal to, its FRAMENO; a group `detector` must stand in the name of another file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    level: int = Field(ge=1, le=2)
    pipeline: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _can_match(self) -> Self:
        for pattern in (*self.required, *self.optional):
            re.compile(pattern.replace("{koaid}", "x"))
        return self

    def choose(self, names: Sequence[str], koaid: str, frameno: int | None) -> list[str]:
        """Return which of the names make the set of a KOAID; raises Incomplete if one lacks."""
        found = list[str]()
        for pattern in (*self.required, *self.optional):
            matches = _matches(pattern, names, koaid)
            new = [m[0] for m in matches if _fits(m.groupdict(), found, frameno)]
            if not new and pattern in self.required:
                raise Incomplete(f"there is no file {pattern.replace('{koaid}', koaid)}")
            found += new
        return list(dict.fromkeys(found))

    def begun(self, names: Sequence[str], koaid: str) -> bool:
        """Tell whether there is a file that the set of a KOAID must have."""
        return any(any(_matches(pattern, names, koaid)) for pattern in self.required)


def _matches(pattern: str, names: Sequence[str], koaid: str) -> Iterator[re.Match[str]]:
    compiled = re.compile(pattern.replace("{koaid}", re.escape(koaid)))
    return filter(None, map(compiled.fullmatch, names))


def _fits(groups: dict[str, str], found: Sequence[str], frameno: int | None) -> bool:
    number = -1 if frameno is None else frameno
    if before := groups.get("before"):
        return int(before) < number
    if same := groups.get("same"):
        return int(same) == number
    detector = groups.get("detector")
    return detector is None or any(detector in name for name in found)


def by_koaid(names: Iterable[str], prefixes: Sequence[str], night: str) -> dict[str, list[str]]:
    """Return the names of files that tell a KOAID of an instrument and a UT date, by that."""
    found, day = dict[str, list[str]](), night.replace("-", "")
    for name in names:
        for one in {*KOAID.findall(name)}:
            if one[:2] in prefixes and one.split(".")[1] == day:
                found.setdefault(one, []).append(name)
    return dict(sorted(found.items()))


def stored_names(names: Sequence[str], ours: Sequence[str] = ()) -> dict[str, str]:
    """Return the name in the archive of each file of a set: its own, or its path's if two agree.

    Raises FrameFault if two agree even so, or one with what is `ours`.
    """
    own = [safe_name(name.rpartition("/")[2]) for name in names]
    pairs = zip(names, own, strict=True)
    found = {name: last if own.count(last) == 1 else safe_name(name) for name, last in pairs}
    if alike := sorted(n for n, k in Counter([*found.values(), *ours]).items() if k > 1):
        text = f"several files would be {', '.join(alike)} in the archive"
        raise FrameFault("DUPLICATE_NAME", text, "names")
    return found
