"""Command line of the simulated observatory: `koa-sim run | shoot | kinds`."""

import asyncio
import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from ..logs import configure_logging
from .control import NotRunning, Refused, Shoot, shoot
from .faults import FAULTS
from .frames import templates
from .night import Plan, observe

__all__ = ["main", "parse_size"]

SMALL = 400_000  # bytes
UNITS = {"": 1, "k": 10**3, "M": 10**6}

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, rich_markup_mode=None)
Var = Annotated[Path, typer.Option(envvar="KOA_SIM_VAR", help="the simulator's state")]
Size = Annotated[str, typer.Option(envvar="KOA_SIM_SIZE", help="real, small, or bytes: 140M")]


def parse_size(text: str) -> int | None:
    """Return bytes, None for the real size; raises typer.BadParameter."""
    if text in ("real", "small"):
        return SMALL if text == "small" else None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kM]?)", text)
    if not match:
        raise typer.BadParameter(f"{text!r} is not real, small, 400k, 140M or a number")
    return int(float(match[1]) * UNITS[match[2]])


@app.command()
def run(  # noqa: PLR0913 (a command's options)
    *,
    data_root: Annotated[
        Path, typer.Option(envvar="KOA_SIM_DATA_ROOT", help="where /s/... lies")
    ] = Path("var/summit"),
    var: Var = Path("var/sim"),
    instruments: Annotated[
        str, typer.Option(envvar="KOA_SIM_INSTRUMENTS", help="a comma list; all")
    ] = "",
    instruments_dir: Annotated[Path | None, typer.Option(envvar="KOA_INSTRUMENTS_DIR")] = None,
    cadence: Annotated[
        float,
        typer.Option(envvar="KOA_SIM_CADENCE", min=0, help="seconds; 0: on demand"),
    ] = 20,
    burst: Annotated[
        float, typer.Option(envvar="KOA_SIM_BURST", min=0, max=1, help="chance of one")
    ] = 0.05,
    burst_size: Annotated[int, typer.Option(envvar="KOA_SIM_BURST_SIZE", min=1)] = 10,
    size: Size = "real",
    seed: Annotated[int, typer.Option(envvar="KOA_SIM_SEED", min=0)] = 0,
    reduce: Annotated[
        float, typer.Option(envvar="KOA_SIM_REDUCE", min=0, max=1, help="chance of a quick look")
    ] = 0.25,
    record: Annotated[
        Path | None, typer.Option(help="write broadcasts as KOA_CONTROL=replay:FILE")
    ] = None,
) -> None:
    """Serve the keywords and take exposures until interrupted."""
    names = tuple(name.strip().upper() for name in instruments.split(",") if name)
    if unknown := set(names) - set(templates()):
        raise typer.BadParameter(f"can't be simulated: {', '.join(sorted(unknown))}")
    configure_logging("simulator", "console")
    plan = Plan(
        root=data_root,
        var=var,
        instruments=names,
        instruments_dir=instruments_dir,
        cadence=cadence,
        burst=burst,
        burst_size=burst_size,
        size=parse_size(size),
        seed=seed,
        record=record,
        reduce=reduce,
    )
    asyncio.run(observe(plan))


@app.command("shoot")
def shoot_command(  # noqa: PLR0913 (a command's options)
    instrument: Annotated[str, typer.Argument(help="NIRC2, KCWI, ...")],
    *,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="how many")] = 1,
    size: Size = "real",
    kind: Annotated[str | None, typer.Option("--type", help="see `kinds`")] = None,
    source: Annotated[str | None, typer.Option(help="see `kinds`")] = None,
    interval: Annotated[float, typer.Option(min=0, help="seconds")] = 0,
    program: Annotated[str | None, typer.Option(help="PROGNAME")] = None,
    card: Annotated[
        list[str] | None, typer.Option("--set", help="KEYWORD=VALUE of the header")
    ] = None,
    late: Annotated[float, typer.Option(min=0, help="broadcast, and write seconds later")] = 0,
    grow: Annotated[float, typer.Option(min=0, help="broadcast, and write for seconds")] = 0,
    silent: Annotated[bool, typer.Option("--silent", help="no broadcast")] = False,
    repeat: Annotated[int, typer.Option(min=0, help="more broadcasts")] = 0,
    reduce: Annotated[bool, typer.Option("--reduce", help="a quick look follows")] = False,
    fault: Annotated[str | None, typer.Option(help=", ".join(FAULTS))] = None,
    as_json: Annotated[bool, typer.Option("--json", help="whole entries")] = False,
    var: Var = Path("var/sim"),
) -> None:
    """Have the running observatory take exposures; print their paths."""
    order: dict[str, Any] = {
        "kind": kind,
        "size": parse_size(size),
        "program": program,
        "cards": dict(_card(text) for text in card or []),
        "fault": fault,
        "late": late,
        "grow": grow,
        "silent": silent,
        "repeat": repeat,
        "reduce": reduce,
    }
    request = Shoot(instrument=instrument, source=source, n=n, interval=interval, order=order)
    try:
        asyncio.run(_print(var / "control.json", request, as_json=as_json))
    except (NotRunning, Refused) as error:
        hint = "; start one with `koa-sim run`" if isinstance(error, NotRunning) else ""
        typer.echo(f"koa-sim: {error}{hint}", err=True)
        raise typer.Exit(1) from error


@app.command()
def kinds() -> None:
    """List what can be shot."""
    for name, template in templates().items():
        for source in template.camera:
            print(f"{name:7} {source:12} {' '.join(template.kinds(source))}")


async def _print(control: Path, request: Shoot, *, as_json: bool) -> None:
    async for entry in shoot(control, request):
        print(entry.model_dump_json() if as_json else entry.path, flush=True)


def _card(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Z0-9_-]{1,8}", key):
        raise typer.BadParameter(f"{text!r} is not KEYWORD=VALUE")
    try:
        parsed = json.loads(value)
    except ValueError:
        return key, value
    return key, parsed if isinstance(parsed, str | int | float | bool) else value


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
