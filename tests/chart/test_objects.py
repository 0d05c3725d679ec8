"""What the chart renders is valid, safe and whole."""

import json
import shutil
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.chart.conftest import (
    CHART,
    DATA,
    EXAMPLES,
    KUBERNETES,
    MONITORING,
    POSTGRES,
    SCALED,
    Object,
    Render,
    helm,
    named,
    pods,
    references,
    template,
)

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
    "data": DATA,
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
    for name in ("flow", "monitor", "ingestor"):
        (chart / "alerts" / f"{name}.yaml").write_text(yaml.safe_dump(groups))
    (chart / "dashboards" / "Flow.json").write_text('{"title": "{{ instrument }}"}\n')
    full = render("trial", chart=chart, values={"monitoring": MONITORING})
    assert named(full, "PrometheusRule")["flow"]["spec"] == groups
    summit = named(render("summit", chart=chart), "PrometheusRule")
    assert set(summit) == {"flow", "monitor"}  # it never had an ingestor
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
