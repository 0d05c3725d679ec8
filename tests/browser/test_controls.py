"""Each control of the night page: what it does to the URL and to the rows."""

import re
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from koa_shared.contracts import utcnow
from koa_shared.simulator.stack import Stack

from .catalogue import frame, ingestor, put, ut
from .conftest import OpenPage, names, query, shows

NIGHT, EARLIER = "2026-11-28", "2026-11-26"
HOSTILE = "<img src=x onerror=alert(1)>"
BROKEN = {"severity": "invalid", "step": "read", "message": "1 of 3 HDUs", "code": "TRUNCATED"}
PARKED = {"severity": "error", "step": "verify", "message": "", "code": "VERIFICATION_FAILED"}
LACKS = {"severity": "invalid", "step": "read", "message": "x_s2d.fits", "code": "PRODUCT_MISSING"}
ORPHAN = {"severity": "warning", "step": "claim", "message": "", "code": "RAW_NOT_ARCHIVED"}
# The night's frames, oldest first, each a minute after the one before.
FRAMES: dict[str, dict[str, Any]] = {
    "a": {"type": "bias", "target": "", "latency": 0.9},
    "b": {"target": "M31", "latency": 75.0},
    "c": {"target": HOSTILE, "semid": "2026B_U294"},
    "d": {"instrument": "KCWI", "prefix": "KB", "target": "NGC 7027", "latency": 3.0},
    "e": {"instrument": "KCWI", "prefix": "KB", "status": "INVALID", "koaid": None,
          "findings": [BROKEN], "name": "kb_e.fits"},
    "f": {"instrument": "KCWI", "prefix": "KR", "status": "ERROR", "findings": [PARKED]},
    "g": {"instrument": "NIRC2", "prefix": "N2", "status": "DUPLICATE", "koaid": None,
          "name": "n_g.fits"},
    "h": {"instrument": "NIRC2", "prefix": "N2", "status": "TRANSFERRING", "koaid": None,
          "name": "n_h.fits"},
    # Reduced products of b and d.
    "p": {"level": 1, "koaid": "ES.20261128.28860.00", "latency": 90.0,
          "recipe": {"software": "quick look 0.3", "rules": "0" * 16}},
    "q": {"level": 2, "koaid": "ES.20261128.28860.00", "status": "INVALID", "findings": [LACKS],
          "recipe": {"software": "PypeIt 1.17", "rules": "0" * 16}},
    "r": {"level": 1, "koaid": "KB.20261128.28980.00", "instrument": "KCWI",
          "status": "TRANSFERRED", "findings": [ORPHAN],
          "recipe": {"software": "KCWI_DRP 1.1.0", "rules": "0" * 16}},
}  # fmt: skip
ALL = "hgfedcba"  # of the raw frames
# As the browser's Back to a URL without a choice.
FORGET = "history.replaceState(null, '', '/'); dispatchEvent(new PopStateEvent('popstate'))"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with ingestor(tmp_path_factory.mktemp("night") / "var") as running:
        start = ut(f"{NIGHT} 08:00")
        put(
            running,
            [
                frame(start + timedelta(minutes=n), frame_id=name, **given)
                for n, (name, given) in enumerate(FRAMES.items())
            ]
            + [frame(ut(f"{EARLIER} 09:00"), frame_id="z", target="Old M31")],
        )
        yield running


@pytest.fixture
def page(stack: Stack, open_page: OpenPage) -> Page:
    """Open the page on the latest night, as an operator of the installation does."""
    opened = open_page(stack.url("ingestor") + "/")
    shows(opened, ALL)
    return opened


def row(page: Page, name: str) -> Any:
    return page.locator(f"#row-{name}")


def test_the_night_as_it_stands(page: Page) -> None:
    expect(page.locator("#date")).to_have_value(NIGHT)
    expect(page.locator("#link")).to_have_text("Live")
    expect(row(page, "b")).to_contain_text("ES.20261128.28860.00")
    expect(row(page, "b").locator(".c-latency")).to_have_text("75 s")
    expect(row(page, "h")).to_contain_text("on its way to the archive")
    expect(row(page, "e")).to_contain_text("Invalid")
    expect(row(page, "e")).to_contain_text("the file stops before its end")
    expect(row(page, "f")).to_contain_text("what was archived is not what was declared")
    expect(row(page, "c").locator(".c-target")).to_have_text(HOSTILE)
    assert page.locator("#rows img[src=x]").count() == 0
    told = page.locator(".states button").all_inner_texts()
    assert [text.split("\n")[0] for text in told] == ["1", "4", "1", "1", "1"]
    expect(page.locator(".numbers")).to_contain_text("75 %")  # three of four in the minute


def shows_detail(page: Page, title: str) -> None:
    expect(page.locator("#detail h2")).to_have_text(title)


def press(*names: str) -> Callable[[Page], None]:
    """Click buttons by what they are called."""

    def act(page: Page) -> None:
        for name in names:
            page.get_by_role("button", name=name).first.click()

    return act


def search(text: str) -> Callable[[Page], None]:
    return lambda page: page.get_by_role("searchbox").first.fill(text)


def choose(value: str, what: str = "Program") -> Callable[[Page], Any]:
    return lambda page: page.get_by_role("combobox", name=what).select_option(value)


CONTROLS = {
    "one instrument": (press("KCWI"), "instrument=KCWI", "fed"),
    "two instruments": (press("KCWI", "NIRC2"), "instrument=KCWI,NIRC2", "hgfed"),
    "an instrument and back": (press("KCWI", "KCWI"), "", ALL),
    "a state": (press("Invalid"), "state=invalid", "e"),
    "two states": (press("Invalid", "Error"), "state=invalid,error", "fe"),
    "on the way": (press("On the way"), "state=way", "h"),
    "a program": (choose("2026B_U294"), "program=2026B_U294", "c"),
    "level 1": (choose("1", "Level"), "level=1", "rp"),
    "level 2": (choose("2", "Level"), "level=2", "q"),
    "all levels": (choose("all", "Level"), "level=all", "rqp" + ALL),
    "a KOAID": (search("kb.20261128"), "q=kb.20261128", "d"),
    "a whole KOAID": (search("ES.20261128.28860.00"), "q=ES.20261128.28860.00", "qpb"),
    "a file name": (search("kb_e"), "q=kb_e", "e"),
    "a target": (search("ngc"), "q=ngc", "d"),
    "two words": (search("es. m31"), "q=es.+m31", "b"),
    "by latency": (press("Latency"), "sort=-latency", "bdcahgfe"),
    "by latency, upwards": (press("Latency", "Latency"), "sort=latency", "acdbhgfe"),
    "by age, upwards": (press("Age"), "sort=acquired", ALL[::-1]),
    "by KOAID": (press("KOAID", "KOAID"), "sort=koaid", "abcdfegh"),
    "by instrument": (press("Instrument", "Instrument"), "sort=instrument", "cbafedhg"),
    "by target": (press("Target"), "sort=-target", "dhgfebca"),
    "by type": (press("Type", "Type"), "sort=type", "ahgfedcb"),
    "by state": (press("State", "State"), "sort=state", "dcbagfeh"),
}


def test_each_control(page: Page) -> None:
    for name, (act, told, rows) in CONTROLS.items():
        act(page)
        shows(page, rows, name)
        assert query(page) == told, name
        page.reload()  # the choice lives in the URL
        shows(page, rows, name)
        assert query(page) == told, name
        page.evaluate(FORGET)
        shows(page, ALL, name)


def badges(page: Page, name: str) -> list[str | None]:
    found = row(page, name).locator(".level").all()
    return [one.get_attribute("aria-label") for one in found]


def test_products_beside_their_frames(page: Page) -> None:
    assert badges(page, "b") == [
        "level 1: Available, quick look 0.3", "level 2: Invalid, PypeIt 1.17",
    ]  # fmt: skip
    assert badges(page, "d") == ["level 1: On the way, KCWI_DRP 1.1.0"]
    assert badges(page, "a") == []
    row(page, "b").click()
    kin = page.locator("#detail .kin li")
    expect(kin).to_have_text(
        ["Level 1 products Available by quick look 0.3", "Level 2 products Invalid by PypeIt 1.17"]
    )
    kin.get_by_role("button", name="Level 1").click()
    shows_detail(page, "ES.20261128.28860.00, level 1")
    assert query(page) == "frame=p"
    shows(page, ALL)  # the list stays, and so does its place
    expect(row(page, "b")).to_have_class("row active")
    expect(page.locator("#detail .facts")).to_contain_text("quick look 0.3")
    expect(page.locator("#detail .products")).to_contain_text("ES.20261128.28860.00.fits")
    expect(page.get_by_role("button", name="Download ES.20261128.28860.00.fits")).to_have_count(2)
    expect(kin).to_have_text(["Raw frame Available", "Level 2 products Invalid by PypeIt 1.17"])
    kin.get_by_role("button", name="Level 2").click()
    expect(page.locator("#detail .why")).to_contain_text("a file of its set is missing")
    page.go_back()
    shows_detail(page, "ES.20261128.28860.00, level 1")
    kin.get_by_role("button", name="Raw frame").click()
    shows_detail(page, "ES.20261128.28860.00")


def test_counts_and_latency_are_of_raw_frames(page: Page) -> None:
    strip = page.locator("#strip")
    before = strip.inner_text()
    choose("1", "Level")(page)
    shows(page, "rp")
    expect(row(page, "r")).to_contain_text("its raw frame is not archived")
    assert badges(page, "p") == ["level 1: Available, quick look 0.3"]
    assert strip.inner_text() == before
    expect(page.locator("#shown")).to_contain_text("2 frames; the counts and latencies above")
    expect(page.locator(".plot")).to_have_attribute("aria-label", re.compile("of 4 raw frames"))
    told = page.locator("#instruments button").all_inner_texts()
    assert sorted(text.replace("\n", "") for text in told) == ["ESI1", "KCWI1"]


def test_what_comes_shows_at_its_raw_frame(stack: Stack, page: Page) -> None:
    """A set that is announced now is seen at once, without the list being read again."""
    now, name = utcnow().isoformat(timespec="milliseconds"), str(uuid.uuid4())
    event = {
        "frame_id": name, "instrument": "ESI", "level": 1, "origin": "live", "source": "esi",
        "path": "/s/sdata703/esi9/redux", "generation": 1, "seq": 1, "at": now,
        "koaid": "ES.20261128.28800.00", "service": "preparer", "status": "PROCESSING",
        "step": "read", "timeline": {"acquired": f"{NIGHT}T09:00:00.000Z", "detected": now},
    }  # fmt: skip
    row(page, "a").click()
    expect(page.locator("#detail .p-kin")).to_be_hidden()
    assert page.request.post(f"{stack.url('ingestor')}/v1/events", data={"events": [event]}).ok
    expect(row(page, "a").locator(".level")).to_have_attribute("data-state", "way")
    expect(page.locator("#detail .kin li")).to_have_text(["Level 1 products On the way"])
    shows(page, ALL)


def test_what_does_not_match_says_so(page: Page) -> None:
    search("nothing is called so")(page)
    shows(page, "")
    expect(page.locator("#none")).to_contain_text("No frame of this night matches")
    expect(page.locator("#shown")).to_have_text("0 of 8 frames")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    shows(page, ALL)
    assert query(page) == ""


def test_nights(page: Page) -> None:
    page.get_by_role("button", name="Earlier night").click()
    shows(page, "z")
    assert query(page) == f"night={EARLIER}"
    expect(page.locator("#earlier")).to_be_disabled()
    page.go_back()
    shows(page, ALL)
    page.go_forward()
    shows(page, "z")
    page.get_by_role("button", name="Latest").click()
    shows(page, ALL)
    assert query(page) == ""
    page.locator("#date").fill("2026-11-27")
    page.locator("#date").press("Enter")
    shows(page, "")
    assert query(page) == "night=2026-11-27"
    expect(page.locator("#none")).to_contain_text("No frames yet")
    page.get_by_role("button", name="Later night").click()
    shows(page, ALL)


def test_a_search_goes_on_in_other_nights(page: Page) -> None:
    page.keyboard.press("/")
    page.keyboard.type("e261126_090000.fits")
    shows(page, "")
    page.keyboard.press("Enter")
    shows(page, "z")
    assert query(page) == f"night={EARLIER}&frame=z"
    expect(page.locator("#detail h2")).to_have_text("ES.20261126.32400.00")


def test_columns(page: Page) -> None:
    page.get_by_text("Columns").click()
    for name in ("File", "Type"):
        page.locator("#columns").get_by_label(name, exact=True).click()
    told = "columns=preview,koaid,instrument,target,exposure,state,levels,ut,age,latency,file"
    assert query(page) == told
    expect(row(page, "e").locator(".c-file")).to_have_text("kb_e.fits")
    assert row(page, "e").locator(".c-type").count() == 0
    page.reload()
    shows(page, ALL)
    assert page.locator(".headings .c-file").count() == 1


def test_the_header_is_searched(page: Page) -> None:
    row(page, "c").click()
    cards, found = page.locator(".cards tr"), page.get_by_label("Search the header")
    expect(cards).to_have_count(304)
    expect(cards.nth(1)).to_contain_text(HOSTILE)
    found.fill("air")
    expect(cards).to_have_text(["AIRMASS1.25"])
    expect(page.locator(".p-header [role=status]")).to_have_text("1 card")
    found.fill("script")
    expect(cards).to_contain_text(["<script>alert(1)</script>"])


def test_keys(page: Page) -> None:
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("j")
    page.keyboard.press("k")
    expect(row(page, "g")).to_have_class("row active")
    assert page.locator("#frames").get_attribute("aria-activedescendant") == "row-g"
    page.keyboard.press("Enter")
    assert query(page) == "frame=g"
    expect(page.locator("#detail")).to_be_visible()
    page.keyboard.press("j")  # the detail view follows
    assert query(page) == "frame=f"
    expect(page.locator("#detail h2")).to_have_text("KR.20261128.29100.00")
    expect(page.locator("#detail .findings")).to_contain_text("VERIFICATION_FAILED")
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()
    assert query(page) == ""
    page.keyboard.press("x")
    expect(row(page, "f")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("/")
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.type("xj")  # letters, not keys
    assert query(page) == "q=xj"
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#keys")).to_be_hidden()


def test_selection(page: Page) -> None:
    for name, keys in (("d", []), ("a", ["Shift"])):
        row(page, name).locator("input").click(modifiers=keys)
    expect(page.locator("#picked")).to_have_text("4 frames selected: 4 files, 68.0 MB")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download as a script").click()
    script = Path(saved.value.path()).read_text()
    assert saved.value.suggested_filename == f"koa-{NIGHT}.sh"
    assert script.count("\nfetch ") == 4
    page.get_by_label("Select all frames").check()
    expect(page.locator("#picked")).to_contain_text("8 frames selected: 4 files")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#selection")).to_be_hidden()


def test_colours(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(stack.url("ingestor"), color_scheme="dark")
    shows(page, ALL)
    seen = [page.evaluate("getComputedStyle(document.body).color")]
    for _ in range(2):  # auto, light, dark
        page.locator("#theme").click()
        seen.append(page.evaluate("getComputedStyle(document.body).color"))
    assert seen[0] == seen[2] != seen[1]
    page.reload()
    shows(page, ALL)
    assert page.evaluate("getComputedStyle(document.body).color") == seen[2]


def test_a_phone(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(stack.url("ingestor"), size=(390, 844))
    shows(page, ALL)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    row(page, "d").click()
    expect(page.locator("#detail")).to_be_visible()
    expect(page.locator("#frames")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.get_by_role("button", name="Close the detail view").click()
    shows(page, ALL)


def test_a_screen_reader(page: Page) -> None:
    """Everything has a name and a role; what is said is said once, and calmly."""
    row(page, "d").click()
    shows_detail(page, "KB.20261128.28980.00")
    axe = Axe()
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        found = axe.run(page, options={"resultTypes": ["violations"]})
        assert found.violations_count == 0, found.generate_report()
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    expect(page.get_by_role("main")).to_have_count(1)
    grid = page.get_by_role("grid")
    expect(grid).to_have_attribute("aria-rowcount", "9")
    expect(grid.get_by_role("row")).to_have_count(9)
    expect(page.get_by_role("columnheader", name="Age")).to_have_attribute(
        "aria-sort", "descending"
    )
    press("KCWI")(page)
    expect(page.get_by_role("status").last).to_have_text("3 frames shown")
    expect(page.locator("#detail")).to_have_attribute("aria-label", "Frame KB.20261128.28980.00")
    pressed = page.get_by_role("button", name="KCWI")
    expect(pressed).to_have_attribute("aria-pressed", "true")


def test_what_guards_the_page(stack: Stack, open_page: OpenPage) -> None:
    page = open_page(stack.url("ingestor"), allow="TrustedHTML|trusted-types-sink")
    shows(page, ALL)
    answer = page.request.get(stack.url("ingestor") + "/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    for path in ("/web/nothing.js", "/web/..%2f__init__.py", "/web/__init__.py"):
        assert page.request.get(stack.url("ingestor") + path).status == 404
    with pytest.raises(Exception, match="Trusted"):
        page.evaluate("document.body.innerHTML = '<b>x</b>'")
    assert names(page) == ALL
