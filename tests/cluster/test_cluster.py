"""Both sites in a real cluster: pods die, the chart is upgraded and rolled back, nothing is lost.

One test, as each phase needs the one before; it prints what it saw.
"""

import json
import subprocess
import time
from typing import Any

from tests.chart.conftest import CHART, EXAMPLES, helm_binary
from tests.cluster.conftest import NAMESPACE, SITES, helm, inside, kubectl, wait

WHERE = {"monitor": "summit", "preparer": "summit", "ingestor": "archive"}
CAMERAS = ("ESI", "HIRES", "NIRES", "LRIS")
EACH, EVERY = 100, 2.0  # frames of each camera, seconds between two
BEGUN = time.monotonic()


def say(what: str) -> None:
    print(f"{time.monotonic() - BEGUN:6.0f} s  {what}", flush=True)


def pods(service: str) -> list[str]:
    chosen = f"app.kubernetes.io/component={service}"
    names = kubectl("get", "pods", "-l", chosen, "-o", "jsonpath={.items[*].metadata.name}")
    return names.split()


def judged(*what: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(inside("observatory", "python", "/opt/koa/judge.py", *what))
    return told


def alerts(query: str) -> str:
    return inside("prometheus", "promtool", "query", "instant", "http://localhost:9090", query)


def is_firing(alert: str) -> bool:
    return alert in alerts(f'ALERTS{{alertname="{alert}",alertstate="firing"}}')


def scale(service: str, replicas: int) -> None:
    name = f"deployment/{WHERE[service]}-{service}"
    kubectl("scale", name, f"--replicas={replicas}")
    kubectl("rollout", "status", name, "--timeout=240s")
    say(f"{service} has {replicas} replicas")


def expose() -> list[subprocess.Popen[bytes]]:
    """Have every camera of the summit expose, for minutes."""
    order = ["--n", str(EACH), "--interval", str(EVERY), "--size", "400k", "--var", "/var/sim"]
    where = ["-n", NAMESPACE, "exec", "deployment/observatory", "--"]
    command = [str(helm_binary("kubectl")), *where]
    return [
        subprocess.Popen([*command, "koa-sim", "shoot", camera, *order], stdout=subprocess.DEVNULL)
        for camera in CAMERAS
    ]


def install() -> None:
    for site in ("archive", "summit"):
        example = f"--values={EXAMPLES[site]}"
        helm(
            "install",
            site,
            CHART,
            example,
            "--values=-",
            "--wait",
            "--timeout=5m",
            values=SITES[site],
        )
        say(f"{site} is installed")
    kubectl("delete", "pod", "summit-canary", "--ignore-not-found")
    told = helm("test", "summit", "--logs", "--timeout=3m")
    assert "COMPLETE" in told
    say("helm test: the canary is COMPLETE")


def disturb() -> None:
    """Kill and delete pods, upgrade, roll back, scale, and take the ingestor away."""
    for service in WHERE:
        first, second = pods(service)[:2]
        kubectl("delete", "pod", first, "--grace-period=0", "--force", "--wait=false")
        kubectl("delete", "pod", second, "--wait=false")
        say(f"{service}: {first} killed, {second} deleted")
        time.sleep(5)
    for service, site in WHERE.items():
        kubectl("rollout", "status", f"deployment/{site}-{service}", "--timeout=240s")
    for site in ("summit", "archive"):
        more = ["--reuse-values", "--set", "pods.preStopSeconds=4", "--wait", "--timeout=5m"]
        helm("upgrade", site, CHART, *more)
        say(f"{site} is upgraded")
    for site in ("summit", "archive"):
        helm("rollback", site, "--wait", "--timeout=5m")
        say(f"{site} is rolled back")
    for replicas in (3, 1, 2):
        scale("preparer", replicas)
    scale("ingestor", 0)
    wait("KoaIngestorAbsent", lambda: is_firing("KoaIngestorAbsent"), 120)
    say("KoaIngestorAbsent fires")
    scale("ingestor", 2)
    wait("its end", lambda: not is_firing("KoaIngestorAbsent"), 120)
    say("KoaIngestorAbsent has ended")


def test_a_night_in_a_cluster(beside: None) -> None:
    say("PostgreSQL, SeaweedFS, Prometheus and the observatory run")
    install()
    taking = expose()
    disturb()
    assert [process.wait(600) for process in taking] == [0] * len(CAMERAS)
    say(f"{EACH * len(CAMERAS)} frames are taken")
    wait("everything has ended", lambda: not judged("settled")["breaches"], 300)
    told = judged()
    say(f"judged: {told}")
    assert told["breaches"] == []
    assert told["taken"] == EACH * len(CAMERAS) <= told["archived"]
    say(alerts('max by (alertname) (max_over_time(ALERTS{alertstate="firing"}[30m]))'))
