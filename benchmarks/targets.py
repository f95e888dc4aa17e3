"""The targets that this project has set itself, beside what the committed results hold: per device and precision every
row's target, its value, and whether it is met. Nothing here is typed by hand but the targets.

A row is read from the file whose name begins with ``operators`` if that has it, else from the first by name that does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping

from . import attention, shift_price
from .contest import BOTH, FORWARD, OURS
from .layers import BARE, COMPILED
from .mask_ratios import LAYERS, NO_HOLE
from .memory import SIZE as LARGE_IMAGE
from .network import COMPILED as COMPILED_NETWORK
from .network import COMPILED_GRAPHS, WHOLE
from .shift_price import WITHOUT
from .table5_report import FUSED, REFERENCE
from .tables import digits, table

CPU, CUDA = "cpu", "cuda"
#: Precisions by device kind; the targets are for the first, the others are reported beside it.
PRECISIONS = {CPU: ("float32",), CUDA: ("bfloat16", "tf32")}
#: The GPU that the targets are for.
GPU = "H100"
NOT_MEASURED = "not measured"


class AbsentError(LookupError):
    """A result file has nothing for a row."""


class UnavailableError(LookupError):
    """It has a reason why there is no value."""


@dataclasses.dataclass(frozen=True)
class Target:
    """`bounds`: by device kind; no row there where there is none. `value` takes a result file's content.

    Raises:
        AbsentError, UnavailableError: from `value`.
    """

    what: str
    bounds: Mapping[str, float]
    value: Callable[[dict], float]
    at_least: bool = False
    unit: str = ""  # "", "%" or "GiB"

    def is_met(self, value: float, kind: str) -> bool:
        return value >= self.bounds[kind] if self.at_least else value <= self.bounds[kind]

    def bound(self, kind: str) -> str:
        bound = self.bounds[kind]
        return f"{'≥' if self.at_least else '≤'} {self._with_unit(f'{100 * bound if self._is_share else bound:g}')}"

    def shown(self, value: float) -> str:
        return self._with_unit(digits(100 * value if self._is_share else value, 3))

    @property
    def _is_share(self) -> bool:
        return self.unit == "%"

    def _with_unit(self, number: str) -> str:
        return f"{number} {self.unit}".rstrip()


# ---- where a value is found ------------------------------------------------------------------------------------------


def _record(content: dict, suite: str, part: str, name: str) -> dict:
    try:
        record = content["suites"][suite][part][name]
    except KeyError:
        raise AbsentError(name) from None
    if "unavailable" in record:
        raise UnavailableError(record["unavailable"])
    return record


def _figure(record: dict, contestant: str, way: str, name: str) -> float:
    one = record["contestants"].get(contestant, {}).get(way)
    if one is None:
        raise AbsentError(contestant)
    if "unavailable" in one:
        raise UnavailableError(f"{contestant}: {one['unavailable']}")
    return one[name]


def _quotient(record: dict, over: str, under: str, way: str) -> float:
    return _figure(record, over, way, "ms") / _figure(record, under, way, "ms")


def _layers(group: str, over: str, under: str, way: str) -> Callable[[dict], float]:
    return lambda content: _quotient(_record(content, "layers", "sums", f"{group} 256"), over, under, way)


def _roof_share(case: str, way: str) -> Callable[[dict], float]:
    """Of the measured matrix product."""

    def value(content: dict) -> float:
        rate = _figure(_record(content, "attention", "cases", case), OURS, way, "tflops")
        return rate / content["roofs"]["tflops"]

    return value


def _best(case: str, way: str) -> Callable[[dict], float]:
    def value(content: dict) -> float:
        best = _record(content, "attention", "cases", case)["best"][way]
        if "unavailable" in best:
            raise UnavailableError(best["unavailable"])
        return best["ratio"]

    return value


def _price(case: str) -> Callable[[dict], float]:
    return lambda content: _quotient(_record(content, "price-of-shift", "cases", case), OURS, WITHOUT, FORWARD)


def _large_holes(content: dict) -> float:
    """The layers' summed times at both shares, over those without a hole."""
    records = [
        _record(content, "mask-ratios", "cases", f"{layer} {share}") for layer in LAYERS for share in ("50%", "60%")
    ]
    with_holes, without = (sum(_figure(r, name, FORWARD, "ms") for r in records) for name in (OURS, NO_HOLE))
    return with_holes / without


def _inference(content: dict) -> float:
    """Against the faster of those that are compiled."""
    record = _record(content, "generator", "cases", f"{WHOLE} 256")
    if record["batch"] != 1:
        raise AbsentError("batch 1")
    compiled = [name for name in (COMPILED_NETWORK, COMPILED_GRAPHS) if name in record["contestants"]]
    ratios, reasons = [], []
    for name in compiled:
        try:
            ratios.append(_quotient(record, name, OURS, FORWARD))
        except UnavailableError as error:
            reasons.append(str(error))
    if not compiled:
        raise AbsentError(COMPILED_NETWORK)
    if not ratios:
        raise UnavailableError("; ".join(reasons))
    return min(ratios)


def _memory(content: dict) -> float:
    return _figure(_record(content, "memory", "cases", f"{WHOLE} {LARGE_IMAGE}"), OURS, FORWARD, "extra_mib") / 1024


def _training(content: dict) -> float:
    if content.get("quick", True) or not content["complete"]:
        raise AbsentError("a whole run of benchmarks.table5")
    rows = {(row["system"], row["operators"]): row for row in content["rows"]}
    times = []
    for system, operators in (("ours", FUSED), ("pconv", REFERENCE)):
        row = rows.get((system, operators), {})
        if "unavailable" in row:
            raise UnavailableError(f"{system}, {operators}: {row['unavailable']}")
        if "ms" not in row:
            raise AbsentError(system)
        times.append(row["ms"])
    return times[0] / times[1]


def _stage(
    way: str, bounds: Mapping[str, float], value: Callable[[str, str], Callable[[dict], float]], what: str, **of
) -> list[Target]:
    """The attention stage's rows: a single map, and on CUDA also the paper's batch, since two products of a single map
    take 2 µs at an H100's roof, which is less than the launch of a kernel."""
    names = {"batch 1": (attention.STAGE, bounds), "batch 6": (attention.STAGE_BATCH, {CUDA: bounds[CUDA]})}
    title = {FORWARD: "forward", BOTH: "forward + backward"}[way]
    return [
        Target(f"attention stage, {batch}, {title}, {what}", own, value(case, way), at_least=True, **of)
        for batch, (case, own) in names.items()
    ]


TARGETS = [
    Target(
        "16 partial convolutions, forward, against bare `F.conv2d` on ready inputs",
        {CPU: 0.80, CUDA: 0.90},
        _layers("16 layers", OURS, BARE, FORWARD),
    ),
    Target(
        "16 partial convolutions, forward + backward, against bare `F.conv2d` on ready inputs",
        {CPU: 0.90, CUDA: 1.00},
        _layers("16 layers", OURS, BARE, BOTH),
    ),
    Target(
        "channel masks, compiled, against ours, forward + backward",
        {CPU: 2.5, CUDA: 2.5},
        _layers("16 layers", COMPILED, OURS, BOTH),
        at_least=True,
    ),
    Target(
        "Encode_1 plus Decode_1, forward, against bare `F.conv2d` on ready inputs",
        {CPU: 0.45, CUDA: 0.5},
        _layers("Encode_1 + Decode_1", OURS, BARE, FORWARD),
    ),
    *_stage(FORWARD, {CPU: 0.40, CUDA: 0.35}, _roof_share, "of the matrix product's rate", unit="%"),
    *_stage(BOTH, {CPU: 0.30, CUDA: 0.25}, _roof_share, "of the matrix product's rate", unit="%"),
    *_stage(FORWARD, {CPU: 3, CUDA: 3}, _best, "best of the others against ours"),
    *_stage(BOTH, {CPU: 2, CUDA: 2}, _best, "best of the others against ours"),
    Target("k = 1 against k = 0, forward, batch 1", {CPU: 1.5, CUDA: 1.8}, _price(shift_price.STAGE)),
    Target("k = 1 against k = 0, forward, batch 6", {CUDA: 1.8}, _price(shift_price.STAGE_BATCH)),
    Target("50-60 % hole against none, first three layers, forward", {CPU: 0.8, CUDA: 0.85}, _large_holes),
    Target(
        "training step of Ours, fused, against PConv's on reference operators (the paper: 2.06)",
        {CPU: 1.0, CUDA: 1.0},
        _training,
    ),
    Target(
        "generator, batch 1, 256×256: compiled reference against ours",
        {CPU: 2, CUDA: 2},
        _inference,
        at_least=True,
    ),
    Target("1024×1024, full width, peak memory over the weights", {CPU: 3, CUDA: 6}, _memory, unit="GiB"),
]

# ---- tables ----------------------------------------------------------------------------------------------------------


def rows(files: Mapping[str, dict], kind: str, judged: bool = True) -> list[dict]:
    """Of the result files, by stem, of one device in one precision: what, target, and ``value``, ``file`` and, where
    the target is for that precision, ``met``; or ``unavailable`` and ``file``; or none where nothing was measured."""
    return [_row(target, files, kind, judged) for target in TARGETS if kind in target.bounds]


def _row(target: Target, files: Mapping[str, dict], kind: str, judged: bool) -> dict:
    row: dict[str, object] = {"what": target.what, "target": target.bound(kind)}
    reason: dict[str, object] = {}
    for stem in sorted(files, key=lambda stem: (not stem.startswith("operators"), stem)):
        try:
            value = target.value(files[stem])
        except AbsentError:
            continue
        except UnavailableError as error:
            reason = reason or {"unavailable": str(error), "file": stem}
            continue
        met = {"met": target.is_met(value, kind)} if judged else {}
        return row | {"value": float(f"{value:.6g}"), **met, "file": stem}
    return row | reason


def columns(results: Mapping[str, dict]) -> dict[tuple[str, str], dict[str, dict[str, dict]]]:
    """(kind, device) -> precision -> result files; the CPUs first, and a GPU in any case."""
    found: dict[tuple[str, str], dict[str, dict[str, dict]]] = {}
    for stem, content in results.items():
        facts, precision = content["environment"], content.get("dtype", content.get("precision"))
        kind = facts["device_kind"]
        if precision in PRECISIONS[kind]:
            device = facts["device"] + (f", {facts['threads']} threads" if kind == CPU else "")
            found.setdefault((kind, device), {}).setdefault(precision, {})[stem] = content
    if not any(kind == CUDA for kind, _ in found):
        found[CUDA, GPU] = {}
    return dict(sorted(found.items()))


def as_json(results: Mapping[str, dict]) -> list[dict]:
    """One entry per device and precision."""
    return [
        {
            "kind": kind,
            "device": device,
            "precision": precision,
            "rows": rows(files.get(precision, {}), kind, judged=precision == PRECISIONS[kind][0]),
        }
        for (kind, device), files in columns(results).items()
        for precision in PRECISIONS[kind]
    ]


def section(results: Mapping[str, dict]) -> str:
    """Markdown: a table per device, that with the most rows first. What only another device of its kind has measured is
    left out of it; what none has is said to be so."""
    parts, entries = ["### Targets"], as_json(results)
    for kind in PRECISIONS:
        of_kind = [entry for entry in entries if entry["kind"] == kind]
        elsewhere = {row["what"] for entry in of_kind for row in entry["rows"] if "file" in row}
        tables = {}
        for device in dict.fromkeys(entry["device"] for entry in of_kind):
            of_device = [entry for entry in of_kind if entry["device"] == device]
            tables[device] = list(_cells(of_device, elsewhere))
        precisions = list(PRECISIONS[kind])
        for device, cells in sorted(tables.items(), key=lambda item: -len(item[1])):
            parts += [_caption(kind, device, precisions), table(_header(precisions), cells)]
    return "\n\n".join(parts) + "\n"


def _caption(kind: str, device: str, precisions: list[str]) -> str:
    words = f"**{device}.** Ratios are of times within one run."
    if kind == CPU:
        return words
    return (
        f"{words} The targets are for an {GPU} in {precisions[0]}; {', '.join(precisions[1:])} is reported beside. "
        "Times are the device's, of CUDA graphs, but the training step's."
    )


def _header(precisions: list[str]) -> list[str]:
    return ["what", "target", *precisions, "", "measured in"]


def _cells(of_device: list[dict], elsewhere: Collection[str]) -> Iterator[list[str]]:
    """`elsewhere`: what is measured on some device of the kind."""
    for together in zip(*(entry["rows"] for entry in of_device), strict=True):
        judged = together[0]
        files = dict.fromkeys(f"`{row['file']}.json`" for row in together if "file" in row)
        if files or judged["what"] not in elsewhere:
            verdict = {True: "met", False: "**missed**"}.get(judged.get("met"), "")
            yield [judged["what"], judged["target"], *map(_value, together), verdict, ", ".join(files)]


def _value(row: dict) -> str:
    if "value" in row:
        return next(target for target in TARGETS if target.what == row["what"]).shown(row["value"])
    return f"not available: {row['unavailable']}" if "unavailable" in row else NOT_MEASURED


def terminal(results: Mapping[str, dict], kind: str = "") -> str:
    """The same in columns, a block per device and precision; of one kind of device only, where it is given."""
    blocks = []
    for entry in as_json(results):
        if kind and entry["kind"] != kind:
            continue
        lines = [f"{entry['device']}, {entry['precision']}"]
        if not any("file" in row for row in entry["rows"]):
            blocks.append(f"{lines[0]}: {NOT_MEASURED}")
            continue
        for row in entry["rows"]:
            verdict = {True: "met", False: "missed"}.get(row.get("met"), "")
            lines.append(f"  {row['what']:<88} {row['target']:>10}  {_value(row):<12} {verdict}".rstrip())
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
