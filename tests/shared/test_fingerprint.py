"""Same cause, same fingerprint."""

import string
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from koa_shared.disks import contained
from koa_shared.errors import FrameFault, WorkerDied
from koa_shared.ids import frame_id
from koa_shared.instruments import compute
from koa_shared.jobs.fingerprint import DIED, fingerprint, mark

numbers = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
names = st.text(string.ascii_letters + "_-", min_size=1, max_size=12)
paths = st.lists(names, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
ids = st.tuples(paths, st.integers(0, 9**9), st.integers(0, 9**18)).map(lambda key: frame_id(*key))
koaids = st.integers(0, 86399).map(lambda s: f"KB.20251208.{s:05}.{s % 100:02}")
digests = st.integers(2**250, 2**256 - 1).map(lambda n: f"{n:064x}9")
varying = st.one_of(numbers.map(str), paths, ids, koaids, digests, names.map("{}.fits".format))


@given(st.lists(varying, min_size=2, max_size=2), st.sampled_from(["{}", "'{}'", "({}, 3)", "{}:"]))
def test_what_is_of_one_frame_makes_no_difference(pair: list[str], around: str) -> None:
    one, other = (f"cannot read {around.format(what)} in time" for what in pair)
    assert fingerprint(ValueError(one), "prepare") == fingerprint(ValueError(other), "prepare")


@given(names, names)
def test_what_is_said_in_words_does(one: str, other: str) -> None:
    same = one == other
    assert (mark("ValueError", "x", one) == mark("ValueError", "x", other)) is same


def test_the_class_and_the_step_do() -> None:
    found = {
        fingerprint(error, step)
        for error in (ValueError("a"), KeyError("a"))
        for step in ("prepare", "handover")
    }
    assert len(found) == 4
    assert {one.rpartition("-")[0] for one in found} == {"ValueError", "KeyError"}


def failure(call: Callable[[], object]) -> Exception:
    try:
        call()
    except Exception as error:  # noqa: BLE001 (whatever it is)
        return error
    raise AssertionError


def test_the_innermost_place_of_ours_counts_not_what_it_says() -> None:
    away = [failure(lambda p=path: contained(p, ["/nowhere"])) for path in ("/etc", "/a b/x")]  # type: ignore[misc]
    assert len({fingerprint(error, "prepare") for error in away}) == 1
    elsewhere = failure(lambda: compute("unknown(1)", lambda _: 1.0))
    assert fingerprint(FrameFault("X", str(away[0])), "prepare") != fingerprint(away[0], "prepare")
    assert fingerprint(elsewhere, "x") == fingerprint(
        failure(lambda: compute("other(2)", lambda _: 1.0)), "x"
    )


def test_a_death_is_told_from_everything_else() -> None:
    assert fingerprint(WorkerDied("at a frame of KCWI"), "prepare").startswith(DIED)
    assert len(fingerprint(type("E" * 99, (Exception,), {})("x"), "prepare")) <= 64
