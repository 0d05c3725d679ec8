"""Deliveries of reduced products: each of their sets is a file like any other (design 6)."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlmodel import Session, col, select

from koa_shared.contracts import Origin, Status, Timeline, utcnow
from koa_shared.db import insert_new
from koa_shared.errors import Conflict, NotFound
from koa_shared.ids import set_id
from koa_shared.products import SCIENCE
from koa_shared.products import Delivery as Order

from .schema import Delivery, File

QUICK = Origin.LIVE  # the objective counts it


class Found(NamedTuple):
    """What was found of a set: the bytes to hold at once, the newest time in ns."""

    size: int
    mtime_ns: int


class Deliveries:
    """Functions of a session about deliveries."""

    tell: Any  # these two are the Store's
    _enqueue: Any

    def deliver(
        self, session: Session, order: Order, sets: Mapping[str, Found], trace: str
    ) -> bool:
        """Take on a delivery's sets, by KOAID; False if it is known."""
        told = order.model_dump(mode="json")
        values = {"delivery": order.delivery, "at": utcnow(), "order": told}
        if insert_new(session, Delivery, values) is None:
            if session.get_one(Delivery, order.delivery).order != told:
                raise Conflict("this `delivery` was another order", code="delivery_taken")
            return False
        for koaid, found in sets.items():
            row = File(
                frame_id=set_id(str(order.delivery), order.level, koaid), koaid=koaid,
                path=order.directory, **found._asdict(), instrument=order.instrument,
                source=f"pipeline:{order.pipeline}", level=order.level, detected=utcnow(),
                origin=QUICK if order.koaid and order.level == 1 else Origin.MANUAL, trigger=None,
                status=Status.QUEUED, options={}, delivery=order.delivery,
            )  # fmt: skip
            times = Timeline(detected=row.detected, queued=utcnow())
            self.tell(session, row, Status.QUEUED, "announced", times)
            session.flush()
            self._enqueue(session, row, "prepare", trace=trace)
        return True

    def order(self, session: Session, delivery: str) -> Order:
        """Return a delivery as it was ordered; raises NotFound."""
        if row := session.get(Delivery, delivery):
            return Order.model_validate(row.order)
        raise NotFound(f"no delivery {delivery}", code="unknown_delivery")

    def delivered(
        self, session: Session, delivery: str
    ) -> tuple[Order, list[File], list[str] | None]:
        """Return a delivery, its sets, and of a night the KOAIDs that are expected."""
        order = self.order(session, delivery)
        sets = session.exec(select(File).filter_by(delivery=delivery).order_by(File.koaid))
        expected = self._expected(session, order, order.night) if order.night else None
        return order, list(sets), expected

    @staticmethod
    def _expected(session: Session, order: Order, night: str) -> list[str]:
        """Return the KOAIDs of the night's science frames that were handed over."""
        koaid, kind = col(File.koaid), col(File.prepared)["metadata"]["koaimtyp"].as_string()
        date = datetime.fromisoformat(night).replace(tzinfo=UTC)  # none is detected before
        mine = select(File.koaid).distinct().where(
            File.instrument == order.instrument, File.level == 0, File.detected >= date,
            File.status == Status.TRANSFERRED, File.origin != Origin.CANARY,
            koaid.contains(f".{date:%Y%m%d}."), kind.in_(SCIENCE) | kind.is_(None),
        )  # fmt: skip
        return [name for name in session.exec(mine.order_by(koaid)) if name]
