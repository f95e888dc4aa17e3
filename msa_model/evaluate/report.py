"""Reports an evaluation: a table for the screen, JSON, CSV and a plot."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from .. import user_files
from .measure import Row, bin_name
from .metrics import DESCRIPTIONS
from .paper_figures import table_4

METRICS = {"psnr": ("PSNR", "{:.2f}"), "ssim": ("SSIM", "{:.4f}"), "l1": ("mean l1", "{:.5f}")}
_PAPER = "Table 4: {}"


def table(rows: list[Row], protocols: list[str], dataset: str | None = None) -> str:
    """Formats rows grouped by bin, a column per protocol and metric, the paper's figures below ours."""
    extras = [name for name in ("lpips", "fid") if any(getattr(row, name) is not None for row in rows)]
    head = [f"{METRICS[metric][0]}" for _ in protocols for metric in METRICS]
    head += [{"lpips": "LPIPS", "fid": "FID"}[name] for name in extras] + ["s/image"]
    lines: list[list[str]] = []
    for low, high in dict.fromkeys((row.low, row.high) for row in rows):
        group = [row for row in rows if (row.low, row.high) == (low, high)]
        lines.append([f"holes {bin_name(low, high)}, {group[0].images} image{'s' * (group[0].images != 1)}"])
        for row in group:
            cells = [_cell(metric, row.figures[protocol][metric]) for protocol in protocols for metric in METRICS]
            cells += ["-" if (value := getattr(row, name)) is None else f"{value:.4g}" for name in extras]
            lines.append([f"  {row.method}", *cells, f"{row.seconds:.3f}"])
        for method, figures in (table_4(dataset, low, high) if dataset and "paper" in protocols else {}).items():
            cells = [_cell(m, figures[m]) if protocol == "paper" else "" for protocol in protocols for m in METRICS]
            lines.append([f"  {_PAPER.format(method)}", *cells, *[""] * (len(extras) + 1)])
    first = max(len(line[0]) for line in lines)
    widths = [max(len(line[i]) for line in [["", *head], *lines] if len(line) > 1) for i in range(1, len(head) + 1)]
    groups = [p.center(sum(widths[3 * i : 3 * i + 3]) + 4, "-") for i, p in enumerate(protocols)]
    text = ["  ".join([" " * first, *groups]).rstrip()]
    for line in [["", *head], *lines]:
        cells = [cell.rjust(width) for cell, width in zip(line[1:], widths, strict=False)]
        text.append("  ".join([line[0].ljust(first), *cells]).rstrip())
    text += ["", *(f"{protocol}: {DESCRIPTIONS[protocol]}" for protocol in protocols)]
    if equal := sum(row.equal for row in rows):
        text.append(f"{equal} results equal to the truth have an infinite PSNR, which is left out of the means")
    if any(line[0].startswith("  Table 4") for line in lines):
        text.append("Table 4: as printed, of the authors' test images and masks")
    return "\n".join(text)


def _cell(metric: str, value: float | None) -> str:
    return "equal" if value is None else METRICS[metric][1].format(value)


def write(folder: Path, rows: list[Row], protocols: list[str], facts: dict, dataset: str | None = None) -> list[Path]:
    """Writes evaluation.json, evaluation.csv and evaluation.png; returns their paths.

    Args:
        folder: an existing folder.
        rows: results of `measure.evaluate_bin`.
        protocols: the measured protocols.
        facts: more entries for the JSON file (arguments, versions); plain containers.
        dataset: whose figures of Table 4 are added, if the paper has any.
    """
    paths = [folder / f"evaluation.{suffix}" for suffix in ("json", "csv", "png")]
    paper = [
        {"method": method, "low": low, "high": high, "figures": figures}
        for low, high in dict.fromkeys((row.low, row.high) for row in rows)
        for method, figures in (table_4(dataset, low, high) if dataset else {}).items()
    ]
    content = {
        **facts,
        "protocols": {protocol: DESCRIPTIONS[protocol] for protocol in protocols},
        "results": [vars(row) for row in rows],
        "paper_table_4": paper,
    }
    user_files.replace(paths[0], (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    user_files.replace(paths[1], _csv(rows, paper).encode())
    user_files.replace(paths[2], _plot(rows, protocols, paper))
    return paths


def _csv(rows: list[Row], paper: list[dict]) -> str:
    text = io.StringIO()
    columns = ["source", "method", "low", "high", "images", "protocol", *METRICS, "lpips", "fid", "seconds"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        shared = {name: getattr(row, name) for name in ("method", "low", "high", "images", "lpips", "fid", "seconds")}
        for protocol, figures in row.figures.items():
            writer.writerow({"source": "measured", "protocol": protocol, **shared, **figures})
    for entry in paper:
        place = {name: entry[name] for name in ("method", "low", "high")}
        writer.writerow({"source": "Table 4", "protocol": "paper", **place, **entry["figures"]})
    return text.getvalue()


def _plot(rows: list[Row], protocols: list[str], paper: list[dict]) -> bytes:
    """Plots one panel per protocol and metric, over the bins; ours in colours, the paper's as hollow marks."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bins = list(dict.fromkeys((row.low, row.high) for row in rows))
    figure = Figure(figsize=(12, 3.2 * len(protocols) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(protocols), len(METRICS), squeeze=False)
    for line, protocol in zip(panels, protocols, strict=True):
        for axes, (metric, (title, _)) in zip(line, METRICS.items(), strict=True):
            for number, method in enumerate(dict.fromkeys(row.method for row in rows)):
                own = {(r.low, r.high): r.figures[protocol][metric] for r in rows if r.method == method}
                shown = [(i, own[b]) for i, b in enumerate(bins) if own.get(b) is not None]
                axes.plot(
                    *zip(*shown, strict=True) if shown else ((), ()), "o-", color=f"C{number}", label=_plain(method)
                )
            for number, method in enumerate(dict.fromkeys(e["method"] for e in paper) if protocol == "paper" else ()):
                printed = [(bins.index((e["low"], e["high"])), e["figures"][metric]) for e in paper
                           if e["method"] == method]  # fmt: skip
                axes.plot(*zip(*printed, strict=True), "sD^v"[number % 4], color="black", fillstyle="none",
                          linestyle=":", label=_PAPER.format(method))  # fmt: skip
            axes.set_title(f"{title}{', dB' if metric == 'psnr' else ''} ({protocol})", fontsize=10)
            axes.set_xticks(range(len(bins)), [bin_name(*b) for b in bins], fontsize=8)
            axes.grid(alpha=0.3)
    figure.supxlabel("share of hole pixels", fontsize=9)
    handles, labels = panels[-1 if paper and "paper" in protocols else 0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=9)
    content = io.BytesIO()
    figure.savefig(content, dpi=100, format="png")
    return content.getvalue()


def _plain(name: str) -> str:
    """Keeps matplotlib from reading a file's name as a formula, or from leaving it out of the legend."""
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name
