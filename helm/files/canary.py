"""Push one small frame through the installed system and wait until it is archived.

Runs in the monitor's image as `helm test`: python and httpx are all it needs.
"""

import argparse
import ssl
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

ENDS = ("COMPLETE", "INVALID", "ERROR", "DUPLICATE")
SIDE, BLOCK = 64, 2880
ANNOUNCED = "/s/sdata0/canary"  # where monitor and preparer look for what is written here


def frame(at: datetime, name: str) -> bytes:
    """Return a FITS file that says it was taken at this time."""
    cards = {
        "SIMPLE": "T", "BITPIX": 16, "NAXIS": 2, "NAXIS1": SIDE, "NAXIS2": SIDE,
        "INSTRUME": "'CANARY  '", "OUTFILE": f"'{name}'", "DATE-OBS": f"'{at:%Y-%m-%d}'",
        "UTC": f"'{at:%H:%M:%S}.{at.microsecond // 10_000:02}'",
    }  # fmt: skip
    text = "".join(f"{key:<8}= {value!s:>20}".ljust(80) for key, value in cards.items())
    data = bytes(i % 251 for i in range(2 * SIDE * SIDE))
    return padded((text + "END").encode(), b" ") + padded(data, b"\0")


def padded(data: bytes, fill: bytes) -> bytes:
    """Return whole blocks, as FITS has them."""
    return data + fill * (-len(data) % BLOCK)


def show(text: str) -> None:
    """Print a line with the time."""
    print(f"{datetime.now(UTC):%H:%M:%S}  {text}", flush=True)


def wait(http: httpx.Client, url: str, until: float) -> dict[str, Any]:
    """Return the frame once it has reached an end, or as it was last seen."""
    seen: dict[str, Any] = {"status": "unknown to the ingestor"}
    while time.monotonic() < until:
        answer = http.get(url)
        if answer.status_code == httpx.codes.OK:
            if answer.json()["status"] != seen["status"]:
                show(answer.json()["status"])
            seen = answer.json()
            if seen["status"] in ENDS:
                break
        elif answer.status_code != httpx.codes.NOT_FOUND:
            show(f"the ingestor answered {answer.status_code} {answer.text[:200]}")
        time.sleep(0.2)
    return seen


def options() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--monitor", required=True, help="its URL")
    parser.add_argument("--ingestor", required=True, help="its URL")
    parser.add_argument("--folder", required=True, type=Path, help="where the frame is written")
    parser.add_argument("--token-file", required=True, type=Path, help="an operator's token")
    parser.add_argument("--ca-file", required=True, help="who signs the certificates")
    parser.add_argument("--seconds", type=float, default=60)
    return parser.parse_args()


def main() -> int:
    """Return 0 when the frame is COMPLETE in time."""
    given, now = options(), datetime.now(UTC)
    until = time.monotonic() + given.seconds
    path = given.folder / f"canary{now:%Y%m%d%H%M%S%f}.fits"
    path.write_bytes(frame(now, path.stem))
    path.chmod(0o644)
    headers = {"Authorization": f"Bearer {given.token_file.read_text().strip()}"}
    verify = ssl.create_default_context(cafile=given.ca_file)
    try:
        with httpx.Client(headers=headers, verify=verify, trust_env=False, timeout=10) as http:
            body = {"path": f"{ANNOUNCED}/{path.name}", "instrument": "CANARY"}
            answer = http.post(f"{given.monitor}/v1/files", json=body)
            show(f"the monitor answered {answer.status_code} {answer.text}")
            frame_id = answer.raise_for_status().json()["frame_id"]
            seen = wait(http, f"{given.ingestor}/v1/frames/{frame_id}", until)
    finally:
        path.unlink()
    for finding in seen.get("findings", []):
        show(f"{finding['severity']} {finding['code']}: {finding.get('message', '')}")
    show(f"{seen.get('koaid')} is {seen['status']} after {seen.get('latency_seconds')} s")
    return 0 if seen["status"] == "COMPLETE" else 1


if __name__ == "__main__":
    sys.exit(main())
