"""Names of settings: what is written exists, what exists is written (style 4.2)."""

import importlib
import re
from pathlib import Path

from pydantic_settings import BaseSettings

from koa_shared.config import Peers

ROOT = Path(__file__).parents[2]
MANUAL = ROOT / "docs" / "operations.md"
WRITTEN = ("README.md", "Makefile", "Containerfile", "docs", "helm")


def settings(service: str) -> set[str]:
    """Return the environment variables that a service reads."""
    config: type[BaseSettings] = importlib.import_module(f"koa_{service}.config").Config
    prefix = config.model_config["env_prefix"]
    return {f"{prefix}{field}".upper() for field in config.model_fields}


def names_in(path: Path) -> set[str]:
    text = path.read_bytes().decode("utf-8", "replace")
    return set(re.findall(r"\bKOA_[A-Z0-9]+(?:_[A-Z0-9]+)*\b", text))


def test_every_name_written_is_a_setting() -> None:
    known = {"KOA_FAULT"}  # of tests alone, never read as a setting (koa_shared.faults)
    known |= {"KOA_SCREENSHOTS"}  # of tests/browser
    known |= {"KOA_TOKEN"}  # of the script that the night page makes
    simulator = ROOT / "shared/koa_shared/simulator/__main__.py"
    known |= {name for name in names_in(simulator) if name.startswith("KOA_SIM_")}
    known |= settings("monitor") | settings("preparer") | settings("ingestor")
    known |= {f"KOA_{field}".upper() for field in Peers.model_fields}  # of the command line
    tops = [ROOT / top for top in WRITTEN]
    files = [f for top in tops for f in (top, *top.rglob("*")) if f.is_file()]
    unknown = {str(f.relative_to(ROOT)): names_in(f) - known for f in files}
    assert {f: names for f, names in unknown.items() if names} == {}


def test_the_manual_has_every_setting() -> None:
    written = names_in(MANUAL)
    for service in ("monitor", "preparer", "ingestor"):
        assert settings(service) - written == set(), service


def test_every_setting_has_a_title() -> None:
    for service in ("monitor", "preparer", "ingestor"):
        config = importlib.import_module(f"koa_{service}.config").Config
        assert [n for n, f in config.model_fields.items() if not f.title] == []
