"""`koa products`: its public methods are the sub-commands."""

from typing import Any

from typer import BadParameter

from .. import client
from ..ids import normal_path
from ..products import Delivered
from . import words as w


class Products:
    """Reduced products, levels 1 and 2."""

    def __init__(self, archive: client.Koa) -> None:
        self._archive = archive

    def submit(
        self, directory: w.Reductions, instrument: w.Whose, level: w.Level, pipeline: w.Pipeline,
        koaid: w.Koaid = None, night: w.Night = None, file: w.Files = None,
        manifest: w.Manifest = None,
    ) -> Delivered:  # fmt: skip
        """Have what a pipeline wrote archived: one set, or all of a night.

        Which files make a set is the instrument's, unless --file or --manifest names them.
        What is delivered again unchanged is archived once; other content is the next version.
        """
        if (koaid is None) == (night is None):
            raise BadParameter("say either --koaid or --night")
        more: dict[str, Any] = {"koaid": koaid, "night": night, "files": file or None}
        if manifest:
            lines = (line.split(None, 1) for line in manifest.read_text().splitlines())
            more["manifest"] = {name.removeprefix("*"): digest for digest, name in lines}
        more |= {"pipeline": pipeline[0], "pipeline_version": pipeline[1]}
        where = normal_path(directory)
        return self._archive.deliver(where, instrument=instrument, level=level, **more)

    def show(self, delivery: w.DeliveryId) -> Delivered:
        """Show what became of a delivery: of a night what is expected, and what is missing."""
        return self._archive.delivered(delivery)
