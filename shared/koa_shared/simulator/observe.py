"""A real Prometheus and Alertmanager beside the stack: `make observe`.

Debian's packages `prometheus` and `prometheus-alertmanager`, with the rules of `helm/alerts`.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .stack import SERVICES, Stack, main

__all__ = ["ALERTS", "configure", "hastened", "watching"]

ALERTS = Path(__file__).parents[3] / "helm" / "alerts"
PROGRAMS = {"alertmanager": "prometheus-alertmanager", "prometheus": "prometheus"}
UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
DURATION = r"(?:\d+(?:ms|[smhdw]))+"
# Where a rule file holds them: `for: 5m`, `[5m]`, `[1h:5m]`, `offset 1h`.
DURATIONS = re.compile(
    rf"(?m)(?<=^ {{8}}for: ){DURATION}$|(?<=\[){DURATION}(?=[]:])"
    rf"|(?<=[smhdw]:){DURATION}(?=\])|(?<=offset ){DURATION}"
)


def hastened(rules: str, by: int) -> str:
    """Return the text of a rule file with every duration divided, and nothing else changed."""

    def shorter(found: re.Match[str]) -> str:
        parts = re.findall(r"(\d+)(ms|[smhdw])", found[0])
        return f"{sum(int(n) * UNITS[unit] for n, unit in parts) // by}ms"

    return DURATIONS.sub(shorter, rules)


def configure(stack: Stack, home: Path, *, by: int = 1) -> None:
    """Write the configuration of both; with `by`, time runs so much faster in the rules."""
    (home / "rules").mkdir(parents=True, exist_ok=True)
    for file in ALERTS.glob("*.yaml"):
        text = file.read_text()
        (home / "rules" / file.name).write_text(hastened(text, by) if by > 1 else text)
    where = {name: stack.url(name).removeprefix("http://") for name in (*SERVICES, *PROGRAMS)}
    every = "5s" if by == 1 else "1s"
    scrape = [
        {"job_name": f"koa-{name}", "static_configs": [{"targets": [where[name]]}]}
        for name in SERVICES
    ]
    told = {"static_configs": [{"targets": [where["alertmanager"]]}]}
    prometheus = {
        "global": {"scrape_interval": every, "evaluation_interval": every},
        "rule_files": [str(home / "rules" / "*.yaml")],
        "alerting": {"alertmanagers": [told]},
        "scrape_configs": scrape,
    }
    by_what = ["alertname", "service", "instrument", "source"]
    route = {"receiver": "nobody", "group_by": by_what, "group_wait": every}
    alertmanager = {"route": route, "receivers": [{"name": "nobody"}]}
    # JSON is YAML.
    (home / "prometheus.yml").write_text(json.dumps(prometheus, indent=1))
    (home / "alertmanager.yml").write_text(json.dumps(alertmanager, indent=1))


@contextmanager
def watching(stack: Stack, *, by: int = 1) -> Iterator[None]:
    """Run both for the length of a `with` block, beside a stack that runs."""
    if missing := [name for name in PROGRAMS.values() if not shutil.which(name)]:
        raise RuntimeError(f"not here: {' '.join(missing)} (apt-get install {' '.join(missing)})")
    home = stack.var / "observe"
    configure(stack, home, by=by)
    for name, program in PROGRAMS.items():
        place = "storage.tsdb.path" if name == "prometheus" else "storage.path"
        options = {
            "config.file": f"{home}/{name}.yml", place: f"{home}/{name}",
            "web.listen-address": f"127.0.0.1:{stack.port(name)}",
        }  # fmt: skip
        if name == "alertmanager":
            options["cluster.listen-address"] = ""
        else:
            options["enable-feature"] = "exemplar-storage"
        stack.spawn(name, [program, *(f"--{key}={value}" for key, value in options.items())])
    try:
        for name in PROGRAMS:
            stack.wait_ready(name)
            print(f"{name:<9} {stack.url(name)}")
        yield
    finally:
        for name in PROGRAMS:
            stack.kill(name)


if __name__ == "__main__":
    sys.exit(main(watching))
