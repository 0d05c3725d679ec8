"""Everything on one machine: object store, three services, simulated observatory.

`python -m koa_shared.simulator.stack` is `make run`; tests drive the class `Stack`.

Environment: KOA_VAR (state, default `var`), SIM=0 (no observatory), DEV=0 (tokens),
PORT_OFFSET=n, DB=postgresql://... (a server; each service gets its own database),
S3=http://... (an S3 with KOA_S3_ACCESS_KEY and KOA_S3_SECRET_KEY set).
"""

import contextlib
import hashlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx

from ..client import Koa
from ..config import Peers

__all__ = ["Stack"]

SERVICES = ("monitor", "preparer", "ingestor")
PORTS = {
    "monitor": 8001, "preparer": 8002, "ingestor": 8003, "s3": 8333, "ca": 5064,
    "prometheus": 9090, "alertmanager": 9093,
}  # fmt: skip
READY = {"s3": "/healthz", "prometheus": "/-/ready", "alertmanager": "/-/ready"}
BIN = Path(sys.executable).parent
READY_SECONDS = 60
EXAMPLE = Path(__file__).parents[1] / "data" / "schedule-example.toml"


@dataclass
class Stack:
    """Processes of one installation, all on 127.0.0.1."""

    var: Path
    offset: int = 0
    sim: bool = True
    dev: bool = True
    db: str = ""
    s3: str = ""
    env: dict[str, str] = field(default_factory=dict)
    sim_args: list[str] = field(default_factory=list)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.var = self.var.resolve()

    def port(self, name: str) -> int:
        """Return the port of a service, of `s3` or of Channel Access (`ca`)."""
        return PORTS[name] + self.offset

    def url(self, name: str) -> str:
        """Return the base URL of a service or of the object store."""
        if name == "s3" and self.s3:
            return self.s3
        return f"http://127.0.0.1:{self.port(name)}"

    # -- environment --------------------------------------------------------------

    def database(self, service: str) -> str:
        """Return a service's database URL, "" for SQLite in `var`."""
        if not self.db:
            return ""
        parts = urlsplit(self.db)
        base = parts.path.strip("/") or "koa"
        return urlunsplit(parts._replace(path=f"/{base}_{service}"))

    def environment(self, service: str = "") -> dict[str, str]:
        """Return the environment of one of the processes."""
        keys = json.loads((self.var / "s3.json").read_text())["identities"][0]
        ca = str(self.port("ca"))
        values = {
            "KOA_VAR": str(self.var),
            "KOA_HOST": "127.0.0.1",
            "KOA_LOG_FORMAT": "console",
            "KOA_PATH_MAP": f"/s/={self.var}/summit/s/",
            "KOA_PREPARER_URL": self.url("preparer"),
            "KOA_INGESTOR_URL": self.url("ingestor"),
            "KOA_S3_ENDPOINT": self.url("s3"),
            "KOA_S3_ACCESS_KEY": keys["credentials"][0]["accessKey"],
            "KOA_S3_SECRET_KEY": keys["credentials"][0]["secretKey"],
            "KOA_SCHEDULE": str(EXAMPLE),
            "KOA_DEV": "1" if self.dev else "0",
            "EPICS_CA_ADDR_LIST": f"127.0.0.1:{ca}",
            "EPICS_CA_AUTO_ADDR_LIST": "NO",
            "EPICS_CA_SERVER_PORT": ca,
            "EPICS_CA_REPEATER_PORT": str(self.port("ca") + 1),
            "EPICS_CAS_INTF_ADDR_LIST": "127.0.0.1",
            "EPICS_CAS_BEACON_ADDR_LIST": "127.0.0.1",
            "EPICS_CAS_AUTO_BEACON_ADDR_LIST": "NO",
            "PYTHONUNBUFFERED": "1",
        }
        if service in SERVICES:
            values["KOA_PORT"] = str(self.port(service))
            values["KOA_DATABASE_URL"] = self.database(service)
        if not self.dev:
            values["KOA_TOKENS_FILE"] = str(self.var / "tokens" / "tokens.toml")
            values["KOA_TOKEN_FILE"] = str(self.var / "tokens" / "producer")
        return os.environ | values | self.env

    # -- processes ----------------------------------------------------------------

    def prepare(self) -> None:
        """Make directories, keys, tokens, databases and schemas."""
        for name in ("log", "sim", "s3", "summit/s"):
            (self.var / name).mkdir(parents=True, exist_ok=True)
        self._make_keys()
        if not self.dev:
            self._make_tokens()
        if self.db:
            self._make_databases()
        runs = [
            subprocess.Popen([BIN / f"koa-{s}", "migrate"], env=self.environment(s))
            for s in SERVICES
        ]
        codes = [run.wait() for run in runs]
        if any(codes):
            raise RuntimeError("a database could not be migrated")

    def _make_keys(self) -> None:
        path = self.var / "s3.json"
        if path.exists():
            return
        key = os.environ.get("KOA_S3_ACCESS_KEY") or "koa"
        secret = os.environ.get("KOA_S3_SECRET_KEY") or secrets.token_urlsafe(24)
        identity = {
            "name": "koa",
            "credentials": [{"accessKey": key, "secretKey": secret}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        path.touch(0o600)
        path.write_text(json.dumps({"identities": [identity]}))

    def _make_tokens(self) -> None:
        folder = self.var / "tokens"
        folder.mkdir(mode=0o700, exist_ok=True)
        rows = []
        for role in ("producer", "operator", "observer"):
            file = folder / role
            if not file.exists():
                file.touch(0o600)
                file.write_text(secrets.token_urlsafe(32))
            digest = hashlib.sha256(file.read_text().strip().encode()).hexdigest()
            rows.append(f'[[token]]\nname = "{role}"\nrole = "{role}"\nsha256 = "{digest}"\n')
        (folder / "tokens.toml").write_text("\n".join(rows))

    def _make_databases(self) -> None:
        import psycopg  # noqa: PLC0415 (only where PostgreSQL is used)

        server = urlunsplit(urlsplit(self.db)._replace(path="/postgres"))
        with psycopg.connect(server, autocommit=True) as connection:
            for service in SERVICES:
                name = urlsplit(self.database(service)).path.strip("/")
                with contextlib.suppress(psycopg.errors.DuplicateDatabase):
                    connection.execute(f'CREATE DATABASE "{name}"'.encode())

    def spawn(self, name: str, command: list[str], cwd: Path | None = None) -> None:
        """Start one process; its output goes to `var/log/NAME.log`."""
        with (self.var / "log" / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                env=self.environment(name),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=cwd,
                start_new_session=True,
            )

    def start(self, name: str) -> None:
        """Start a service, the object store (`s3`) or the observatory (`sim`)."""
        if name == "s3":
            self.spawn("s3", weed(self.var, self.offset), self.var / "s3")
        elif name == "sim":
            folders = ["--data-root", f"{self.var}/summit", "--var", f"{self.var}/sim"]
            self.spawn("sim", [str(BIN / "koa-sim"), "run", *folders, *self.sim_args])
        else:
            self.spawn(name, [str(BIN / f"koa-{name}")])

    def kill(self, name: str, how: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to one process (by its id) and wait for its end."""
        process = self.processes.pop(name)
        process.send_signal(how)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def wait_ready(self, name: str) -> None:
        """Wait until a process answers; raises RuntimeError with its log's end."""
        path = READY.get(name, "/readyz")
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            if (process := self.processes.get(name)) and process.poll() is not None:
                break
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(self.url(name) + path, trust_env=False).status_code == 200:
                    return
            time.sleep(0.05)
        log = (self.var / "log" / f"{name}.log").read_text(errors="replace")
        raise RuntimeError(f"{name} did not become ready:\n{log[-2000:]}")

    def up(self) -> None:
        """Start everything, in the order of dependence, and wait until it is ready."""
        names = [*(() if self.s3 else ("s3",)), *SERVICES]
        for name in names:  # else another installation would answer in its place
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port(name))) == 0:
                    why = "stop what runs there, or shift all ports with PORT_OFFSET"
                    raise RuntimeError(f"port {self.port(name)} of {name} is taken: {why}")
        self.prepare()
        if not self.s3:
            self.start("s3")
        if self.sim:
            self.start("sim")
        for service in reversed(SERVICES):
            self.start(service)
        for name in names:
            self.wait_ready(name)

    def down(self) -> None:
        """Stop everything: the services finish or release what they hold."""
        for name in ("sim", *SERVICES):
            if name in self.processes:
                self.processes[name].send_signal(signal.SIGTERM)
        for name in ("sim", *SERVICES):
            if name in self.processes:
                self.kill(name, signal.SIGTERM)
        if "s3" in self.processes:  # its graceful end takes up to 28 s; it is durable
            self.kill("s3")

    @contextlib.contextmanager
    def running(self) -> Iterator["Stack"]:
        """Run everything for the length of a `with` block."""
        try:
            self.up()
            yield self
        finally:
            self.down()


def weed(var: Path, offset: int) -> list[str]:
    """Return the command of the object store, bound to 127.0.0.1 only."""
    ports = {"master": 9333, "volume": 9340, "filer": 8888, "admin": 23646, "s3": 8333}
    # Each of them also opens its port + 10000; an offset moves all of them together.
    return [
        str(BIN / "weed"), "mini", f"-dir={var}/s3", "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1", "-master.telemetry=false",
        *(f"-{name}.port={port + offset}" for name, port in ports.items()),
        f"-s3.config={var}/s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-webdav=false", "-admin.ui=false", "-s3.allowDeleteBucketNotEmpty=false",
        "-bucket=koa-staging,koa-archive",
    ]  # fmt: skip


def follow(stack: Stack) -> None:
    """Print one line for each frame that reaches an end."""
    token = None if stack.dev else stack.var / "tokens" / "operator"
    with Koa(Peers(ingestor_url=stack.url("ingestor"), token_file=token)) as koa:
        for change in koa.stream():
            if change.frame and change.frame.status.is_end:
                print(line(change.frame.model_dump(mode="json")), flush=True)


def line(frame: dict[str, Any]) -> str:
    """Return a frame as one readable line."""
    now = time.strftime("%H:%M:%S", time.gmtime())
    name = frame.get("koaid") or Path(frame.get("path") or "?").name
    name += f" lev{level}" if (level := frame.get("level")) else ""
    text = f"{now}  {frame['status']:<9} {frame['instrument']:<7} {name:<26}"
    if (seconds := frame.get("latency_seconds")) is not None:
        text += f" {seconds:6.2f} s  {frame.get('path') or ''}"
    bad = [f for f in frame.get("findings", []) if f["severity"] != "warning"]
    return text + "".join(f"  {f['code']}: {f['message']}" for f in bad[-1:])


def main(beside: Callable[[Stack], AbstractContextManager[Any]] = nullcontext) -> int:
    """Run everything until Ctrl-C, and what is asked for `beside` it."""
    env = os.environ
    stack = Stack(
        var=Path(env.get("KOA_VAR") or "var"),
        offset=int(env.get("PORT_OFFSET") or 0),
        sim=env.get("SIM", "1") != "0",
        dev=env.get("DEV", "1") != "0",
        db=env.get("DB", ""),
        s3=env.get("S3", ""),
        env={"KOA_CANARY_SECONDS": env.get("KOA_CANARY_SECONDS", "60")},
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with contextlib.suppress(KeyboardInterrupt), stack.running(), beside(stack):
            for service in SERVICES:
                print(f"{service:<9} {stack.url(service)}  (API: {stack.url(service)}/docs)")
            print(f"{'page':<9} {stack.url('ingestor')}/  (the night, live)")
            print(f"{'s3':<9} {stack.url('s3')}")
            print(f"{'logs':<9} {stack.var}/log/")
            if not stack.dev:
                print(f"{'tokens':<9} {stack.var}/tokens/ (operator, observer, producer)")
            print("READY", flush=True)
            watch(stack)
    except RuntimeError as fault:
        print(fault, file=sys.stderr)
        return 1
    print("Stopped.")
    return 0


def watch(stack: Stack) -> None:
    """Follow the frames; end when a process ends by itself."""
    threading.Thread(target=follow, args=(stack,), daemon=True).start()
    while True:
        for name, process in stack.processes.items():
            if (code := process.poll()) is not None:
                print(f"{name} ended with code {code}; see {stack.var}/log/{name}.log")
                return
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
