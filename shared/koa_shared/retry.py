"""Back-off with full jitter, and circuits of dependencies (design 5)."""

import random
import time
from collections.abc import Callable, Iterable

import structlog

from .metrics import Metrics

PEERS = ("preparer", "ingestor")
logger = structlog.get_logger("koa_shared")


def backoff(attempt: int, first: float = 0.5, longest: float = 60.0) -> float:
    """Return a random delay in seconds, its bound doubling with each attempt."""
    bound: float = min(longest, first * 2 ** min(attempt, 16))
    return random.uniform(bound / 10, bound)  # noqa: S311 (jitter, not a secret)


class Circuit:
    """One dependency: open while it is down, closed by one probe that succeeds."""

    def __init__(
        self, dependency: str, metrics: Metrics, closed: Iterable[Callable[[str], object]] = ()
    ) -> None:
        self.dependency, self.reason, self._closed = dependency, "", closed
        self._gauge = metrics.circuit.labels(metrics.service, dependency)
        self._failures, self._probe_at = 0, 0.0
        self._gauge.set(0)

    def wait(self) -> float:
        """Return the seconds until the next try is allowed; 0 when closed."""
        return max(0.0, self._probe_at - time.monotonic()) if self.reason else 0.0

    def succeeded(self) -> None:
        """Close the circuit; who waited for it is woken."""
        was, self.reason, self._failures = self.reason, "", 0
        self._gauge.set(0)
        if was:
            logger.info("Dependency is back", dependency=self.dependency)
            for tell in self._closed:
                tell(self.dependency)

    def failed(self, reason: str) -> float:
        """Open the circuit, or keep it open longer; return for how long."""
        if not self.reason:
            logger.warning("Dependency is down", dependency=self.dependency, why=reason)
        # What returns after a night must be seen at once; a probe of the store reads a frame.
        delay = backoff(self._failures, 0.2, 2.0 if self.dependency in PEERS else 10.0)
        self._probe_at = time.monotonic() + delay
        self._failures, self.reason = self._failures + 1, reason or "down"
        self._gauge.set(1)
        return delay


class Circuits(dict[str, Circuit]):
    """The circuits of one process, made as they are asked for."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__()
        self._metrics = metrics
        self.closed: list[Callable[[str], object]] = []  # who is told what is back

    def __missing__(self, dependency: str) -> Circuit:
        self[dependency] = circuit = Circuit(dependency, self._metrics, self.closed)
        return circuit

    def wait(self, needs: Iterable[str]) -> float:
        """Return how long until all of `needs` may be tried."""
        return max((self[name].wait() for name in needs), default=0.0)

    def open(self, needs: Iterable[str]) -> bool:
        """Tell whether one of `needs` is held to be down."""
        return any(self[name].reason for name in needs)
