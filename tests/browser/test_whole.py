"""The page on a whole installation: from the simulated observatory's shutter to the reader."""

import hashlib
import io
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from tests.live.conftest import running
from tests.live.test_malformed import frame as new_frame
from tests.live.test_secrets import LiveScene
from tests.walk import FOLDER, PLANTED, SCHEDULE, SECRETS

from .conftest import OpenPage, in_thread, until

# All that the page is told, the stream included.
NOTE_BODIES = """
window.bodies = [];
const ask = window.fetch;
window.fetch = async (...given) => {
  const answer = await ask(...given);
  const reader = answer.clone().body?.pipeThrough(new TextDecoderStream("latin1")).getReader();
  (async () => {
    for (let part; reader && !(part = await reader.read()).done; ) window.bodies.push(part.value);
  })().catch(() => {});
  return answer;
};
"""
PIPELINE = "hushpipeline"
SHOTS = os.environ.get("KOA_SCREENSHOTS", "")  # a directory, for the pictures of the docs
VIEWS: dict[str, dict[str, Any]] = {
    "night-page": {"size": (1280, 760)},
    "night-page-dark": {"size": (1280, 760), "color_scheme": "dark"},
    "night-page-phone": {"size": (390, 760)},
}
CLOSED = ("/file", "/preview", "/header", "/products/")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveScene]:
    var = tmp_path_factory.mktemp("whole") / "var"
    schedule = var.parent / "schedule.toml"
    schedule.write_text(SCHEDULE)
    with running(var, dev=False, env={"KOA_SCHEDULE": str(schedule)}) as site:
        yield LiveScene(site)


@pytest.fixture
def url(scene: LiveScene) -> str:
    return scene.site.stack.url("ingestor")


def row(page: Page, name: str) -> Any:
    return page.locator(f"#row-{name}")


def expose(scene: LiveScene, page: Page) -> tuple[str, dict[str, Any], float]:
    """Take an exposure; return its path, the frame, and when the page had it available."""
    before = page.locator(".row").count()
    [entry] = in_thread(lambda: scene.site.shoot("ESI", size=2_000_000))
    newest = page.locator(".row[aria-rowindex='2']")
    until(page, lambda: page.locator(".row").count() == before + 1, "a row")
    until(page, lambda: newest.get_attribute("data-state") == "complete", "an available frame")
    seen = time.time()
    name = newest.get_attribute("data-id")
    answer = scene.ask("operator", "GET", "ingestor", f"/v1/frames/{name}")
    return entry.path, answer.json(), seen


def at(text: str) -> float:
    from datetime import datetime  # noqa: PLC0415

    return datetime.fromisoformat(text).timestamp()


def test_a_frame_is_there_within_a_second(
    scene: LiveScene, url: str, open_page: OpenPage, capsys: pytest.CaptureFixture[str]
) -> None:
    page = open_page(url + f"/?night={scene.good['night']}", token=scene.tokens["operator"])
    expect(row(page, scene.good["frame_id"])).to_be_visible()
    page.goto(url)
    page.wait_for_selector(".row")
    waits = []
    for _ in range(3):
        path, frame, seen = expose(scene, page)
        assert frame["path"] == path
        waits.append(seen - at(frame["timeline"]["available"]))
        expect(row(page, frame["frame_id"]).locator(".c-koaid")).to_have_text(frame["koaid"])
    with capsys.disabled():
        print(f"\non the page {', '.join(f'{1000 * s:.0f}' for s in waits)} ms after available")
    assert sorted(waits)[1] < 1


def test_the_detail_view(scene: LiveScene, url: str, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(url, token=scene.tokens["operator"])
    page.wait_for_selector(".row")
    _, frame, _ = expose(scene, page)
    row(page, frame["frame_id"]).click()
    detail = page.locator("#detail")
    expect(detail.locator("h2")).to_have_text(frame["koaid"])
    image = detail.locator(".image img")
    expect(image).to_be_visible()
    until(page, lambda: image.evaluate("(i) => i.naturalWidth") > 100, "the preview")
    expect(row(page, frame["frame_id"]).locator("img")).to_be_visible()
    parts = detail.locator(".timeline tbody tr")
    widths = [
        float(bar.evaluate("(b) => b.style.width").removesuffix("%"))
        for bar in parts.locator(".span").all()
    ]
    times = {k: at(v) for k, v in frame["timeline"].items() if v}
    share = (times["process_end"] - times["process_start"]) / (
        max(times.values()) - min(times.values())
    )
    assert widths[2] == pytest.approx(max(0.4, 100 * share), abs=0.1)
    expect(detail.locator(".products")).to_contain_text(f"{frame['koaid']}.md5sum.table")
    detail.get_by_label("Search the header").fill("instrume")
    expect(detail.locator(".cards")).to_contain_text("INSTRUME")
    fits = next(p for p in frame["products"] if p["role"] == "fits")
    with page.expect_download() as saved:
        detail.get_by_text("Download FITS").click()
    assert saved.value.suggested_filename == fits["name"]
    assert hashlib.sha256(Path(saved.value.path()).read_bytes()).hexdigest() == fits["sha256"]


def reduce(
    scene: LiveScene, raw: dict[str, Any], level: int = 1, pipeline: str = PIPELINE
) -> dict[str, Any]:
    """Deliver a set of a raw frame, as a pipeline beside the disks does; return its frame."""
    koaid, home = raw["koaid"], f"{raw['path'].rpartition('/')[0]}/redux"
    names = {f"{koaid}_reduced.fits": "file", f"{koaid}.jpg": "preview"}
    for name, part in names.items():
        found = scene.ask("operator", "GET", "ingestor", f"/v1/frames/{koaid}/{part}")
        scene.site.write(f"{home}/{name}", found.content)
    order = {
        "instrument": raw["instrument"], "level": level, "koaid": koaid, "directory": home,
        "pipeline": pipeline, "pipeline_version": "0.3", "files": list(names),
    }  # fmt: skip
    answer = scene.ask("producer", "POST", "preparer", "/v1/products", json=order)
    assert answer.status_code == 202, answer.text
    where = f"/v1/frames/{answer.json()['came'][0]['frame_id']}"

    def there() -> dict[str, Any] | None:
        seen = scene.ask("operator", "GET", "ingestor", where)
        is_there = seen.status_code == 200 and seen.json()["status"] == "COMPLETE"
        return seen.json() if is_there else None

    made: dict[str, Any] = scene.site.wait(there, 60, f"a set of {koaid}")
    return made


@pytest.fixture(scope="module")
def made(scene: LiveScene) -> dict[str, Any]:
    """Return a reduced frame of a running program."""
    return reduce(scene, scene.good)


def test_a_frame_and_its_products(
    scene: LiveScene, made: dict[str, Any], url: str, open_page: OpenPage
) -> None:
    page = open_page(url + f"/?night={scene.good['night']}", token=scene.tokens["owner"])
    raw, detail = row(page, scene.good["frame_id"]), page.locator("#detail")
    badge = raw.locator(".level")
    expect(badge).to_have_attribute("aria-label", f"level 1: Available, {PIPELINE} 0.3")
    raw.click()
    detail.get_by_role("button", name="Level 1 products").click()
    expect(detail.locator("h2")).to_have_text(f"{scene.good['koaid']}, level 1")
    image = detail.locator(".image img")
    expect(image).to_be_visible()
    until(page, lambda: image.evaluate("(i) => i.naturalWidth") > 100, "the set's preview")
    expect(detail.locator(".facts")).to_contain_text(f"{PIPELINE} 0.3")
    for product in made["products"]:
        with page.expect_download() as saved:
            detail.locator(".products").get_by_text(product["name"], exact=True).click()
        digest = hashlib.sha256(Path(saved.value.path()).read_bytes()).hexdigest()
        assert digest == product["sha256"]
    detail.get_by_role("button", name="Raw frame").click()
    expect(detail.locator("h2")).to_have_text(scene.good["koaid"])


@pytest.mark.skipif(not (shutil.which("curl") or os.environ.get("CI")), reason="no curl here")
def test_the_script(
    scene: LiveScene, made: dict[str, Any], url: str, open_page: OpenPage, tmp_path: Path
) -> None:
    token = scene.tokens["owner"]
    page = open_page(url + f"/?night={scene.good['night']}&level=all", token=token)
    for frame in (scene.good, made):
        row(page, frame["frame_id"]).locator("input").check()
    page.get_by_label("all products").check()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download as a script").click()
    script = Path(saved.value.path())
    assert token not in script.read_text()

    def run(**env: str) -> "subprocess.CompletedProcess[str]":
        command = ["bash", str(script)]
        known = {k: v for k, v in os.environ.items() if k != "KOA_TOKEN"} | {"no_proxy": "*"}
        return subprocess.run(
            command, cwd=tmp_path, env=known | env, capture_output=True, text=True, check=False
        )

    refused = run()
    assert refused.returncode == 1
    assert "run this again" in refused.stderr
    done = run(KOA_TOKEN=token)
    assert done.returncode == 0, done.stderr
    apart = tmp_path / "lev1" / made["koaid"] / "v1"
    for home, frame in ((tmp_path, scene.good), (apart, made)):
        for product in frame["products"]:
            digest = hashlib.sha256((home / product["name"]).read_bytes()).hexdigest()
            assert digest == product["sha256"]
    again = run(KOA_TOKEN=token)
    assert again.returncode == 0
    assert "fetched" not in again.stdout


def test_who_may_not_see_finds_nothing(
    scene: LiveScene, made: dict[str, Any], url: str, open_page: OpenPage
) -> None:
    asked: list[str] = []

    def told(page: Page) -> set[str]:
        """Secrets in what the page was sent and in what it shows."""
        text = "\n".join([page.content(), *asked, *page.evaluate("window.bodies")]).lower()
        return {secret for secret in (*SECRETS, PIPELINE) if secret.lower() in text}

    page = open_page("about:blank", allow="status of 401")
    page.add_init_script(NOTE_BODIES)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url + f"/?night={scene.good['night']}")
    good = row(page, scene.good["frame_id"])
    expect(good).to_contain_text("proprietary")
    path, data = new_frame(f"{FOLDER}/hushfile2.fits", **PLANTED)
    scene.site.write(path, data[:-1] + b"x")  # something to be told of live
    before = page.locator(".row").count()
    body = {"path": path, "instrument": "NIRES"}
    assert scene.ask("producer", "POST", "monitor", "/v1/files", json=body).status_code == 202
    until(page, lambda: page.locator(".row").count() > before, "a row by the stream")
    expect(good.locator(".level")).to_have_count(0)
    page.locator("#level").select_option("all")
    product = row(page, made["frame_id"])
    expect(product).to_contain_text("proprietary")
    for name in page.locator(".row").evaluate_all("(all) => all.map((r) => r.dataset.id)"):
        row(page, name).click()
        expect(page.locator("#detail .facts")).to_contain_text(name)
    page.locator("#columns").evaluate("(menu) => (menu.parentElement.open = true)")
    for column in ("File", "Program"):
        page.locator("#columns").get_by_label(column, exact=True).click()
    assert told(page) == set()
    assert not [where for where in asked if where.rpartition("?")[0].endswith(CLOSED)]
    assert len(page.evaluate("window.bodies")) > 5
    # A token that is none, then the owner's: what is hidden is there, and only then.
    for token, sees in (("wrong", False), (scene.tokens["owner"], True)):
        page.locator("#who").click() if page.locator("#sign-in").is_hidden() else None
        page.locator("#token").fill(token)
        page.locator("#token").press("Enter")
        if not sees:
            expect(page.locator("#link")).to_have_text("Not signed in")
            assert told(page) == set()
    expect(good.locator(".c-target")).to_have_text(PLANTED["TARGNAME"])
    expect(good.locator("img")).to_be_visible()
    expect(product.locator("img")).to_be_visible()
    good.click()
    expect(page.locator("#detail .cards")).to_contain_text("hushcard")
    expect(page.locator("#detail .kin")).to_contain_text(PIPELINE)
    assert {"hushfolder", "hushfile", "hushcard", PLANTED["TARGNAME"], PIPELINE} <= told(page)
    assert not [where for where in asked if scene.tokens["owner"] in where]
    page.locator("#who").click()
    page.get_by_role("button", name="Sign out").click()
    expect(good).to_contain_text("proprietary")
    expect(product).to_contain_text("proprietary")
    assert not [s for s in (*SECRETS, PIPELINE) if s.lower() in page.content().lower()]
    assert page.evaluate("Object.keys(sessionStorage)") == []


@pytest.mark.timeout(600)
def test_the_main_views(scene: LiveScene, url: str, open_page: OpenPage) -> None:
    """As docs/night-page.md shows them; KOA_SCREENSHOTS=docs writes those pictures anew."""
    more = ("DEIMOS", "HIRES", "ESI", "KCWI", "NIRC2", "LRIS") * 6 if SHOTS else ()
    for n, kind in enumerate(more):
        frame = take(scene, kind)
        if n % 3 == 0:
            reduce(scene, frame, pipeline="quick look")
    newest = take(scene, "KCWI")
    reduce(scene, newest, pipeline="quick look")
    reduce(scene, newest, 2, "PypeIt")
    for name, options in VIEWS.items():
        page = open_page(url, token=scene.tokens["operator"], **options)
        check_view(page, newest["frame_id"], name)
        if SHOTS:
            picture = Image.open(io.BytesIO(page.screenshot()))
            picture.quantize(256).save(Path(SHOTS) / f"{name}.png", optimize=True)


def take(scene: LiveScene, kind: str) -> dict[str, Any]:
    """Have an instrument take an exposure; return the frame once it is archived."""
    [entry] = in_thread(lambda: scene.site.shoot(kind, size=2_000_000))

    def there() -> dict[str, Any] | None:
        query = {"path": entry.path, "status": "COMPLETE"}
        asked = scene.ask("operator", "GET", "ingestor", "/v1/frames", params=query)
        return next(iter(asked.json()["items"]), None)

    frame: dict[str, Any] = scene.site.wait(there, 60, f"{entry.path} to look at")
    return frame


def test_a_list_that_is_drawn_anew_keeps_its_previews(
    scene: LiveScene, url: str, open_page: OpenPage
) -> None:
    """Its lines are others then, and wait for the images that the old ones asked for."""
    frames = [take(scene, "ESI") for _ in range(5)]
    token, held = scene.tokens["operator"], list[Route]()
    page = open_page("about:blank", token=token, allow="sessionStorage")
    page.route("**/preview?*", lambda route: held.append(route))  # noqa: PLW0108 (it takes no other)
    page.goto(url)
    until(page, lambda: len(held) == 3, "as many requests as there are at once")
    row(page, frames[0]["frame_id"]).click()
    expect(page.locator("#detail")).to_be_visible()

    def are_there() -> bool:
        while held:
            held.pop().continue_()
        return page.locator(".row img:not([src])").count() == 0

    until(page, are_there, "all previews")


def check_view(page: Page, newest: str, name: str) -> None:
    shown, detail = row(page, newest), page.locator("#detail")
    expect(shown.locator("img")).to_be_visible()
    if name == "night-page-dark":
        shown.click()
        expect(detail.locator(".image img")).to_be_visible()
        expect(detail.locator(".kin li")).to_have_count(2)
    levels = shown.locator(".level")
    expect(levels).to_have_text(["1", "2"])
    expect(levels.last).to_have_attribute("data-state", "complete")
    there, cell = levels.last.bounding_box(), shown.locator(".c-levels").bounding_box()
    assert there
    assert cell
    assert there["x"] + there["width"] <= cell["x"] + cell["width"], "the second is cut off"
    expect(page.locator(".numbers dd").first).not_to_have_text("\u2013")
    sizes = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    assert page.evaluate(sizes) == [*VIEWS[name]["size"]]
    expect(page.locator("#link")).to_have_text("Live")
    until(page, lambda: page.locator(".row img:not([src])").count() == 0, "all previews")
