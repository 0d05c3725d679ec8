"""Observe and operate KOA RTI: where is a frame, why, and what to do about it.

A frame is named by its frame_id, KOAID, announced path or file name (the newest).
Settings: KOA_MONITOR_URL, KOA_PREPARER_URL, KOA_INGESTOR_URL, KOA_TOKEN_FILE,
KOA_CA_FILE; PORT_OFFSET moves the default ports 8001 to 8003 on 127.0.0.1.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Annotated, Any, Literal

import httpx
import typer
from pydantic_core import to_json, to_jsonable_python

from ..client import PeerFault, PeerRefused, open_http
from ..contracts import FrameView, Submission
from ..errors import DependencyDown, KoaError
from .peers import Koa, Peers
from .why import faults, name_of, told

COLUMNS = (
    "service", "frame_id", "koaid", "heard", "source", "name", "instrument", "keyword",
    "value", "connected", "paused", "heartbeat_age", "last_frame_at", "last_value",
    "step", "decision", "reason", "path",
)  # fmt: skip
app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, rich_markup_mode=None,
    pretty_exceptions_enable=False,
)  # fmt: skip
Name = Annotated[str, typer.Argument(metavar="ID|KOAID|PATH")]
Held = Annotated[str, typer.Argument(metavar="SOURCE|INSTRUMENT")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Reason = Annotated[str, typer.Option("--why", help="The reason, for the record.")]
Text = Annotated[str | None, typer.Option()]
Codes = Annotated[list[str], typer.Option(help="May be repeated.")]
As = Annotated[Literal["version", "padded"], typer.Option("--as")]


def run(as_json: bool, work: Callable[[Koa], Awaitable[Any]]) -> Any:
    """Do what a command asks and print the answer, or the reason with exit code 1."""

    async def reach(peers: Peers) -> Any:
        token = peers.token_file and peers.token_file.read_text().strip()
        async with open_http(token, peers.ca_file) as http:
            return await work(Koa(peers, http))

    try:
        answer = asyncio.run(reach(peers := Peers()))
    except DependencyDown as error:
        tell(complaint(error, getattr(peers, f"{error.dependency}_url")))
    except KoaError as error:
        refused = "refused, " * isinstance(error, PeerRefused)
        tell(f"{refused}{error.code}: {error}")
    except (OSError, ValueError) as error:  # of the settings
        tell(str(error))
    else:
        print(to_json(answer, indent=2).decode() if as_json else text(answer))
        return answer
    raise typer.Exit(1)


def tell(why: str) -> None:
    """Say on stderr what did not work."""
    print(f"koa: {why}", file=sys.stderr)


def complaint(error: DependencyDown, url: str) -> str:
    """Return what a fault of a service means to a person."""
    name = error.dependency
    if isinstance(error, PeerFault):
        token = " (is KOA_TOKEN_FILE right?)" * (error.status in (401, 403))
        text = f"the {name} at {url} answered {error.status} {error.code}"
        return f"{text}: {error.detail}{token}"
    hint = f"is it running, and is KOA_{name.upper()}_URL right?"
    return f"the {name} does not answer at {url}; {hint} ({error})"


def text(answer: Any) -> str:
    """Return an answer for people: its sentence, a table, or a row for each field."""
    data = to_jsonable_python(answer)
    if "why" in data:
        return str(data["why"])
    data = data.get("items", data) if isinstance(data, dict) else data
    if isinstance(data, dict):
        rows = [*fields(data)]
    else:
        names = [name for name in COLUMNS if data and name in data[0]]
        rows = [tuple("" if row[n] is None else str(row[n]) for n in names) for row in data]
        rows = [tuple(names), *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def fields(data: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the fields of an answer that have a value, nested ones too."""
    for key, value in data.items():
        if isinstance(value, dict):
            yield from fields(value)
        elif key == "findings":
            for f in value:
                yield f["code"], f"{f['severity']} at {f['step']}: {f['message']}"
        elif key == "products":
            yield from ((p["name"], f"{p['size']} bytes") for p in value)
        elif value is not None:
            yield key, str(value)


def change(kind: str, data: str) -> str:
    """Return an entry of the stream as one line; `kind` is the status it tells."""
    if kind == "reset":
        return "reset: some changes were missed"
    frame = FrameView.model_validate_json(data)
    took = f"{frame.latency_seconds:.2f} s" if frame.latency_seconds else ""
    line = f"{kind:<12} {frame.instrument:<7} {name_of(frame):<22} {took:>8}"
    return f"{line}  {frame.path or ''}  {told(faults(frame))}".rstrip()


@app.command()
def submit(path: str, instrument: Text = None, source: Text = None, as_json: Json = False) -> None:
    """Have a file archived that nobody announced; exit code 1 if it is ignored."""
    if instrument and source:
        raise typer.BadParameter("give --instrument or --source, not both")
    order = Submission(path=path, instrument=instrument, source=source)
    answer = run(as_json, lambda koa: koa.monitor.submit(order))
    raise typer.Exit(answer.decision == "ignored")


@app.command()
def status(name: Name, as_json: Json = False) -> None:
    """Show a frame with its findings, timeline and products."""
    run(as_json, lambda koa: koa.find(name))


@app.command()
def why(name: Name, as_json: Json = False) -> None:
    """Tell in one sentence where a frame is and what to do."""
    run(as_json, lambda koa: koa.explain(name))


@app.command()
def watch(as_json: Json = False) -> None:
    """Follow the live stream, a line for each change, until Ctrl-C."""

    async def follow(koa: Koa) -> None:
        await koa.ingestor.frames(limit=1)  # a wrong URL or token is told at once
        last: str | None = None
        while True:
            try:
                async for last, kind, data in koa.ingestor.stream(last):
                    entry = {"id": last, "event": kind, "frame": json.loads(data)}
                    line = json.dumps(entry) if as_json else change(kind, data)
                    print(line, flush=True)
            except httpx.HTTPError as error:
                tell(f"the stream broke off, trying again: {error!r}")
            await asyncio.sleep(1)

    with suppress(KeyboardInterrupt):
        run(as_json, follow)


@app.command()
def triggers(source: Text = None, path: Text = None, as_json: Json = False) -> None:
    """List the last 100 broadcasts and what was decided about each."""
    query = {"source": source, "path": path}
    run(as_json, lambda koa: koa.monitor.json("GET", "/v1/triggers", **query))


@app.command()
def parked(as_json: Json = False) -> None:
    """List the frames that wait for an operator."""
    run(as_json, lambda koa: koa.parked())


@app.command()
def sources(as_json: Json = False) -> None:
    """List the keyword sources and their state."""
    run(as_json, lambda koa: koa.monitor.json("GET", "/v1/sources"))


@app.command()
def retry(name: Name, why: Reason = "", as_json: Json = False) -> None:
    """Try an ERROR or INVALID frame again.

    The ingestor is asked if it had begun with the frame, else the preparer.
    """
    run(as_json, lambda koa: koa.order(None, name, "retry", why=why))


@app.command()
def release(name: Name, waive: Codes, why: Reason, as_json: Json = False) -> None:
    """Let a frame pass in spite of the findings that are waived."""
    more = {"waive": waive, "why": why}
    run(as_json, lambda koa: koa.order(koa.preparer, name, "release", **more))


@app.command()
def reprocess(
    name: Name, why: Reason = "", progid: Text = None,
    fraction: Literal["production", "padded"] | None = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Make a frame's products anew: a new generation and version."""
    more = {"why": why, "progid": progid, "fraction": fraction}
    run(as_json, lambda koa: koa.order(koa.preparer, name, "reprocess", **more))


@app.command()
def accept(name: Name, as_: As, why: Reason, as_json: Json = False) -> None:
    """Decide a KOAID conflict: the same exposure (version) or another (padded)."""
    run(as_json, lambda koa: koa.accept(name, as_, why))


@app.command()
def pause(name: Held, as_json: Json = False) -> None:
    """Hold a source's broadcasts or an instrument's frames back."""
    run(as_json, lambda koa: koa.hold(name, "pause"))


@app.command()
def resume(name: Held, as_json: Json = False) -> None:
    """Let what was held back go on, newest first."""
    run(as_json, lambda koa: koa.hold(name, "resume"))


def main() -> None:
    """Run `koa`."""
    app()


if __name__ == "__main__":
    main()
