"""`koa campaign`: its public methods are the sub-commands."""

import time
from typing import Any

from typer import BadParameter

from ..client import Service
from ..contracts import Status
from . import words as w


class Campaigns:
    """Many frames prepared anew, behind all other work."""

    def __init__(self, preparer: Service) -> None:
        self._preparer = preparer

    def create(
        self, instrument: w.Instrument = None, night: w.Night = None, where: w.Where = None,
        rules: w.Rules = None, progid: w.Progid = None, fraction: w.Fraction = None,
        per_minute: w.Rate = 30.0, dry_run: w.Dry = False, why: w.Why = "",
    ) -> Any:  # fmt: skip
        """Prepare all frames anew that are selected; --dry-run waits and tells what changes."""
        states = sorted({word for word in where or () if word in Status.__members__})
        if len(states) > 1:
            raise BadParameter(f"a frame has one status, not {' and '.join(states)}")
        order = {
            "instrument": instrument, "night": night, "status": states[0] if states else None,
            "findings": [word for word in where or () if word not in states], "rules": rules,
            "progid": progid, "fraction": fraction, "per_minute": per_minute, "why": why,
        }  # fmt: skip
        made = self._preparer.order("campaigns", dry_run=dry_run, **order)
        while dry_run and made["state"] == "running":
            time.sleep(0.5)
            made = self.show(made["campaign"], frames=True)
        return made

    def list(self) -> Any:
        """List the last 100 campaigns."""
        return self._preparer.json("GET", "/v1/campaigns")

    def show(self, number: w.Number, frames: w.Each = False) -> Any:
        """Show how far a campaign is, and what changes in how many frames."""
        where, every, after = f"/v1/campaigns/{number}", list[Any](), 0
        while True:
            page = {"after": after, "limit": 1000 * frames}
            told = self._preparer.json("GET", where, **page)
            every += told["each"]
            if (after := told.pop("next")) is None:
                return told | {"each": every}

    def pause(self, number: w.Number, why: w.Why = "") -> Any:
        """Hold a campaign back; what is on its way ends by itself."""
        return self._preparer.order(f"campaigns/{number}/pause", why=why)

    def resume(self, number: w.Number, why: w.Why = "") -> Any:
        """Let a campaign go on that was paused, or parked as its frames failed alike."""
        return self._preparer.order(f"campaigns/{number}/resume", why=why)

    def cancel(self, number: w.Number, why: w.Why = "") -> Any:
        """End a campaign for good; versions that it made stay."""
        return self._preparer.order(f"campaigns/{number}/cancel", why=why)
