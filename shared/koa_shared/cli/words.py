"""Arguments and options of the commands, each with its help."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

FRAME = Argument(help="KOAID, frame_id, announced path or file name.", metavar="frame")
Frame = Annotated[str, FRAME]
FrameOrMany = Annotated[str | None, FRAME]
Frames = Annotated[list[str] | None, FRAME]
Switch = Annotated[str, Argument(help="A keyword source (esi) or an instrument (ESI).")]
Announced = Annotated[str, Argument(help="As announced, or under a data root: /s/sdata904/...")]
Why = Annotated[str, Option(help="The reason, for the record.")]
Instrument = Annotated[str | None, Option(help="Its name: NIRC2.")]
Source = Annotated[str | None, Option(help="A keyword source, as `koa sources` names it.")]
Heard = Annotated[str | None, Option("--path", help="Of this announced path only.")]
Night = Annotated[str | None, Option(help="UT date, YYYY-MM-DD.")]
Fingerprint = Annotated[str | None, Option(help="All that failed alike; `koa parked` tells it.")]
Target = Annotated[str | None, Option(help="Of a frame_id, path, source, instrument only.")]
Now = Annotated[str | None, Option(help="Have this KOAID read now, or `all`.")]
Seconds = Annotated[float, Option(help="How long it may take.")]
Progid = Annotated[str | None, Option(help="The program it belongs to: U294.")]
Codes = Annotated[list[str], Option(help="A finding's code; may be repeated.")]
As = Annotated[Literal["version", "padded"], Option("--as", help="Same exposure, or another.")]
Fraction = Annotated[
    Literal["production", "padded"] | None, Option(help="How the KOAID's fraction is written.")
]
All = Annotated[bool, Option("--all", help="Each frame, not groups.")]
Dry = Annotated[bool, Option("--dry-run", help="Only say what would be done.")]
Limit = Annotated[int, Option(min=0, help="At most so many; 0 is all.")]
Into = Annotated[Path, Option(help="Directory, made if need be.", file_okay=False)]
Products = Annotated[
    str | None, Option(help="Names, as in a shell: '*.jpg'; the FITS file, of a reduced set all.")
]
OfLevel = Annotated[int, Option("--level", min=0, max=2, help="0 is raw, 1 and 2 are reduced.")]
Parallel = Annotated[int, Option(min=1, max=16, help="Files at once.")]
Where = Annotated[list[str] | None, Option(help="A finding's code or a status; may be repeated.")]
Date = Annotated[str, Argument(help="The UT date of its frames, YYYY-MM-DD.")]
Html = Annotated[Path | None, Option(help="Write a page to print.", dir_okay=False)]
Verify = Annotated[Path | None, Option(help="Compare the FITS files under it.", exists=True)]
From = Annotated[Path | None, Option("--from", help="Read what --json printed.", exists=True)]
Number = Annotated[int, Argument(help="The campaign's.")]
Rules = Annotated[str | None, Option(help="What made them, or `outdated`: not today's rules.")]
Rate = Annotated[float, Option(help="Frames per minute at most.")]
Each = Annotated[bool, Option("--frames", help="Each frame.")]
Reductions = Annotated[
    str, Argument(help="Directory, as the preparer knows it: /s/sdata1400/...", metavar="DIR")
]
Whose = Annotated[str, Option("--instrument", help="Its name: KCWI.")]
Level = Annotated[int, Option(min=1, max=2, help="1 is a quick look, 2 is ready for science.")]
Pipeline = Annotated[
    tuple[str, str],
    Option(help="What reduced it: its name and its version.", metavar="NAME VERSION"),
]
Koaid = Annotated[str | None, Option(help="Of the raw frame.")]
Files = Annotated[list[str] | None, Option(help="A file below DIR; may be repeated.")]
Manifest = Annotated[Path | None, Option(help="What sha256sum printed in DIR.", exists=True)]
DeliveryId = Annotated[str, Argument(help="As `koa products submit` told it.")]
