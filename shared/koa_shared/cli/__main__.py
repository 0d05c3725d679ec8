"""Observe and operate KOA RTI: where is a frame, why, and what to do about it.

A frame is named by its frame_id, KOAID, announced path or file name (the newest).
Settings: KOA_MONITOR_URL, KOA_PREPARER_URL, KOA_INGESTOR_URL, KOA_TOKEN_FILE,
KOA_CA_FILE; PORT_OFFSET moves the default ports 8001 to 8003 on 127.0.0.1.
"""

import asyncio
import json
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import wraps
from inspect import Parameter, signature
from typing import Annotated, Any

import httpx
import typer
from pydantic_core import to_json, to_jsonable_python

from ..client import PeerFault, open_http
from ..errors import DependencyDown, KoaError
from .koa import Koa, Peers

COLUMNS = (
    "at", "service", "who", "verb", "target", "why", "retried", "fingerprint", "count", "first",
    "last", "example", "frame_id", "koaid", "heard", "source", "name", "instrument", "keyword",
    "value", "connected", "paused", "paused_why", "heartbeat_age", "last_frame_at", "status",
    "step", "path", "decision", "reason", "code", "severity", "message", "size", "version",
    "product", "found", "changed",
)  # fmt: skip
WATCHED = ("instrument", "koaid", "frame_id", "latency_seconds", "path")
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
main = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, rich_markup_mode=None,
    pretty_exceptions_enable=False,
)  # fmt: skip


async def reach(work: Callable[[Koa], Awaitable[Any]]) -> Any:
    """Return what the services answer; tell why not, with exit code 1."""
    try:
        peers = Peers()
        token = peers.token_file.read_text().strip() if peers.token_file else None
        async with open_http(token, peers.ca_file) as http:
            return await work(Koa(peers, http))
    except PeerFault as error:
        hint = " (is KOA_TOKEN_FILE right?)" if error.status in (401, 403) else ""
        why = f"the {error}{hint}"
    except DependencyDown as error:
        name = f"{error.dependency}_url"
        url, hint = getattr(Peers(), name), f"is it running, and is KOA_{name.upper()} right?"
        why = f"the {error.dependency} does not answer at {url}, {hint} ({error})"
    except KoaError as error:
        why = f"{error.code}: {error}"
    except (OSError, ValueError) as error:  # of the settings
        why = str(error)
    typer.echo(f"koa: {why}", err=True)
    raise typer.Exit(1)


def text(answer: Any) -> str:
    """Return an answer for people: its sentence, a table, or a line for each field."""
    data = to_jsonable_python(answer)
    data = data.get("items", data) if isinstance(data, dict) else data
    if isinstance(data, dict):
        return data.get("why") or "\n".join(
            text(value) if isinstance(value, dict | list) else f"{name:<16} {value}"
            for name, value in data.items()
            if value not in (None, [], {})
        )
    names = [name for name in COLUMNS if any(row.get(name) is not None for row in data)]
    cells = [["-" if row.get(n) in (None, "") else str(row[n]) for n in names] for row in data]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in [names, *cells])
    return "\n".join(lines) or "none"


def add(method: Callable[..., Awaitable[Any]]) -> None:
    """Make a method a command, with the option --json."""

    @wraps(method)
    def command(*, as_json: bool, **options: Any) -> None:
        answer = asyncio.run(reach(lambda koa: method(koa, **options)))
        typer.echo(to_json(answer, indent=2) if as_json else text(answer))
        failed = isinstance(answer, dict) and {"failed", "refused"} & answer.keys()
        if failed or getattr(answer, "decision", "") == "ignored":
            raise typer.Exit(1)

    plain = signature(method)
    last = Parameter("as_json", Parameter.KEYWORD_ONLY, default=False, annotation=Json)
    given = [*list(plain.parameters.values())[1:], last]
    command.__signature__ = plain.replace(parameters=given)  # type: ignore[attr-defined]
    main.command(method.__name__)(command)


for name, method in vars(Koa).items():
    if not name.startswith("_"):
        add(method)


@main.command()
def watch(as_json: Json = False) -> None:
    """Follow the live stream, a line for each change, until Ctrl-C."""

    async def follow(koa: Koa) -> None:
        await koa.ingestor.frames(limit=1)  # a wrong URL or token is told at once
        last: str | None = None
        while True:
            try:
                async for entry in koa.ingestor.stream(last):
                    last = entry[0]
                    frame = json.loads(entry[2])
                    words = [entry[1], *(str(frame[key]) for key in WATCHED if key in frame)]
                    words += [finding["code"] for finding in frame.get("findings", ())]
                    typer.echo(entry[2] if as_json else "  ".join(words))
            except httpx.HTTPError as error:
                typer.echo(f"koa: the stream broke off, trying again: {error!r}", err=True)
            await asyncio.sleep(1)

    with suppress(KeyboardInterrupt):
        asyncio.run(reach(follow))


@main.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
def instruments(arguments: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Check instrument files, or try changed ones on past frames; --help tells more."""
    command = ["koa-preparer", "instruments", *(arguments or ())]
    try:
        code = subprocess.run(command, check=False).returncode  # noqa: S603 (no shell)
    except FileNotFoundError:
        typer.echo("koa: for this the preparer must be installed: koa-rti[preparer]", err=True)
        code = 1
    raise typer.Exit(code)


if __name__ == "__main__":
    main()
