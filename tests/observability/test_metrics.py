"""`docs/metrics.md` is what the code counts, and labels come from closed sets."""

from koa_shared.instruments import load_instruments

from .metrics_page import LABELS, PAGE, catalogue, page


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == page(), "make format writes it anew"


def test_every_label_has_a_closed_set_on_the_page() -> None:
    used = {label for metric, _ in catalogue().values() for label in metric._labelnames}
    assert used - LABELS.keys() == set()


def test_no_label_holds_what_has_no_end() -> None:
    endless = {"frame_id", "koaid", "path", "name_of_file", "user", "program", "url", "night"}
    assert endless.isdisjoint(LABELS)


def test_image_types_are_words_of_the_instrument_files() -> None:
    for instrument in load_instruments().values():
        for case in instrument.choices.get("KOAIMTYP", ()):
            assert case.value is None or isinstance(case.value, str)
