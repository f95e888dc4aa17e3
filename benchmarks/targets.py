"""The targets that this project has set itself, beside what the committed results hold: by device and precision every
row's target, its value, and whether it is met. Only the targets are written by hand.

A row is read from the result whose name begins with ``operators`` if that has it, else from the first by name.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from .measure import BOTH, FORWARD, OURS, STEP, Row
from .results import Result
from .tables import digits, distinct, table

CPU, CUDA = "cpu", "cuda"
#: Precisions by device kind; the targets are for the first, the others are reported beside it.
PRECISIONS = {CPU: ("float32",), CUDA: ("bfloat16", "tf32")}
#: The GPU that the targets are for.
GPU = "H100"
TITLES = {FORWARD: "forward", BOTH: "forward + backward"}

# ---- where a value is found ------------------------------------------------------------------------------------------


Value = Callable[[Result], float]


def smallest(rows: Sequence[Row], quantity: str) -> float:
    """Returns the smallest quantity of the rows.

    Raises:
        LookupError: no row has it. The message says why; it is empty where nothing was tried.
    """
    if found := [row[quantity] for row in rows if quantity in row]:
        return min(found)
    raise LookupError("; ".join(f"{row['alternative']}: {row['unavailable']}" for row in rows if "unavailable" in row))


def figure(result: Result, quantity: str, **columns: object) -> float:
    return smallest(result.find(**columns)[:1], quantity)


def ratio(suite: str, case: str, over: str, under: str, which: str) -> Value:
    where = dict(suite=suite, case=case, pass_=which)
    return lambda r: figure(r, "ms", alternative=over, **where) / figure(r, "ms", alternative=under, **where)


def best(case: str, which: str) -> Value:
    """Returns the time of the fastest of the others over ours."""
    where = dict(suite="attention", case=case, pass_=which)
    return lambda r: smallest([row for row in r.find(**where) if row["alternative"] != OURS], "ratio")


def of_product(case: str, which: str) -> Value:
    """Returns our rate over that of the matrix product."""
    where = dict(suite="attention", case=case, alternative=OURS, pass_=which)
    return lambda r: figure(r, "tflops", **where) / r.facts["roofs"]["tflops"]


def growth(quantity: str, which: str) -> Value:
    where = dict(suite="attention", alternative=OURS, pass_=which)
    return lambda r: figure(r, quantity, case="128×128", **where) / figure(r, quantity, case="64×64", **where)


def large_holes(result: Result) -> float:
    """Returns the three layers' summed times at both shares, over those without a hole."""
    cases = [f"Encode_{number} {share}" for number in (1, 2, 3) for share in ("50%", "60%")]
    ours, no_hole = (
        sum(figure(result, "ms", suite="mask-ratios", case=case, alternative=name) for case in cases)
        for name in (OURS, "ours, no hole")
    )
    return ours / no_hole


def inference(result: Result) -> float:
    """Returns, for one image, the faster of the compiled references over ours."""
    rows = result.find(suite="generator", case="whole 256", batch=1)
    compiled = [row for row in rows if "compiled" in row["alternative"]]
    return smallest(compiled, "ms") / smallest([row for row in rows if row["alternative"] == OURS], "ms")


def training(result: Result) -> float:
    """Returns the ratio from whole runs of Table 5 only."""
    if result.facts.get("quick", True) or not result.facts["complete"]:
        raise LookupError
    where = dict(quantity="ms", suite="table5", pass_=STEP)
    ours = figure(result, case="ours", alternative="fused", **where)
    return ours / figure(result, case="pconv", alternative="reference", **where)


# ---- the targets -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Target:
    """A value and its bounds by device kind; no bound, no row. `unit`: "", "%", "MiB" or "GiB"."""

    what: str
    bounds: Mapping[str, float]
    value: Value
    at_least: bool = False
    unit: str = ""

    def is_met(self, value: float, kind: str) -> bool:
        return value >= self.bounds[kind] if self.at_least else value <= self.bounds[kind]

    def bound(self, kind: str) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.shown(self.bounds[kind], '{:g}'.format)}"

    def shown(self, value: float, written: Callable[[float], str] = lambda value: digits(value, 3)) -> str:
        return f"{written(value * 100 if self.unit == '%' else value)} {self.unit}".rstrip()


def _targets() -> Iterator[Target]:
    bare, sums = "against bare `F.conv2d` on ready inputs", "16 layers 256"
    for which, bounds in ((FORWARD, {CPU: 0.80, CUDA: 0.90}), (BOTH, {CPU: 0.90, CUDA: 1.00})):
        value = ratio("layers", sums, OURS, "bare conv", which)
        yield Target(f"16 partial convolutions, {TITLES[which]}, {bare}", bounds, value)
    value = ratio("layers", sums, "channel masks, compiled", OURS, BOTH)
    yield Target("channel masks, compiled, against ours, forward + backward", {CPU: 2.5, CUDA: 2.5}, value, True)
    value = ratio("layers", "Encode_1 + Decode_1 256", OURS, "bare conv", FORWARD)
    yield Target(f"Encode_1 plus Decode_1, forward, {bare}", {CPU: 0.45, CUDA: 0.5}, value)
    # Two products of a single map take 2 µs at an H100's roof, less than the launch of a kernel: also six maps.
    stages = {"batch 1": ("64×64 30%", {CPU, CUDA}), "batch 6": ("64×64 30%, batch 6", {CUDA})}
    for which, bounds in ((FORWARD, {CPU: 0.40, CUDA: 0.35}), (BOTH, {CPU: 0.30, CUDA: 0.25})):
        for batch, (case, kinds) in stages.items():
            what = f"attention stage, {batch}, {TITLES[which]}, of the matrix product's rate"
            yield Target(what, {kind: bounds[kind] for kind in kinds}, of_product(case, which), True, "%")
    for which, bound in ((FORWARD, 3), (BOTH, 2)):
        for batch, (case, kinds) in stages.items():
            what = f"attention stage, {batch}, {TITLES[which]}, best of the others against ours"
            yield Target(what, dict.fromkeys(kinds, bound), best(case, which), True)
    for batch, case, bounds in ((1, "64×64", {CPU: 1.5, CUDA: 1.8}), (6, "64×64, batch 6", {CUDA: 1.8})):
        value = ratio("shift-propagation", case, OURS, "ours, k = 0", FORWARD)
        yield Target(f"k = 1 against k = 0, forward, batch {batch}", bounds, value)
    yield Target("50-60 % hole against none, first three layers, forward", {CPU: 0.8, CUDA: 0.85}, large_holes)
    what = "training step of Ours, fused, against PConv's on reference operators (the paper: 2.06)"
    yield Target(what, {CPU: 1.0, CUDA: 1.0}, training)
    what = "generator, batch 1, 256×256: compiled reference against ours"
    yield Target(what, {CPU: 2, CUDA: 2}, inference, True)
    what = "1024×1024, full width, peak memory over the weights"
    value = lambda r: figure(r, "extra_mib", suite="memory", alternative=OURS) / 1024  # noqa: E731
    yield Target(what, {CPU: 3, CUDA: 6}, value, unit="GiB")

    dense = "N×N matrix"
    for case, name, kind, which, bound in (
        ("64×64", dense, CPU, FORWARD, 10),
        ("64×64", dense, CPU, BOTH, 6),
        ("64×64", "gathered", CPU, FORWARD, 2),
        ("64×64", "gathered", CPU, BOTH, 1.5),
        ("mixed holes", dense, CPU, BOTH, 4),
        ("half holes", dense, CUDA, FORWARD, 15),
        ("half holes", dense, CUDA, BOTH, 10),
        ("half holes", "best of the others", CUDA, FORWARD, 3),
        ("half holes", "best of the others", CUDA, BOTH, 2),
    ):
        value = best(case, which) if "best" in name else ratio("attention", case, name, OURS, which)
        yield Target(f"hole attention, {case}, {TITLES[which]}, {name} against ours", {kind: bound}, value, True)
    for which, bound in ((FORWARD, 64), (BOTH, 128)):
        where = dict(quantity="extra_mib", suite="attention", case="128×128", alternative=OURS, pass_=which)
        what, value = f"hole attention, 128×128, {TITLES[which]}, extra memory", functools.partial(figure, **where)
        yield Target(what, {CPU: bound}, value, unit="MiB")
    for quantity, name, bound in (("ms", "time", 18), ("extra_mib", "extra memory", 4.5)):
        for which in (FORWARD, BOTH):
            what = f"hole attention, {TITLES[which]}, growth of {name} from 64×64 to 128×128"
            yield Target(what, {CPU: bound}, growth(quantity, which))


TARGETS = {target.what: target for target in _targets()}

# ---- tables ----------------------------------------------------------------------------------------------------------


def in_order(results: Iterable[Result]) -> list[Result]:
    return sorted(results, key=lambda result: (not result.name.startswith("operators"), result.name))


def rows(results: Iterable[Result]) -> list[Row]:
    """Returns one row per device, precision and target: kind, device, precision, what, target; ``value``, ``file`` and,
    where the target is for that precision, ``met``; or ``unavailable`` and ``file``; or neither where nothing was
    measured. The CPUs come first, and there is a GPU in any case."""
    found: dict[tuple[str, str], list[Result]] = {}
    for result in in_order(results):
        found.setdefault((result.facts["device_kind"], result.device), []).append(result)
    if not any(kind == CUDA for kind, _ in found):
        found[CUDA, GPU] = []
    return [
        {"kind": kind, "device": device, "precision": precision, "what": target.what, "target": target.bound(kind)}
        | _value(target, kind, precision, [result for result in own if result.facts["precision"] == precision])
        for (kind, device), own in sorted(found.items())
        for precision in PRECISIONS[kind]
        for target in TARGETS.values()
        if kind in target.bounds
    ]


def _value(target: Target, kind: str, precision: str, results: Sequence[Result]) -> Row:
    reason: Row = {}
    for result in results:
        try:
            value = target.value(result)
        except LookupError as error:
            if str(error):
                reason = reason or {"unavailable": str(error), "file": result.name}
        else:
            met = {"met": target.is_met(value, kind)} if precision == PRECISIONS[kind][0] else {}
            return {"value": float(f"{value:.6g}"), **met, "file": result.name}
    return reason


def section(found: Sequence[Row]) -> str:
    """Writes Markdown: a table per device, the one with the most rows first. A table leaves out what only another
    device of its kind has measured."""
    parts = ["## Targets"]
    for kind, (precision, *more) in PRECISIONS.items():
        own = [row for row in found if row["kind"] == kind]
        measured = {row["what"] for row in own if "file" in row}
        tables: dict[str, list] = {device: [] for device in distinct(own, "device")}
        for device, what in dict.fromkeys((row["device"], row["what"]) for row in own):
            first, *_ = same = [row for row in own if (row["device"], row["what"]) == (device, what)]
            files = ", ".join(f"`{name}.json`" for name in distinct(same, "file"))
            verdict = {True: "met", False: "**missed**"}.get(first.get("met"), "")
            if files or what not in measured:
                tables[device].append([what, first["target"], *map(_shown, same), verdict, files])
        for device, lines in sorted(tables.items(), key=lambda item: -len(item[1])):
            words = f"**{device}.** Ratios are of times within one run."
            if kind == CUDA:
                words += f" The targets are for an {GPU} in {precision}; {', '.join(more)} is reported beside."
                words += " Times are the device's, of CUDA graphs, except the training step's."
            parts += [words, table(["what", "target", precision, *more, "", "measured in"], lines)]
    return "\n\n".join(parts) + "\n"


def _shown(row: Row) -> str:
    if "value" in row:
        return TARGETS[row["what"]].shown(row["value"])
    return f"not available: {row['unavailable']}" if "unavailable" in row else "not measured"
