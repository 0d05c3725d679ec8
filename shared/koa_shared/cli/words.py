"""Options that several commands have."""

from typing import Annotated, Literal

from typer import Option

Why = Annotated[str, Option(help="The reason, for the record.")]
Text = Annotated[str | None, Option()]
Fraction = Annotated[Literal["production", "padded"] | None, Option()]
Where = Annotated[list[str] | None, Option(help="A finding's code or a status; may be repeated.")]
