"""Real EPICS servers for tests, each a process of its own on the loopback.

`Ioc` starts `python -m koa_shared.testing.ioc KIND JSON`, which serves the PVs of a
JSON object, texts of up to 256 bytes and whole numbers, and obeys JSON objects on the
lines of its standard input: each sets PVs in order and answers a line; the end of the
input ends it.  KIND is softioc (EPICS base) or caproto (pure Python; drops updates of
a burst).
"""

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, Self

__all__ = ["Ioc", "use_loopback"]

Values = Mapping[str, str | int]


def free_port() -> int:
    """Return a port that is free for TCP and UDP just now."""
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        port: int = tcp.getsockname()[1]
        udp.bind(("127.0.0.1", port))
        return port


def use_loopback() -> None:
    """Point this process, and those it starts, at servers on the loopback only.

    libca reads these once, at the first use: all tests of a process share one port,
    and only one IOC serves it at a time.
    """
    if os.environ.get("KOA_TEST_CA_PORT"):
        return
    port = str(free_port())
    os.environ |= {
        "KOA_TEST_CA_PORT": port,
        "EPICS_CA_SERVER_PORT": port,
        "EPICS_CA_REPEATER_PORT": str(free_port()),
        "EPICS_CA_ADDR_LIST": "127.0.0.1",
        "EPICS_CA_AUTO_ADDR_LIST": "NO",
        "EPICS_CAS_INTF_ADDR_LIST": "127.0.0.1",
        "EPICS_CAS_BEACON_ADDR_LIST": "127.0.0.1",
        "EPICS_CAS_AUTO_BEACON_ADDR_LIST": "NO",
        "EPICS_PVA_SERVER_PORT": str(free_port()),
        "EPICS_PVA_BROADCAST_PORT": str(free_port()),
        "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
        "EPICS_PVA_ADDR_LIST": "127.0.0.1",
        "EPICS_PVA_AUTO_ADDR_LIST": "NO",
    }


class Ioc:
    """One EPICS server process; use as a context manager."""

    def __init__(self, kind: str, pvs: Values) -> None:
        use_loopback()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "koa_shared.testing.ioc", kind, json.dumps(pvs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def _answer(self) -> None:
        assert self._process.stdout
        # Servers print as they start; ours is the line `done`.
        for line in self._process.stdout:
            if line == "done\n":
                return
        raise RuntimeError("the IOC ended")

    def put(self, values: Values) -> None:
        """Set PVs, in order; return when all are set."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(values) + "\n")
        self._process.stdin.flush()
        self._answer()

    def kill(self) -> None:
        """End the server as a crash would."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        """Return the running server."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the server."""
        self.kill()


def _say_done() -> None:
    sys.stdout.write("done\n")
    sys.stdout.flush()


def _obey(put: Callable[[str, str | int], None]) -> None:
    for line in sys.stdin:
        for name, value in json.loads(line).items():
            put(name, value)
        _say_done()


def _softioc(pvs: Values) -> None:
    from softioc import asyncio_dispatcher, builder, softioc  # noqa: PLC0415

    records: dict[str, Any] = {}
    for name, value in pvs.items():
        builder.SetDeviceName(name.partition(":")[0])
        rest = name.partition(":")[2]
        records[name] = (
            builder.longOut(rest, initial_value=value)
            if isinstance(value, int)
            else builder.longStringOut(rest, length=256, initial_value=value)
        )
    builder.LoadDatabase()
    softioc.iocInit(asyncio_dispatcher.AsyncioDispatcher())
    _say_done()
    _obey(lambda name, value: records[name].set(value))


def _caproto(pvs: Values) -> None:
    import caproto  # noqa: PLC0415
    from caproto.asyncio.server import start_server  # noqa: PLC0415

    channels: dict[str, Any] = {
        name: caproto.ChannelInteger(value=value)
        if isinstance(value, int)
        else caproto.ChannelChar(value=value, max_length=256, string_encoding="utf-8")
        for name, value in pvs.items()
    }

    logging.disable(logging.ERROR)  # of its beacons, that find no repeater

    async def obey(_: object) -> None:
        loop = asyncio.get_running_loop()
        _say_done()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            for name, value in json.loads(line).items():
                await channels[name].write(value)
            _say_done()
        os._exit(0)

    asyncio.run(start_server(channels, interfaces=["127.0.0.1"], startup_hook=obey))


def main() -> None:
    """Serve the PVs named on the command line."""
    kind, pvs = sys.argv[1:]
    {"softioc": _softioc, "caproto": _caproto}[kind](json.loads(pvs))


if __name__ == "__main__":
    main()
