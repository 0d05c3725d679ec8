"""The shipped instruments, and what stops a service at start (design 7)."""

from pathlib import Path

import pytest

from koa_shared.instruments import Instrument, InstrumentError, compute, load_instruments

# facts 1.1: monitor name, service, keyword, heartbeat keyword and seconds
SOURCES = {
    "koa": ("KCWI", "koa", "LOUTFILE", "DISPCLK", 1),
    "kpf": ("KPF", "kpfassemble", "LOUTFILE", "DISP1CLK", 5),
    "kcwi_fcs": ("KCWI", "kfcs", "LASTFILE", "ITERATION", 30),
    "kcwi_svs": ("KCWI", "ksvs", "LASTFILE", "ITERATION", 30),
    "kcwi_blue": ("KCWI", "kbds", "LOUTFILE", "ITERATION", 1),
    "kcwi_red": ("KCWI", "krds", "LOUTFILE", "ITERATION", 1),
    "nires_img": ("NIRES", "nids", "LASTFILE", "ITERATION", 600),
    "nires_spec": ("NIRES", "nsds", "LASTFILE", "ITERATION", 600),
    "deimos_spec": ("DEIMOS", "deimosplus", "LASTCCD", "UPTIME", 1),
    "deimos_fcs": ("DEIMOS", "deifcs", "FCSIMGFI", None, 0),
    "esi": ("ESI", "esi", "WDISK", None, 0),
    "hires": ("HIRES", "hiccd", "WDISK", "INFOMCLK", 1),
    "lris_red": ("LRIS", "lredccd", "LOUTFILE", "UPTIME", 1),
    "lris_blue": ("LRIS", "lrisplus", "BLUE_LASTFILE", "UPTIME", 1),
    "mosfire": ("MOSFIRE", "mosfire", "LASTFILE", "ITERATION", 1),
    "nirc2": ("NIRC2", "alad", "FITSFILE", "DISP1CLK", 1),
    "nirc2_unp": ("NIRC2", "alad", "RAWFITSFILE", "DISP1CLK", 1),
    "nirspec_spec": ("NIRSPEC", "nspec", "LASTFILE", "UPTIME", 1),
    "nirspec_scam": ("NIRSPEC", "nscam", "LASTFILE", "DISP1CLK", 1),
    "osiris_spec": ("OSIRIS", "osiris", "SLASTFILE", "ITERATION", 1),
    "osiris_img": ("OSIRIS", "osiris", "ILASTFILE", "ITERATION", 1),
    "guiderk1": ("GUIDER", "koa", "K1GUIDERFILE", "DISPCLK", 5),
    "guiderk2": ("GUIDER", "koa", "K2GUIDERFILE", "DISPCLK", 5),
}
PREFIXES = [
    *("DE", "DF", "ES", "GR", "HI", "KB", "KF", "KR", "KS", "KP", "LB", "LR"),
    *("MF", "N2", "NI", "NR", "NC", "NS", "OI", "OS"),
]


@pytest.fixture(scope="module")
def shipped() -> dict[str, Instrument]:
    return load_instruments()


def test_sources(shipped: dict[str, Instrument]) -> None:  # facts 1.1
    found = {
        source.name: (
            instrument.name,
            source.service,
            source.keyword,
            source.heartbeat.keyword if source.heartbeat else None,
            source.heartbeat.seconds if source.heartbeat else 0,
        )
        for instrument in shipped.values()
        for source in instrument.sources
    }
    assert found == SOURCES
    sources = [s for i in shipped.values() for s in i.sources]
    assert [s.name for s in sources if s.test] == ["koa"]
    assert {s.name for s in sources if s.required} == {"esi", "hires"}


def test_path_is_built_of_keywords(shipped: dict[str, Instrument]) -> None:
    (esi,) = shipped["ESI"].sources
    assert esi.required == "false"
    assert esi.path_keywords == ("OUTDIR", "OUTFILE", "LFRAMENO")
    read = {"OUTDIR": "/s/sdata703/esi9/2023feb15", "OUTFILE": "e", "LFRAMENO": "7"}
    assert esi.build_path("false", read) == "/s/sdata703/esi9/2023feb15/e0007.fits"


def test_telescopes_and_prefixes(shipped: dict[str, Instrument]) -> None:  # facts 2.1
    by_telescope: dict[int | None, set[str]] = {}
    for instrument in shipped.values():
        by_telescope.setdefault(instrument.telescope, set()).add(instrument.name)
    assert by_telescope == {
        1: {"HIRES", "KPF", "LRIS", "MOSFIRE", "OSIRIS", "CANARY"},
        2: {"DEIMOS", "ESI", "KCWI", "NIRC2", "NIRES", "NIRSPEC"},
        None: {"GUIDER"},
    }
    found = {p.prefix for i in shipped.values() for p in i.naming.prefixes}
    assert found == {*PREFIXES, "ZZ"}  # the canary's


def test_roots(shipped: dict[str, Instrument]) -> None:  # facts 2.4
    assert "/s/sdata705" not in shipped["ESI"].roots
    assert "/s/sdata907" in shipped["NIRC2"].roots  # a real frame of 2025 is there
    roots = [root for i in shipped.values() for root in i.roots]
    assert len(roots) == len(set(roots))
    assert all(root.startswith("/s/sdata") for root in roots)


def test_a_directory_adds_and_replaces(tmp_path: Path) -> None:
    (tmp_path / "KCWI.toml").write_text('name = "KCWI"\nroots = ["/s/other"]\n')
    (tmp_path / "NEW.toml").write_text('name = "NEW"\nroots = []\n')
    found = load_instruments(tmp_path)
    assert found["KCWI"].roots == ("/s/other",)
    assert found["KCWI"].sources == ()
    assert set(found) == {*load_instruments(), "NEW"}


def test_what_a_file_leaves_out_is_as_usual(tmp_path: Path) -> None:
    text = '[choose]\nUT = [{ value = "x" }]\n[paths]\nreject = []\n'
    (tmp_path / "NEW.toml").write_text(f'name = "NEW"\nroots = []\n{text}')
    new, usual = load_instruments(tmp_path)["NEW"], load_instruments()["HIRES"]
    assert [case.value for case in new.choices["UT"]] == ["x"]
    assert new.choices["FRAMENO"] == usual.choices["FRAMENO"]
    assert (new.paths.reject, new.paths.ignore) == ((), usual.paths.ignore)
    assert new.programs == usual.programs.model_copy(update={"target_info": ({},)})


HEAD = 'name = "NEW"\nroots = []\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name = ", "NEW.toml"),
        ('name = "OTHER"\nroots = []', "name is 'OTHER'"),
        (HEAD + "colour = 1", "colour"),
        (HEAD + '[naming]\nprefixes = [{ prefix = "N2" }]', "'N2' belongs to"),
        (HEAD + '[naming]\nprefixes = [{ prefix = "toolong" }]', "prefix"),
        (
            HEAD + '[[source]]\nname = "kpf"\nservice = "a"\nkeyword = "B"',
            "'kpf' belongs to",
        ),
        (HEAD + 'rules = [{ rule = "ut", when = { "@no" = true } }]', "@no"),
        (HEAD + '[flags]\na = [{ "@b" = true }]\nb = [{ X = 1 }]', "@b"),
        (HEAD + '[choose]\nX = [{ copy = "Y", match = "(" }]', "match"),
        (HEAD + '[choose]\nX = [{ expr = "2 * Y ** 3" }]', "'2 * Y ** 3' can't be computed"),
        (HEAD + '[choose]\nX = [{ expr = "open(1)" }]', "'open(1)' can't be computed"),
        (HEAD + '[choose]\nX = [{ expr = "Y +" }]', "'Y +' can't be computed"),
        (HEAD + '[flags]\na = [{ "min(X)" = { min = 1 } }]', "'min(X)' can't be computed"),
        (HEAD + "[choose]\nX = [{ when = { Y = 1 } }]", "either `value`, `copy`, `expr` or `text`"),
        (HEAD + 'wave_unit = "inch"', "wave_unit"),
        (HEAD + '[paths]\nignore = ["("]', "paths.ignore.0"),
        (HEAD + '[naming]\nofname = ["{A"]', "'{A' can't be filled"),
        (HEAD + '[naming]\nofname = ["{A:d}"]', "'{A:d}' can't be filled"),
        (HEAD + '[naming]\nofname = ["{A.b}{}"]', "can't be filled"),
        (HEAD + "[choose]\nTOOLONGKEY = [{ value = 1 }]", "choose.TOOLONGKEY"),
        (HEAD + "[tables.a.b]\nX = [1]", "tables.a.b.X"),
        (HEAD + "[tables.a.b]\nMixed = 1", "tables.a.b.Mixed"),
        (HEAD + '[flags]\na = [{ X = 1 }]\nb = [{ "@a" = "on" }]', "'@a' is asked for as 'on'"),
        (HEAD + '[flags]\na = [{ "" = true }]', "'' is asked for"),
        (HEAD + "[programs]\ntarget_info = 3", "target_info"),
    ],
)
def test_wrong_file_stops_the_start(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "NEW.toml").write_text(text)
    with pytest.raises(InstrumentError) as raised:
        load_instruments(tmp_path)
    assert "NEW" in str(raised.value)
    assert says in str(raised.value)


def test_a_directory_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(InstrumentError, match="no directory"):
        load_instruments(tmp_path / "gone")


def test_each_mistake_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "NEW.toml").write_text('name = "NEW"\nroots = 1\nmin_hdus = "many"\n')
    with pytest.raises(InstrumentError) as raised:
        load_instruments(tmp_path)
    head, *lines = str(raised.value).splitlines()
    assert head == f"{tmp_path}/NEW.toml:"
    assert [line.split(":")[0] for line in lines] == ["  roots", "  min_hdus"]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("A", 7.0),
        ("-A + 2 * (B - 1.5) / 5 % 3", -6.8),
        ("round(100 / A, 2)", 14.29),
        ("ceil(B / 100) + floor(A / 2) + abs(-1)", 5),
        ("A * MISSING", None),
        ("round(MISSING)", None),
        ("A / (B - 2)", None),
        ("HUGE * HUGE", None),
        ("round(HUGE) * round(HUGE)", None),
    ],
)
def test_compute(expression: str, value: float | None) -> None:
    found = compute(expression, {"A": 7.0, "B": 2.0, "HUGE": 1e308}.get)
    assert found == (value if value is None else pytest.approx(value))
