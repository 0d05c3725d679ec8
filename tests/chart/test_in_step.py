"""Chart and services agree: settings, probes, ports, canaries, secrets."""

import base64
import importlib
import json
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer import testing as runner

from koa_shared.cli.__main__ import main
from koa_shared.config import PathMap, Peers, ServiceConfig
from koa_shared.instruments import load_instruments
from koa_shared.jobs.workshop import STOP_SECONDS
from koa_shared.web import Tokens, health
from tests.chart.conftest import (
    CHART,
    DATA,
    POSTGRES,
    SERVICES,
    Object,
    Render,
    named,
    pods,
    variables,
)


def config_of(service: str) -> type[ServiceConfig]:
    found: type[ServiceConfig] = importlib.import_module(f"koa_{service}.config").Config
    return found


def test_the_environment_is_the_settings(render: Render) -> None:
    """Every name set exists; every setting can be set."""
    full = {
        "services": {
            "monitor": {"settings": {"KOA_SOURCES": "esi"}},
            "preparer": {"settings": {"KOA_ARCHIVER": "http://a"}},
        },
        "monitoring": {"otlpEndpoint": "http://collector:4318"},
    }  # fmt: skip
    spec = pods(render("trial", values=DATA | POSTGRES | full))
    # Of loopback only; keys come as files.
    never = {"KOA_DEV", "KOA_S3_ACCESS_KEY", "KOA_S3_SECRET_KEY"}
    for service in SERVICES:
        fields = {f"KOA_{field}".upper() for field in config_of(service).model_fields} - never
        needless = {"KOA_TOKEN_FILE", "KOA_INSTRUMENTS_DIR"} if service == "ingestor" else set()
        assert set(variables(spec[f"koa-{service}"])) == fields - needless


def test_defaults_are_those_of_the_services() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())["services"]
    for service in SERVICES:
        fields = config_of(service).model_fields
        for name, value in values[service]["settings"].items():
            default: Any = fields[name.removeprefix("KOA_").lower()].default
            if name not in ("KOA_HOST", "KOA_ARCHIVER"):
                assert value == default, name
        assert values[service]["port"] == fields["port"].default


@pytest.mark.parametrize("service", SERVICES)
def test_the_service_reads_its_environment(
    service: str, render: Render, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The values are what the settings take, down to the last digit."""
    spec = pods(
        render("summit", "archive", values={"services": {s: {"enabled": True} for s in SERVICES}})
    )
    for key in ("ACCESS", "SECRET"):
        (tmp_path / key).write_text(key)
    for name, value in variables(spec[f"koa-{service}"]).items():
        files = {f"KOA_S3_{key}_KEY_FILE": str(tmp_path / key) for key in ("ACCESS", "SECRET")}
        monkeypatch.setenv(name, files.get(name, value))
    config = config_of(service)()
    assert config.host == "0.0.0.0"
    if service == "preparer":
        assert config.model_dump()["bytes_in_flight"] == 256 << 20
        assert config.model_dump()["archiver"].startswith("http://k{tel}dataserver:")


def test_probes_and_ports(render: Render) -> None:
    served = {getattr(route, "path", "") for route in health.routes}
    objects = render("trial")
    services, spec = named(objects, "Service"), pods(objects)
    for service in SERVICES:
        (container,) = spec[f"koa-{service}"]["containers"]
        probes = [
            container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")
        ]
        assert [probe["path"] for probe in probes] == ["/livez", "/livez", "/readyz"]
        assert {probe["path"] for probe in probes} | {"/metrics"} <= served
        assert {(probe["scheme"], probe["port"]) for probe in probes} == {("HTTPS", "https")}
        port = config_of(service).model_fields["port"].default
        assert container["ports"] == [{"name": "https", "containerPort": port, "protocol": "TCP"}]
        assert variables(spec[f"koa-{service}"])["KOA_PORT"] == str(port)
        assert services[service]["spec"]["ports"][0]["port"] == port


def test_a_pod_has_time_to_end(render: Render) -> None:
    """preStop, 2 s for requests, STOP_SECONDS for running work."""
    for name, spec in pods(render("summit")).items():
        if name in ("koa-monitor", "koa-preparer"):
            _, pause = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            assert spec["terminationGracePeriodSeconds"] > 2 * (int(pause) + 2 + STOP_SECONDS)


def test_the_example_hears_instruments_whose_disks_it_mounts(render: Render) -> None:
    spec, known = pods(render("summit"))["koa-monitor"], load_instruments(None).values()
    homes = {source.name: instrument.roots for instrument in known for source in instrument.sources}
    mounts = [mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]]
    for source in variables(spec)["KOA_SOURCES"].split(","):
        for root in homes[source]:
            assert any(Path(root).is_relative_to(mount) for mount in mounts), (source, root)


def test_nobody_writes_to_the_instruments_disks(render: Render) -> None:
    for example in ("trial", "summit"):
        for name, spec in pods(render(example)).items():
            raw = {v["name"]: v for v in spec["volumes"] if v["name"].startswith("raw")}
            assert bool(raw) == (name in ("koa-monitor", "koa-preparer"))
            mounts = [m for m in spec["containers"][0]["volumeMounts"] if m["name"] in raw]
            assert len(mounts) == len(raw)
            assert all(mount["readOnly"] for mount in mounts)
            assert all(v["persistentVolumeClaim"]["readOnly"] for v in raw.values())


def test_the_canary_is_written_where_it_is_read(render: Render) -> None:
    more = {"services": {"preparer": {"settings": {"KOA_PATH_MAP": "/s=/mnt/s"}}}}
    found = pods(render("trial", values=more))
    root = load_instruments(None)["CANARY"].roots[0]
    for name, s, read_only in (("koa-monitor", "/s", False), ("koa-preparer", "/mnt/s", True)):
        (volume,) = (v for v in found[name]["volumes"] if v["name"] == "canary")
        assert volume["persistentVolumeClaim"] == {"claimName": "koa-canary"}
        mounts = found[name]["containers"][0]["volumeMounts"]
        assert {"name": "canary", "mountPath": "/canary", "readOnly": read_only} in mounts
        paths = PathMap(variables(found[name])["KOA_PATH_MAP"])
        assert paths.local(f"{root}/x.fits") == "/canary/x.fits"
        assert paths.local("/s/sdata700/x.fits") == f"{s}/sdata700/x.fits"
    off = pods(render("trial", values={"canary": {"enabled": False}}))
    assert "canary" not in json.dumps(off)
    assert variables(off["koa-monitor"])["KOA_CANARY_SECONDS"] == "0"


def test_the_test_is_the_command_line(render: Render) -> None:
    (container,) = pods(render("summit"))["koa-canary"]["containers"]
    names = {variable["name"] for variable in container["env"]}
    assert names == {f"KOA_{field}".upper() for field in Peers.model_fields}
    asked = runner.CliRunner().invoke(main, [*container["command"][1:], "--help"])
    assert (container["command"][0], asked.exit_code) == ("koa", 0)


def made(objects: list[Object], name: str) -> dict[str, str]:
    """Return a secret's content in clear."""
    data = named(objects, "Secret")[name]["data"]
    return {key: base64.b64decode(text).decode() for key, text in data.items()}


def test_the_certificate_is_for_every_name(render: Render, tmp_path: Path) -> None:
    for key, text in made(render("trial"), "tls").items():
        (tmp_path / key).write_text(text)
    for service in (*SERVICES, "minio"):
        for name in (f"koa-{service}", f"koa-{service}.koa.svc", "localhost"):
            subprocess.run(
                ["openssl", "verify", "-CAfile", "ca.crt", "-verify_hostname", name, "tls.crt"],
                cwd=tmp_path, check=True, capture_output=True,
            )  # fmt: skip
    ssl.create_default_context(cafile=tmp_path / "ca.crt").load_cert_chain(
        tmp_path / "tls.crt", tmp_path / "tls.key"
    )


def test_the_tokens_are_those_the_services_accept(render: Render, tmp_path: Path) -> None:
    tokens = made(render("trial"), "tokens")
    (tmp_path / "tokens.toml").write_text(tokens.pop("tokens.toml"))
    accepted = Tokens(tmp_path / "tokens.toml", dev=False)
    for role, token in tokens.items():
        assert accepted.find(f"Bearer {token}", "10.0.0.1").role == role
    assert set(tokens) == {"producer", "operator", "observer"}
