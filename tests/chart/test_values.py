"""A mistyped value fails, every value is documented, what is switched comes."""

import json
import re

import pytest

from tests.chart.conftest import (
    CHART,
    POSTGRES,
    SCALED,
    SERVICES,
    Object,
    Render,
    named,
    references,
    template,
)


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
