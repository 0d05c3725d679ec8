"""The policies draw the flow's arrows, and nothing else."""

from tests.chart.conftest import POSTGRES, SERVICES, Object, Render, named


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
    traced = render("trial", values=rules | {"monitoring": {"otlpEndpoint": "http://c:4318"}})
    assert "4318" not in str(policies)
    told = {name for name, p in named(traced, "NetworkPolicy").items() if "4318" in str(p)}
    assert told == set(SERVICES)
    egress = policies["preparer"]["spec"]["egress"]
    assert [rule for rule in egress if "ipBlock" in str(rule)] == [
        {"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"port": 444, "protocol": "TCP"}]}
    ]
