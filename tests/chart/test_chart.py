"""What the chart renders: valid, safe, and in step with the services."""

import base64
import importlib
import json
import re
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer import testing as runner

from koa_shared.cli.__main__ import main
from koa_shared.cli.koa import Peers
from koa_shared.config import PathMap, ServiceConfig
from koa_shared.instruments import load_instruments
from koa_shared.jobs.workshop import STOP_SECONDS
from koa_shared.web import Tokens, health
from tests.chart.conftest import CHART, EXAMPLES, KUBERNETES, Object, Render, helm, named, template

SERVICES = ("monitor", "preparer", "ingestor")
POSTGRES: Object = {"database": {"existingSecret": "db", "caSecret": "db-ca"}}
SCALED: Object = {"enabled": True}
MONITORING = {key: {"enabled": True} for key in ("serviceMonitor", "prometheusRule", "dashboards")}
# What an operator may switch, each on top of the trial.
SWITCHES: dict[str, Object] = {
    "nothing": {},
    "PostgreSQL": POSTGRES,
    "scaling": POSTGRES | {
        "services": {"preparer": {"scaling": SCALED}, "ingestor": {"scaling": SCALED}},
        "monitoring": {"prometheusUrl": "http://prometheus:9090"},
    },
    "disks": {"rawData": {"volumes": [{"claim": "d", "mountPath": "/s", "subPath": "a/b"}]}},
    "canary's own disk": {
        "rawData": {"volumes": [{"claim": "d", "mountPath": "/s/sdata1"}]},
        "canary": {"claim": "canary"},
    },
    "no canary": {"canary": {"enabled": False}},
    "network": {"networkPolicy": {"enabled": True, "from": {"monitor": [{"cidr": "10.0.0.0/8"}]}}},
    "ingress": {"ingress": {"enabled": True, "host": "koa.example", "annotations": {}}},
    "monitoring": {"monitoring": MONITORING},
    "data": {
        "instruments": {"files": {"OWL.toml": 'name = "OWL"\n'}},
        "keywordTables": {"files": {"KOA_OWL_Keyword_Table.txt": "a\tb\n"}},
        "schedule": {"toml": "[[night]]\n"},
    },
    "secrets that exist": {
        "tls": {"existingSecret": "a", "trust": "PEM"}, "tokens": {"existingSecret": "b"},
        "s3": {"existingSecret": "c", "endpoint": "https://s3.example"},
        "minio": {"enabled": False}, "image": {"registry": "r.example/koa", "pullSecrets": ["p"]},
    },
    "pods": {"pods": {
        "supplementalGroups": [7], "nodeSelector": {"site": "summit"}, "topologySpread": True,
        "tolerations": [{"key": "k", "operator": "Exists"}], "priorityClassName": "high",
    }},
}  # fmt: skip
EVERY: list[tuple[str, Object]] = [(name, {}) for name in EXAMPLES] + [
    ("trial", more) for more in SWITCHES.values()
]
EVERY_ID = [*EXAMPLES, *SWITCHES]
CUSTOM = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}


def config_of(service: str) -> type[ServiceConfig]:
    found: type[ServiceConfig] = importlib.import_module(f"koa_{service}.config").Config
    return found


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


@pytest.fixture(scope="module")
def taken() -> set[str]:
    """Objects that are valid: each is looked at once, as that takes 0.1 s."""
    return set()


@pytest.mark.parametrize("example", EXAMPLES)
def test_lint(example: str) -> None:
    done = helm("lint", "--strict", CHART, "--values", EXAMPLES[example])
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("example", "values"), EVERY, ids=EVERY_ID)
def test_kubernetes_takes_it(example: str, values: Object, render: Render, taken: set[str]) -> None:
    objects = render(example, values=values)
    names = [(item["kind"], item["metadata"]["name"]) for item in objects]
    assert len(set(names)) == len(names)
    known = [item for item in objects if item["kind"] not in CUSTOM]
    assert len(known) >= 8
    for item in known:
        text = json.dumps(item | {"data": sorted(item.get("data", []))})
        if text not in taken:
            for version in KUBERNETES:
                kubernetes_validate.validate(item, version, strict=True)
        taken.add(text)


def test_the_validation_validates(render: Render) -> None:
    deployment = named(render("trial"), "Deployment")["monitor"]
    deployment["spec"]["replicas"] = "1"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, KUBERNETES[0], strict=True)


@pytest.mark.parametrize(("example", "values"), EVERY, ids=EVERY_ID)
def test_what_is_mounted_is_there(example: str, values: Object, render: Render) -> None:
    """Volumes, and objects of the release that pods name, exist."""
    objects = render(example, values=values, release="rel")
    made = {(item["kind"], item["metadata"]["name"]) for item in objects}
    for spec in pods(objects).values():
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
            folders = [mount["mountPath"] for mount in container["volumeMounts"]]
            for variable in container.get("env", []):
                value = variable.get("value", "")
                if value.startswith(("/etc/koa", "/run/koa")):
                    assert value.startswith(tuple(folders)), variable
        for volume in volumes.values():
            for kind, name in references(volume):
                assert not name.startswith("rel-") or (kind, name) in made


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


@pytest.mark.parametrize(("example", "values"), EVERY, ids=EVERY_ID)
def test_pods_are_restricted(example: str, values: Object, render: Render) -> None:
    found = pods(render(example, values=values))
    assert found
    for name, spec in found.items():
        security = spec["securityContext"]
        assert (security["runAsNonRoot"], security["runAsUser"]) == (True, 10001), name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is spec["enableServiceLinks"] is False
        kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert set(container["resources"]) == {"requests", "limits"}


# -- in step with the services ----------------------------------------------------------


def variables(spec: Object) -> dict[str, str]:
    return {v["name"]: v.get("value", "from a secret") for v in spec["containers"][0]["env"]}


def test_the_environment_is_the_settings(render: Render) -> None:
    """Every name set exists; every setting can be set."""
    full = {
        "services": {
            "monitor": {"settings": {"KOA_SOURCES": "esi"}},
            "preparer": {"settings": {"KOA_ARCHIVER": "http://a"}},
        }
    }  # fmt: skip
    spec = pods(render("trial", values=SWITCHES["data"] | POSTGRES | full))
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
        assert container["ports"] == [{"name": "https", "containerPort": port}]
        assert variables(spec[f"koa-{service}"])["KOA_PORT"] == str(port)
        assert services[service]["spec"]["ports"][0]["port"] == port


def test_a_pod_has_time_to_end(render: Render) -> None:
    """preStop, 2 s for requests, STOP_SECONDS for running work."""
    for name, spec in pods(render("summit")).items():
        if name in ("koa-monitor", "koa-preparer"):
            _, pause = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            assert spec["terminationGracePeriodSeconds"] > 2 * (int(pause) + 2 + STOP_SECONDS)


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


# -- the network ------------------------------------------------------------------------


def test_policies_are_the_arrows_of_the_flow(render: Render) -> None:
    """Design 2, and nothing else; both ends of an arrow agree."""
    objects = render("trial", values={"networkPolicy": {"enabled": True}} | POSTGRES)
    policies = named(objects, "NetworkPolicy")
    into, out = set(), set()
    for name, policy in policies.items():
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        chosen = policy["spec"]["podSelector"]["matchLabels"]
        assert chosen["app.kubernetes.io/component"] == name
        into |= {(peer, name, port) for peer, port in arrows(policy["spec"]["ingress"], "from")}
        out |= {(name, peer, port) for peer, port in arrows(policy["spec"]["egress"], "to")}
    flow = {
        ("monitor", "preparer", 8002), ("monitor", "ingestor", 8003),
        ("preparer", "ingestor", 8003), ("preparer", "minio", 9000), ("ingestor", "minio", 9000),
        ("canary", "monitor", 8001), ("canary", "ingestor", 8003),
    }  # fmt: skip
    assert into == out == flow
    ports = {name: s["spec"]["ports"][0]["port"] for name, s in named(objects, "Service").items()}
    assert ports == {peer: port for _, peer, port in flow}
    assert set(policies) == {*SERVICES, "minio", "migrate", "canary"}


def arrows(rules: list[Object], side: str) -> set[tuple[str, int]]:
    """Return (component, port) of the pods that rules name."""
    return {
        (peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"], port["port"])
        for rule in rules
        for peer in rule.get(side, [])
        if "podSelector" in peer
        for port in rule["ports"]
    }


def test_outside_is_what_the_values_say(render: Render) -> None:
    rules = {"networkPolicy": {
        "enabled": True,
        "from": {"prometheus": [{"podLabels": {"a": "b"}, "namespaceLabels": {"c": "d"}}]},
        "to": {"s3": [{"cidr": "10.1.0.0/16", "ports": [444]}], "database": [], "peers": [],
               "facts": []},
    }}  # fmt: skip
    policies = named(render("trial", values=rules), "NetworkPolicy")
    allowed = policies["preparer"]["spec"]["ingress"][0]["from"][-1]
    assert allowed == {
        "podSelector": {"matchLabels": {"a": "b"}},
        "namespaceSelector": {"matchLabels": {"c": "d"}},
    }  # fmt: skip
    egress = policies["preparer"]["spec"]["egress"]
    assert [rule for rule in egress if "ipBlock" in str(rule)] == [
        {"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"port": 444, "protocol": "TCP"}]}
    ]


# -- secrets that the chart makes -------------------------------------------------------


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


# -- values -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "typo",
    [
        {"image": {"tags": "1"}},
        {"services": {"monitor": {"settings": {"KOA_SOURCE": "esi"}}}},
        {"services": {"monitor": {"env": {"KOA_DEV": "1"}}}},
        {"services": {"archiver": {"enabled": True}}},
        {"s3": {"endpoint": "http://s3.example"}},
        {"rawData": {"volumes": [{"claim": "d", "path": "/s"}]}},
        {"networkPolicy": {"to": {"s3": [{"cidr": "0.0.0.0/0", "port": 443}]}}},
        {"pods": {"tolerations": [{"keys": "k"}]}},
    ],
    ids=str,
)
def test_a_typo_fails(typo: Object) -> None:
    done = template("trial", values=typo)
    assert done.returncode != 0
    assert "don't meet the specifications of the schema" in done.stderr


def test_the_schema_is_closed_at_every_level() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    nodes, closed = [schema], 0
    while nodes:
        node = nodes.pop()
        if node.get("type") == "object":
            free = {"type": "string"}  # of names that people choose, with texts as values
            assert node["additionalProperties"] in (False, free), node
            closed += 1
        inner = [*node.get("properties", {}).values(), *node.get("$defs", {}).values()]
        nodes += [child for child in [*inner, node.get("items")] if child]
    assert closed > 40


def test_every_value_is_documented() -> None:
    """A comment with `# --` stands over each line that gives a value."""
    lines = (CHART / "values.yaml").read_text().splitlines()
    bare, documented, at = [], 0, 0
    for line in lines:
        if line.lstrip().startswith("#") or not line.strip():
            at = at or "# --" in line
            continue
        if re.match(r" *- ", line):  # of a list that is documented
            continue
        section = re.fullmatch(r" *[\w.-]+:", line) is not None
        if not at and not section and "nginx" not in line:
            bare.append(line)
        documented += bool(at)
        at = 0
    assert bare == []
    assert documented > 100


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"minio": {"enabled": False}}, "There is no object store"),
        ({"services": {"preparer": {"enabled": False}}}, "set peers.preparerUrl"),
        ({"services": {"ingestor": {"enabled": False}}}, "set peers.ingestorUrl"),
        ({"services": {"preparer": {"scaling": SCALED}}}, "scaling needs PostgreSQL"),
        ({"ingress": {"enabled": True}}, "ingress.host is needed"),
    ],
    ids=["s3", "preparer", "ingestor", "scaling", "ingress"],
)
def test_what_can_not_work_is_said(values: Object, why: str) -> None:
    assert why in template("trial", values=values).stderr


def test_sqlite_has_one_replica_and_no_job(render: Render) -> None:
    trial = render("trial", values={"services": {"monitor": {"replicas": 3}}})
    deployment = named(trial, "Deployment")["monitor"]["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    assert [c["name"] for c in deployment["template"]["spec"]["initContainers"]] == [
        "trust",
        "migrate",
    ]
    assert named(trial, "Job") == named(trial, "PodDisruptionBudget") == {}


def test_postgresql_is_migrated_by_jobs(render: Render) -> None:
    more = {"services": {"monitor": {"replicas": 3}}, "pods": {"disruptionBudgets": True}}
    objects = render("trial", values=POSTGRES | more)
    jobs = named(objects, "Job")
    assert set(jobs) == {f"{service}-migrate" for service in SERVICES}
    for job in jobs.values():
        hooks = job["metadata"]["annotations"]["helm.sh/hook"]
        assert set(hooks.split(",")) == {"pre-install", "pre-upgrade"}
        assert references_of(job["spec"]["template"]["spec"]) == {"db-ca"}
    assert named(objects, "Deployment")["monitor"]["spec"]["replicas"] == 3
    assert set(named(objects, "PodDisruptionBudget")) == {"monitor"}


def references_of(spec: Object) -> set[str]:
    """A hook runs before the release's own objects are there: it may name none of them."""
    return {name for volume in spec["volumes"] for _, name in references(volume)}


def test_a_changed_instrument_restarts_the_pods(render: Render) -> None:
    def sum_of(values: Object) -> str:
        deployment = named(render("trial", values=values), "Deployment")["preparer"]
        text: str = deployment["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        return text

    files = {"instruments": {"files": {"OWL.toml": "a"}}}
    changed = {"instruments": {"files": {"OWL.toml": "b"}}}
    assert sum_of(files) == sum_of(files) != sum_of(changed)


def test_alerts_and_dashboards_are_those_of_the_files(render: Render, tmp_path: Path) -> None:
    chart, bare = tmp_path / "chart", tmp_path / "bare"
    for copy in (chart, bare):
        shutil.copytree(CHART, copy)
        for folder in ("alerts", "dashboards"):
            shutil.rmtree(copy / folder, ignore_errors=True)
    empty = render("trial", chart=bare, values={"monitoring": MONITORING})
    assert named(empty, "PrometheusRule") == {}
    rule = {"alert": "KoaX", "expr": "up == 0", "annotations": {"summary": '{{ $labels.job }} "q"'}}
    groups = {"groups": [{"name": "g", "interval": "30s", "rules": [rule]}]}
    for folder in ("alerts", "dashboards"):
        (chart / folder).mkdir()
    (chart / "alerts" / "flow.yaml").write_text(yaml.safe_dump(groups))
    (chart / "dashboards" / "Flow.json").write_text('{"title": "{{ instrument }}"}\n')
    full = render("trial", chart=chart, values={"monitoring": MONITORING})
    assert named(full, "PrometheusRule")["flow"]["spec"] == groups
    board = named(full, "ConfigMap")["dashboard-flow"]
    assert board["data"] == {"Flow.json": '{"title": "{{ instrument }}"}\n'}
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    (endpoint,) = named(full, "ServiceMonitor")["koa-rti"]["spec"]["endpoints"]
    assert endpoint["honorLabels"]  # else the metrics' `service` becomes `exported_service`


UNCHANGEABLE = Path(__file__).parent / "unchangeable.json"


def test_an_upgrade_changes_nothing_that_can_not_change(
    render: Render, request: pytest.FixtureRequest
) -> None:
    """Kubernetes refuses other selectors and claims than those of the version before."""
    found = {}
    for example in EXAMPLES:
        for item in render(example, flags=("--is-upgrade",)):
            name, spec = (
                f"{example} {item['kind']} {item['metadata']['name']}",
                item.get("spec", {}),
            )
            if item["kind"] == "Deployment":
                found[name] = spec["selector"]
            elif item["kind"] == "PersistentVolumeClaim":
                found[name] = spec
    assert found == json.loads(UNCHANGEABLE.read_text())


def test_packs(tmp_path: Path) -> None:
    done = helm("package", CHART, "--destination", tmp_path)
    assert done.returncode == 0, done.stderr
    done = template("trial", chart=next(tmp_path.glob("koa-rti-*.tgz")))
    assert done.returncode == 0, done.stderr
