r"""Observe and operate KOA RTI: where is a frame, why, and what to do about it.

A frame is named by its KOAID, frame_id, announced path or file name (the newest).
Settings: KOA_MONITOR_URL, KOA_PREPARER_URL, KOA_INGESTOR_URL, KOA_TOKEN_FILE (the token
decides what you see), KOA_CA_FILE; PORT_OFFSET moves the default ports 8001 to 8003.
Exit codes: 0 done, 1 not done (stderr says why), 2 wrong usage.

\b
koa list --instrument NIRES --night 2026-11-23      what came
koa why s261123_0001.fits                           where is it, and what to do
koa get --night 2026-11-23 --into tonight           your files, checked
"""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import wraps
from inspect import Parameter, signature
from itertools import chain, islice
from textwrap import indent
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError
from pydantic_core import to_json, to_jsonable_python

from .. import client
from ..client import PAGE, PeerFault
from ..config import Peers
from ..contracts import Filters, Status
from ..errors import DependencyDown, KoaError
from .campaign import Campaigns
from .koa import Koa
from .many import row
from .products import Products

T = TypeVar("T")
COLUMNS = (
    "acquired", "at", "heard", "source", "service", "keyword", "who", "verb", "target", "why",
    "retried", "fingerprint", "count", "first", "last", "example", "frame_id", "koaid", "name",
    "instrument", "level", "pipeline", "value", "connected", "paused", "paused_why",
    "heartbeat_age", "last_frame_at", "type", "object", "program", "status", "reduced",
    "latency", "step",
    "decision", "reason", "path", "code", "severity", "message", "size", "version", "product",
    "found", "changed", "campaign", "state", "note", "generation", "fault", "changes", "policy",
    "prefix", "delivery", "since", "due_seconds", "objects", "bytes", "sha256",
)  # fmt: skip
WATCHED = ("instrument", "koaid", "frame_id", "latency_seconds", "path")
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
LOOKS: dict[str, Any] = {
    "no_args_is_help": True, "rich_markup_mode": None, "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}  # fmt: skip
main = typer.Typer(help=__doc__.replace(r"\b", "\b"), **LOOKS)  # the lines after it are kept
campaign = typer.Typer(help=Campaigns.__doc__, **LOOKS)
main.add_typer(campaign, name="campaign")
products = typer.Typer(help=Products.__doc__, **LOOKS)
main.add_typer(products, name="products")


def reach(work: Callable[[Koa], T]) -> T:
    """Return what the services answer; tell why not, with exit code 1."""
    try:
        with client.Koa() as archive:
            return work(Koa(archive))
    except PeerFault as error:
        hint = " (is KOA_TOKEN_FILE right?)" if error.status in (401, 403) else ""
        why = f"the {error}{hint}"
    except DependencyDown as error:
        name = f"{error.dependency}_url"
        url, hint = getattr(Peers(), name), f"is it running, and is KOA_{name.upper()} right?"
        why = f"the {error.dependency} does not answer at {url}, {hint} ({error})"
    except KoaError as error:
        why = f"{error.code}: {error}"
    except ValidationError as error:  # of the settings, of filters
        first = error.errors()[0]
        told = first["msg"].removeprefix("Value error, ")
        why = f"{' '.join(map(str, first['loc'])) or 'settings'}: {told}"
    except (OSError, ValueError) as error:  # of the settings
        why = str(error)
    typer.echo(f"koa: {why}", err=True)
    raise typer.Exit(1)


def cell(value: Any) -> str:
    """Return a value as it stands in a table."""
    if value in (None, ""):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def text(answer: Any) -> str:
    """Return an answer for people: its sentence, a table, or a line for each field."""
    data = to_jsonable_python(answer)
    data = data.get("items", data) if isinstance(data, dict) else data
    if isinstance(data, dict):
        return str(data.get("summary") or ("frame" in data and data["why"]) or "") or "\n".join(
            f"{name}\n{indent(text(value), '  ')}"
            if isinstance(value, dict | list)
            else f"{name:<16} {value}"
            for name, value in data.items()
            if value not in (None, [], {})
        )
    if all(isinstance(row, str) for row in data):
        return "\n".join(data) or "none"
    names = [name for name in COLUMNS if any(row.get(name) is not None for row in data)]
    cells = [[cell(row.get(name)) for name in names] for row in data]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in [names, *cells])
    return "\n".join(lines) or "none"


def tell(answer: Any, *, as_json: bool) -> None:
    """Print an answer; of many frames a page at a time, as there may be millions."""
    if not isinstance(answer, Iterator):
        return typer.echo(to_json(answer, indent=2) if as_json else text(answer))
    if as_json:
        before = "["
        for frame in answer:
            typer.echo(before + frame.model_dump_json(), nl=False)
            before = ",\n"
        return typer.echo("[]" if before == "[" else "]")
    pages = iter(lambda: [*islice(answer, PAGE)], [])
    for page in chain([next(pages, [])], pages):
        typer.echo(text([row(frame) for frame in page]))
    return None


def filters() -> Iterator[Parameter]:
    """Yield the conditions on frames as options."""
    for name, field in Filters.model_fields.items():
        if name not in ("limit", "cursor"):
            kind: Any = {"status": Status, "level": int}.get(name, str)
            told = field.description or name
            option = Annotated[kind | None, typer.Option(help=f"{told[0].upper()}{told[1:]}.")]
            yield Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=option)


def add(
    method: Callable[..., Any], to: typer.Typer = main, of: Callable[[Koa], Any] = lambda koa: koa
) -> None:
    """Make a method a command, with the option --json, and the filters if it takes them."""

    @wraps(method)
    def command(*, as_json: bool, **options: Any) -> None:
        def work(koa: Koa) -> Any:
            answer = method(of(koa), **options)
            tell(answer, as_json=as_json)
            return answer

        answer = reach(work)
        failed = isinstance(answer, dict) and {"failed", "refused"} & answer.keys()
        if failed or getattr(answer, "decision", "") == "ignored":
            raise typer.Exit(1)

    plain, given = signature(method), list[Parameter]()
    for parameter in [*plain.parameters.values()][1:]:
        more = (option for option in filters() if option.name not in plain.parameters)
        given += more if parameter.kind is Parameter.VAR_KEYWORD else [parameter]
    given.append(Parameter("as_json", Parameter.KEYWORD_ONLY, default=False, annotation=Json))
    command.__signature__ = plain.replace(parameters=given)  # type: ignore[attr-defined]
    to.command(method.__name__.rstrip("_"))(command)


for name, method in vars(Koa).items():
    if not name.startswith("_"):
        add(method)
for name, method in vars(Campaigns).items():
    if not name.startswith("_"):
        add(method, campaign, lambda koa: koa.campaigns)
for name, method in vars(Products).items():
    if not name.startswith("_"):
        add(method, products, lambda koa: koa.products)


@main.command()
def watch(as_json: Json = False) -> None:
    """Follow the live stream, a line for each change.

    It goes on after a lost connection, without a gap, until Ctrl-C.
    """

    def told(why: str) -> None:
        typer.echo(f"koa: the stream broke off, trying again: {why}", err=True)

    def follow(koa: Koa) -> None:
        for change in koa.archive.stream(told=told):
            frame = change.frame.model_dump(mode="json", exclude_none=True) if change.frame else {}
            words = [change.status, *(str(frame[key]) for key in WATCHED if key in frame)]
            words += [finding["code"] for finding in frame.get("findings", ())]
            typer.echo(to_json(frame) if as_json else "  ".join(words))

    with suppress(KeyboardInterrupt):
        reach(follow)


@main.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
def instruments(arguments: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Check instrument files, try them on past frames (--help)."""
    command = ["koa-preparer", "instruments", *(arguments or ())]
    try:
        code = subprocess.run(command, check=False).returncode  # noqa: S603 (no shell)
    except FileNotFoundError:
        typer.echo("koa: for this the preparer must be installed: koa-rti[preparer]", err=True)
        code = 1
    raise typer.Exit(code)


if __name__ == "__main__":
    main()
