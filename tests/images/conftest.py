"""Images, built and run without a container engine's daemon: buildah, podman, runc.

`make images-test` runs this as root: test_build with the network of the machine, test_play
in a network namespace of its own, where the pods' ports and names are nobody else's.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SERVICES = ("monitor", "preparer", "ingestor")
TAG = "test"
# Layers and the base are kept from run to run.
STORE = Path(os.environ.get("IMAGES_STORE") or Path.home() / ".cache" / "koa-images")
STORAGE = [f"--root={STORE}/storage", f"--runroot={STORE}/run", "--storage-driver=overlay"]
BUILDAH = ["buildah", *STORAGE]
PODMAN = ["podman", *STORAGE, f"--tmpdir={STORE}/tmp"]
POLICY = STORE / "policy.json"
HOSTS = STORE / "hosts"
# runc, as crun needs more rights and control groups than a container in CI has.
CONTAINERS_CONF = f"""
[containers]
default_ulimits = []
base_hosts_file = "{HOSTS}"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[engine.runtimes]
runc = ["/usr/sbin/runc", "/usr/bin/runc"]
"""


def run(*command: str | Path, stdin: str | None = None, check: bool = True) -> str:
    """Run a command and return what it prints; its complaints show when it fails."""
    done = subprocess.run(
        list(map(str, command)), input=stdin, capture_output=True, text=True, check=False,
        env=os.environ | {"CONTAINERS_CONF": str(STORE / "containers.conf")},
    )  # fmt: skip
    if check and done.returncode:
        pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout + ("" if check else done.stderr)


def image(service: str) -> dict[str, Any]:
    """Return what an image says about itself."""
    found: list[dict[str, Any]] = json.loads(
        run(*PODMAN, "image", "inspect", f"localhost/koa-{service}:{TAG}")
    )
    return found[0]


@pytest.fixture(scope="session", autouse=True)
def store() -> Path:
    """The directory of layers, with its settings."""
    if os.geteuid() != 0:
        pytest.fail("needs root: chroot, mounts, a network namespace")
    STORE.mkdir(parents=True, exist_ok=True)
    POLICY.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    (STORE / "containers.conf").write_text(CONTAINERS_CONF)
    HOSTS.write_text("127.0.0.1 localhost koa-monitor koa-preparer koa-ingestor\n")
    return STORE
