"""Images, built and run without a container engine's daemon: buildah, podman, runc.

`make images-test` runs this as root: test_build with the network of the machine, test_play
in a network namespace of its own, where the pods' ports and names are nobody else's.
"""

import json
import os
import shutil
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
BASE = "localhost/koa-base:bookworm"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What pip of this machine reads: where packages come from is the machine's matter.
OURS = [p for p in ("/etc/pip.conf", "/etc/xdg/pip", "/etc/ssl/certs") if Path(p).exists()]
BUILD = [
    *BUILDAH, "build", f"--signature-policy={POLICY}", "--isolation=chroot", "--network=host",
    "--pull-never", "--layers", "--force-rm", *(f"--volume={path}:{path}:ro" for path in OURS),
]  # fmt: skip
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


def attempt(*command: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command, however it ends."""
    return subprocess.run(
        list(map(str, command)), input=stdin, capture_output=True, text=True, check=False,
        env=os.environ | {"CONTAINERS_CONF": str(STORE / "containers.conf")},
    )  # fmt: skip


def run(*command: str | Path, stdin: str | None = None, check: bool = True) -> str:
    """Run a command and return what it prints; its complaints show when it fails."""
    done = attempt(*command, stdin=stdin)
    if check and done.returncode:
        pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout + ("" if check else done.stderr)


def bootstrap() -> str:
    """Return a base: the one given, or a small Debian with Python, made once."""
    if given := os.environ.get("BASE"):
        return given
    if attempt(*BUILDAH, "inspect", "--type=image", BASE).returncode:
        root, tar, made = STORE / "bookworm", STORE / "base.tar", "koa-base-working"
        # One that was interrupted is no base.
        shutil.rmtree(root, ignore_errors=True)
        packages = "--include=python3,ca-certificates"
        needed("debootstrap", "--variant=minbase", packages, "bookworm", root)
        run("sh", "-c", f"rm -f {root}/var/cache/apt/archives/*.deb {root}/var/lib/apt/lists/*_*")
        run("tar", "-C", root, "-cf", tar, ".")
        attempt(*BUILDAH, "rm", made)
        needed(*BUILDAH, "from", f"--name={made}", "scratch")
        needed(*BUILDAH, "add", "--quiet", made, tar, "/")
        run(*BUILDAH, "config", "--env", f"PATH={PATH}", made)
        needed(*BUILDAH, "commit", "--quiet", f"--signature-policy={POLICY}", "--rm", made, BASE)
        tar.unlink()
        shutil.rmtree(root)
    return BASE


def build_images(base: str) -> None:
    """Build the three images on a base, as `make images` does."""
    needed(*PODMAN, "run", "--rm", "--network=none", base, "true")
    run(
        "make", "-C", ROOT, "images", f"BASE={base}", f"BUILD={' '.join(BUILD)}",
        "REGISTRY=localhost", f"TAG={TAG}",
    )  # fmt: skip


def image(service: str) -> dict[str, Any]:
    """Return what an image says about itself."""
    found: list[dict[str, Any]] = json.loads(
        run(*PODMAN, "image", "inspect", f"localhost/koa-{service}:{TAG}")
    )
    return found[0]


def needed(*command: str | Path) -> None:
    """Run what asks nothing of ours: where it fails, the machine can't, and all is skipped."""
    done = attempt(*command)
    if done.returncode:
        told = (done.stderr or done.stdout).strip()[-600:]
        pytest.skip(
            f"this machine can't build or run images: {' '.join(map(str, command))}: {told}"
        )


@pytest.fixture(scope="session", autouse=True)
def store() -> Path:
    """The directory of layers, with its settings."""
    if os.geteuid() != 0:
        pytest.skip("images need root here: chroot, mounts, a network namespace")
    STORE.mkdir(parents=True, exist_ok=True)
    POLICY.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    (STORE / "containers.conf").write_text(CONTAINERS_CONF)
    HOSTS.write_text("127.0.0.1 localhost koa-monitor koa-preparer koa-ingestor\n")
    return STORE
