"""How a result file of ``python -m benchmarks.table5`` is shown: as a section of the README, and in a terminal."""

from __future__ import annotations

from .tables import table

#: TFLOP/s of the paper's card, a Titan Xp, in float32.
PAPER_PEAK = 12

TITLES = {
    "pic": "PIC",
    "pconv": "PConv",
    "edgeconnect-edge": "EdgeConnect, edge",
    "edgeconnect-inpainting": "EdgeConnect, inpainting",
    "edgeconnect": "EdgeConnect, sum",
    "ours": "Ours",
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
#: The baseline whose operators are, as the paper's were, those of plain PyTorch; and ours.
REFERENCE, FUSED = "reference", "fused"


def section(content: dict) -> str:
    """Markdown of one result file, with what the environment was."""
    facts = content["environment"]
    title = f"### Table 5 on {facts['device']}, {content['precision']}\n"
    return "\n".join([title, _preamble(content), "", table(HEADER, _cells(content)), "", *_notes(content, "- ")]) + "\n"


def terminal(content: dict) -> str:
    """The same in columns."""
    lines = [HEADER, *_cells(content)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    columns = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([_preamble(content), "", *(line.rstrip() for line in columns), "", *_notes(content, "")])


def _preamble(content: dict) -> str:
    facts, roofs = content["environment"], content["roofs"]
    words = [] if content["complete"] else ["Incomplete: the run was interrupted."]
    if content["quick"]:
        words.append("Reduced run (--quick): smaller images than the paper's, shallower U-Nets, few rounds.")
    words.append(
        f"`{facts['command']}` at commit {facts['commit']}; torch {facts['torch']}, {facts['threads']} threads. "
        f"Full training steps at {content['size']}×{content['size']}, batch {content['batch']}, brush masks with "
        f"{100 * content['hole'][0]:.0f}-{100 * content['hole'][1]:.0f} % hole. The roof is a large matrix product of "
        f"the same run, {roofs['tflops']:g} TFLOP/s. Extra memory is a step's peak beyond weights and optimiser "
        "state."
    )
    return " ".join(words)


def _cells(content: dict) -> list[list[str]]:
    lines, previous = [], None
    for row in content["rows"]:
        named = [TITLES[row["system"]], row["operators"]]
        paper = f"{row['paper']['ratio']:g} ({row['paper']['ms']:g})"
        if row["system"] == previous:
            named[0] = paper = ""
        previous = row["system"]
        if "unavailable" in row:
            measured = ["not available", "", "", paper, *[""] * 5]
        else:
            ratio = row.get("ratio", {})
            measured = [
                f"{row['ms']:g} ({row['quartiles_ms'][0]:g}-{row['quartiles_ms'][1]:g})" if "ms" in row else "",
                *(_shown(ratio.get(baseline)) for baseline in (REFERENCE, FUSED)),
                paper,
                *(_shown(row.get(name)) for name in ("gflop", "tflops", "roof_share", "extra_mib")),
                _shown(row["parameters"] / 1e6),
            ]
        lines.append(named + measured)
    return lines


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _notes(content: dict, bullet: str) -> list[str]:
    rows = {(row["system"], row["operators"]): row for row in content["rows"]}
    notes = [
        f"{TITLES[system]}, {operators}, is not available: {row['unavailable']}."
        for (system, operators), row in rows.items()
        if "unavailable" in row
    ]
    notes += [
        f"{TITLES[system]}, {operators}, took turns with Ours alone, as it found no memory beside the others."
        for (system, operators), row in rows.items()
        if row.get("apart")
    ]
    notes += [_implausible(row) for row in rows.values() if row["system"] == "pic"]
    ours = rows.get(("ours", REFERENCE), {})
    if "gflop" in ours:
        notes.append(_work_of_ours(ours))
    if "ms" in ours:
        notes += [_explanation(row, ours) for row in rows.values() if _is_like_the_papers(row)]
    notes += [note for system in ("pconv", "ours") if (note := _bought(system, rows))]
    if loader := content.get("loader"):
        sources = ", ".join(f"{ms:g} ({name})" for name, ms in loader.get("ms", {}).items())
        found = f"ms per image beside the step: {sources}" if sources else f"not available: {loader['unavailable']}"
        notes.append(f"Loader, {loader['workers']} workers, {found}.")
    return [bullet + note for note in notes]


def _is_like_the_papers(row: dict) -> bool:
    """A compared system on plain PyTorch, timed beside Ours on plain PyTorch."""
    return row["system"] != "ours" and row["operators"] in ("PyTorch", REFERENCE) and REFERENCE in row.get("ratio", {})


def _implausible(pic: dict) -> str:
    ms, gflop = pic["paper"]["ms"], pic["paper"]["gflop"]
    return (
        f"The paper's {ms:g} ms for PIC cannot be a whole training step at this size: {gflop} GFLOP in that time are "
        f"{gflop / ms:.0f} TFLOP/s, on a card whose peak is {PAPER_PEAK}."
    )


def _work_of_ours(ours: dict) -> str:
    return (
        f"Ours takes {ours['gflop']:g} GFLOP per image on reference operators; its released code, "
        f"{ours['paper']['gflop']} at 256×256, also runs VGG-16 on the composite, counts masks by convolutions, and "
        "attends from and to every pixel."
    )


def _explanation(row: dict, ours: dict) -> str:
    """Time ratio = work ratio / rate ratio, here and as the paper's times and the published work have it."""
    title, ratio, paper = TITLES[row["system"]], row["ratio"][REFERENCE], row["paper"]
    work = row["gflop"] / ours["gflop"]
    paper_work = paper["gflop"] / ours["paper"]["gflop"]
    return (
        f"{title}: {ratio:.2f} of the time of Ours on reference operators, {work:.2f} of its work at "
        f"{work / ratio:.2f} times its rate. The paper: {paper['ratio']:.2f} of the time, {paper_work:.2f} of the "
        f"work, so {paper_work / paper['ratio']:.2f} times the rate."
    )


def _bought(system: str, rows: dict[tuple[str, str], dict]) -> str | None:
    """What the fused operators and the compiler save of a system's reference step."""
    reference = rows.get((system, REFERENCE), {})
    others = [
        f"{row['operators']} {row['ms'] / reference['ms']:.2f}"
        for (name, operators), row in rows.items()
        if name == system and operators != REFERENCE and "ms" in row and "ms" in reference
    ]
    return f"{TITLES[system]}, time over that on reference operators: {', '.join(others)}." if others else None
