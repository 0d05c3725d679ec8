"""The locks are exact, hashed, complete, and name no registry (design 3)."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
LOCKS = ("monitor", "preparer", "ingestor", "build", "dev", "pipeline")


def text_of(lock: str) -> str:
    return (ROOT / "requirements" / f"{lock}.lock").read_text()


def pins(lock: str) -> dict[str, Version]:
    """Return every package of a lock; one without a hash is an error."""
    found: dict[str, Version] = {}
    for entry in re.sub(r"\\\n", " ", text_of(lock)).splitlines():
        match = re.fullmatch(
            r"([\w.-]+)==(\S+)(?: ;[^\\]*?)?((?: +--hash=sha256:[0-9a-f]{64})+) *",
            entry,
        )
        assert match, f"{lock}.lock: not a hashed pin: {entry[:80]}"
        found[canonicalize_name(match[1])] = Version(match[2])
    return found


def asked(extra: str) -> list[Requirement]:
    """Return what an extra asks for, with the extras it is made of."""
    wants = []
    for requirement in map(Requirement, EXTRAS[extra]):
        if requirement.name == PROJECT["name"]:
            wants += [r for part in requirement.extras for r in asked(part)]
        else:
            wants.append(requirement)
    return wants


@pytest.mark.parametrize("lock", LOCKS)
def test_names_no_address(lock: str) -> None:
    assert not re.findall(r"https?://|file:|index-url|find-links", text_of(lock))


@pytest.mark.parametrize("lock", LOCKS)
def test_satisfies_pyproject(lock: str) -> None:
    locked = pins(lock)
    wants = [*map(Requirement, PROJECT["dependencies"]), *asked(lock)]
    if lock not in ("build", "pipeline"):  # what the images hold, to be switched on
        wants += asked("otel")
    assert wants
    for want in wants:
        if want.marker is None or want.marker.evaluate():
            version = locked.get(canonicalize_name(want.name))
            assert version, f"{want} is not locked: make lock"
            assert want.specifier.contains(version, prereleases=True), want


@pytest.mark.parametrize("lock", LOCKS[:-2])  # the pipeline is no part of an image
def test_is_what_was_tested(lock: str) -> None:
    """What an image installs is what the developers' lock has."""
    assert pins(lock).items() <= pins("dev").items()
