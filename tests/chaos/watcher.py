"""A program that follows the live stream and downloads what it is told, at once."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from .checker import Breach, header_size


class Watcher(threading.Thread):
    """Downloads every frame in the moment that it is told to be COMPLETE.

    `written` gives the digests that the observatory has written at a path.
    """

    def __init__(self, url: str, written: Callable[[str], set[str]]) -> None:
        super().__init__(daemon=True)
        self.url, self.written = url, written
        self.downloaded, self.found = 0, list[Breach]()
        self.http = httpx.Client(trust_env=False, timeout=20)
        self.ended = False

    def run(self) -> None:
        """Follow until ended; the service comes and goes."""
        while not self.ended:
            try:
                for frame in self.told():
                    self.download(frame)
            except httpx.HTTPError:
                pass
            except Exception as error:  # noqa: BLE001 (it goes on, and the row has failed)
                self.found.append(Breach("harness", "watcher", repr(error)))
            time.sleep(0.2)

    def told(self) -> Iterator[dict[str, Any]]:
        """Yield the frames that become COMPLETE."""
        kind = ""
        with self.http.stream("GET", f"{self.url}/v1/stream") as answer:
            for line in answer.iter_lines():
                if self.ended:
                    return
                key, _, value = line.partition(": ")
                kind = value if key == "event" else kind
                if key == "data" and kind == "COMPLETE":
                    yield json.loads(value)

    def download(self, frame: dict[str, Any]) -> None:
        """Get the raw file back; what can't be answered just now is not judged."""
        koaid, parts = frame["koaid"], []
        for name in (f"products/{koaid}.raw_header", "file"):
            where = f"{self.url}/v1/frames/{koaid}/{name}"
            answer = self.http.get(where, params={"version": frame["version"]})
            if answer.status_code == httpx.codes.NOT_FOUND:
                sentence = f"{name} is not there, and {koaid} is told to be COMPLETE"
                self.found.append(Breach("not_visible", frame["frame_id"], sentence))
            if not answer.is_success:
                return
            parts.append(answer.content)
        raw = parts[0] + parts[1][header_size(parts[1]) :]
        self.downloaded += 1
        if hashlib.sha256(raw).hexdigest() not in self.written(frame["path"]):
            sentence = f"{koaid} was downloaded, and {frame['path']} was never written so"
            self.found.append(Breach("wrong_download", frame["frame_id"], sentence))
