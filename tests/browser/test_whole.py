"""The page on a whole installation: from the simulated observatory's shutter to the reader."""

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

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


@pytest.mark.skipif(not (shutil.which("curl") or os.environ.get("CI")), reason="no curl here")
def test_the_script(scene: LiveScene, url: str, open_page: OpenPage, tmp_path: Path) -> None:
    token = scene.tokens["owner"]
    page = open_page(url + f"/?night={scene.good['night']}", token=token)
    row(page, scene.good["frame_id"]).locator("input").check()
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
    for product in scene.good["products"]:
        digest = hashlib.sha256((tmp_path / product["name"]).read_bytes()).hexdigest()
        assert digest == product["sha256"]
    again = run(KOA_TOKEN=token)
    assert again.returncode == 0
    assert "fetched" not in again.stdout


def test_who_may_not_see_finds_nothing(scene: LiveScene, url: str, open_page: OpenPage) -> None:
    asked: list[str] = []

    def told(page: Page) -> set[str]:
        """Secrets in what the page was sent and in what it shows."""
        text = "\n".join([page.content(), *asked, *page.evaluate("window.bodies")]).lower()
        return {secret for secret in SECRETS if secret.lower() in text}

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
    good.click()
    expect(page.locator("#detail .cards")).to_contain_text("hushcard")
    assert {"hushfolder", "hushfile", "hushcard", PLANTED["TARGNAME"]} <= told(page)
    assert not [where for where in asked if scene.tokens["owner"] in where]
    page.locator("#who").click()
    page.get_by_role("button", name="Sign out").click()
    expect(good).to_contain_text("proprietary")
    assert not [s for s in SECRETS if s.lower() in page.content().lower()]
    assert page.evaluate("Object.keys(sessionStorage)") == []
