"""Shows a result of ``python -m benchmarks.table5`` beside the paper's Table 5, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from ..results import Result
from ..tables import table

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
#: Column of a row -> its heading; the columns on the left have more than one figure.
FIGURES = {
    "gflop": "GFLOP / image",
    "tflops": "TFLOP/s",
    "roof_share": "of the roof",
    "extra_mib": "extra MiB",
    "m_parameters": "M parameters",
}
RATIOS = {"ratio_reference": "time / Ours, reference", "ratio_fused": "time / Ours, fused"}
PAPER_RATIO = "paper: time / Ours (ms)"
HEADER = ["system", "operators", "ms / image (quartiles)", *RATIOS.values(), PAPER_RATIO, *FIGURES.values()]


def section(result: Result) -> str:
    """Returns the Markdown of one result."""
    facts = result.facts
    words = ["Incomplete: the run was interrupted."] * (not facts["complete"])
    words += ["Reduced run (--quick): smaller images than the paper's, shallower U-Nets, few rounds."] * facts["quick"]
    least, most = (100 * share for share in facts["hole"])
    words.append(
        f"`{facts['command']}` at commit {facts['commit']}; torch {facts['torch']}, {facts['threads']} threads. "
        f"Full training steps at {facts['size']}×{facts['size']}, batch {facts['batch']}, brush masks with "
        f"{least:.0f}-{most:.0f} % hole. The roof is a large matrix product of the same run, "
        f"{facts['roofs']['tflops']:g} TFLOP/s. Extra memory is a step's peak beyond weights and optimiser state."
    )
    title, notes = f"## Table 5 on {facts['device']}, {facts['precision']}", [f"- {note}" for note in _notes(result)]
    return "\n\n".join([title, " ".join(words), table(HEADER, _cells(result)), "\n".join(notes)]) + "\n"


def _cells(result: Result) -> Iterator[list[str]]:
    previous = None
    for row in result.find(suite="table5"):
        title, paper_ms, _ = PAPER[row["case"]]
        paper = f"{paper_ms / PAPER['ours'][1]:.4g} ({paper_ms:g})"
        if row["case"] == previous:
            title = paper = ""
        previous = row["case"]
        time = f"{row['ms']:g} ({row['lower_ms']:g}-{row['upper_ms']:g})" if "ms" in row else ""
        if "unavailable" in row:
            time = "not available"
        else:
            row = row | {"m_parameters": row["parameters"] / 1e6}
        ratios, figures = ([f"{row[name]:.4g}" if name in row else "" for name in names] for names in (RATIOS, FIGURES))
        yield [title, row["alternative"], time, *ratios, paper, *figures]


def _notes(result: Result) -> Iterator[str]:
    rows = result.find(suite="table5")
    for row in rows:
        if "unavailable" in row:
            yield f"{PAPER[row['case']][0]}, {row['alternative']}, is not available: {row['unavailable']}."
    if any(row["case"] == "pic" for row in rows):
        _, ms, gflop = PAPER["pic"]
        yield (
            f"The paper's {ms:g} ms for PIC cannot be a whole training step at this size: {gflop} GFLOP in that time "
            f"are {gflop / ms:.0f} TFLOP/s, on a card whose peak is {PAPER_PEAK}."
        )
    ours = result.one(suite="table5", case="ours", alternative="reference") or {}
    if "gflop" in ours:
        yield (
            f"Ours takes {ours['gflop']:g} GFLOP per image on reference operators; its released code, "
            f"{PAPER['ours'][2]} at 256×256, also runs VGG-16 on the composite, counts masks by convolutions, and "
            "attends from and to every pixel."
        )
    for row in rows:
        if row["case"] != "ours" and row["alternative"] in ("PyTorch", "reference") and "ratio_reference" in row:
            # A ratio of times is split into work and rate: ours here, and the paper's times over the published work.
            (title, ms, gflop), (_, our_ms, our_gflop) = PAPER[row["case"]], PAPER["ours"]
            ratio, work = row["ratio_reference"], row["gflop"] / ours["gflop"]
            paper_ratio, paper_work = ms / our_ms, gflop / our_gflop
            yield (
                f"{title}: {ratio:.2f} of the time of Ours on reference operators, {work:.2f} of its work at "
                f"{work / ratio:.2f} times its rate. The paper: {paper_ratio:.2f} of the time, {paper_work:.2f} of the "
                f"work, so {paper_work / paper_ratio:.2f} times the rate."
            )
    for system in ("pconv", "ours"):
        times = {row["alternative"]: row["ms"] for row in result.find(suite="table5", case=system) if "ms" in row}
        reference = times.pop("reference", None)
        if reference and times:
            shares = ", ".join(f"{name} {ms / reference:.2f}" for name, ms in times.items())
            yield f"{PAPER[system][0]}, time over that on reference operators: {shares}."
    if loaded := result.find(suite="loader"):
        found = ", ".join(f"{1e3 / row['images_per_s']:.4g} ({row['case']})" for row in loaded)
        yield f"Loader, {result.facts['loader_workers']} workers, ms per image beside the step: {found}."
