"""The pictures of a result file of benchmarks.operators, as PNG: how attention scales, and the roofline.

The same file gives the same bytes with the same matplotlib: fixed sizes, its own fonts, no date.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .attention_cases import DENSE, FLEX, GATHERED, SDPA
from .contest import BOTH, FORWARD, OURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY = "#222222", "#777777"
#: Colour, dash and mark, so that lines differ in lightness and in form as well as in hue.
LINES = {
    OURS: (INK, "-", "o"),
    DENSE: ("#d55e00", "--", "s"),
    GATHERED: ("#0072b2", "-.", "^"),
    SDPA: ("#aa4499", ":", "D"),
    FLEX: ("#009e73", (0, (5, 1, 1, 1, 1, 1)), "v"),
}
#: The same for the points of the roofline, by the first letter of their labels; A: attention.
POINTS = {"E": ("#0072b2", "o"), "D": ("#d55e00", "s"), "A": (INK, "D")}
DPI = 150


def scaling(content: dict) -> bytes:
    """Time and extra memory of every contestant against the side of the map; where one ended, and why."""
    figure = _figure(f"Hole attention, forward, 128 channels, a quarter hole. {_device(content)}", 4.4)
    records = [*content["suites"]["scaling"]["cases"].values()]
    names = dict.fromkeys(name for record in records for name in record["contestants"])
    ends = {name: end for name in names if (end := _end(records, name))}
    sides = [record["side"] for record in records]
    for axes, quantity, title in zip(
        figure.subplots(1, 2), ("ms", "extra_mib"), ("time, ms", "extra memory, MiB"), strict=True
    ):
        labels, obstacles = [], []
        for name in names:
            points = [(r["side"], one[quantity]) for r in records if quantity in (one := _forward(r, name))]
            if points:
                colour, dash, mark = LINES[name]
                axes.plot(*zip(*points, strict=True), color=colour, linestyle=dash, marker=mark, markersize=5)
                labels.append((*points[-1], f"{name} ×" if name in ends else name, colour))
                obstacles += _along(points)
        axes.set(xscale="log", yscale="log", xlabel="side of the map, pixels", xlim=(sides[0] / 1.2, sides[-1] * 1.7))
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xticks(sides, [str(side) for side in sides])
        axes.set_xticks([], minor=True)
        _label(axes, labels, [(9, 0), (-9, 8), (9, 12), (9, -12), (-9, 20), (7, -8)], obstacles)
    for line, (name, end) in enumerate(reversed(ends.items())):
        place = (0.99, 0.02 + 0.05 * line)
        axes.annotate(
            f"{name} × {end}", place, xycoords="axes fraction", color=LINES[name][0], fontsize=7.5, ha="right"
        )
    return _png(figure)


def _forward(record: dict, name: str) -> dict:
    return record["contestants"].get(name, {}).get(FORWARD, {})


def _end(records: Sequence[dict], name: str) -> str:
    """The first size that a contestant did not reach, and why."""
    ends = (
        f"at {r['side']}: {_forward(r, name)['unavailable']}" for r in records if "unavailable" in _forward(r, name)
    )
    return next(ends, "")


def _along(points: Sequence[tuple[float, float]], steps: int = 24) -> list[tuple[float, float]]:
    """Points on the lines that a plot with logarithmic axes draws between these."""
    return [
        tuple(start ** (1 - i / steps) * stop ** (i / steps) for start, stop in zip(a, b, strict=True))
        for a, b in itertools.pairwise(points)
        for i in range(steps)
    ]


def roofline(content: dict) -> bytes:
    """Ours in every layer and attention case: achieved rate against FLOP per byte, under the measured roofs."""
    figure = _figure(f"Achieved rates under the measured roofs. {_device(content)}", 4.8)
    found = {way: achieved(content, way) for way in (FORWARD, BOTH)}
    every = [x for points in found.values() for x, *_ in points]
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, (way, points) in zip(panels, found.items(), strict=True):
        axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", xlim=(min(every) / 1.6, max(every) * 4))
        axes.set_title(f"TFLOP/s, {way.replace('_', ' + ')}", loc="left", fontsize=10)
        _draw_roofs(axes, content["roofs"])
        for x, y, label, colour in points:
            axes.plot(x, y, POINTS[_group(label)][1], color=colour, markersize=4.5)
        near = [(7, 0), (-7, 0), (0, 8), (0, -8), (6, 7), (-6, 7), (6, -7), (-6, -7)]
        _label(axes, points, [(x * far, y * far) for far in (1, 1.6, 2.4, 3.4) for x, y in near])
    return _png(figure)


def achieved(content: dict, way: str) -> list[tuple[float, float, str, str]]:
    """FLOP per byte, TFLOP/s, label and colour: layers as E1 … D1, with their image side if there are several."""
    suites = content["suites"]
    layers, attention = (suites.get(name, {"cases": {}})["cases"] for name in ("layers", "attention"))
    several = len({record["size"] for record in layers.values()}) > 1
    named = [
        (record["layer"][0] + record["layer"][-1] + (f" {record['size']}" if several else ""), record)
        for record in layers.values()
    ]
    found = []
    for label, record in [*named, *attention.items()]:
        one = record["contestants"].get(OURS, {}).get(way, {})
        if "tflops" in one:
            work = record["work"][way]
            found.append((work["flop"] / work["bytes"], one["tflops"], label, POINTS[_group(label)][0]))
    return found


def _group(label: str) -> str:
    return label[0] if label[0] in POINTS else "A"


def _draw_roofs(axes: Axes, roofs: dict) -> None:
    """Bandwidth times intensity, up to the rate of a matrix product."""
    tflops, bandwidth = roofs["tflops"], roofs["gbytes_per_s"] / 1e3
    low, high = axes.get_xlim()
    ridge = max(low, tflops / bandwidth)
    xs = [low, ridge, high]
    axes.plot(xs, [min(tflops, bandwidth * x) for x in xs], color=GREY, linewidth=1.2)
    text = dict(textcoords="offset points", color=GREY, fontsize=7.5)
    axes.annotate(f"matrix product {tflops:.3g} TFLOP/s", (ridge, tflops), (-4, 5), **text)
    axes.annotate(f"copy {roofs['gbytes_per_s']:,.0f} GB/s", (low, bandwidth * low), (14, 2), **text)


# ---- what both share -----------------------------------------------------------------------------------------------


def _device(content: dict) -> str:
    facts = content["environment"]
    threads = f", {facts['threads']} threads" if facts["device_kind"] == "cpu" else ""
    return f"{facts['device']}{threads}, {content['dtype']}"


def _figure(title: str, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, height), dpi=DPI)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.06, right=0.99, bottom=0.11, top=0.87, wspace=0.12)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def _label(
    axes: Axes,
    points: Sequence[tuple[float, float, str, str]],
    offsets: Sequence[tuple[float, float]],
    obstacles: Sequence[tuple[float, float]] = (),
) -> None:
    """Text beside points (x, y, text, colour), at the first of the offsets, in typographic points, where it overlaps no
    other text, point or obstacle; at the last where there is none."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.get_ylim()  # settles the scale that the transformation below takes from
    renderer = axes.figure.canvas.get_renderer()
    taken = [
        Bbox.from_bounds(x - size, y - size, 2 * size, 2 * size)
        for places, size in (([point[:2] for point in points], 6), (obstacles, 2))
        for x, y in axes.transData.transform(places or [(1, 1)])[: len(places)]
    ]
    for number, (x, y, text, colour) in enumerate(points):
        for right, up in offsets:
            side = "left" if right > 0 else "right" if right < 0 else "center"
            options = dict(textcoords="offset points", color=colour, fontsize=7.5, ha=side, va="center")
            note = axes.annotate(text, (x, y), (right, up), **options)
            note.set_path_effects([withStroke(linewidth=2, foreground="white")])
            box = note.get_window_extent(renderer)
            others = (other for i, other in enumerate(taken) if i != number)
            if (right, up) == offsets[-1] or not any(box.overlaps(other) for other in others):
                taken.append(box)
                break
            note.remove()


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DPI, metadata={"Software": None})
    return picture.getvalue()
