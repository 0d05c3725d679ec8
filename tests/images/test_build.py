"""`make images` builds what the Containerfile says, on a base that is an argument."""

import pytest

from tests.images.conftest import PODMAN, ROOT, SERVICES, TAG, bootstrap, build_images, image, run


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    build_images(bootstrap())


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
