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
NOT_MEASURED = "not measured"
LAYERS, TWO_LAYERS = "16 layers 256", "Encode_1 + Decode_1 256"
STAGE, STAGE_BATCH = "64×64 30%", "64×64 30%, batch 6"


class AbsentError(LookupError):
    """A result has nothing for a row."""


class UnavailableError(LookupError):
    """A result says why there is no value."""


# ---- where a value is found ------------------------------------------------------------------------------------------


def figure(result: Result, quantity: str, **columns: object) -> float:
    """
    Raises:
        AbsentError, UnavailableError: there is no such row, or it has no such quantity.
    """
    row = result.one(**columns)
    if row is None:
        raise AbsentError(columns)
    if "unavailable" in row:
        raise UnavailableError(f"{row['alternative']}: {row['unavailable']}")
    return row[quantity]


def time_ratio(
    result: Result, suite: str, case: str, over: Sequence[str], under: str, which: str, quantity: str = "ms"
) -> float:
    """Returns time over time; of several alternatives `over` the fastest, and () stands for all but `under`."""
    where = dict(suite=suite, case=case, pass_=which)
    over = over or [row["alternative"] for row in result.find(**where) if row["alternative"] != under]
    own = figure(result, quantity, alternative=under, **where)
    times, reasons = [], []
    for name in over:
        try:
            times.append(figure(result, quantity, alternative=name, **where))
        except AbsentError:
            continue
        except UnavailableError as error:
            reasons.append(str(error))
    if not times:
        raise UnavailableError("; ".join(reasons)) if reasons else AbsentError(case)
    return min(times) / own


def ratio(suite: str, case: str, over: str, under: str, which: str) -> Callable[[Result], float]:
    return lambda result: time_ratio(result, suite, case, [over], under, which)


def best(case: str, which: str) -> Callable[[Result], float]:
    """Of the attention alternatives the smallest ratio to ours."""

    def value(result: Result) -> float:
        rows = result.find(suite="attention", case=case, pass_=which)
        ratios = [row["ratio"] for row in rows if row["alternative"] != OURS and "ratio" in row]
        if not ratios:
            raise UnavailableError("no other is") if rows else AbsentError(case)
        return min(ratios)

    return value


def roof_share(case: str, which: str) -> Callable[[Result], float]:
    """Of the rate of the measured matrix product."""
    where = dict(suite="attention", case=case, alternative=OURS, pass_=which)
    return lambda result: figure(result, "tflops", **where) / result.facts["roofs"]["tflops"]


def extra_memory(suite: str, case: str, which: str, unit: float) -> Callable[[Result], float]:
    where = dict(suite=suite, case=case, alternative=OURS, pass_=which)
    return lambda result: figure(result, "extra_mib", **where) / unit


def growth(quantity: str, which: str) -> Callable[[Result], float]:
    """Of ours, from the small to the large map."""
    where = dict(suite="attention", alternative=OURS, pass_=which)
    return lambda result: (
        figure(result, quantity, case="128×128", **where) / figure(result, quantity, case="64×64", **where)
    )


def large_holes(result: Result) -> float:
    """The three layers' summed times at both shares, over those without a hole."""
    cases = [f"{layer} {share}" for layer in ("Encode_1", "Encode_2", "Encode_3") for share in ("50%", "60%")]
    with_holes, without = (
        sum(figure(result, "ms", suite="mask-ratios", case=case, alternative=name) for case in cases)
        for name in (OURS, "ours, no hole")
    )
    return with_holes / without


def inference(result: Result) -> float:
    """Of one image, against the faster of the references that are compiled."""
    row = result.one(suite="generator", case="whole 256", alternative=OURS)
    if row is None or row["batch"] != 1:
        raise AbsentError("batch 1")
    compiled = "reference, compiled", "reference, compiled, reduce-overhead"
    return time_ratio(result, "generator", "whole 256", compiled, OURS, FORWARD)


def training(result: Result) -> float:
    """Of whole runs of Table 5 only."""
    if result.facts.get("quick", True) or not result.facts["complete"]:
        raise AbsentError("table5")
    where = dict(suite="table5", pass_=STEP)
    ours = figure(result, "ms", case="ours", alternative="fused", **where)
    return ours / figure(result, "ms", case="pconv", alternative="reference", **where)


# ---- the targets -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Target:
    """`bounds`: by device kind; no row where there is none. `value` raises AbsentError or UnavailableError where a
    result has no value. `unit`: "", "%", "MiB" or "GiB"."""

    what: str
    bounds: Mapping[str, float]
    value: Callable[[Result], float]
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
    """Two products of a single map take 2 µs at an H100's roof, less than the launch of a kernel, which is why the
    attention stage's targets are on CUDA also for the paper's batch."""
    title = {FORWARD: "forward", BOTH: "forward + backward"}
    bare = "against bare `F.conv2d` on ready inputs"
    for which, bounds in ((FORWARD, {CPU: 0.80, CUDA: 0.90}), (BOTH, {CPU: 0.90, CUDA: 1.00})):
        value = ratio("layers", LAYERS, OURS, "bare conv", which)
        yield Target(f"16 partial convolutions, {title[which]}, {bare}", bounds, value)
    value = ratio("layers", LAYERS, "channel masks, compiled", OURS, BOTH)
    yield Target("channel masks, compiled, against ours, forward + backward", {CPU: 2.5, CUDA: 2.5}, value, True)
    value = ratio("layers", TWO_LAYERS, OURS, "bare conv", FORWARD)
    yield Target(f"Encode_1 plus Decode_1, forward, {bare}", {CPU: 0.45, CUDA: 0.5}, value)
    for which, bounds in ((FORWARD, {CPU: 0.40, CUDA: 0.35}), (BOTH, {CPU: 0.30, CUDA: 0.25})):
        for batch, case, own in ((1, STAGE, bounds), (6, STAGE_BATCH, {CUDA: bounds[CUDA]})):
            what = f"attention stage, batch {batch}, {title[which]}, of the matrix product's rate"
            yield Target(what, own, roof_share(case, which), True, "%")
    for which, bound in ((FORWARD, 3), (BOTH, 2)):
        for batch, case, own in ((1, STAGE, {CPU: bound, CUDA: bound}), (6, STAGE_BATCH, {CUDA: bound})):
            what = f"attention stage, batch {batch}, {title[which]}, best of the others against ours"
            yield Target(what, own, best(case, which), True)
    for batch, case, own in ((1, "64×64", {CPU: 1.5, CUDA: 1.8}), (6, "64×64, batch 6", {CUDA: 1.8})):
        value = ratio("shift-propagation", case, OURS, "ours, k = 0", FORWARD)
        yield Target(f"k = 1 against k = 0, forward, batch {batch}", own, value)
    yield Target("50-60 % hole against none, first three layers, forward", {CPU: 0.8, CUDA: 0.85}, large_holes)
    what = "training step of Ours, fused, against PConv's on reference operators (the paper: 2.06)"
    yield Target(what, {CPU: 1.0, CUDA: 1.0}, training)
    what = "generator, batch 1, 256×256: compiled reference against ours"
    yield Target(what, {CPU: 2, CUDA: 2}, inference, True)
    value = extra_memory("memory", "whole 1024", FORWARD, 1024)
    yield Target("1024×1024, full width, peak memory over the weights", {CPU: 3, CUDA: 6}, value, unit="GiB")

    ratios = (
        ("64×64", "N×N matrix", CPU, 10, 6),
        ("64×64", "gathered", CPU, 2, 1.5),
        ("mixed holes", "N×N matrix", CPU, None, 4),
        ("half holes", "N×N matrix", CUDA, 15, 10),
        ("half holes", "", CUDA, 3, 2),
    )
    for case, name, kind, *bounds in ratios:
        for which, bound in zip((FORWARD, BOTH), bounds, strict=True):
            if bound:
                what = f"hole attention, {case}, {title[which]}, {name or 'best of the others'} against ours"
                value = ratio("attention", case, name, OURS, which) if name else best(case, which)
                yield Target(what, {kind: bound}, value, True)
    for which, bound in ((FORWARD, 64), (BOTH, 128)):
        value = extra_memory("attention", "128×128", which, 1)
        yield Target(f"hole attention, 128×128, {title[which]}, extra memory", {CPU: bound}, value, unit="MiB")
    for quantity, name, bound in (("ms", "time", 18), ("extra_mib", "extra memory", 4.5)):
        for which in (FORWARD, BOTH):
            what = f"hole attention, {title[which]}, growth of {name} from 64×64 to 128×128"
            yield Target(what, {CPU: bound}, growth(quantity, which))


TARGETS = [*_targets()]

# ---- tables ----------------------------------------------------------------------------------------------------------


def in_order(results: Iterable[Result]) -> list[Result]:
    return sorted(results, key=lambda result: (not result.name.startswith("operators"), result.name))


def rows(results: Iterable[Result], kind: str, with_verdict: bool = True) -> list[Row]:
    """Returns, for the results of one device in one precision: what, target, and ``value``, ``file`` and, where the
    target is for that precision, ``met``; or ``unavailable`` and ``file``; or neither where nothing was measured."""
    return [_row(target, in_order(results), kind, with_verdict) for target in TARGETS if kind in target.bounds]


def _row(target: Target, results: Sequence[Result], kind: str, with_verdict: bool) -> Row:
    row: Row = {"what": target.what, "target": target.bound(kind)}
    reason: Row = {}
    for result in results:
        try:
            value = target.value(result)
        except AbsentError:
            continue
        except UnavailableError as error:
            reason = reason or {"unavailable": str(error), "file": result.name}
            continue
        met = {"met": target.is_met(value, kind)} if with_verdict else {}
        return row | {"value": float(f"{value:.6g}"), **met, "file": result.name}
    return row | reason


def device_of(result: Result) -> str:
    facts = result.facts
    return facts["device"] + (f", {facts['threads']} threads" if facts["device_kind"] == CPU else "")


def as_json(results: Sequence[Result]) -> list[dict]:
    """Returns one entry per device and precision; the CPUs first, and a GPU in any case."""
    devices = {(result.facts["device_kind"], device_of(result)) for result in results}
    if not any(kind == CUDA for kind, _ in devices):
        devices.add((CUDA, GPU))
    entries = []
    for kind, device in sorted(devices):
        own = [result for result in results if device_of(result) == device]
        for precision in PRECISIONS[kind]:
            some = [result for result in own if result.facts["precision"] == precision]
            found = rows(some, kind, with_verdict=precision == PRECISIONS[kind][0])
            entries.append({"kind": kind, "device": device, "precision": precision, "rows": found})
    return entries


def section(results: Sequence[Result]) -> str:
    """Writes Markdown: a table per device, the one with the most rows first. A table leaves out what only another
    device of its kind has measured."""
    parts, entries = ["## Targets"], as_json(results)
    for kind, precisions in PRECISIONS.items():
        of_kind = [entry for entry in entries if entry["kind"] == kind]
        measured = {row["what"] for entry in of_kind for row in entry["rows"] if "file" in row}
        found = {}
        for device in dict.fromkeys(entry["device"] for entry in of_kind):
            of_device = [entry["rows"] for entry in of_kind if entry["device"] == device]
            found[device] = list(_cells(of_device, measured))
        for device, lines in sorted(found.items(), key=lambda item: -len(item[1])):
            header = ["what", "target", *precisions, "", "measured in"]
            parts += [_caption(kind, device, precisions), table(header, lines)]
    return "\n\n".join(parts) + "\n"


def _caption(kind: str, device: str, precisions: Sequence[str]) -> str:
    words = f"**{device}.** Ratios are of times within one run."
    if kind == CUDA:
        words += f" The targets are for an {GPU} in {precisions[0]}; {', '.join(precisions[1:])} is reported beside."
        words += " Times are the device's, of CUDA graphs, except the training step's."
    return words


def _cells(of_device: Sequence[list[Row]], measured_somewhere: set[str]) -> Iterator[list[str]]:
    for together in zip(*of_device, strict=True):
        first = together[0]
        files = dict.fromkeys(f"`{row['file']}.json`" for row in together if "file" in row)
        if files or first["what"] not in measured_somewhere:
            yield [first["what"], first["target"], *map(_value, together), _verdict(first, "**"), ", ".join(files)]


def _verdict(row: Row, mark: str = "") -> str:
    return {True: "met", False: f"{mark}missed{mark}"}.get(row.get("met"), "")


def _value(row: Row) -> str:
    if "value" in row:
        return next(target for target in TARGETS if target.what == row["what"]).shown(row["value"])
    return f"not available: {row['unavailable']}" if "unavailable" in row else NOT_MEASURED


def terminal(results: Sequence[Result], kind: str = "") -> str:
    """Writes the same in columns, a block per device and precision; for one kind of device only, where it is given."""
    blocks = []
    for entry in as_json(results):
        if kind in ("", entry["kind"]):
            title = f"{entry['device']}, {entry['precision']}"
            lines = [
                f"  {row['what']:<88} {row['target']:>10}  {_value(row):<12} {_verdict(row)}".rstrip()
                for row in entry["rows"]
            ]
            is_measured = any("file" in row for row in entry["rows"])
            blocks.append("\n".join([title, *lines]) if is_measured else f"{title}: {NOT_MEASURED}")
    return "\n\n".join(blocks)
