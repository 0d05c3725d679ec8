"""Draws what the last `make bench` measured: `python tests/bench/plot.py [figures [where]]`.

Plain SVG, so that no plotting library is needed.
"""

import json
import sys
from pathlib import Path

COLOURS = ("#4477aa", "#ee6677", "#228833")
WIDTH, HEIGHT, LEFT, BOTTOM = 680, 240, 50, 60
FONT = 'font-family="sans-serif" font-size="10"'
Series = dict[str, list[float]]


def text(x: float, y: float, what: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" {more}>{what}</text>'


def frame(title: str, unit: str, top: float, parts: list[str], names: list[str]) -> str:
    """Return a drawing with its title, its scale, and whose the colours are."""
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        '<rect width="100%" height="100%" fill="white"/>',
        text(LEFT, 14, title, "start", 'font-size="12"'),
    ]
    for n in range(5):
        y = HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 40) * n / 4
        out.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - 10}" stroke="#ddd"/>')
        out.append(text(LEFT - 5, y + 3, f"{top * n / 4:.3g}", "end"))
    out.append(text(LEFT - 5, 32, unit, "end"))
    for n, name in enumerate(names):
        x = LEFT + 110 * n
        out.append(f'<rect x="{x}" y="{HEIGHT - 12}" width="9" height="9" fill="{COLOURS[n]}"/>')
        out.append(text(x + 13, HEIGHT - 4, name, "start"))
    return "\n".join([*out, *parts, "</svg>"]) + "\n"


def up(value: float, top: float) -> float:
    return (HEIGHT - BOTTOM - 40) * value / top


def bars(title: str, unit: str, rows: Series, names: list[str]) -> str:
    """Draw a group of bars for each row."""
    top = max(map(max, rows.values())) * 1.1
    each, parts = (WIDTH - LEFT - 15) / len(rows), list[str]()
    for n, (label, values) in enumerate(rows.items()):
        x, width = LEFT + 5 + n * each, min(40.0, each * 0.8 / len(values))
        for m, value in enumerate(values):
            height = up(value, top)
            parts.append(
                f'<rect x="{x + m * width:.1f}" y="{HEIGHT - BOTTOM - height:.1f}" '
                f'width="{width:.1f}" height="{height:.1f}" fill="{COLOURS[m]}"/>'
            )
        spot = f'transform="rotate(-30 {x + each / 3:.0f} {HEIGHT - BOTTOM + 12})"'
        parts.append(text(x + each / 3, HEIGHT - BOTTOM + 12, label, "end", spot))
    return frame(title, unit, top, parts, names)


def lines(title: str, unit: str, at: list[float], rows: Series, below: str) -> str:
    """Draw a line for each row, over the values `at`."""
    top, parts = max(map(max, rows.values())) * 1.1, list[str]()
    for n, values in enumerate(rows.values()):
        points = " ".join(
            f"{LEFT + 5 + (WIDTH - LEFT - 20) * x / max(at):.1f},{HEIGHT - BOTTOM - up(y, top):.1f}"
            for x, y in zip(at, values, strict=True)
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[n]}" '
                     'stroke-width="2"/>')  # fmt: skip
    for x in at:
        spot = LEFT + 5 + (WIDTH - LEFT - 20) * x / max(at)
        parts.append(text(spot, HEIGHT - BOTTOM + 14, f"{x:g}"))
    parts.append(text(WIDTH / 2, HEIGHT - BOTTOM + 30, below))
    return frame(title, unit, top, parts, list(rows))


def main(figures: Path, where: Path) -> None:
    """Draw every figure that was measured."""

    def load(name: str) -> dict[str, list[float]]:
        file = figures / f"{name}.json"
        return json.loads(file.read_text()) if file.exists() else {}

    where.mkdir(parents=True, exist_ok=True)
    for engine in ("sqlite", "postgresql"):
        if rows := load(f"catalogue-{engine}"):
            title = f"p99 of a page of 100 frames, {engine}"
            four = {key.replace(" operator", ""): [row[1], row[3]] for key, row in rows.items()}
            names = ["10 thousand", "1 million"]
            (where / f"catalogue-{engine}.svg").write_text(bars(title, "ms", four, names))
    if rows := load("burst"):
        both = {name: sorted(rows[name]) for name in ("alone", "burst")}
        at = [100 * (n + 1) / len(both["alone"]) for n in range(len(both["alone"]))]
        title, below = "latency of live frames of 4 MB", "per cent of the frames are as fast"
        shown = [x for n, x in enumerate(at) if n % 3 == 2 or len(at) < 12]
        keep = [at.index(x) for x in shown]
        some = {name: [values[n] for n in keep] for name, values in both.items()}
        (where / "burst.svg").write_text(lines(title, "s", shown, some, below))
    if rows := load("stream"):
        three = {"p50": [r[0] for r in rows.values()], "p99": [r[1] for r in rows.values()]}
        title, at = "from a change to the last listener", [float(n) for n in rows]
        (where / "stream.svg").write_text(lines(title, "ms", at, three, "listeners"))
    if rows := load("resident"):
        services = ("monitor", "preparer", "ingestor")
        each = {name: [row[n] for row in rows.values()] for n, name in enumerate(services)}
        at = [float(n) for n in rows]
        (where / "resident.svg").write_text(lines("resident memory", "MB", at, each, "frames"))


if __name__ == "__main__":
    given = [Path(word) for word in sys.argv[1:]]
    main(*(given + [Path("var/bench"), Path("docs/benchmarks")][len(given) :]))
