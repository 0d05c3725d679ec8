"""`make images` builds what the Containerfile says, on a base that is an argument."""

import os
from pathlib import Path

import pytest

from tests.images.conftest import BUILDAH, PODMAN, POLICY, ROOT, SERVICES, STORE, TAG, image, run

BASE = "localhost/koa-base:bookworm"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What pip of this machine reads: where packages come from is the machine's matter.
OURS = [p for p in ("/etc/pip.conf", "/etc/xdg/pip", "/etc/ssl/certs") if Path(p).exists()]


def bootstrap() -> str:
    """Return a base: the one given, or a small Debian with Python, made once."""
    if given := os.environ.get("BASE"):
        return given
    if BASE not in run(*BUILDAH, "images", "--format", "{{.Name}}:{{.Tag}}"):
        root = STORE / "bookworm"
        if not (root / "usr" / "bin" / "python3").exists():
            packages = "--include=python3,ca-certificates"
            run("debootstrap", "--variant=minbase", packages, "bookworm", root)
        made = run(*BUILDAH, "from", "scratch").strip()
        run("sh", "-c", f"rm -f {root}/var/cache/apt/archives/*.deb {root}/var/lib/apt/lists/*_*")
        run("tar", "-C", root, "-cf", STORE / "base.tar", ".")
        run(*BUILDAH, "add", "--quiet", made, STORE / "base.tar", "/")
        run(*BUILDAH, "config", "--env", f"PATH={PATH}", made)
        run(*BUILDAH, "commit", "--quiet", f"--signature-policy={POLICY}", made, BASE)
        run(*BUILDAH, "rm", made)
        (STORE / "base.tar").unlink()
    return BASE


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    chroot = ["--isolation=chroot", "--network=host", "--pull-never", "--layers"]
    mounts = [f"--volume={path}:{path}:ro" for path in OURS]
    command = [*BUILDAH, "build", f"--signature-policy={POLICY}", *chroot, *mounts]
    run(
        "make", "-C", ROOT, "images", f"BASE={bootstrap()}", f"BUILD={' '.join(command)}",
        "REGISTRY=localhost", f"TAG={TAG}",
    )  # fmt: skip


@pytest.mark.parametrize("service", SERVICES)
def test_it_says_what_it_is(service: str) -> None:
    said = image(service)
    labels = {key.removeprefix("org.opencontainers.image."): v for key, v in said["Labels"].items()}
    assert labels["title"] == f"koa-{service}"
    assert {"description", "licenses", "vendor", "version", "revision"} <= set(labels)
    assert said["Config"]["User"] == "10001:10001"
    assert said["Config"]["Entrypoint"] == [f"koa-{service}"]
    print(f"koa-{service}: {said['Size'] / 1e6:.0f} MB with its base")


@pytest.mark.parametrize("service", SERVICES)
def test_it_holds_no_build_tools(service: str) -> None:
    look = "command -v pip pip3 gcc cc make uv; python -c 'import pip'; ls /wheel /build /src"
    plain = ["run", "--rm", "--network=none", "--entrypoint", "sh"]
    told = run(*PODMAN, *plain, f"localhost/koa-{service}:{TAG}", "-c", look, check=False)
    assert "No module named 'pip'" in told
    assert told.count("No such file or directory") == 3
    assert "/bin/" not in told.replace("/opt/koa/bin/python", "")


@pytest.mark.parametrize("service", SERVICES)
def test_it_holds_its_own_lock_and_no_more(service: str) -> None:
    code = "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"
    plain = ["run", "--rm", "--network=none", "--entrypoint", "python"]
    told = run(*PODMAN, *plain, f"localhost/koa-{service}:{TAG}", "-c", code)
    lock = (ROOT / "requirements" / f"{service}.lock").read_text().splitlines()
    wanted = {line.split("==")[0] for line in lock if "==" in line} | {"koa-rti"}
    assert {name.lower().replace("_", "-") for name in told.split()} == wanted
