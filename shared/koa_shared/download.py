"""The disk's side of a download: go on with a part, verify, rename; one process at a time."""

import fcntl
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO, TypeVar

from pydantic import BaseModel, Field

from .contracts import NAME, FrameView, Sha256, Whole
from .errors import DependencyDown, KoaError, NotFound
from .ids import safe_name

T = TypeVar("T")
Read = Callable[[int], Iterator[bytes]]  # the bytes from an offset on


class DigestMismatch(KoaError):
    """What came is not what the archive says it holds."""

    code, retryable = "digest_mismatch", False


class Offered(BaseModel, frozen=True):
    """A product of a frame's view; who may not have it is told no digest."""

    name: str = Field(pattern=NAME)
    size: Whole
    sha256: Sha256 | None = None


def offered(frame: FrameView, pattern: str | None) -> list[Offered]:
    """Return the products of a frame whose names match (as in a shell).

    Without a pattern: a raw frame's FITS file, all of a reduced set.
    Raises NotFound if there is none: it is not archived, or has no such product.
    """
    pattern = pattern or ("*" if frame.level else "*.fits")
    told = [Offered.model_validate(product) for product in frame.products]
    if found := [product for product in told if fnmatchcase(product.name, pattern)]:
        return found
    name = frame.koaid or frame.path or frame.frame_id
    why = f"it has no product {pattern}" if told else "it is not archived"
    raise NotFound(f"{name} is {frame.status}, {why}", code="not_archived")


def home_of(frame: FrameView) -> str:
    """Return where its products lie: versions of a reduced set apart, as each is a whole."""
    name = safe_name(frame.koaid or frame.frame_id)
    return f"lev{frame.level}/{name}/v{frame.version}" if frame.level else ""


def newest(
    frames: Iterable[FrameView], ask: Callable[..., FrameView]
) -> Iterator[tuple[FrameView, KoaError | None]]:
    """Yield frames as they are now; an error if another one has the KOAID in a later version.

    The names of their files are the same.  `ask` returns the frame of a KOAID and a level.
    """
    later = dict[tuple[str, int], str]()  # not whole frames: there may be millions
    for frame in frames:
        key, last = (frame.koaid or frame.frame_id, frame.level), frame
        if (frame.version or 0) > (0 if frame.level else 1):  # a set made anew is another frame
            last = ask(key[0], level=frame.level)
            later[key] = last.frame_id
        if (holder := later.get(key, frame.frame_id)) == frame.frame_id:
            yield last, None
        else:
            why = f"another frame, {holder}, holds a later one of {key[0]}"
            told = f"{frame.frame_id} has version {frame.version} only: {why}"
            yield frame, KoaError(told, code="superseded")


def save(target: Path, product: Offered, read: Read) -> Path | None:
    """Have the product's bytes lie at `target`; return where other content that did is now.

    What breaks off stays beside it as a hidden part, with which the next call goes on.  Who
    wants other content there waits: the part belongs to the target's name.
    Raises DigestMismatch, DependencyDown if `read` ends too early, OSError of the disk.
    """
    if _is_whole(target, product):
        return None
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    with _locked(part) as file:
        if _is_whole(target, product):  # whoever had the lock has fetched it
            part.unlink()
            return None
        _fill(file, part, product, read)
        os.fsync(file.fileno())
        kept = None
        with suppress(FileNotFoundError):  # what has its name is renamed, by its digest
            other = f"{target.name}.{_digest(target).hexdigest()[:8]}.old"
            kept = target.replace(target.with_name(other))
        part.replace(target)
        return kept


def _is_whole(path: Path, product: Offered) -> bool:
    with suppress(FileNotFoundError):
        return path.stat().st_size == product.size and _digest(path).hexdigest() == product.sha256
    return False


def _digest(path: Path) -> "hashlib._Hash":
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")


@contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    """Open a part for us alone; who held it before may have renamed or removed it."""
    while True:
        with part.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            is_ours = False
            with suppress(FileNotFoundError):
                is_ours = os.path.samestat(part.stat(), os.fstat(file.fileno()))
            if is_ours:
                yield file
                return


def _fill(file: BinaryIO, part: Path, product: Offered, read: Read) -> None:
    """Append what is missing; begin once more if what lay there was no part of it."""
    digest = hashlib.sha256()
    for _ in range(2):
        digest, at = _digest(part), part.stat().st_size
        for chunk in read(at) if at < product.size else ():
            file.write(chunk)
            digest.update(chunk)
            at += len(chunk)
        file.flush()
        if at < product.size:
            raise DependencyDown(
                "ingestor", f"ended {product.name} at {at} of {product.size} bytes"
            )
        if at == product.size and digest.hexdigest() == product.sha256:
            return
        file.truncate(0)
    what = f"{product.name} has the SHA-256 {digest.hexdigest()}, not {product.sha256}"
    raise DigestMismatch(f"{what} as the archive says; nothing of it was kept")


def in_parallel(work: Iterable[Callable[[], T]], threads: int) -> Iterator[T]:
    """Yield the results of calls in their order, some at once, few of them known at a time."""
    pool, waiting = ThreadPoolExecutor(threads), deque[Future[T]]()
    try:
        for call in work:
            waiting.append(pool.submit(call))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
