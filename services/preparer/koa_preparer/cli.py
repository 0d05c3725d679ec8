"""Check instrument files, and see what changed ones would decide otherwise."""

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic_core import to_json

from koa_shared.config import Settings
from koa_shared.ids import Fraction
from koa_shared.instruments import Instrument, InstrumentError

from .pipeline.instruments import Columns, decide, open_instruments

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="As KOA_INSTRUMENTS_DIR.")]
Frames = Annotated[list[Path], typer.Argument(metavar="FRAME...", help="Raw FITS files.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
main = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, rich_markup_mode=None,
    pretty_exceptions_enable=False,
)  # fmt: skip


class Running(Settings):
    """Which instruments run here: the shipped ones unless a directory is named."""

    instruments_dir: Path | None = None
    keyword_tables_dir: Path | None = None
    koaid_fraction: Fraction = "production"


def failed(why: Exception | str) -> typer.Exit:
    """Tell what is wrong; what is returned ends the program with exit code 1."""
    typer.echo(f"koa: {why}", err=True)
    return typer.Exit(1)


def opened(directory: Path | None) -> dict[str, tuple[Instrument, Columns]]:
    """Return the instruments with their columns."""
    try:
        instruments, columns = open_instruments(directory, Running().keyword_tables_dir)
    except InstrumentError as error:
        raise failed(error) from error
    return {name: (instrument, columns[name]) for name, instrument in instruments.items()}


@main.command()
def check(directory: Directory) -> None:
    """Read the files as a service does at start; exit code 1 if it would not start."""
    found, names = opened(directory), sorted(file.stem for file in directory.glob("*.toml"))
    if not names:
        raise failed(f"{directory} holds no *.toml")
    for name in names:
        instrument, _ = found[name]
        prefixes = " ".join(prefix.prefix for prefix in instrument.naming.prefixes)
        counts = f"{len(instrument.sources)} sources, {len(instrument.rules)} rules"
        typer.echo(f"{name} is right: prefix {prefixes or '-'}, {counts}")


@main.command()
def dry_run(directory: Directory, frames: Frames, as_json: Json = False) -> None:
    """Show what the files would decide otherwise about past frames than those that run.

    Nothing but the frame is known: no schedule, no proposals, no weather.
    """
    running, changed = opened(Running().instruments_dir), opened(directory)
    rows, fraction = list[dict[str, Any]](), Running().koaid_fraction
    for path in frames:
        for name in [name for name, new in changed.items() if running.get(name) != new]:
            try:
                old = decide(*running[name], path, fraction) if name in running else {}
                new = decide(*changed[name], path, fraction)
            except OSError as error:
                raise failed(error) from error
            pairs = {key: [old.get(key), new.get(key)] for key in new | old}
            differ = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
            rows.append({"frame": str(path), "instrument": name, "changes": differ})
    if as_json:
        typer.echo(to_json(rows, indent=2))
        return
    if not rows:
        typer.echo("These files say the same as those that run.")
    for row in rows:
        typer.echo(f"{row['frame']} as {row['instrument']}{'' if row['changes'] else ': the same'}")
        for key, pair in row["changes"].items():
            was, becomes = ("-" if value is None else value for value in pair)
            typer.echo(f"  {key:<24} {was} -> {becomes}")
