"""The walk: every route of the three OpenAPI documents, asked for by every role.

Secrets are planted in a frame of a running program, in an invalid one, in one that was
refused, in an operator's deed, a source's last value and a gap.  A new route is walked by
itself; one with a parameter that is not known here fails the test.
"""

import hashlib
import itertools
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

SERVICES = ("monitor", "preparer", "ingestor")
FOLDER = "/s/sdata1500/nires9/hushfolder"
# Each is asked for in lower case.  RA and Dec are planted in four notations each.
PLANTED = {
    "PROGNAME": "Q777", "TARGNAME": "Hush-Target 7", "KOATST0": "hushcard",
    "RA": "187.7059304", "DEC": "12.3911233",
    "KOATST1": "12:30:49.4233", "KOATST2": "+12:23:28.0439",
    "KOATST3": "12 30 49.4233", "KOATST4": "+12 23 28.0439",
    "KOATST5": "187.706", "KOATST6": "12.391",
}  # fmt: skip
PI, TITLE, PROJECT = "Hushperson", "Hushed Title of Nothing", PLANTED["PROGNAME"]
FILES = ("hushfile", "hushbad", "hushrefused", "hushgap", "hushlast")
SECRETS = [*PLANTED.values(), PI, TITLE, PROJECT, "hushfolder", *FILES, "hushwhy"]
SCHEDULE = f"""
[[night]]
slots = [{{ project = "{PROJECT}" }}]
[[proposal]]
semid = "*_{PROJECT}"
pi = "{PI}"
institution = "CIT"
title = "{TITLE}"
propint = 18
"""
BLIND = ("nobody", "wrong", "producer", "observer")
SIGHTED = ("owner", "operator")


class Scene(ABC):
    """Three services with something to hide, who calls, and what there is to ask for."""

    tokens: dict[str, str]
    tokens_file: Path
    good: dict[str, Any]  # the frame that is archived, as an operator sees it
    bad: dict[str, Any]
    program: str

    @abstractmethod
    def ask(self, role: str, method: str, service: str, path: str, **more: Any) -> httpx.Response:
        """Send one request."""

    def bearer(self, role: str) -> dict[str, str]:
        """Return who calls, as headers."""
        token = self.tokens[role]
        return {"Authorization": f"Bearer {token}"} if token else {}

    def add_owner(self) -> None:
        """Give a token to the program's observer: the services read their file anew."""
        self.tokens["owner"] = secrets.token_urlsafe(32)
        digest = hashlib.sha256(self.tokens["owner"].encode()).hexdigest()
        self.tokens_file.write_text(
            f'{self.tokens_file.read_text()}\n[[token]]\nname = "owner"\nrole = "observer"\n'
            f'sha256 = "{digest}"\nprograms = ["{self.program}"]\n'
        )

    def tell(self) -> None:
        """Tell of a frame that was refused, of a source, of a gap."""
        told = {
            "frame_id": "00000000-0000-0000-0000-00000000aaaa", "instrument": "NIRES",
            "origin": "live", "path": f"{FOLDER}/hushrefused.fits", "generation": 1, "seq": 0,
            "at": "2026-11-23T09:06:41.100Z", "service": "monitor", "status": "QUEUED",
            "step": "refused", "source": "nires_spec", "findings": [
                {"code": "ANNOUNCE_REFUSED", "severity": "error", "step": "refused",
                 "message": "hushrefused"},
            ],
        }  # fmt: skip
        source = {  # of a name that no monitor has: it would replace it
            "name": "nires_hush", "instrument": "NIRES", "connected": True,
            "last_value": f"{FOLDER}/hushlast.fits",
        }  # fmt: skip
        gaps = {
            "night": self.good["night"], "instrument": "NIRES", "on_disk": 2, "announced": 1,
            "frame_gaps": [f"{FOLDER}/hushgap"],
        }  # fmt: skip
        batch = {"events": [told], "sources": [source], "inventory": gaps}
        assert self.ask("producer", "POST", "ingestor", "/v1/events", json=batch).is_success

    # -- what is asked for ----------------------------------------------------------

    def fills(self, service: str, name: str, schema: Any) -> list[str]:
        """Return values for a parameter of a path."""
        if "enum" in schema:
            return list(schema["enum"])
        names = [self.good["koaid"], self.good["frame_id"], self.bad["frame_id"], "hushfile.fits"]
        known = {
            ("ingestor", "name"): names, ("preparer", "frame_id"): names,
            ("preparer", "name"): ["NIRES", "hushfile"], ("monitor", "name"): ["nires_spec"],
            ("ingestor", "product"): [p["name"] for p in self.good["products"]],
            ("ingestor", "date"): [self.good["night"], "hushfile"],
            ("preparer", "fingerprint"): ["F-1"], ("ingestor", "fingerprint"): ["F-1"],
            ("preparer", "number"): ["1"],
            ("preparer", "delivery"): ["00000000-0000-0000-0000-00000000dddd", "hushfile"],
        }  # fmt: skip
        assert (service, name) in known, f"a new parameter: tell Scene.fills of {service} {name}"
        return known[service, name]

    def queries(self, name: str) -> list[tuple[str, str]]:
        """Return pairs for a parameter of a query: a value that is right, one that is wrong."""
        path = self.good["path"]
        known = {
            "instrument": ("NIRES", "KCWI"), "night": (self.good["night"], "2020-01-01"),
            "status": ("COMPLETE", "ERROR"), "level": ("0", "2"), "limit": ("1", "2"),
            "koaid": (self.good["koaid"], "x"), "since": ("2020-01-01T00:00:00Z",) * 2,
            "cursor": ("99999999999.0_z", "1.0_z"), "version": ("1", "7"), "verbose": ("", "1"),
            "source": ("nires_spec", "kpf"), "finding": ("KOAIMTYP_UDF", "NONE"),
            "target": (path, "NIRES"), "state": ("done", "failed"), "after": ("0", "1"),
            # What is hidden: the pair must be told apart by nobody who is blind.
            "program": (self.program, "2020B_X999"), "type": (self.kind, "nokind"),
            "origin": ("manual", "canary"), "path": (path, path.replace("hush", "tush")),
            "name": ("hushfile.fits", "tushfile.fits"),
        }  # fmt: skip
        assert name in known, f"a new parameter: tell Scene.queries of {name}"
        return [known[name]]

    @property
    def kind(self) -> str:
        kind: str = self.good["metadata"]["koaimtyp"]
        return kind

    def routes(self, service: str) -> Iterator[tuple[str, str, list[str]]]:
        """Yield (method, path, parameters of its query) of every route, its path filled in."""
        paths = self.ask("nobody", "GET", service, "/openapi.json").json()["paths"]
        assert len(paths) > 5
        for path, verbs in paths.items():
            for verb, operation in verbs.items():
                told = operation.get("parameters", [])
                assert {p["in"] for p in told} <= {"path", "query", "header"}
                holes = [p for p in told if p["in"] == "path"]
                values = [self.fills(service, p["name"], p["schema"]) for p in holes]
                query = [p["name"] for p in told if p["in"] == "query"]
                for filled in itertools.product(*values):
                    where = path
                    for hole, value in zip(holes, filled, strict=True):
                        where = where.replace(f"{{{hole['name']}}}", value)
                    yield verb.upper(), where, query

    def asked(self, service: str) -> Iterator[tuple[str, str]]:
        """Yield (method, path with its query) of everything that is asked for."""
        for method, path, query in self.routes(service):
            yield method, path
            if method == "GET":
                for other in ("HEAD", "OPTIONS", "PUT", "DELETE"):
                    yield other, path
                for name in query:
                    for value in itertools.chain(*self.queries(name)):
                        yield method, f"{path}?{httpx.QueryParams({name: value})}"
        for path in ("/docs", "/openapi.json", "/nowhere/hushfile", "/v1", "/readyz?verbose"):
            yield "GET", path


def told(answer: httpx.Response, sent: str = "") -> set[str]:
    """Return the secrets in an answer's body and headers, but those that were sent."""
    heads = "\n".join(f"{name}: {value}" for name, value in answer.headers.items())
    text = f"{heads}\n{answer.content.decode('latin-1')}".lower()
    return {s for s in SECRETS if s.lower() in text and s.lower() not in sent.lower()}


def check_that_no_route_tells(scene: Scene, service: str, role: str) -> None:
    count = 0
    for method, where in scene.asked(service):
        if where == "/v1/stream":
            continue
        ranges = {"Range": "bytes=0-3000"} if count % 2 else {}
        body: dict[str, Any] = {"json": {}} if method in ("POST", "PUT") else {}
        answer = scene.ask(role, method, service, where, headers=ranges, **body)
        assert not told(answer, where), (role, method, where, answer.status_code)
        assert answer.status_code < 500, (method, where, answer.text)
        count += 1
    assert count > 20


def check_that_guesses_are_alike(scene: Scene, role: str) -> None:
    """With every other condition beside it, and page by page."""
    hidden = {"program", "type", "origin", "path", "name"}
    others: list[dict[str, str]] = [
        {}, {"instrument": "NIRES"}, {"status": "COMPLETE"}, {"limit": "1"},
        {"koaid": scene.good["koaid"]}, {"night": scene.good["night"]},
        {"cursor": "99999999999.0_z", "limit": "1"}, {"since": "2020-01-01T00:00:00Z"},
    ]  # fmt: skip
    for name, more in itertools.product(hidden, others):
        [(right, wrong)] = scene.queries(name)
        answers = [
            scene.ask(role, "GET", "ingestor", "/v1/frames", params={name: value} | more)
            for value in (right, wrong)
        ]
        assert answers[0].status_code == answers[1].status_code
        assert answers[0].content == answers[1].content, (name, more)
        sighted = scene.ask("owner", "GET", "ingestor", "/v1/frames", params={name: right} | more)
        assert scene.good["koaid"] in sighted.text


def check_that_all_is_seen(scene: Scene, role: str, seen: set[str]) -> None:
    """The other side of the walk: it would find each of the secrets, if not `seen` yet."""
    for service in SERVICES:
        for method, where in scene.asked(service):
            if method == "GET" and where != "/v1/stream":
                seen |= told(scene.ask(role, method, service, where))
    operators = {"hushrefused", "hushlast", "hushgap", "hushwhy", "hushbad"}
    unseen = set(SECRETS) - seen
    assert unseen == (operators if role == "owner" else set()), unseen


def check_parts(scene: Scene) -> None:
    where = f"/v1/frames/{scene.good['koaid']}/file"
    for role in (*BLIND, *SIGHTED):
        for asked in ("bytes=0-79", "bytes=-80", "bytes=0-0,5-9", "bytes=99999999999-"):
            answer = scene.ask(role, "GET", "ingestor", where, headers={"Range": asked})
            if role in SIGHTED:
                assert answer.status_code in (200, 206, 416), answer.text
            else:
                assert answer.status_code in (401, 403)
                assert "content-range" not in answer.headers


def check_verbs(scene: Scene) -> None:
    for service in SERVICES:
        for method, where, _ in scene.routes(service):
            if method == "POST":
                for role in ("nobody", "wrong", "observer", "owner"):
                    answer = scene.ask(role, method, service, where, json={})
                    assert answer.status_code in (401, 403), (role, where)
