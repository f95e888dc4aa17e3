"""The targets that this project has set itself, beside what the committed results hold: by device and precision every
row's target, its value, and whether it is met. Only the targets are written by hand.

A row is read from the result whose name begins with ``operators`` if that has it, else from the first by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from .measure import BOTH, FORWARD, OURS, STEP, Row
from .results import Result
from .tables import digits, table

CPU, CUDA = "cpu", "cuda"
#: Precisions by device kind; the targets are for the first, the others are reported beside it.
PRECISIONS = {CPU: ("float32",), CUDA: ("bfloat16", "tf32")}
#: The GPU that the targets are for.
GPU = "H100"
TITLES = {FORWARD: "forward", BOTH: "forward + backward"}
#: The value of a row; a text says why there is none, None that the result has nothing on it.
Value = float | str | None

# ---- where a value is found ------------------------------------------------------------------------------------------


def figure(result: Result, quantity: str, **columns: object) -> Value:
    row = result.one(**columns)
    if row is None:
        return None
    return f"{row['alternative']}: {row['unavailable']}" if "unavailable" in row else row.get(quantity)


def smallest(result: Result, quantity: str, alternatives: Sequence[str] = (), **columns: object) -> Value:
    """Returns the smallest quantity of the alternatives; () stands for all but ours."""
    rows = result.find(**columns)
    rows = [r for r in rows if (r["alternative"] in alternatives if alternatives else r["alternative"] != OURS)]
    found = [row[quantity] for row in rows if quantity in row]
    reasons = [f"{row['alternative']}: {row['unavailable']}" for row in rows if "unavailable" in row]
    return min(found, default=None) if found or not reasons else "; ".join(reasons)


def quotient(over: Value, under: Value) -> Value:
    if over is None or under is None:
        return None
    return next((value for value in (over, under) if isinstance(value, str)), None) or over / under


def ratio(suite: str, case: str, over: str, under: str, which: str) -> Callable[[Result], Value]:
    where = dict(suite=suite, case=case, pass_=which)
    return lambda r: quotient(figure(r, "ms", alternative=over, **where), figure(r, "ms", alternative=under, **where))


def growth(quantity: str, which: str) -> Callable[[Result], Value]:
    where = dict(suite="attention", alternative=OURS, pass_=which)
    return lambda r: quotient(*(figure(r, quantity, case=case, **where) for case in ("128×128", "64×64")))


def large_holes(result: Result) -> Value:
    """Returns the three layers' summed times at both shares, over those without a hole."""
    cases = [f"{layer} {share}" for layer in ("Encode_1", "Encode_2", "Encode_3") for share in ("50%", "60%")]
    sums: list[Value] = []
    for name in (OURS, "ours, no hole"):
        found = [figure(result, "ms", suite="mask-ratios", case=case, alternative=name) for case in cases]
        reasons = [value for value in found if isinstance(value, str)]
        sums.append(None if None in found else "; ".join(reasons) or sum(found))
    return quotient(*sums)


def inference(result: Result) -> Value:
    """Returns, for one image, the faster of the compiled references over ours."""
    where = dict(suite="generator", case="whole 256", batch=1)
    compiled = "reference, compiled", "reference, compiled, reduce-overhead"
    return quotient(smallest(result, "ms", compiled, **where), figure(result, "ms", alternative=OURS, **where))


def training(result: Result) -> Value:
    """Returns the ratio from whole runs of Table 5 only."""
    if result.facts.get("quick", True) or not result.facts["complete"]:
        return None
    steps = {"ours": "fused", "pconv": "reference"}
    where = dict(suite="table5", pass_=STEP)
    return quotient(*(figure(result, "ms", case=case, alternative=name, **where) for case, name in steps.items()))


# ---- the targets -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Target:
    """A value and its bounds by device kind; no bound, no row. `unit`: "", "%", "MiB" or "GiB"."""

    what: str
    bounds: Mapping[str, float]
    value: Callable[[Result], Value]
    at_least: bool = False
    unit: str = ""

    def is_met(self, value: float, kind: str) -> bool:
        return value >= self.bounds[kind] if self.at_least else value <= self.bounds[kind]

    def bound(self, kind: str) -> str:
        return f"{'≥' if self.at_least else '≤'} {self._with_unit(f'{self._scale * self.bounds[kind]:g}')}"

    def shown(self, value: float) -> str:
        return self._with_unit(digits(self._scale * value, 3))

    @property
    def _scale(self) -> int:
        return 100 if self.unit == "%" else 1

    def _with_unit(self, number: str) -> str:
        return f"{number} {self.unit}".rstrip()


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
            where = dict(suite="attention", case=case, alternative=OURS, pass_=which)
            value = lambda r, where=where: quotient(figure(r, "tflops", **where), r.facts["roofs"]["tflops"])  # noqa: E731
            yield Target(what, {kind: bounds[kind] for kind in kinds}, value, True, "%")
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
    value = lambda r: quotient(figure(r, "extra_mib", suite="memory", alternative=OURS), 1024)  # noqa: E731
    yield Target("1024×1024, full width, peak memory over the weights", {CPU: 3, CUDA: 6}, value, unit="GiB")

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
        where = dict(suite="attention", case="128×128", alternative=OURS, pass_=which)
        value = lambda r, where=where: figure(r, "extra_mib", **where)  # noqa: E731
        yield Target(f"hole attention, 128×128, {TITLES[which]}, extra memory", {CPU: bound}, value, unit="MiB")
    for quantity, name, bound in (("ms", "time", 18), ("extra_mib", "extra memory", 4.5)):
        for which in (FORWARD, BOTH):
            what = f"hole attention, {TITLES[which]}, growth of {name} from 64×64 to 128×128"
            yield Target(what, {CPU: bound}, growth(quantity, which))


def best(case: str, which: str) -> Callable[[Result], Value]:
    return lambda r: smallest(r, "ratio", suite="attention", case=case, pass_=which)


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
        facts = result.facts
        threads = f", {facts['threads']} threads" if facts["device_kind"] == CPU else ""
        found.setdefault((facts["device_kind"], facts["device"] + threads), []).append(result)
    if not any(kind == CUDA for kind, _ in found):
        found[CUDA, GPU] = []
    return [
        {"kind": kind, "device": device, "precision": precision, "what": target.what, "target": target.bound(kind)}
        | _value(target, [r for r in own if r.facts["precision"] == precision], kind, precision == PRECISIONS[kind][0])
        for (kind, device), own in sorted(found.items())
        for precision in PRECISIONS[kind]
        for target in TARGETS.values()
        if kind in target.bounds
    ]


def _value(target: Target, results: Sequence[Result], kind: str, with_verdict: bool) -> Row:
    reason: Row = {}
    for result in results:
        value = target.value(result)
        if isinstance(value, str):
            reason = reason or {"unavailable": value, "file": result.name}
        elif value is not None:
            met = {"met": target.is_met(value, kind)} if with_verdict else {}
            return {"value": float(f"{value:.6g}"), **met, "file": result.name}
    return reason


def section(found: Sequence[Row]) -> str:
    """Writes Markdown: a table per device, the one with the most rows first. A table leaves out what only another
    device of its kind has measured."""
    parts = ["## Targets"]
    for kind, precisions in PRECISIONS.items():
        measured = {row["what"] for row in found if row["kind"] == kind and "file" in row}
        tables: dict[str, list] = {}
        for row in found:
            if row["kind"] == kind and row["precision"] == precisions[0]:
                same = [one for one in found if (one["device"], one["what"]) == (row["device"], row["what"])]
                files = dict.fromkeys(f"`{one['file']}.json`" for one in same if "file" in one)
                line = [row["what"], row["target"], *map(_shown, same), _verdict(row), ", ".join(files)]
                if files or row["what"] not in measured:
                    tables.setdefault(row["device"], []).append(line)
        for device, lines in sorted(tables.items(), key=lambda item: -len(item[1])):
            parts += [_caption(kind, device), table(["what", "target", *precisions, "", "measured in"], lines)]
    return "\n\n".join(parts) + "\n"


def _caption(kind: str, device: str) -> str:
    words = f"**{device}.** Ratios are of times within one run."
    if kind == CUDA:
        first, *others = PRECISIONS[CUDA]
        words += f" The targets are for an {GPU} in {first}; {', '.join(others)} is reported beside."
        words += " Times are the device's, of CUDA graphs, except the training step's."
    return words


def _verdict(row: Row) -> str:
    return {True: "met", False: "**missed**"}.get(row.get("met"), "")


def _shown(row: Row) -> str:
    if "value" in row:
        return TARGETS[row["what"]].shown(row["value"])
    return f"not available: {row['unavailable']}" if "unavailable" in row else "not measured"
