"""A keyword server, and the `ktl` and `mktl` modules as its clients see them.

Values are set on the server; it calls back on a thread of its own, as the real ones
do, and answers nothing while `offline`.
"""

import queue
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

__all__ = ["FakeKtl", "FakeMktl", "KeywordServer"]


class KeywordServer:
    """Keywords of all services, as (service, KEYWORD) to (value, stamp).

    `read_hook` is called with each keyword's name right before it is read.
    """

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], tuple[str, float]] = {}
        self.offline = False
        self.read_hook: Callable[[str], None] = lambda _: None
        self.dead: set[str] = set()
        self._listeners: list[Callable[[tuple[str, str], str, float], None]] = []
        self._calls: queue.SimpleQueue[tuple[tuple[str, str], str, float] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def listen(self, listener: Callable[[tuple[str, str], str, float], None]) -> None:
        """Have every change told to `listener`, on the server's thread."""
        self._listeners.append(listener)

    def put(self, service: str, keyword: str, value: str, at: datetime | None = None) -> datetime:
        """Set a keyword; return its time stamp."""
        at = at or datetime.now(UTC)
        name = (service, keyword.upper())
        self.values[name] = (value, at.timestamp())
        if not self.offline:
            self._calls.put((name, value, at.timestamp()))
        return at

    def read(self, service: str, keyword: str) -> tuple[str, float]:
        """Return value and stamp; raises TimeoutError as a server that is gone."""
        self.read_hook(keyword.upper())
        if self.offline or keyword.upper() in self.dead:
            time.sleep(0.02)
            raise TimeoutError("no response received in 0.10 sec")
        return self.values[service, keyword.upper()]

    def close(self) -> None:
        """End the thread, once it has told all changes."""
        self._calls.put(None)
        self._thread.join(5)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            for listener in self._listeners:
                listener(*call)


@dataclass(frozen=True)
class Slice:
    """One entry of a KTL keyword's history."""

    time: float
    ascii: str


@dataclass
class KtlKeyword:
    """One KTL keyword: callbacks get the keyword itself, not the value."""

    server: KeywordServer
    name: tuple[str, str]
    history: list[Slice] = field(default_factory=list)
    callbacks: list[Callable[[Any], None]] = field(default_factory=list)
    monitored: bool = False

    def __getitem__(self, key: str) -> Any:
        """Return an attribute by KTL's name for it."""
        if key == "populated":
            return bool(self.history)
        return getattr(self.history[-1], {"ascii": "ascii", "timestamp": "time"}[key])

    def callback(self, function: Callable[[Any], None]) -> None:
        """Register `function`."""
        if function not in self.callbacks:
            self.callbacks.append(function)

    def monitor(self, *, start: bool = True, prime: bool = True, wait: bool = True) -> None:
        """Subscribe; `prime` reads the value, in the background unless `wait`."""
        self.monitored = start
        if prime and wait:
            self.read()
        elif prime and self.name in self.server.values and not self.server.offline:
            self.server.put(*self.name, self.server.values[self.name][0])

    def read(self, timeout: float | None = None) -> str:
        """Read afresh, and call back as for a broadcast; raises TimeoutError."""
        del timeout
        value, stamp = self.server.read(*self.name)
        self.take(value, stamp)
        return value

    def take(self, value: str, stamp: float) -> None:
        """Add to the history, which keeps the last few, and call back."""
        self.history = [*self.history[-99:], Slice(stamp, value)]
        for function in list(self.callbacks):
            function(self)


class FakeKtl:
    """The `ktl` module, as far as the monitor uses it.

    With `lag` set, callbacks come only for every so many broadcasts, as when two
    arrive before the library's thread wakes up.
    """

    def __init__(self, server: KeywordServer) -> None:
        self.server = server
        self.lag = 1
        self.heartbeats: dict[str, tuple[str, float]] = {}
        self._keywords: dict[tuple[str, str], KtlKeyword] = {}
        self._late = 0
        server.listen(self._broadcast)

    def cache(self, service: str, keyword: str | None = None) -> Any:
        """Return the one object of a keyword, or of a service."""
        if keyword is None:
            return FakeKtlService(self, service)
        if self.server.offline:
            raise RuntimeError(f"no such service: {service}")
        name = (service, keyword.upper())
        return self._keywords.setdefault(name, KtlKeyword(self.server, name))

    def _broadcast(self, name: tuple[str, str], value: str, stamp: float) -> None:
        keyword = self._keywords.get(name)
        if keyword is None or not keyword.monitored:
            return
        self._late = (self._late + 1) % self.lag
        if self._late:
            keyword.history.append(Slice(stamp, value))
        else:
            keyword.take(value, stamp)


@dataclass(frozen=True)
class FakeKtlService:
    """A KTL service, as far as the monitor uses it."""

    module: FakeKtl
    name: str

    def heartbeat(self, keyword: str, period: float) -> None:
        """Note which keyword is the heartbeat, and its period in seconds."""
        self.module.heartbeats[self.name] = (keyword, period)


class MktlItem:
    """One mKTL item; it holds its callbacks by weak reference."""

    def __init__(self, server: KeywordServer, name: tuple[str, str]) -> None:
        self.server, self.name = server, name
        self.timeout = 120.0
        self.subscribed = False
        self.callbacks: list[weakref.ReferenceType[Any]] = []

    def register(self, method: Any, *, prime: bool = False) -> None:
        """Register a callback; the first one subscribes, and fetches the value."""
        bound = hasattr(method, "__self__")
        self.callbacks.append(weakref.WeakMethod(method) if bound else weakref.ref(method))
        first, self.subscribed = not self.subscribed, True
        if first or prime:
            with suppress(TimeoutError):  # as the real one: the daemon may come later
                self.get(refresh=True)

    def get(self, *, refresh: bool = False, formatted: bool = False) -> Any:
        """Return the value, formatted or not; raises TimeoutError."""
        del refresh
        value, stamp = self.server.read(*self.name)
        self.take(value, stamp)
        return self.to_format(value) if formatted else value

    def to_format(self, value: Any) -> str:
        """Return the text that a person reads: WDISK is a boolean inside."""
        return {"True": "true", "False": "false"}.get(str(value), str(value))

    def take(self, value: Any, stamp: float) -> None:
        """Call back whoever is still alive."""
        for reference in self.callbacks:
            if callback := reference():
                callback(self, value, stamp)


class FakeMktl:
    """The `mktl` package, as far as the monitor uses it."""

    def __init__(self, server: KeywordServer) -> None:
        self.server = server
        self._items: dict[tuple[str, str], MktlItem] = {}
        server.listen(self._broadcast)

    def get(self, store: str, key: str) -> MktlItem:
        """Return the one object of an item."""
        name = (store.lower(), key.upper())
        if name not in self._items and self.server.offline:
            raise RuntimeError(f"no catalog available for {store!r} (local or remote)")
        if name not in self.server.values:
            raise KeyError(key)
        return self._items.setdefault(name, MktlItem(self.server, name))

    def _broadcast(self, name: tuple[str, str], value: str, stamp: float) -> None:
        if name in self._items and self._items[name].subscribed:
            self._items[name].take(value, stamp)
