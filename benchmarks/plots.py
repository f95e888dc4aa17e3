"""The pictures of a result, as PNG: how attention scales, and the roofline.

The same result gives the same bytes with the same matplotlib: fixed sizes, its own fonts, no date.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .measure import BOTH, FORWARD, OURS
from .results import Result
from .tables import distinct, names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY = "#222222", "#777777"
#: Colour, dash and mark of the lines, which so differ in lightness and in form as well as in hue.
LINES = [
    (INK, "-", "o"),
    ("#d55e00", "--", "s"),
    ("#0072b2", "-.", "^"),
    ("#aa4499", ":", "D"),
    ("#009e73", (0, (5, 1, 1, 1, 1, 1)), "v"),
]
#: The roofline's points, by the first letter of their labels (encoder, decoder, attention): colour, mark, and where the
#: label stands: horizontally, vertically, and in points; so that those of neighbours rarely overlap.
POINTS = {
    "E": ("#0072b2", "o", [("left", "top", (3, -3))]),
    "D": ("#d55e00", "s", [("right", "bottom", (-3, 2))]),
    "A": (INK, "D", [("center", "bottom", (0, 5)), ("center", "top", (0, -5))]),
}
DPI = 150


def pictures(result: Result) -> dict[str, tuple[str, Callable[[Result], bytes]]]:
    """Returns the pictures that a result has data for, by name: caption and function."""
    found = {}
    if "scaling" in result.suites:
        caption = "Attention on growing maps: time and extra memory against the size of the map."
        found["scaling"] = (caption, scaling)
    if achieved(result, FORWARD):
        caption = (
            "Achieved rates under the roofs: our encoder (E) and decoder (D) layers and attention (A). A layer can lie "
            "above the roof where it needs fewer products than are counted, as the decoder's does, or where its data "
            "stay in cache."
        )
        found["roofline"] = (caption, roofline)
    return found


def scaling(result: Result) -> bytes:
    """Draws time and extra memory of every alternative against the side of the map; the legend says where one ended,
    and why."""
    rows = result.find(suite="scaling", pass_=FORWARD)
    figure, sides = _figure("Hole attention, forward, a quarter hole", result), distinct(rows, "side")
    for axes, quantity in _panels(figure, {"ms": "time, ms", "extra_mib": "extra memory, MiB"}):
        for name, (colour, dash, mark) in zip(names(rows), LINES, strict=False):
            own = [row for row in rows if row["alternative"] == name]
            ends = [f", ended at {row['side']}: {row['unavailable']}" for row in own if "unavailable" in row]
            style = dict(color=colour, linestyle=dash, marker=mark, markersize=5, label=name + (ends or [""])[0])
            measured = [row for row in own if quantity in row]
            axes.plot([row["side"] for row in measured], [row[quantity] for row in measured], **style)
        axes.set(xlabel="side of the map, pixels")
        axes.set_xticks(sides, [str(side) for side in sides])
        axes.set_xticks([], minor=True)
    figure.legend(*axes.get_legend_handles_labels(), loc="lower left", ncols=2, fontsize=8, frameon=False)
    return _png(figure)


def roofline(result: Result) -> bytes:
    """Draws ours in every layer and attention case: achieved rate against FLOP per byte, under the measured roofs."""
    figure, roofs = _figure("Achieved rates under the measured roofs", result), result.facts["roofs"]
    tflops, bandwidth = roofs["tflops"], roofs["gbytes_per_s"] / 1e3
    found = {which: achieved(result, which) for which in (FORWARD, BOTH)}
    every = [x for points in found.values() for x, *_ in points]
    low, high = min(every) / 2, max(every) * 4
    xs = [low, max(low, tflops / bandwidth), high]
    for axes, which in _panels(figure, {which: f"TFLOP/s, {which}" for which in found}, sharex=True, sharey=True):
        axes.set(xlabel="FLOP per byte", xlim=(low, high))
        axes.plot(xs, [min(tflops, bandwidth * x) for x in xs], color=GREY, linewidth=1.2)
        for x, y, label, _ in found[which]:
            colour, mark, places = POINTS[label[0]]
            ha, va, offset = places[int(label[1]) % len(places)]
            axes.plot(x, y, mark, color=colour, markersize=4.5)
            text = dict(color=colour, fontsize=7, ha=ha, va=va)
            axes.annotate(label, (x, y), offset, textcoords="offset points", **text)
    text = f"roofs (grey): matrix product {tflops:.3g} TFLOP/s, copy {roofs['gbytes_per_s']:,.0f} GB/s"
    keys = {label: case for points in found.values() for _, _, label, case in points if label[0] == "A"}
    text += "\n" * bool(keys) + "; ".join(f"{label}: attention, {case}" for label, case in keys.items())
    figure.text(0.01, 0.02, text, color=GREY, fontsize=8)
    return _png(figure)


def achieved(result: Result, which: str) -> list[tuple[float, float, str, str]]:
    """Returns FLOP per byte, TFLOP/s, label and case: the layers E1 … D1, with their image side if there are several,
    and the attention's cases A1, A2, …"""
    several = len(distinct(result.find(suite="layers"), "size")) > 1
    found = []
    for name in ("layers", "attention"):
        for number, row in enumerate(result.find(suite=name, alternative=OURS, pass_=which), 1):
            label = f"A{number}"
            if layer := row.get("layer"):
                label = layer[0] + layer[-1] + (f" {row['size']}" if several else "")
            if "tflops" in row:
                found.append((row["flop"] / row["bytes"], row["tflops"], label, row["case"]))
    return found


def _figure(title: str, result: Result) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), dpi=DPI)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.06, right=0.99, bottom=0.2, top=0.88, wspace=0.12)
    figure.suptitle(f"{title}. {result.device}, {result.facts['precision']}", x=0.01, ha="left", fontsize=11)
    return figure


def _panels(figure: Figure, titles: dict[str, str], **shared: bool) -> Iterator[tuple[Axes, str]]:
    """Yields two logarithmic panels, each with its key in titles."""
    for axes, (key, title) in zip(figure.subplots(1, 2, **shared), titles.items(), strict=True):
        axes.set(xscale="log", yscale="log")
        axes.set_title(title, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        yield axes, key


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DPI, metadata={"Software": None})
    return picture.getvalue()
