"""Campaigns: many frames prepared anew, behind all others, at a bounded rate (design 4).

A campaign is data: its frames are jobs like any other, a few of them on their way at a
time.  One job of the lane `campaign` takes a turn after the other until it is over.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sqlmodel import Session, col, func, select

from koa_shared.audit import Audit, Deed
from koa_shared.contracts import FrameView, Origin, Page, Status, utcnow
from koa_shared.db import insert_new
from koa_shared.errors import Conflict, NotFound
from koa_shared.jobs.queue import Job, JobQueue, NewJob

from .schema import Campaign, CampaignFrame, File

AHEAD = 8  # frames on their way at once; a pause lets these end
LOOK = 0.5  # s between looks at those on their way
FAULTS = (Status.ERROR, Status.INVALID)
# From which states a verb leads to which.
VERBS = {
    "pause": (("running",), "paused"),
    "resume": (("paused", "parked"), "running"),
    "cancel": (("running", "paused", "parked"), "cancelled"),
}


class Campaigns:
    """Functions of a session about campaigns."""

    queue: JobQueue
    audit: Audit
    file: Any  # these three are the Store's
    again: Any
    _enqueue: Any

    def create(self, session: Session, order: dict[str, Any], deed: Deed) -> Campaign:
        """Begin a campaign; `deed` is (who, why)."""
        row = Campaign(at=utcnow(), since=utcnow(), who=deed[0], why=deed[1], **order)
        session.add(row)
        session.flush()
        self.queue.put(session, NewJob("campaign", str(row.id), ""))
        self.audit.record(session, "campaign", f"campaign {row.id}", deed, **order)
        return row

    def campaign(self, session: Session, number: int) -> Campaign:
        """Return a campaign, locked; raises NotFound."""
        mine = select(Campaign).where(Campaign.id == number).with_for_update()
        if row := session.exec(mine).first():
            return row
        raise NotFound(f"no campaign {number}", code="unknown_campaign")

    def campaigns(self, session: Session) -> list[Campaign]:
        """Return the last 100 campaigns, newest first."""
        return list(session.exec(select(Campaign).order_by(col(Campaign.id).desc()).limit(100)))

    def switch(self, session: Session, number: int, verb: str, deed: Deed) -> Campaign:
        """Pause, resume or cancel a campaign; what is on its way ends by itself."""
        row, (before, after) = self.campaign(session, number), VERBS[verb]
        if row.state not in before:
            raise Conflict(f"campaign {number} is {row.state}; {verb} is for {', '.join(before)}")
        row.state, row.note = after, ""
        if verb == "resume":  # failures are counted anew
            row.since = utcnow()
            self.queue.drop(session, "campaign", str(number))
            self.queue.put(session, NewJob("campaign", str(number), ""))
        self.audit.record(session, verb, f"campaign {number}", deed)
        return row

    def progress(self, session: Session, number: int) -> dict[str, int]:
        """Return how many frames of a campaign are in which state."""
        mine = select(CampaignFrame.state, func.count()).where(CampaignFrame.campaign == number)
        return dict(session.exec(mine.group_by(CampaignFrame.state)).all())

    def show(
        self, session: Session, number: int, state: str | None = None, after: int = 0,
        limit: int = 0,
    ) -> dict[str, Any]:  # fmt: skip
        """Return a campaign, what became of its frames, what changes in how many, some of them."""
        row, counts, every = self.campaign(session, number), Counter[str](), self._frames(number)
        for made in session.scalars(every.with_only_columns(CampaignFrame.changes)):
            counts.update((made or {}).keys())
        some = self._frames(number, *([state] if state else []))
        some = some.where(col(CampaignFrame.id) > after).limit(limit).add_columns(File.koaid)
        mine = File.frame_id == CampaignFrame.frame_id
        rows = session.execute(some.outerjoin(File, mine)).all()
        each = [{"koaid": k} | one.model_dump(exclude={"id", "campaign"}) for one, k in rows]
        last = rows[-1][0].id if len(rows) == limit > 0 else None
        counted = {"frames": self.progress(session, number), "changes": dict(counts)}
        return row.told() | counted | {"each": each, "next": last}

    @staticmethod
    def _frames(number: int, *states: str) -> Any:
        mine = select(CampaignFrame).where(CampaignFrame.campaign == number)
        mine = mine.where(col(CampaignFrame.state).in_(states)) if states else mine
        return mine.order_by(col(CampaignFrame.id))

    # What the lane does.

    def select(
        self, session: Session, job: Job, page: Page[FrameView], now: Mapping[str, str]
    ) -> None:
        """Take on a page of what the ingestor lists; `now` are today's rules by instrument."""
        row = self.campaign(session, int(job.key))  # before the job, as `switch` locks
        self.queue.renew(session, job)
        seen = col(File.frame_id).in_([frame.frame_id for frame in page.items])
        made = dict(session.exec(select(File.frame_id, File.rules).where(seen)).all())
        for frame in page.items:
            rules = made.get(frame.frame_id)
            if fits(frame, row.wanted, rules, now.get(frame.instrument)):
                known = {"campaign": row.id, "frame_id": frame.frame_id, "at": utcnow(), "was": ""}
                state = "waiting" if frame.frame_id in made else "skipped"
                fault = None if frame.frame_id in made else "it was not announced here"
                insert_new(session, CampaignFrame, known | {"state": state, "fault": fault})
        row.cursor, row.is_selected = page.next, page.next is None

    def turn(self, session: Session, job: Job, alike: int) -> float | None:
        """Take a turn; return the seconds until the next, None if the campaign is over.

        It is parked when `alike` frames fail alike that had not failed before.
        """
        row = self.campaign(session, int(job.key))  # before the job, as `switch` locks
        self.queue.renew(session, job)
        busy, ordered = self._settle(session, row), False
        if row.state == "running":
            self._judge(session, row, alike)
        if row.state == "running" and busy < AHEAD:
            ordered = self._order(session, row)
        if busy or ordered:
            return 60 / row.per_minute if ordered else LOOK
        row.state = "done" if row.state == "running" else row.state
        # What a rehearsal could not try for good is parked there.
        keys = self._frames(int(job.key), "failed").order_by(None)
        tried = keys.with_only_columns(CampaignFrame.frame_id + f":try{row.id}")
        self.queue.drop(session, "prepare", tried)
        self.queue.finish(session, job)
        return None

    def _settle(self, session: Session, row: Campaign) -> int:
        """See what became of the frames on their way; return how many still are."""
        busy = 0
        for one in session.exec(self._frames(row.id or 0, "ordered")).all():
            file = self.file(session, one.frame_id)
            if not row.dry_run and file.generation != one.generation:
                one.state = "done"  # and an operator has gone on with it
            elif not row.dry_run and file.status in FAULTS:
                one.state = "failed"
                one.fault = file.fingerprint or file.findings[-1]["code"]
            elif not row.dry_run and (file.timeline or {}).get("notified"):
                one.state = "done"
            else:
                busy += 1
                continue
            one.at = utcnow()
        return busy

    def _judge(self, session: Session, row: Campaign, alike: int) -> None:
        """Park a campaign whose frames fail alike."""
        by, count = col(CampaignFrame.fault), func.count()
        bad = self._frames(row.id or 0, "failed").where(col(CampaignFrame.at) >= row.since)
        bad = bad.where(col(CampaignFrame.was).not_in(FAULTS)).order_by(None)
        grouped = bad.with_only_columns(by, count).group_by(by).having(count >= alike)
        if found := session.execute(grouped.order_by(count.desc())).first():
            row.state, row.note = "parked", f"{found[1]} frames failed alike: {found[0]}"

    def _order(self, session: Session, row: Campaign) -> bool:
        """Have the next frame prepared, or tried; False if none waits."""
        one = session.exec(self._frames(row.id or 0, "waiting").limit(1)).first()
        if one is None:
            return False
        file = self.file(session, one.frame_id)
        one.was, one.state, one.at = file.status, "ordered", utcnow()
        if file.status not in (*FAULTS, Status.TRANSFERRED):
            one.state, one.fault = "skipped", "it is on its way"
        elif row.dry_run:
            what = {"campaign": row.id, "options": row.options}
            later = 6 if file.origin != Origin.REPROCESS else 0
            self._enqueue(session, file, "prepare", turn=f"try{row.id}", payload=what, later=later)
        else:
            deed = (row.who, f"campaign {row.id}: {row.why}")
            again = self.again(session, one.frame_id, "reprocess", row.options, deed)
            one.generation = again.generation
        return True

    def tried(
        self, session: Session, job: Job, changes: dict[str, Any] | None, fault: str | None = None
    ) -> None:
        """Note what a rehearsal found: what changes, or (`fault`) that it can't be tried."""
        if fault is None:
            self.queue.finish(session, job)
        key = {"campaign": job.payload["campaign"], "frame_id": job.key.rsplit(":", 1)[0]}
        one = session.exec(select(CampaignFrame).filter_by(**key)).one()
        one.changes, one.fault, one.at = changes, fault, utcnow()
        one.state = "done" if fault is None else "failed"


def fits(frame: FrameView, wanted: Mapping[str, Any], rules: str | None, now: str | None) -> bool:
    """Tell whether a frame has all findings and was made by the rules that are asked for."""
    # A duplicate has no version of its own: it counts only where it is asked for.
    if not frame.status.is_end or (frame.status == "DUPLICATE" and "status" not in wanted):
        return False
    if not {*wanted.get("findings", ())} <= {finding.code for finding in frame.findings}:
        return False
    asked = wanted.get("rules")
    return rules != now if asked == "outdated" else asked in (None, rules)
