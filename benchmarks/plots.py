"""The pictures of a result, as PNG: how attention scales, and the roofline.

The same result gives the same bytes with the same matplotlib: fixed sizes, its own fonts, no date.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from .measure import BOTH, FORWARD, OURS
from .results import Result
from .tables import distinct, names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY = "#222222", "#777777"
#: Colour, dash and mark, so that lines differ in lightness and in form as well as in hue.
LINES = [
    (INK, "-", "o"),
    ("#d55e00", "--", "s"),
    ("#0072b2", "-.", "^"),
    ("#aa4499", ":", "D"),
    ("#009e73", (0, (5, 1, 1, 1, 1, 1)), "v"),
]
#: The same for the points of the roofline, by the first letter of their labels: encoder, decoder, attention.
POINTS = {"E": ("#0072b2", "o"), "D": ("#d55e00", "s"), "A": (INK, "D")}
DPI = 150


def pictures(result: Result) -> dict[str, tuple[str, Callable[[Result], bytes]]]:
    """Returns the pictures that a result has data for, by name: caption and function."""
    found = {}
    if "scaling" in result.suites:
        caption = "Attention on growing maps: time and extra memory against the size of the map; × marks where an "
        found["scaling"] = (caption + "alternative ended.", scaling)
    if any(achieved(result, which) for which in (FORWARD, BOTH)):
        caption = (
            "Achieved rates of encoder (E) and decoder (D) layers and attention, ours. A layer can lie above the roof "
            "where it needs fewer products than are counted, as the decoder's does, or where its data stay in cache."
        )
        found["roofline"] = (caption, roofline)
    return found


def scaling(result: Result) -> bytes:
    """Draws time and extra memory of every alternative against the side of the map; and where one ended, and why."""
    rows = result.find(suite="scaling", pass_=FORWARD)
    sides, figure = distinct(rows, "side"), _figure(f"Hole attention, forward, a quarter hole. {_device(result)}", 4.4)
    styles = dict(zip(names(rows), LINES, strict=False))
    ends = {row["alternative"]: row for row in reversed(rows) if "unavailable" in row}
    titles = {"ms": "time, ms", "extra_mib": "extra memory, MiB"}
    for axes, (quantity, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        labels, obstacles = [], []
        for name, (colour, dash, mark) in styles.items():
            own = [row for row in rows if row["alternative"] == name and quantity in row]
            if points := [(row["side"], row[quantity]) for row in own]:
                axes.plot(*zip(*points, strict=True), color=colour, linestyle=dash, marker=mark, markersize=5)
                labels.append((*points[-1], f"{name} ×" if name in ends else name, colour))
                obstacles += _along(points)
        axes.set(xscale="log", yscale="log", xlabel="side of the map, pixels", xlim=(sides[0] / 1.2, sides[-1] * 1.7))
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xticks(sides, [str(side) for side in sides])
        axes.set_xticks([], minor=True)
        _label(axes, labels, [(9, 0), (-9, 8), (9, 12), (9, -12), (-9, 20), (7, -8)], obstacles)
        if quantity == "ms":
            for number, (name, row) in enumerate(reversed(ends.items())):
                text, colour = f"{name} × at {row['side']}: {row['unavailable']}", styles[name][0]
                place = (0.99, 0.03 + 0.05 * number)
                axes.annotate(text, place, xycoords="axes fraction", color=colour, fontsize=7.5, ha="right")
    return _png(figure)


def roofline(result: Result) -> bytes:
    """Draws ours in every layer and attention case: achieved rate against FLOP per byte, under the measured roofs."""
    figure = _figure(f"Achieved rates under the measured roofs. {_device(result)}", 4.8)
    found = {which: achieved(result, which) for which in (FORWARD, BOTH)}
    every = [x for points in found.values() for x, *_ in points]
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    near = [(7, 0), (-7, 0), (0, 8), (0, -8), (6, 7), (-6, 7), (6, -7), (-6, -7)]
    for axes, (which, points) in zip(panels, found.items(), strict=True):
        axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", xlim=(min(every) / 1.6, max(every) * 4))
        axes.set_title(f"TFLOP/s, {which}", loc="left", fontsize=10)
        _draw_roofs(axes, result.facts["roofs"])
        for x, y, label, colour in points:
            axes.plot(x, y, POINTS[_group(label)][1], color=colour, markersize=4.5)
        _label(axes, points, [(x * far, y * far) for far in (1, 1.6, 2.4, 3.4) for x, y in near])
    return _png(figure)


def achieved(result: Result, which: str) -> list[tuple[float, float, str, str]]:
    """Returns FLOP per byte, TFLOP/s, label and colour: layers as E1 … D1, with their image side if there are several,
    and attention by its case."""
    rows = [row for name in ("layers", "attention") for row in result.find(suite=name, alternative=OURS, pass_=which)]
    several = len(set(distinct(result.find(suite="layers"), "size"))) > 1
    found = []
    for row in (row for row in rows if "tflops" in row):
        label = row["case"]
        if layer := row.get("layer"):
            label = layer[0] + layer[-1] + (f" {row['size']}" if several else "")
        found.append((row["flop"] / row["bytes"], row["tflops"], label, POINTS[_group(label)][0]))
    return found


def _group(label: str) -> str:
    return label[0] if label[0] in POINTS else "A"


def _draw_roofs(axes: Axes, roofs: dict) -> None:
    """Draws bandwidth times intensity, up to the rate of a matrix product."""
    tflops, bandwidth = roofs["tflops"], roofs["gbytes_per_s"] / 1e3
    low, high = axes.get_xlim()
    ridge = max(low, tflops / bandwidth)
    xs = [low, ridge, high]
    axes.plot(xs, [min(tflops, bandwidth * x) for x in xs], color=GREY, linewidth=1.2)
    text = f"roofs: matrix product {tflops:.3g} TFLOP/s, copy {roofs['gbytes_per_s']:,.0f} GB/s"
    axes.annotate(text, (0.02, 0.96), xycoords="axes fraction", color=GREY, fontsize=7.5)


# ---- what both share -------------------------------------------------------------------------------------------------


def _device(result: Result) -> str:
    facts = result.facts
    threads = f", {facts['threads']} threads" if facts["device_kind"] == "cpu" else ""
    return f"{facts['device']}{threads}, {facts['precision']}"


def _figure(title: str, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, height), dpi=DPI)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.06, right=0.99, bottom=0.11, top=0.87, wspace=0.12)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DPI, metadata={"Software": None})
    return picture.getvalue()


def _along(points: Sequence[tuple[float, float]], steps: int = 24) -> list[tuple[float, float]]:
    """Returns points on the lines that a plot with logarithmic axes draws between these."""
    return [
        tuple(start ** (1 - i / steps) * stop ** (i / steps) for start, stop in zip(a, b, strict=True))
        for a, b in itertools.pairwise(points)
        for i in range(steps)
    ]


def _label(
    axes: Axes,
    points: Sequence[tuple[float, float, str, str]],
    offsets: Sequence[tuple[float, float]],
    obstacles: Iterable[tuple[float, float]] = (),
) -> None:
    """Writes text beside points (x, y, text, colour), at the first of the offsets, in typographic points, where it
    overlaps no other text, point or obstacle; at the last where there is none."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    axes.spines[["top", "right"]].set_visible(False)
    axes.get_ylim()  # settles the scale that the transformation below takes from
    renderer = axes.figure.canvas.get_renderer()
    taken = [
        Bbox.from_bounds(x - size, y - size, 2 * size, 2 * size)
        for places, size in (([point[:2] for point in points], 6), ([*obstacles], 2))
        if places
        for x, y in axes.transData.transform(places)
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
