"""Shows a result of ``python -m benchmarks.table5`` beside the paper's Table 5, as Markdown and in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..results import Result

#: TFLOP/s of the paper's card, a Titan Xp, in float32.
PAPER_PEAK = 12
#: System -> its title, the milliseconds per image that the paper gives, and the GFLOP per image of the published step.
PAPER = {
    "pic": ("PIC", 6.3, 138),
    "pconv": ("PConv", 32.75, 201),
    "edgeconnect-edge": ("EdgeConnect, edge", 56.5, 343),
    "edgeconnect-inpainting": ("EdgeConnect, inpainting", 84, 654),
    "edgeconnect": ("EdgeConnect, sum", 140.5, 997),
    "ours": ("Ours", 67.5, 288),
}
HEADER = [
    "system",
    "operators",
    "ms / image (quartiles)",
    "time / Ours, reference",
    "time / Ours, fused",
    "paper: time / Ours (ms)",
    "GFLOP / image",
    "TFLOP/s",
    "of the roof",
    "extra MiB",
    "M parameters",
]
#: The operators of the baselines; those of the first are, as the paper's were, plain PyTorch.
REFERENCE, FUSED = "reference", "fused"


def section(result: Result) -> str:
    """Returns the Markdown of one result."""
    lines = ["| " + " | ".join(cells) + " |" for cells in [HEADER, ["---"] * len(HEADER), *_cells(result)]]
    title = f"## Table 5 on {result.facts['device']}, {result.facts['precision']}\n"
    return "\n".join([title, _preamble(result), "", *lines, "", *(f"- {note}" for note in _notes(result))]) + "\n"


def terminal(result: Result) -> str:
    """Returns the same in columns."""
    lines = [HEADER, *_cells(result)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    columns = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([_preamble(result), "", *columns, "", *_notes(result)])


def _preamble(result: Result) -> str:
    facts = result.facts
    words = [] if facts["complete"] else ["Incomplete: the run was interrupted."]
    if facts["quick"]:
        words.append("Reduced run (--quick): smaller images than the paper's, shallower U-Nets, few rounds.")
    words.append(
        f"`{facts['command']}` at commit {facts['commit']}; torch {facts['torch']}, {facts['threads']} threads. "
        f"Full training steps at {facts['size']}×{facts['size']}, batch {facts['batch']}, brush masks with "
        f"{100 * facts['hole'][0]:.0f}-{100 * facts['hole'][1]:.0f} % hole. The roof is a large matrix product of "
        f"the same run, {facts['roofs']['tflops']:g} TFLOP/s. Extra memory is a step's peak beyond weights and "
        "optimiser state."
    )
    return " ".join(words)


def _cells(result: Result) -> list[list[str]]:
    lines, previous = [], None
    for row in result.find(suite="table5"):
        title, paper_ms, _ = PAPER[row["case"]]
        paper = f"{paper_ms / PAPER['ours'][1]:.4g} ({paper_ms:g})"
        if row["case"] == previous:
            title = paper = ""
        previous = row["case"]
        if "unavailable" in row:
            cells = ["not available", "", "", paper, *[""] * 5]
        else:
            time = f"{row['ms']:g} ({row['lower_ms']:g}-{row['upper_ms']:g})" if "ms" in row else ""
            ratios = [_shown(row.get(f"ratio_{baseline}")) for baseline in (REFERENCE, FUSED)]
            rest = [_shown(row.get(name)) for name in ("gflop", "tflops", "roof_share", "extra_mib")]
            cells = [time, *ratios, paper, *rest, _shown(row["parameters"] / 1e6)]
        lines.append([title, row["alternative"], *cells])
    return lines


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _notes(result: Result) -> list[str]:
    rows = result.find(suite="table5")
    notes = [f"{_name(row)}, is not available: {row['unavailable']}." for row in rows if "unavailable" in row]
    notes += [
        f"{_name(row)}, took turns with Ours alone, as it found no memory beside the others."
        for row in rows
        if row.get("apart")
    ]
    if result.find(suite="table5", case="pic"):
        _, ms, gflop = PAPER["pic"]
        notes.append(
            f"The paper's {ms:g} ms for PIC cannot be a whole training step at this size: {gflop} GFLOP in that time "
            f"are {gflop / ms:.0f} TFLOP/s, on a card whose peak is {PAPER_PEAK}."
        )
    ours = result.one(suite="table5", case="ours", alternative=REFERENCE) or {}
    if "gflop" in ours:
        notes.append(
            f"Ours takes {ours['gflop']:g} GFLOP per image on reference operators; its released code, "
            f"{PAPER['ours'][2]} at 256×256, also runs VGG-16 on the composite, counts masks by convolutions, and "
            "attends from and to every pixel."
        )
    is_compared = {"PyTorch", REFERENCE}
    notes += [
        _explanation(row, ours)
        for row in rows
        if row["case"] != "ours" and row["alternative"] in is_compared and "ratio_reference" in row
    ]
    notes += [_savings(result, system) for system in ("pconv", "ours")]
    return [note for note in [*notes, _loader(result)] if note]


def _name(row: dict) -> str:
    return f"{PAPER[row['case']][0]}, {row['alternative']}"


def _explanation(row: dict, ours: dict) -> str:
    """Splits a time ratio into work and rate, here and for the paper's times and the published work."""
    (title, ms, gflop), (_, our_ms, our_gflop) = PAPER[row["case"]], PAPER["ours"]
    ratio, work = row["ratio_reference"], row["gflop"] / ours["gflop"]
    paper_ratio, paper_work = ms / our_ms, gflop / our_gflop
    return (
        f"{title}: {ratio:.2f} of the time of Ours on reference operators, {work:.2f} of its work at "
        f"{work / ratio:.2f} times its rate. The paper: {paper_ratio:.2f} of the time, {paper_work:.2f} of the "
        f"work, so {paper_work / paper_ratio:.2f} times the rate."
    )


def _savings(result: Result, system: str) -> str:
    """Says what the fused operators and the compiler save of a system's reference step."""
    rows = [row for row in result.find(suite="table5", case=system) if "ms" in row]
    reference = next((row["ms"] for row in rows if row["alternative"] == REFERENCE), None)
    others = [row for row in rows if row["alternative"] != REFERENCE]
    if reference is None or not others:
        return ""
    shares = ", ".join(f"{row['alternative']} {row['ms'] / reference:.2f}" for row in others)
    return f"{PAPER[system][0]}, time over that on reference operators: {shares}."


def _loader(result: Result) -> str:
    rows = result.find(suite="loader")
    if not rows:
        return ""
    measured = [f"{1e3 / row['images_per_s']:.4g} ({row['case']})" for row in rows if "images_per_s" in row]
    found = f"ms per image beside the step: {', '.join(measured)}" if measured else ""
    found = found or f"not available: {rows[0]['unavailable']}"
    return f"Loader, {result.facts['loader_workers']} workers, {found}."
