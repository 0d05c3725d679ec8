"""`docs/metrics.md` is what the code counts, and labels come from closed sets."""

from datetime import timedelta

import pytest

from koa_ingestor.metrics import IngestorMetrics
from koa_shared.contracts import utcnow
from koa_shared.metrics import Metrics

from .metrics_page import LABELS, PAGE, catalogue, page


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == page(), "make format writes it anew"


def test_every_label_has_a_closed_set_on_the_page() -> None:
    used = {label for metric, _ in catalogue().values() for label in metric._labelnames}
    assert used - LABELS.keys() == set()


def test_no_label_holds_what_has_no_end() -> None:
    endless = {"frame_id", "koaid", "path", "name_of_file", "user", "program", "url", "night"}
    assert endless.isdisjoint(LABELS)


def test_what_the_catalogue_no_longer_says_is_gone() -> None:
    metrics = IngestorMetrics()
    since = utcnow() - timedelta(seconds=90)
    metrics.measured([("KCWI", "upload", since), ("ESI", "promote", since)], ["ESI", "ESI"])
    age = metrics.registry.get_sample_value
    first = age("koa_unfinished_seconds", {"instrument": "KCWI", "step": "upload"})
    assert first == pytest.approx(90, abs=5)
    assert age("koa_frames_parked", {"instrument": "ESI"}) == 2
    metrics.measured([("ESI", "promote", since)], [])
    assert age("koa_unfinished_seconds", {"instrument": "KCWI", "step": "upload"}) is None
    assert age("koa_frames_parked", {"instrument": "ESI"}) is None


def test_operations_are_timed_by_kind_and_name() -> None:
    metrics = Metrics("preparer")
    with pytest.raises(OSError, match="away"), metrics.timer("s3")("put"):
        raise OSError("away")
    labels = {"service": "preparer", "kind": "s3", "operation": "put"}
    assert metrics.registry.get_sample_value("koa_operation_seconds_count", labels) == 1
