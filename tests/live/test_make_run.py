"""`make run` as a newcomer meets it: READY, a line for each frame, Ctrl-C, tokens."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

pytestmark = pytest.mark.live
OFFSET = 6300
READY_SECONDS = 20  # issue: READY within 20 s of the environment being made


def start(var: Path, **env: str) -> tuple["subprocess.Popen[str]", list[str], float]:
    """Start everything as `make run` does; return it once it says READY."""
    began, lines = time.monotonic(), []
    process = subprocess.Popen(
        [sys.executable, "-m", "koa_shared.simulator.stack"],
        env=os.environ | {"KOA_VAR": str(var), "PORT_OFFSET": str(OFFSET), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.strip())
        if lines[-1] == "READY":
            break
    return process, lines, time.monotonic() - began


def stop(process: "subprocess.Popen[str]") -> str:
    """Press Ctrl-C; return what was still said."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=40)
    # A zombie is one that ended (Channel Access starts a repeater that nobody waits for).
    left = [c for c in children if c.is_running() and c.status() != psutil.STATUS_ZOMBIE]
    assert not left, "processes are left"
    return out


@pytest.mark.alone
def test_a_newcomer_sees_frames_become_available(tmp_path: Path) -> None:
    env = {"KOA_SIM_INSTRUMENTS": "NIRC2", "KOA_SIM_CADENCE": "2", "KOA_SIM_SIZE": "small"}
    process, lines, took = start(tmp_path, **env)
    try:
        assert took < READY_SECONDS, f"READY after {took:.1f} s"
        url = f"http://127.0.0.1:{8003 + OFFSET}"
        assert any(url in line for line in lines)
        assert process.stdout is not None
        frame = next(line for line in process.stdout if "COMPLETE" in line)
        assert "NIRC2" in frame
        assert "N2." in frame
        docs = httpx.get(f"{url}/docs", trust_env=False).text
        assert "cdn" not in docs.lower()
    finally:
        said = stop(process)
    assert process.returncode == 0
    assert said.strip().endswith("Stopped.")


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 8002 + OFFSET)):
        process, lines, _ = start(tmp_path)
    assert process.wait(20) == 1
    why = "stop what runs there, or shift all ports with PORT_OFFSET"
    assert lines == [f"port {8002 + OFFSET} of preparer is taken: {why}"]


def test_with_tokens_nobody_writes_without_one(tmp_path: Path) -> None:
    process, lines, _ = start(tmp_path, SIM="0", DEV="0")
    try:
        assert any("tokens" in line for line in lines)
        url = f"http://127.0.0.1:{8001 + OFFSET}/v1/files"
        submission = {"path": "/s/sdata904/nirc1/x.fits"}
        answer = httpx.post(url, json=submission, trust_env=False)
        assert answer.status_code == 401
        assert answer.json()["code"] == "unauthorized"
        codes = {}
        for role in ("observer", "producer", "operator"):
            token = (tmp_path / "tokens" / role).read_text()
            headers = {"Authorization": f"Bearer {token}"}
            answer = httpx.post(url, json=submission, headers=headers, trust_env=False)
            codes[role] = (answer.status_code, answer.json()["code"])
        missing = (422, "FITS_NOT_FOUND")
        assert codes == {
            "observer": (403, "forbidden"),
            "producer": missing,
            "operator": missing,
        }
        modes = {p.name: p.stat().st_mode & 0o077 for p in (tmp_path / "tokens").iterdir()}
        assert modes["operator"] == 0, "a token is readable by others"
    finally:
        stop(process)
