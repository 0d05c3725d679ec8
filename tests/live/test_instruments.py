"""Every instrument on real parts: all image types of the simulator, all real headers.

What should come out is typed here: KOAID prefixes from facts 2.1, image types from facts
3.10, KOAIDs of real frames from the archive.
"""

import importlib.util
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from types import ModuleType

import pytest

from koa_shared.simulator.frames import templates
from koa_shared.simulator.ledger import Entry

from .conftest import BLOCK, CARD, Frame, Site, header_size, running, sha256

pytestmark = pytest.mark.timeout(150)

SHARED = Path(__file__).parents[2].parent / "shared"
SMALL = 350_000  # bytes
END_SECONDS = 75

# Monitor entry: prefix and suffix of the KOAID, and the image type of each kind.
NIRES = {
    "object": "object", "telluric": "object", "bias": "bias", "dark": "dark",
    "flat": "domeflat", "arc": "domearc",
}  # fmt: skip
NIRC2 = {
    "object": "object", "standard": "object", "dark": "dark", "flat": "flatlamp",
    "flatoff": "flatlampoff", "arc": "arclamp",
}  # fmt: skip
KCWI = {
    "object": "object", "bias": "bias", "dark": "dark", "arc": "arclamp",
    "flat": "flatlamp", "bars": "contbars", "twiflat": "twiflat", "domeflat": "domeflat",
}  # fmt: skip
LRIS = {
    "object": "object", "bias": "bias", "dark": "dark", "arc": "arclamp",
    "flat": "flatlamp", "domeflat": "flatlamp", "focus": "focus", "polcal": "polcal",
}  # fmt: skip
SOURCES: dict[str, tuple[str, str, dict[str, str]]] = {
    "deimos_spec": ("DE", "", {
        "object": "object", "bias": "bias", "dark": "dark", "arc": "arclamp",
        "flat": "flatlamp", "domeflat": "flatlamp", "focus": "focus",
    }),
    "deimos_fcs": ("DF", "", {"fcscal": "fcscal"}),
    "esi": ("ES", "", {
        "object": "object", "bias": "bias", "dark": "dark", "arc": "arclamp",
        "flat": "flatlamp", "trace": "trace", "focus": "focus",
    }),
    "guiderk1": ("GR", "_kpf", {"object": "object", "bias": "bias"}),
    "guiderk2": ("GR", "_deimos", {"object": "object", "bias": "bias"}),
    "hires": ("HI", "", {
        "object": "object", "bias": "bias", "dark": "dark", "dark_lamp_on": "dark_lamp_on",
        "arc": "arclamp", "focus": "focus", "flat": "flatlamp", "trace": "trace",
        "object_lamp_on": "object_lamp_on",
    }),
    "koa": ("KB", "", {"object": "object", "bias": "bias"}),
    "kcwi_blue": ("KB", "", KCWI),
    "kcwi_red": ("KR", "", KCWI),
    "kcwi_fcs": ("KF", "", {"fpc": "fpc"}),
    "kcwi_svs": ("KS", "", {"svc": "svc"}),
    "kpf": ("KP", "", {
        "object": "object", "solar": "solar", "bias": "bias", "dark": "dark",
        "arc": "arclamp", "flat": "flatlamp", "domeflat": "domeflat", "twiflat": "twiflat",
    }),
    "lris_red": ("LR", "", LRIS),
    "lris_blue": ("LB", "", LRIS),
    "mosfire": ("MF", "", {
        "object": "object", "imaging": "object", "dark": "dark", "arc": "arclamp",
        "flat": "flatlamp", "flatoff": "flatlampoff",
    }),
    "nirc2": ("N2", "", NIRC2),
    "nirc2_unp": ("N2", "_unp", NIRC2),
    "nires_spec": ("NR", "", NIRES),
    "nires_img": ("NI", "", NIRES),
    "nirspec_spec": ("NS", "", {
        "object": "object", "plain": "object", "telluric": "object", "dark": "dark",
        "bias": "bias", "arc": "arclamp", "flat": "flatlamp", "flatoff": "flatlampoff",
        "domeflat": "domeflat", "domearc": "domearc",
    }),
    "nirspec_scam": ("NC", "", {"object": "object", "dark": "dark", "flat": "flatlamp"}),
    "osiris_spec": ("OS", "", {"object": "object", "dark": "dark", "calib": "calib"}),
    "osiris_img": ("OI", "", {
        "object": "object", "dark": "dark", "calib": "calib", "flat": "flatlamp",
        "flatoff": "flatlampoff",
    }),
}  # fmt: skip
SHOTS = [(source, kind) for source, (_, _, kinds) in SOURCES.items() for kind in kinds]

# Real header: announced path, KOAID, and what is missing where only some keywords, or a
# reduced frame's, were published.  Hundredths below .10 are production's (facts 2.2); the
# archive's KOAIDs from before RTI are these without the last two digits.
REAL: dict[str, tuple[str, str, dict[str, str]]] = {
    "DEIMOS/DE.20190107.19592_object_row.txt": (
        "/s/sdata1003/deimos1/2019jan07/d0107_0046.fits", "DE.20190107.19592.00",
        {"OUTFILE": "d0107_"},
    ),
    "DEIMOS/DF.20190108.08719_fcscal_row.txt": (
        "/s/sdata1003/deimos1/2019jan08/fcs/fcs0001.fits", "DF.20190108.08719.00",
        {"OUTFILE": "fcs", "OUTDIR": "/s/sdata1003/deimos1/2019jan08/fcs"},
    ),
    "ESI/PH957_e.txt": (
        "/sdata707/esi14/4aug00/esi0254.fits", "ES.20000804.48270.34", {},
    ),
    "ESI/bstarorder_1.txt": (
        "/sdata703/esi9/2023feb15_B/e230215_1046.fits", "ES.20230215.58047.30", {},
    ),
    "GUIDER/kpfguide_cube_4259.txt": (
        "/s/sdata1701/kpf1/2023jun10/CRED2/kpfguide_cube_4259.fits",
        "GR.20230611.30656.22_kpf",
        {"DATE-OBS": "2023-06-11", "UTC": "08:30:56.22", "CAMNAME": "kpf"},
    ),
    "HIRES/HI.20190107.07893_arclamp_row.txt": (
        "/s/sdata125/hires1/2019jan06/j3160007.fits", "HI.20190107.07893.65", {},
    ),
    "HIRES/hires3027.txt": (
        "/s/sdata125/hires9/2013may07/hires3027.fits", "HI.20130507.08022.40", {},
    ),
    "KCWI/cwitools_test_coadd_pNB.txt": (
        "/s/sdata1400/kcwi3/2019feb02/kb190202_00061.fits", "KB.20190202.31269.38", {},
    ),
    "KCWI/kb181012_00003.txt": (
        "/s/sdata1400/kcwi3/2018oct12/kb181012_00003.fits", "KB.20181012.05955.21", {},
    ),
    "KPF/KP.20240422.28832.89.txt": (
        "/s/sdata1701/kpf1/2024apr21/L0/KP.20240422.28832.89.fits",
        "KP.20240422.28832.89", {},
    ),
    "LRIS/ARC_red.txt": (
        "/sdata243/lris9/2020oct14/r201014_1009.fits", "LR.20201014.09989.30", {},
    ),
    "LRIS/LB.20160109.14149.txt": (
        "/sdata243/lris11/2016jan09/b160109_1040.fits", "LB.20160109.14149.24", {},
    ),
    "LRIS/b150910_2036.txt": (
        "/sdata243/lris8/2015sep10/b150910_2036.fits", "LB.20150910.15729.27", {},
    ),
    "LRIS/framework_570_0000.txt": (
        "/sdata243/lriseng/2019sep25/b190924_0133.fits", "LB.20190925.24934.20", {},
    ),
    "MOSFIRE/argon_K_msdc.txt": (
        "/s/sdata1300/mosfire/2010jul16/m100716_0095.fits", "MF.20100716.40503.53",
        {"INSTRUME": "MOSFIRE", "UTC": "11:15:03.53"},
    ),
    "NIRC2/kcal_flat_512_512_narrow_K+clear.txt": (
        "/sdata901/nirc2eng/2022jun19/n0113.fits", "N2.20220619.62620.57", {},
    ),
    "NIRC2/n0902_2025dec08.txt": (
        "/sdata907/nirc4/2025dec08/n0902.fits", "N2.20251208.32682.82", {},
    ),
    "NIRC2/standard_2.txt": (
        "/sdata903/nirc18/2017jul25/n0052.fits", "N2.20170725.51493.00", {},
    ),
    "NIRES/NR.20190615.12571.36_from_metadata.txt": (
        "/s/sdata1500/nires9/2019jun15/s190615_0020.fits", "NR.20190615.12571.36", {},
    ),
    # The old pipeline put UTC among its own keywords.
    "NIRSPEC/NS.20160414.02171.txt": (
        "/sdata603/nirspec/2016apr14_B/spec/apr14s0001.fits", "NS.20160414.02171.67",
        {"UTC": "00:36:11.67"},
    ),
    "NIRSPEC/NS.20160414.53947.txt": (
        "/sdata603/nirspec/2016apr14_B/spec/apr14s0095.fits", "NS.20160414.53947.59",
        {"UTC": "14:59:07.59"},
    ),
    "OSIRIS/OI.20190528.72576_dark_row.txt": (
        "/s/sdata1100/osiris1/2019may28/IMAG/raw/i190528_a001002.fits",
        "OI.20190528.72576.50", {"DATAFILE": "i190528_a001002"},
    ),
    "OSIRIS/OS.20190528.04933_object_row.txt": (
        "/s/sdata1100/osiris1/2019may28/SPEC/raw/s190528_a001002.fits",
        "OS.20190528.04933.22", {"DATAFILE": "s190528_a001002"},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def site(var: Path) -> Iterator[Site]:
    """Give an installation that hears every monitor entry, the test entry, too."""
    with running(var, env={"KOA_SOURCES": ",".join(SOURCES)}) as site:
        yield site


# The simulator's frames


@pytest.fixture(scope="module")
def shot(site: Site) -> dict[tuple[str, str], tuple[Entry, Frame]]:
    """Give all that the simulator can take, each on its way to an end."""
    owners = {source: name for name, t in templates().items() for source in t.camera}
    kinds = [[(source, kind) for kind in own] for source, (_, _, own) in SOURCES.items()]
    entries: dict[tuple[str, str], Entry] = {}
    # A camera's turn comes again when all others have had theirs.
    for turn in zip_longest(*kinds):
        for source, kind in filter(None, turn):
            order = {"source": source, "kind": kind, "size": SMALL}
            [entries[source, kind]] = site.shoot(owners[source], **order)
    frames = site.ended([entry.path for entry in entries.values()], END_SECONDS)
    return {shot: (entry, frames[entry.path]) for shot, entry in entries.items()}


def test_nothing_of_the_simulator_is_left_out() -> None:
    cameras = [(s, t) for t in templates().values() for s in t.camera]
    assert {(s, kind) for s, t in cameras for kind in t.kinds(s)} == set(SHOTS)
    assert (len(templates()), len(cameras)) == (12, 23)


@pytest.mark.parametrize(("source", "kind"), SHOTS)
def test_simulated_frame(
    site: Site, shot: dict[tuple[str, str], tuple[Entry, Frame]], source: str, kind: str
) -> None:
    prefix, suffix, kinds = SOURCES[source]
    entry, frame = shot[source, kind]
    check_complete(frame)
    assert frame["koaid"] == entry.koaid
    assert re.fullmatch(rf"{prefix}\.\d{{8}}\.\d{{5}}\.\d\d{suffix}", frame["koaid"])
    assert site.trigger(entry.path)["source"] == source
    metadata = site.get("ingestor", f"/v1/frames/{frame['koaid']}/metadata").json()
    assert metadata["koaimtyp"] == kinds[kind]
    assert sha256(site.raw(frame["koaid"])) == entry.sha256


def test_the_preview_is_the_first_that_the_instrument_names(
    site: Site, shot: dict[tuple[str, str], tuple[Entry, Frame]]
) -> None:
    _, frame = shot["kpf", "object"]
    koaid = frame["koaid"]
    shown = [p["name"] for p in frame["products"] if p["role"] == "preview"]
    assert shown == [f"{koaid}_{name}.jpg" for name in ("green", "red", "ca_hk")]
    answer = site.get("ingestor", f"/v1/frames/{koaid}/preview")
    assert shown[0] in answer.headers["Content-Disposition"]


def check_complete(frame: Frame) -> None:
    assert frame["status"] == "COMPLETE", frame["findings"]
    crashed = [f for f in frame["findings"] if f["code"] == "RULE_CRASHED"]
    assert crashed == []


# Real headers


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """Give the maker of frames; skips where it is not."""
    path = SHARED / "tools" / "make_frame.py"
    if not path.exists():
        pytest.skip("../shared is not here")
    spec = importlib.util.spec_from_file_location("make_frame", path)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def small(head: bytes, side: int = 160) -> tuple[bytes, int]:
    """Return a header whose axes are short, and the bytes of its data."""
    cards = [head[at : at + CARD] for at in range(0, len(head), CARD)]
    size, seen = 1, set[bytes]()
    for number, card in enumerate(cards):
        if re.match(rb"NAXIS\d +=", card) and card[:8] not in seen:
            length = min(side, int(card[10:30]))
            cards[number] = (card[:10] + b"%20d" % length).ljust(CARD)
            seen.add(card[:8])
            size *= length
    [bits] = re.findall(rb"BITPIX  = +(-?\d+)", head)[:1]
    return b"".join(cards), size * abs(int(bits)) // 8 if seen else 0


def frame_of(tool: ModuleType, name: str) -> bytes:
    """Return a small frame with a real header, as before the archive."""
    file = str(SHARED / "headers" / name)
    sets = [f"{key}='{value}'" for key, value in REAL[name][2].items()]
    has_koaid = any(c.startswith("KOAID ") for c in tool.read_dump(file)[1][0])
    data = b""
    # Stripping also takes raw keywords that share a name with the archive's.
    for head, _, bits, table in tool.build(file, 1.0, sets=sets, strip_koa=has_koaid):
        short, size = small(head)
        data += short + tool.data_unit(size, bits, 1.0, 1, table)
    assert len(data) % BLOCK == 0
    assert len(data) < 1_000_000
    return data


def test_no_real_header_is_left_out(tool: ModuleType) -> None:
    headers = SHARED / "headers"
    assert {str(f.relative_to(headers)) for f in headers.glob("*/*.txt")} == set(REAL)


@pytest.fixture(scope="module")
def sent(site: Site, tool: ModuleType) -> dict[str, tuple[bytes, str]]:
    """Give the frames of all real headers and their frame_ids, once they are submitted."""
    found = {}
    for name, (path, _, _) in REAL.items():
        data = frame_of(tool, name)
        site.write(path if path.startswith("/s/") else f"/s{path}", data)
        answer = site.submit(path, name.split("/")[0]).json()
        assert answer["decision"] == "accepted", (name, answer)
        found[name] = data, answer["frame_id"]
    return found


@pytest.mark.parametrize("name", REAL)
def test_real_header(site: Site, sent: dict[str, tuple[bytes, str]], name: str) -> None:
    data, frame_id = sent[name]
    frame = site.end_of(frame_id, END_SECONDS)
    check_complete(frame)
    assert frame["koaid"] == REAL[name][1]
    if given := re.search(r"KOAID\W+([\w.]+?)\.fits", (SHARED / "headers" / name).read_text()):
        assert frame["koaid"].startswith(given[1])
    raw = site.raw(frame["koaid"])
    assert sha256(raw) == sha256(data)
    assert header_size(raw) == header_size(data)
