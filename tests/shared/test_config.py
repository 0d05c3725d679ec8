"""Settings: path maps, what is refused, secrets from files (design 8, 10)."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from koa_ingestor.config import Config as IngestorConfig
from koa_monitor.config import Config as MonitorConfig
from koa_preparer.config import Config as PreparerConfig
from koa_shared.config import PathMap, S3Config, ServiceConfig, is_loopback, peer_url


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("KOA_")]:
        monkeypatch.delenv(name)


def test_the_longest_prefix_wins() -> None:
    for text in (
        "/s=/mnt/a,/s/sdata1400=/mnt/b",
        "/s/sdata1400=/mnt/b,/s=/mnt/a",
        " /s=/mnt/a , /s/sdata1400=/mnt/b ,",
    ):
        found = PathMap(text)
        assert found.local("/s/sdata1400/x.fits") == "/mnt/b/x.fits"
        assert found.local("/s/sdata900/x.fits") == "/mnt/a/sdata900/x.fits"
        assert found.local("/t/x.fits") == "/t/x.fits"
        assert sorted(found.targets) == ["/mnt/a", "/mnt/b"]


def test_the_whole_tree_may_lie_elsewhere() -> None:
    found = PathMap("/=/mnt/summit/")
    assert found.local("/s/sdata1400/x.fits") == "/mnt/summit/s/sdata1400/x.fits"
    assert found.announced("/mnt/summit/s/sdata1400/x.fits") == "/s/sdata1400/x.fits"


@pytest.mark.parametrize("text", ["/a=/b", "/=/b/", "", "/s=/m/s,/s/sdata1=/n", "/a=/a"])
@given(rest=st.from_regex(r"(/[a-z0-9.]{1,6}){1,3}", fullmatch=True))
def test_there_and_back(text: str, rest: str) -> None:
    found = PathMap(text)
    for path in (f"/z{rest}", f"/a{rest}", f"/s/sdata1{rest}", f"/s/sdata2{rest}"):
        assert found.announced(found.local(path)) == path


def test_a_prefix_is_whole_directories() -> None:
    found = PathMap("/s/sdata1=/mnt/one")
    assert found.local("/s/sdata1/x") == "/mnt/one/x"
    assert found.local("/s/sdata1400/x") == "/s/sdata1400/x"


@pytest.mark.parametrize("text", ["/a", "a=/b", "=/b", "/a=/b,nonsense"])
def test_what_is_no_path_map_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a path map"):
        PathMap(text)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_dev_listens_on_this_machine(host: str) -> None:
    assert is_loopback(host)
    assert MonitorConfig(dev=True, host=host).dev


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "summit.example", ""])
def test_dev_listens_nowhere_else(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ValidationError, match="loopback"):
        MonitorConfig(dev=True, host=host)


@pytest.mark.parametrize("config", [MonitorConfig, PreparerConfig, IngestorConfig])
def test_without_tokens_no_service_starts(config: type[ServiceConfig], tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="KOA_TOKENS_FILE"):
        config()
    assert not config(tokens_file=tmp_path / "tokens").dev
    assert config(dev=True).tokens_file is None


@pytest.mark.parametrize(
    "url",
    [
        "http://archive.example:8003", "http://10.0.0.3:8003", "ftp://127.0.0.1", "127.0.0.1:8003",
        "http://", "", "http://localhost.example/",
    ],
)  # fmt: skip
def test_other_hosts_are_reached_by_https_only(url: str) -> None:
    with pytest.raises(ValueError, match=r"https only|not an http"):
        peer_url(url)
    if url:
        with pytest.raises(ValidationError):
            MonitorConfig(dev=True, preparer_url=url)
        with pytest.raises(ValidationError):
            S3Config(s3_endpoint=url)


@pytest.mark.parametrize(
    "url", ["https://archive.example:8003/", "http://127.0.0.1:8003", "http://[::1]:8003"]
)
def test_good_urls(url: str) -> None:
    assert peer_url(url) == url.rstrip("/")


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KOA_DEV", "1")
    monkeypatch.setenv("KOA_PORT", "9001")
    monkeypatch.setenv("KOA_SOURCES", "kcwi_blue,esi")
    monkeypatch.setenv("KOA_MISSING_SECONDS", "7.5")
    monkeypatch.setenv("KOA_HOST", "")  # empty is not given
    config = MonitorConfig()
    assert (config.dev, config.port, config.sources) == (True, 9001, "kcwi_blue,esi")
    assert (config.missing_seconds, config.host) == (7.5, "127.0.0.1")
    with pytest.raises(ValidationError, match="frozen"):
        config.port = 1  # type: ignore[misc]


def test_the_defaults_of_design_8(tmp_path: Path) -> None:
    configs = [MonitorConfig(dev=True), PreparerConfig(dev=True), IngestorConfig(dev=True)]
    assert [config.port for config in configs] == [8001, 8002, 8003]
    assert configs[0].database("monitor") == f"sqlite:///{Path('var').resolve()}/monitor.db"
    assert PreparerConfig(dev=True).bytes_in_flight == 256 << 20
    assert MonitorConfig(dev=True).missing_seconds == 120
    there = MonitorConfig(dev=True, database_url="postgresql://koa@db/koa")
    assert there.database("monitor") == "postgresql+psycopg://koa@db/koa"


@pytest.fixture(params=["environment", "arguments"])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make an S3Config from values given in either way."""

    def from_environment(**values: Any) -> S3Config:
        for name, value in values.items():
            monkeypatch.setenv(f"KOA_{name.upper()}", str(value))
        return S3Config()

    return from_environment if request.param == "environment" else S3Config


def test_secrets_come_from_files(make: Any, tmp_path: Path) -> None:
    access, secret = tmp_path / "access", tmp_path / "secret"
    access.write_text("who\n")
    secret.write_text("hush\n")
    config = make(s3_access_key_file=access, s3_secret_key_file=secret)
    assert config.s3_access_key.get_secret_value() == "who"
    assert config.s3_secret_key.get_secret_value() == "hush"
    assert "hush" not in repr(config)
    assert "hush" not in str(config.model_dump())


def test_a_secret_given_as_it_is(make: Any) -> None:
    assert make(s3_secret_key="hush").s3_secret_key.get_secret_value() == "hush"


def test_the_token_to_present_is_read_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(" secret\n")
    assert MonitorConfig(dev=True, token_file=file).token() == "secret"
    assert MonitorConfig(dev=True).token() is None
