"""`koa`: what it says, what it asks of which service, and how it fails."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner, Result

from koa_shared.cli.__main__ import main
from koa_shared.cli.many import row
from koa_shared.cli.why import sentence, unknown
from koa_shared.contracts import Finding, FrameView, Severity, Status, Timeline
from koa_shared.simulator.frames import Request, build
from koa_shared.simulator.stack import Stack
from tests.live.conftest import free_offset

AT = datetime(2026, 11, 23, 9, 6, 38, 80_000, UTC)  # production .80, padded .08
ID = "11111111-1111-5111-9111-111111111111"
OTHER = "22222222-2222-5222-9222-222222222222"
NOBODY = "99999999-9999-5999-9999-999999999999"
PATH = "/s/sdata904/nirc4/2026nov23/n0001.fits"


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MONITOR_URL", "PREPARER_URL", "INGESTOR_URL", "TOKEN_FILE", "CA_FILE"):
        monkeypatch.delenv(f"KOA_{name}", raising=False)
    monkeypatch.delenv("PORT_OFFSET", raising=False)


def koa(env: dict[str, str], *words: str) -> Result:
    return CliRunner().invoke(main, words, env=env)


def answer(env: dict[str, str], *words: str) -> Any:
    """Return the one JSON document of a command that succeeds."""
    result = koa(env, *words, "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return json.loads(result.stdout)


# -- sentences ---------------------------------------------------------------------------


def frame(status: Status, *findings: Finding, **more: Any) -> FrameView:
    values: dict[str, Any] = {
        "frame_id": ID, "instrument": "NIRC2", "level": 0, "status": status, "step": "x",
        "path": PATH, "findings": list(findings), "timeline": Timeline(queued=AT),
    }  # fmt: skip
    return FrameView.model_validate(values | more)


def finding(code: str, step: str, severity: Severity = Severity.ERROR) -> Finding:
    return Finding(code=code, severity=severity, step=step, message="it says why")


def said(shown: FrameView, *holds: str, after: float = 7) -> str:
    return sentence(shown, "preparer", list(holds), AT + timedelta(seconds=after))


def test_every_status_has_its_one_sentence() -> None:
    for status in Status:
        text = said(frame(status))
        assert text.startswith(f"n0001.fits is {status}: ")
        assert text.endswith(".")
        assert "\n" not in text
        assert "None" not in text or status is Status.COMPLETE


def test_a_waiting_frame_tells_since_when_its_last_error_and_next_attempt() -> None:
    waiting = frame(Status.PROCESSING, finding("CODE_ERROR", "prepare"), next_attempt_at=AT)
    assert said(waiting) == (
        "n0001.fits is PROCESSING: it is at the preparer for 7 s now; last error CODE_ERROR "
        "(it says why); the next attempt is at 09:06:38 UTC."
    )


def test_a_waiting_frame_without_a_reason_is_nothing_to_do_until_it_takes_too_long() -> None:
    assert said(frame(Status.QUEUED)).endswith("nothing to do.")
    assert said(frame(Status.QUEUED), after=301).endswith("see the log of the preparer.")


LINK = {"frame_id": "p", "koaid": "N2.1", "level": 1, "version": 1, "status": "COMPLETE"}


def test_a_frame_and_its_products_tell_of_each_other() -> None:
    links = [LINK | {"pipeline": "DRP 1"}, LINK | {"level": 2, "status": "INVALID"}]
    raw = frame(Status.COMPLETE, koaid="N2.1", version=1, latency_seconds=2.5, links=links)
    assert said(raw) == (
        "N2.1 is COMPLETE: version 1 was available 2.5 s after it was written; nothing to do; its "
        "level 1 by DRP 1 is COMPLETE; its level 2 by a pipeline is INVALID (`koa why p`)."
    )
    assert row(raw)["reduced"] == "1:COMPLETE 2:INVALID"
    parent = [LINK | {"level": 0}]
    waits = finding("RAW_NOT_ARCHIVED", "claim", Severity.WARNING)
    made = frame(Status.TRANSFERRED, waits, koaid="N2.1", level=1, links=parent)
    assert said(made).startswith("N2.1, level 1 is TRANSFERRED: it is at the preparer for 7 s now;")
    assert said(made).endswith("; it says why; nothing to do.")
    assert (row(made)["level"], row(made)["reduced"]) == (1, None)
    late = frame(Status.ERROR, finding("RAW_NOT_ARCHIVED", "claim"), koaid="N2.1", level=1)
    assert said(late).endswith(f"once that is mended, `koa retry {ID}`.")


def test_what_holds_a_frame_back_goes_before_its_next_attempt() -> None:
    text = said(frame(Status.QUEUED, next_attempt_at=AT), "s3 is down (why)", "X is paused")
    assert text.endswith("; held back because s3 is down (why) and X is paused.")


@pytest.mark.parametrize(
    ("code", "step", "order"),
    [
        ("NOT_FITS", "structure", f"once that is mended, `koa retry {ID}`."),
        ("CODE_ERROR", "promote", f"once that is mended, `koa retry {ID}`."),
        ("FITS_NOT_FOUND", "read", f"`koa submit {PATH}`."),
        ("RULE_CRASHED", "ut", f"`koa release {ID} --waive RULE_CRASHED --why ...`"),
        ("DUPLICATE_KOAID", "claim", f"`koa accept {ID} --as version --why ...`"),
    ],
)
def test_an_end_tells_the_order_that_leaves_it(code: str, step: str, order: str) -> None:
    warning = finding("CLOCK_SKEW", "read", Severity.WARNING)
    text = said(frame(Status.ERROR, warning, finding(code, step)))
    assert f"{code} (it says why)" in text
    assert order in text
    assert "CLOCK_SKEW" not in text


def test_a_frame_whose_archived_object_is_damaged() -> None:
    found = (finding("WAIVED", "ut"), finding("OBJECT_DAMAGED", "scrub"))
    shown = frame(Status.COMPLETE, *found, koaid="N2.1", version=3)
    assert said(shown) == (
        "N2.1 is COMPLETE: but its version 3 is not served whole, OBJECT_DAMAGED (it says why); "
        "`koa reprocess N2.1` makes a good version."
    )
    assert said(frame(Status.COMPLETE, found[0])).endswith("nothing to do.")


def test_a_path_that_was_announced_but_has_no_frame() -> None:
    row = {"source": "nirc2", "heard": "T", "frame_id": None, "decision": None, "reason": ""}
    source = {"name": "nirc2", "connected": True, "paused": False, "paused_why": "by me"}
    assert "the monitor looks for the file" in unknown(PATH, [row], [source])
    assert "`koa resume nirc2`" in unknown(PATH, [row], [source | {"paused": True}])
    ignored = row | {"decision": "ignored", "reason": "the path is blank"}
    assert unknown(PATH, [ignored], [source]).endswith("at T: the path is blank.")
    assert f"`koa why {ID}`" in unknown(PATH, [row | {"frame_id": ID}], [source])
    assert "(0 of 1 sources are not connected)" in unknown(PATH, [], [source])


# -- which service is asked, on a stand-in for all three ----------------------------------


class Desk(ThreadingHTTPServer):
    """Answers what it was told to, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Asked)
        self.answers: dict[str, tuple[int, Any]] = {}
        self.asked: list[tuple[str, Any]] = []
        self.queries: list[dict[str, str]] = []
        self.pages: dict[str, Any] = {}
        self.streams: list[bytes] = []
        self.resumed: list[str | None] = []
        url = f"http://127.0.0.1:{self.server_address[1]}"
        names = ("monitor", "preparer", "ingestor")
        self.env = {f"KOA_{name.upper()}_URL": f"{url}/{name}" for name in names}

    def knows(self, shown: FrameView) -> None:
        path = f"GET /ingestor/v1/frames/{shown.frame_id}"
        self.answers[path] = 200, shown.model_dump(mode="json")

    def takes(self, service: str, verb: str, frame_id: str = ID) -> None:
        body = {"frame_id": frame_id, "generation": 2, "status": "PROCESSING"}
        self.answers[f"POST /{service}/v1/frames/{frame_id}/{verb}"] = 202, body

    def refuses(self, where: str, status: int, code: str) -> None:
        body = {"type": "t", "title": "t", "status": status, "code": code, "retryable": False}
        self.answers[where] = status, body | {"detail": f"because {code}"}


class Asked(BaseHTTPRequestHandler):
    """One request to the desk."""

    def answer(self) -> None:
        desk = self.server
        assert isinstance(desk, Desk)
        where = f"{self.command} {self.path.partition('?')[0]}"
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = self.headers.get("Authorization")
        desk.asked.append((where, json.loads(sent) if sent else token))
        desk.queries.append(dict(parse_qsl(self.path.partition("?")[2])))
        status, body = desk.answers.get(where, (404, {}))
        if desk.pages:
            status, body = 200, desk.pages[desk.queries[-1].get("cursor", "")]
        data = json.dumps(body).encode()
        if where.endswith("/stream"):
            desk.resumed.append(self.headers.get("Last-Event-ID"))
            status, data = (200, desk.streams.pop(0)) if desk.streams else (404, b"")
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = answer  # noqa: N815 (the names are http.server's)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def desk() -> Iterator[Desk]:
    with Desk() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("service", "more"),
    [
        ("preparer", {"status": Status.ERROR, "step": "handover"}),
        ("preparer", {"status": Status.INVALID, "step": "structure"}),
        ("ingestor", {"status": Status.ERROR, "step": "promote"}),
        ("ingestor", {"status": Status.ERROR, "timeline": Timeline(ingest_start=AT)}),
        ("ingestor", {"status": Status.INVALID, "step": "claim"}),
    ],
)
def test_retry_asks_the_service_that_has_the_frame(
    desk: Desk, service: str, more: dict[str, Any]
) -> None:
    desk.knows(frame(**more))
    desk.takes(service, "retry")
    said = answer(desk.env, "retry", ID, "--why", "mended")
    assert said == {
        "service": service, "frame_id": ID, "generation": 2, "status": "PROCESSING"
    }  # fmt: skip
    assert desk.asked[-1] == (f"POST /{service}/v1/frames/{ID}/retry", {"why": "mended"})


def test_a_koaid_is_that_of_a_raw_frame_unless_a_level_is_named(desk: Desk) -> None:
    desk.knows(frame(Status.COMPLETE, koaid="N2.1", version=1, latency_seconds=1.0))
    for command in ("status", "why"):
        answer(desk.env, command, ID)
        assert "level" not in desk.queries[-1]
        answer(desk.env, command, ID, "--level", "2")
        assert {"level": "2"} in desk.queries[-3:]


def test_why_tells_an_observer_what_the_frame_tells(desk: Desk) -> None:
    """What holds frames back is for operators; that it is, holds nothing back."""
    desk.knows(frame(Status.PROCESSING))
    desk.refuses("GET /preparer/readyz", 403, "forbidden")
    why = answer(desk.env, "why", ID)["why"]
    assert "PROCESSING" in why
    assert "held back" not in why
    desk.refuses("GET /preparer/readyz", 503, "dependency_down")
    assert "held back because" in answer(desk.env, "why", ID)["why"]


def test_release_and_reprocess_send_only_what_was_given(desk: Desk) -> None:
    desk.knows(frame(Status.ERROR))
    desk.takes("preparer", "release")
    desk.takes("preparer", "reprocess")
    words = ("release", ID, "--waive", "A", "--waive", "B", "--why", "fine")
    assert answer(desk.env, *words)["service"] == "preparer"
    assert desk.asked[-1][1] == {"waive": ["A", "B"], "why": "fine"}
    answer(desk.env, "reprocess", ID, "--progid", "U294")
    assert desk.asked[-1][1] == {"why": "", "progid": "U294"}


def listed(desk: Desk, *frames: FrameView, refused: tuple[FrameView, ...] = ()) -> None:
    """Have the ingestor list these frames, and hold those that the preparer refuses."""
    page = {"items": [shown.model_dump(mode="json") for shown in frames], "next": None}
    parked = [shown for shown in frames if shown.status is Status.ERROR]
    items = [shown.model_dump(mode="json") for shown in (*parked, *refused)]
    desk.answers["GET /ingestor/v1/frames"] = 200, page
    desk.answers["GET /ingestor/v1/parked"] = 200, {"items": items, "next": None}


def test_parked_frames_are_groups_that_failed_alike(desk: Desk) -> None:
    broken = finding("CODE_ERROR", "prepare")

    def parked(number: int, mark: str, instrument: str) -> FrameView:
        at, name = Timeline(acquired=AT + timedelta(minutes=number)), f"{number}{ID[1:]}"
        more = {"instrument": instrument, "timeline": at, "frame_id": name}
        return frame(Status.ERROR, broken, fingerprint=mark, **more)

    refused = frame(Status.QUEUED, step="refused", frame_id=OTHER)
    rows = [parked(1, "A-1", "NIRC2"), parked(2, "B-2", "ESI"), parked(3, "A-1", "KCWI")]
    listed(desk, *rows, refused=(refused,))
    first, *others = answer(desk.env, "parked")
    assert first == {
        "fingerprint": "A-1", "count": 2, "first": "2026-11-23 09:07:38",
        "last": "2026-11-23 09:09:38", "example": rows[0].frame_id, "instrument": "KCWI,NIRC2",
        "message": "CODE_ERROR it says why",
    }  # fmt: skip
    assert [(row["fingerprint"], row["count"]) for row in others] == [("B-2", 1), ("refused", 1)]
    table = koa(desk.env, "parked").stdout.splitlines()
    assert table[0].split()[:4] == ["fingerprint", "count", "first", "last"]
    assert table[1].startswith("A-1")
    ids = [row["frame_id"] for row in answer(desk.env, "parked", "--all")]
    assert ids == [*(row.frame_id for row in rows), OTHER]
    listed(desk)
    assert koa(desk.env, "parked").stdout == "none\n"


def test_a_group_is_retried_at_both_services(desk: Desk) -> None:
    for service, count in (("preparer", 3), ("ingestor", 0)):
        where = f"POST /{service}/v1/parked/KeyError-1f2e3d4c/retry"
        desk.answers[where] = 200, {"retried": count}
    words = ("retry", "--fingerprint", "KeyError-1f2e3d4c", "--why", "mended")
    assert answer(desk.env, *words) == [
        {"service": "preparer", "retried": 3}, {"service": "ingestor", "retried": 0},
    ]  # fmt: skip
    assert [body for _, body in desk.asked] == [{"why": "mended"}] * 2
    desk.answers["POST /preparer/v1/parked/KeyError-1f2e3d4c/retry"] = 200, {"retried": 0}
    result = koa(desk.env, *words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "nothing that is parked has the fingerprint" in result.stderr


CAMPAIGN: dict[str, Any] = {
    "campaign": 7,
    "why": "a better rule",
    "state": "running",
    "frames": {},
    "changes": {},
    "each": [],
}


def test_a_campaign_is_ordered_of_the_preparer(desk: Desk) -> None:
    desk.answers["POST /preparer/v1/campaigns"] = 202, CAMPAIGN
    words = ("--instrument", "NIRC2", "--where", "ODD", "--where", "COMPLETE", "--where", "OTHER")
    told = answer(desk.env, "campaign", "create", *words, "--rules", "outdated", "--why", "w")
    assert told == CAMPAIGN
    assert desk.asked[-1] == (
        "POST /preparer/v1/campaigns",
        {"instrument": "NIRC2", "status": "COMPLETE", "findings": ["ODD", "OTHER"],
         "rules": "outdated", "per_minute": 30.0, "dry_run": False, "why": "w"},
    )  # fmt: skip


def test_a_campaign_is_of_one_status(desk: Desk) -> None:
    words = ("--where", "COMPLETE", "--where", "INVALID")
    result = koa(desk.env, "campaign", "create", *words)
    assert (result.exit_code, desk.asked) == (2, [])


def test_a_dry_run_waits_and_shows_each_frame(desk: Desk) -> None:
    desk.answers["POST /preparer/v1/campaigns"] = 202, CAMPAIGN | {"dry_run": True}
    row = {"frame_id": ID, "state": "done", "changes": {"SPATSCAL": [0.15, 0.2]}}
    over = CAMPAIGN | {"state": "done", "frames": {"done": 1}, "each": [row]}
    desk.answers["GET /preparer/v1/campaigns/7"] = 200, over | {"next": None}
    told = answer(desk.env, "campaign", "create", "--night", "2026-11-23", "--dry-run")
    assert told == over
    text = koa(desk.env, "campaign", "show", "7", "--frames").stdout
    assert "why              a better rule" in text
    assert "{'SPATSCAL': [0.15, 0.2]}" in text
    assert "state            done" in text


def test_campaigns_are_listed_and_switched(desk: Desk) -> None:
    desk.answers["GET /preparer/v1/campaigns"] = 200, [CAMPAIGN]
    assert answer(desk.env, "campaign", "list") == [CAMPAIGN]
    for verb in ("pause", "resume", "cancel"):
        desk.answers[f"POST /preparer/v1/campaigns/7/{verb}"] = 200, CAMPAIGN
        answer(desk.env, "campaign", verb, "7", "--why", "w")
        assert desk.asked[-1] == (f"POST /preparer/v1/campaigns/7/{verb}", {"why": "w"})


def test_retention_is_told_and_done(desk: Desk) -> None:
    told: dict[str, Any] = {"policies": {}, "items": []}
    desk.answers["GET /ingestor/v1/retention"] = 200, told
    desk.answers["POST /ingestor/v1/retention"] = 202, told
    assert answer(desk.env, "retention", "--dry-run") == told
    assert {where for where, _ in desk.asked} == {"GET /ingestor/v1/retention"}
    assert answer(desk.env, "retention", "--why", "w") == told
    assert desk.asked[-1] == ("POST /ingestor/v1/retention", {"why": "w"})
    desk.answers["GET /ingestor/v1/deletable"] = 200, {"items": [{"path": "/s/x"}], "next": None}
    assert answer(desk.env, "deletable") == [{"path": "/s/x"}]


def test_the_audits_of_all_three_are_one_list(desk: Desk) -> None:
    def deed(at: str, verb: str) -> dict[str, Any]:
        return {"id": 1, "at": at, "who": "sre", "verb": verb, "target": ID, "why": "w"}

    for service, at in (("monitor", "2026-11-23T01"), ("ingestor", "2026-11-23T02")):
        desk.answers[f"GET /{service}/v1/audit"] = 200, [deed(at, service)]
    desk.knows(frame(Status.ERROR))
    rows = answer(desk.env, "audit", "--target", ID)
    assert [row["service"] for row in rows] == ["preparer", "ingestor", "monitor"]
    assert "answered 404" in rows[0]["why"], "one that is away hides no other's"
    assert {query.get("target") for query in desk.queries[-3:]} == {ID}
    table = koa(desk.env, "audit").stdout.splitlines()
    assert table[0].split() == ["at", "service", "who", "verb", "target", "why"]


def test_accept_goes_on_with_the_same_frame(desk: Desk) -> None:
    desk.knows(frame(Status.INVALID))
    desk.refuses(f"POST /ingestor/v1/frames/{ID}/accept", 409, "needs_reprocess")
    desk.takes("preparer", "reprocess")
    said = answer(desk.env, "accept", ID, "--as", "padded", "--why", "another")
    assert said["service"] == "preparer"
    assert desk.asked[-1][1] == {"why": "another", "fraction": "padded"}


@pytest.mark.parametrize(
    ("name", "path"), [("esi", "monitor/v1/sources"), ("ESI", "preparer/v1/instruments")]
)
def test_pause_is_of_a_source_or_in_capitals_of_an_instrument(
    desk: Desk, name: str, path: str
) -> None:
    desk.answers[f"POST /{path}/{name}/pause"] = 200, {"paused": True}
    assert answer(desk.env, "pause", name, "--why", "dome") == {"paused": True}
    assert desk.asked[-1][1] == {"why": "dome"}


@pytest.mark.parametrize(
    ("name", "first", "other"),
    [
        ("owl", "monitor/v1/sources", "preparer/v1/instruments"),
        ("OWL", "preparer/v1/instruments", "monitor/v1/sources"),
    ],
)
def test_who_does_not_know_a_name_is_not_the_last_to_be_asked(
    desk: Desk, name: str, first: str, other: str
) -> None:
    unknown = {"monitor": (404, "unknown_source"), "preparer": (422, "unknown_instrument")}
    status, code = unknown[first.partition("/")[0]]
    desk.refuses(f"POST /{first}/{name}/resume", status, code)
    desk.answers[f"POST /{other}/{name}/resume"] = 200, {"paused": False}
    assert answer(desk.env, "resume", name) == {"paused": False}
    desk.refuses(f"POST /{other}/{name}/resume", *unknown[other.partition("/")[0]])
    assert f"{code}: because {code}" in koa(desk.env, "resume", name).stderr
    desk.refuses(f"POST /{first}/{name}/resume", 403, "forbidden")
    desk.asked.clear()
    assert "403 forbidden" in koa(desk.env, "resume", name).stderr
    assert [where for where, _ in desk.asked] == [f"POST /{first}/{name}/resume"]


def test_a_list_is_a_table_of_what_is_told(desk: Desk) -> None:
    more = {"metadata": {"koaimtyp": "object", "object": "M31"}, "latency_seconds": 1.25}
    rows = [
        frame(Status.COMPLETE, koaid="N2.1", version=1, program={"semid": "2026B_U1"}, **more),
        frame(Status.ERROR, finding("ODD", "x", Severity.WARNING), finding("BAD", "x")),
        frame(Status.QUEUED, path=None),
    ]
    listed(desk, *rows)
    words = ("list", "--instrument", "NIRC2", "--status", "ERROR", "--level", "0", "--limit", "9")
    lines = [line.split() for line in koa(desk.env, *words).stdout.splitlines()]
    head = ["instrument", "type", "object", "program", "status", "latency", "code"]
    assert lines == [
        ["acquired", "frame_id", "koaid", *head],
        ["-", "-", "N2.1", "NIRC2", "object", "M31", "2026B_U1", "COMPLETE", "1.25", "-"],
        ["-", "-", "n0001.fits", "NIRC2", "-", "-", "-", "ERROR", "-", "BAD"],
        ["-", ID, "-", "NIRC2", "-", "-", "-", "QUEUED", "-", "-"],
    ]
    assert desk.queries[-1] == {
        "instrument": "NIRC2", "status": "ERROR", "level": "0", "limit": "9",
    }  # fmt: skip
    assert [row["frame_id"] for row in answer(desk.env, "list")] == [ID] * 3
    listed(desk)
    assert (koa(desk.env, "list").stdout, answer(desk.env, "list")) == ("none\n", [])


def test_a_list_of_many_is_one_document(desk: Desk) -> None:
    shown = [frame(Status.COMPLETE, koaid=f"N2.{n}").model_dump(mode="json") for n in range(2500)]
    cuts = {"": (0, "1"), "1": (1000, "2"), "2": (2000, None)}
    desk.pages = {
        at: {"items": shown[first : first + 1000], "next": more}
        for at, (first, more) in cuts.items()
    }
    told = answer(desk.env, "list", "--limit", "0")
    assert [row["koaid"] for row in told] == [f"N2.{n}" for n in range(2500)]
    table = koa(desk.env, "list", "--limit", "0").stdout.splitlines()
    assert [line.split()[1] for line in table if line[0] == "-"] == [row["koaid"] for row in told]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--night", "yesterday"), "night: String should match"),
        (("--level", "7"), "level: Input should be less than or equal to 2"),
        (("--since", "today"), "since: a time is told as 2025-12-08T12:00:00.000Z"),
    ],
)
def test_a_wrong_filter_is_told(desk: Desk, words: tuple[str, ...], part: str) -> None:
    result = koa(desk.env, "list", *words)
    assert (result.exit_code, result.stdout, desk.asked) == (1, "", [])
    assert result.stderr.startswith(f"koa: {part}")


@pytest.mark.parametrize(
    ("typed", "part"),
    [
        ("koa re", "reprocess"),
        ("koa get --pro", "--products"),
        ("koa list --status CO", "COMPLETE"),
    ],
)
def test_the_shell_completes(typed: str, part: str) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    result = CliRunner().invoke(
        main, env={"_KOA_COMPLETE": "complete_bash"} | words, prog_name="koa"
    )
    assert part in result.stdout.split()


def test_every_command_says_what_its_arguments_are() -> None:
    group = typer.main.get_command(main)
    assert isinstance(group, TyperGroup)
    assert r"\b" not in str(group.help), "click's mark, in letters"
    for name, command in group.commands.items():
        if name != "instruments":  # the preparer's own
            bare = [str(p.name) for p in command.params if not getattr(p, "help", None)]
            assert bare == [], name
        first = str(command.help).splitlines()[0]
        assert len(first) <= 64, f"{name}: cut short in koa --help"


def test_triggers_are_a_table_without_empty_columns(desk: Desk) -> None:
    row = {"heard": "T1", "source": "nirc2", "value": PATH, "decision": None, "reason": ""}
    rows = [row, row | {"heard": "T2", "decision": "ignored", "frame_id": None}]
    desk.answers["GET /monitor/v1/triggers"] = 200, {"items": rows, "next": None}
    lines = koa(desk.env, "triggers", "--source", "nirc2").stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["heard", "source", "value", "decision", "reason"],
        ["T1", "nirc2", PATH, "-", "-"],
        ["T2", "nirc2", PATH, "ignored", "-"],
    ]


def test_a_frame_that_only_the_preparer_knows(desk: Desk) -> None:
    shown = frame(Status.QUEUED).model_dump(mode="json")
    desk.answers[f"GET /preparer/v1/frames/{ID}"] = 200, shown
    env = desk.env | {"KOA_INGESTOR_URL": "http://127.0.0.1:1"}
    assert answer(env, "status", ID)["status"] == "QUEUED"


def test_the_token_is_presented_and_a_wrong_one_is_named(desk: Desk, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    desk.refuses("GET /monitor/v1/sources", 401, "unauthorized")
    result = koa(desk.env | {"KOA_TOKEN_FILE": str(token)}, "sources")
    assert desk.asked[-1][1] == "Bearer secret"
    assert result.exit_code == 1
    assert "monitor: answered 401 unauthorized: because unauthorized" in result.stderr
    assert "KOA_TOKEN_FILE" in result.stderr
    assert "secret" not in result.output


def test_a_refusal_is_told_with_its_code(desk: Desk) -> None:
    desk.knows(frame(Status.COMPLETE))
    desk.refuses(f"POST /preparer/v1/frames/{ID}/retry", 409, "conflict")
    result = koa(desk.env, "retry", ID)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "koa: conflict: because conflict\n"


@contextlib.contextmanager
def watching(env: dict[str, str], *words: str) -> Iterator[tuple[list[str], list[str]]]:
    """Run `koa watch`; yield what it says on stdout and on stderr; end it by Ctrl-C."""
    command = [str(Path(sys.executable).parent / "koa"), "watch", *words]
    pipe, heard = subprocess.PIPE, (list[str](), list[str]())
    process = subprocess.Popen(command, env=os.environ | env, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    readers = [
        threading.Thread(target=lines.extend, args=(stream,))
        for lines, stream in zip(heard, (process.stdout, process.stderr), strict=True)
    ]
    for reader in readers:
        reader.start()
    try:
        yield heard
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(10)
        for reader in readers:
            reader.join()
    assert code == 0


def entry(number: int, shown: FrameView) -> bytes:
    data = shown.model_dump_json(exclude_none=True)
    return f"id: {number}\nevent: {shown.status}\ndata: {data}\n\n".encode()


def test_watch_goes_on_where_the_stream_broke_off(desk: Desk) -> None:
    desk.answers["GET /ingestor/v1/frames"] = 200, {"items": [], "next": None}
    broken = finding("CODE_ERROR", "promote")
    desk.streams = [
        entry(7, frame(Status.QUEUED)) + b": \n\n" + entry(8, frame(Status.ERROR, broken)),
        entry(9, frame(Status.COMPLETE)) + b"event: reset\nid: 12\ndata: {}\n\n",
    ]
    end = time.monotonic() + 20
    with watching(desk.env) as (lines, _):
        while desk.resumed != [None, "8", "12"] and time.monotonic() < end:
            time.sleep(0.02)
    assert desk.resumed == [None, "8", "12"]
    assert lines == [
        f"QUEUED  NIRC2  {ID}  {PATH}\n",
        f"ERROR  NIRC2  {ID}  {PATH}  CODE_ERROR\n",
        f"COMPLETE  NIRC2  {ID}  {PATH}\n",
        "reset\n",
    ]


def test_watch_can_tell_documents_and_that_it_tries_again(desk: Desk) -> None:
    desk.answers["GET /ingestor/v1/frames"] = 200, {"items": [], "next": None}
    desk.streams = [entry(7, frame(Status.QUEUED))]
    end = time.monotonic() + 20
    with watching(desk.env, "--json") as (lines, problems):
        while len(desk.resumed) < 3 and time.monotonic() < end:
            time.sleep(0.02)
    assert [json.loads(line)["frame_id"] for line in lines] == [ID]
    assert "the stream broke off, trying again" in problems[0]  # 404 from here on


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ({"KOA_MONITOR_URL": "http://elsewhere:8001"}, "https only"),
        ({"PORT_OFFSET": "x"}, "'x'"),
        ({"KOA_TOKEN_FILE": "/nowhere/token"}, "/nowhere/token"),
    ],
)
def test_a_wrong_setting_is_told(setting: dict[str, str], part: str) -> None:
    result = koa(setting, "sources")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("koa: ")
    assert part in result.stderr


@pytest.mark.parametrize(
    ("words", "port", "name"),
    [
        (("status", "n1.fits"), 50003, "INGESTOR"),
        (("watch",), 50003, "INGESTOR"),
        (("parked",), 50003, "INGESTOR"),
        (("pause", "ESI"), 50002, "PREPARER"),
        (("submit", PATH), 50001, "MONITOR"),
    ],
)
def test_a_service_that_is_away(words: tuple[str, ...], port: int, name: str) -> None:
    result = koa({"PORT_OFFSET": "42000"}, *words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"http://127.0.0.1:{port}" in result.stderr
    assert f"is it running, and is KOA_{name}_URL right?" in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",), ("status",), ("release", ID, "--waive", "X"), ("release", ID, "--why", "x"),
        ("accept", ID, "--why", "x"), ("accept", ID, "--as", "other", "--why", "x"),
        ("reprocess", ID, "--fraction", "half"), ("reprocess",), ("retry",),
        ("retry", ID, "--fingerprint", "F"), ("campaign", "show"), ("campaign", "pause", "x"),
        ("get",), ("get", ID, "--night", "2026-11-23"), ("list", "--status", "DONE"),
    ],
)  # fmt: skip
def test_wrong_usage_is_exit_code_2(words: tuple[str, ...]) -> None:
    assert koa({}, *words).exit_code == 2


# -- with the three services --------------------------------------------------------------

SIM = pytest.mark.live


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    var = tmp_path_factory.mktemp("cli")
    with Stack(var=var, offset=free_offset(), sim=False).running() as running:
        yield running


@pytest.fixture
def env(stack: Stack) -> dict[str, str]:
    return {"PORT_OFFSET": str(stack.offset)}


def write(stack: Stack, frameno: int, at: datetime, data: bytes | None = None) -> str:
    """Write a frame where its instrument would; return its announced path."""
    shot = build("NIRC2", Request("nirc2", "object", frameno, at, 60_000))
    file = stack.var / "summit" / shot.path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join(shot.parts) if data is None else data)
    return shot.path


def submit(stack: Stack, env: dict[str, str], path: str) -> str:
    said = answer(env, "submit", path)
    assert said["decision"] == "accepted"
    return str(said["frame_id"])


def until(env: dict[str, str], frame_id: str, status: str, generation: int = 1) -> Any:
    end = time.monotonic() + 20
    shown: Any = None
    while time.monotonic() < end:
        shown = json.loads(koa(env, "status", frame_id, "--json").stdout or "{}")
        if (shown.get("status"), shown.get("generation")) == (status, generation):
            return shown
        time.sleep(0.1)
    raise AssertionError(shown)


@SIM
def test_a_frame_that_was_named_by_hand(stack: Stack, env: dict[str, str]) -> None:
    path = write(stack, 1, AT - timedelta(hours=1))
    frame_id = submit(stack, env, path)
    shown = until(env, frame_id, "COMPLETE")
    koaid = shown["koaid"]
    assert (koaid[:11], shown["path"]) == ("N2.20261123", path)
    names = (frame_id, koaid, f"{koaid}.fits", path, path.removeprefix("/s"), Path(path).name)
    for name in names:
        assert answer(env, "status", name)["frame_id"] == frame_id, name
    said = answer(env, "why", path)
    assert said["frame"]["frame_id"] == frame_id
    assert said["why"] == koa(env, "why", koaid).stdout.rstrip("\n")
    assert said["why"].startswith(f"{koaid} is COMPLETE: version 1 was available ")
    assert said["why"].endswith(" s after it was written; nothing to do.")
    text = koa(env, "status", frame_id).stdout
    for part in (frame_id, "COMPLETE", path, "available", f"{koaid}.fits"):
        assert part in text
    assert answer(env, "submit", path)["decision"] == "duplicate"
    refused = koa(env, "accept", frame_id, "--as", "padded", "--why", "by mistake")
    assert refused.exit_code == 1
    assert refused.stderr.startswith("koa: conflict: ")
    made = answer(env, "reprocess", koaid, "--why", "once more")
    assert (made["service"], made["generation"]) == ("preparer", 2)
    assert until(env, frame_id, "COMPLETE", 2)["version"] == 2


@SIM
def test_a_file_that_is_no_fits(stack: Stack, env: dict[str, str]) -> None:
    at = AT - timedelta(hours=2)
    path = write(stack, 2, at, b"out of disk space\n" * 200)
    frame_id = submit(stack, env, path)
    shown = until(env, path, "INVALID")  # by path only the ingestor answers
    said = koa(env, "why", path).stdout
    assert said.startswith(f"{Path(path).name} is INVALID: it ended at the preparer, ")
    assert shown["findings"][-1]["code"] in said
    assert said.endswith(f"once that is mended, `koa retry {frame_id}`.\n")
    write(stack, 2, at)
    assert answer(env, "retry", path, "--why", "written again")["service"] == "preparer"
    assert until(env, frame_id, "COMPLETE", 2)


@SIM
def test_a_frame_that_is_held_back(stack: Stack, env: dict[str, str]) -> None:
    source = answer(env, "pause", "nirc2", "--why", "a dome")
    assert source["paused"] is True
    assert source["paused_why"].startswith("by dev since ")
    held = answer(env, "pause", "NIRC2", "--why", "a dome")
    assert held == {"instrument": "NIRC2", "paused": True}
    states = {row["name"]: row["paused"] for row in answer(env, "sources")}
    assert [name for name, paused in states.items() if paused] == ["nirc2"]
    table = [line.split()[:4] for line in koa(env, "sources").stdout.splitlines()]
    assert table[0] == ["name", "instrument", "connected", "paused"]
    assert ["nirc2", "NIRC2", "no", "yes"] in table
    frame_id = submit(stack, env, write(stack, 3, AT - timedelta(hours=3)))
    until(env, frame_id, "QUEUED")
    said = koa(env, "why", frame_id).stdout
    assert "is QUEUED: it is at the preparer for " in said
    assert "held back because NIRC2 is paused by dev since " in said
    assert said.endswith(" UTC: a dome (`koa resume NIRC2`).\n")
    assert answer(env, "resume", "nirc2")["paused"] is False
    assert answer(env, "resume", "NIRC2") == {"instrument": "NIRC2", "paused": False}
    until(env, frame_id, "COMPLETE")
    deeds = [(row["service"], row["verb"], row["target"]) for row in answer(env, "audit")]
    assert deeds[:2] == [("preparer", "resume", "NIRC2"), ("monitor", "resume", "nirc2")]
    assert ("monitor", "submit", answer(env, "status", frame_id)["path"]) in deeds
    words = ("--instrument", "NIRC2", "--where", "COMPLETE", "--per-minute", "600", "--dry-run")
    told = answer(env, "campaign", "create", *words)
    assert {row["frame_id"]: row["changes"] for row in told["each"]}[frame_id] == {}
    unknown = koa(env, "pause", "kcwi_green")
    assert unknown.exit_code == 1
    assert "404 unknown_source: no source 'kcwi_green'" in unknown.stderr


@SIM
def test_two_exposures_of_one_koaid(stack: Stack, env: dict[str, str]) -> None:
    until(env, first := submit(stack, env, write(stack, 10, AT)), "COMPLETE")
    koaid = answer(env, "status", first)["koaid"]
    same = submit(stack, env, write(stack, 11, AT))
    until(env, same, "INVALID")
    assert f"`koa accept {same} --as version" in koa(env, "why", same).stdout
    retry = koa(env, "retry", same)  # the ingestor's frame, and no ERROR
    assert (retry.exit_code, retry.stderr[:14]) == (1, "koa: conflict:")
    said = answer(env, "accept", same, "--as", "version", "--why", "rewritten")
    assert said["service"] == "ingestor"
    assert until(env, same, "COMPLETE")["version"] == 2
    other = submit(stack, env, write(stack, 12, AT))
    until(env, other, "INVALID")
    said = answer(env, "accept", other, "--as", "padded", "--why", "another exposure")
    assert (said["service"], said["generation"]) == ("preparer", 2)
    assert koaid.endswith(".80")
    assert until(env, other, "COMPLETE", 2)["koaid"] == koaid.removesuffix("80") + "08"


@SIM
def test_what_nobody_knows(stack: Stack, env: dict[str, str]) -> None:
    missing = "/sdata904/nirc4/2026nov23/n9999.fits"
    said = koa(env, "why", missing)
    assert said.exit_code == 0
    assert said.stdout.startswith(f"nobody announced /s{missing} (")
    assert said.stdout.endswith(f"if the file is there, `koa submit /s{missing}`.\n")
    assert answer(env, "why", missing)["frame"] is None
    for verb in ("status", "why", "retry"):
        for name in (NOBODY, "N2.19990101.00000.00", "n9999.fits"):
            result = koa(env, verb, name, "--json")
            assert (result.exit_code, result.stdout) == (1, "")
            assert result.stderr == f"koa: unknown_frame: no frame has the name {name}\n"
    gone = koa(env, "submit", missing)
    assert gone.exit_code == 1
    assert gone.stderr.startswith("koa: FITS_NOT_FOUND: ")
    odd = koa(env, "submit", "/etc/passwd", "--instrument", "NIRC2", "--json")
    assert (odd.exit_code, json.loads(odd.stdout)["decision"]) == (1, "ignored")
    assert answer(env, "triggers", "--source", "nirc2") == {"items": [], "next": None}
    assert koa(env, "triggers").stdout == "none\n"
    assert answer(env, "parked") == []


@SIM
def test_the_stream_tells_each_change(stack: Stack, env: dict[str, str]) -> None:
    def seen(frame_id: str) -> list[str]:
        return [line.split()[0] for line in lines if frame_id in line]

    frame_id = ""
    with watching(env) as (lines, _):
        for frameno in range(20, 60):  # nothing is told before the stream is open
            path = write(stack, frameno, AT - timedelta(hours=4, seconds=frameno))
            until(env, frame_id := submit(stack, env, path), "COMPLETE")
            if "TRANSFERRED" in seen(frame_id):
                break
        end = time.monotonic() + 10
        while "COMPLETE" not in seen(frame_id) and time.monotonic() < end:
            time.sleep(0.05)
    told = seen(frame_id)
    assert told[-1] == "COMPLETE"
    assert sorted(told, key=[str(status) for status in Status].index) == told
