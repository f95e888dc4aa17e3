"""Markdown tables of the suites of benchmarks.operators, from what their result files hold and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from .attention_cases import GATHERED
from .contest import BOTH, FORWARD, OURS, STEP
from .layers import BARE, CHANNEL_MASKS, COMPILED
from .mask_ratios import ATTENTION, NO_HOLE
from .network import REFERENCE
from .shift_price import WITHOUT
from .upcat_rule import CONCAT

WAYS = (FORWARD, BOTH)
TITLES = {FORWARD: "forward", BOTH: "forward + backward"}


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def both_ways(*titles: str) -> list[str]:
    """Column headers of what is shown of forward and of forward + backward."""
    return [title for name in titles for title in (f"{name}, forward", TITLES[BOTH])]


def entry(record: dict, contestant: str, way: str) -> dict:
    """A contestant's entry in one direction, with the case's own reason where the whole case has none."""
    missing = {"unavailable": record["unavailable"]} if "unavailable" in record else {}
    return record["contestants"].get(contestant, {}).get(way, missing)


def ratio(record: dict, over: str, under: str, way: str, key: str = "ms") -> str:
    """Time over time, or why there is none."""
    pair = entry(record, over, way), entry(record, under, way)
    if all(key in one for one in pair):
        return f"{pair[0][key] / pair[1][key]:.2f}"
    return next((f"not available: {one['unavailable']}" for one in pair if "unavailable" in one), "")


def figures(record: dict, contestant: str, *names: str, ways: Sequence[str] = WAYS) -> list[str]:
    """Of every name its value in each direction; empty where there is none."""
    found = [(name, entry(record, contestant, way)) for name in names for way in ways]
    return [FORMATS[name](one[name]) if name in one else "" for name, one in found]


def has_eager(records: Iterable[dict]) -> bool:
    """Whether eager times stand beside the device's: on CUDA, where something is in a graph."""
    return any(
        one.get("graph") for record in records for ways in record["contestants"].values() for one in ways.values()
    )


def named(name: str, ways: dict[str, dict]) -> str:
    """A contestant, with a word where its times are the host's beside the device's of others."""
    return f"{name}, eager" if any(one.get("graph") is False for one in ways.values()) else name


def digits(value: float, count: int) -> str:
    """So many significant digits, never as a power of ten."""
    return f"{value:.{max(0, count - 1 - math.floor(math.log10(value)))}f}"


FORMATS: dict[str, Callable[[float], str]] = {
    "ms": lambda value: digits(value, 4),
    "eager_ms": lambda value: digits(value, 4),
    "ratio": "{:.2f}".format,
    "extra_mib": "{:.1f}".format,
    "tflops": lambda value: digits(value, 3),
    "roof_share": "{:.0%}".format,
    "growth": "{:.2f}".format,
}


# ---- layers --------------------------------------------------------------------------------------------------------


def _layer_ratios(record: dict) -> list[str]:
    pairs = [(OURS, BARE), (CHANNEL_MASKS, OURS)]
    if COMPILED in record["contestants"]:
        pairs.append((COMPILED, OURS))
    return [ratio(record, over, under, way) for over, under in pairs for way in WAYS]


def _layer_header(records: Iterable[dict]) -> list[str]:
    compiled = any(COMPILED in record["contestants"] for record in records)
    names = ["ours / bare conv", "channel masks / ours", *(["compiled / ours"] if compiled else [])]
    return both_ways(*names)


def layer_sums(suite: dict) -> str:
    """Ratios of sums over layers."""
    sums = suite["sums"]
    header, rows = _layer_header(sums.values()), [[name, *_layer_ratios(record)] for name, record in sums.items()]
    if has_eager(suite["cases"].values()):
        header += both_ways("eager: ours / bare conv")
        for row, record in zip(rows, sums.values(), strict=True):
            row += [ratio(record, OURS, BARE, way, "eager_ms") for way in WAYS]
    return table(["sum, image side", *header], rows)


def layer_table(suite: dict) -> str:
    """Per layer the ratios, and of ours achieved rate, share of the roof and extra memory."""
    header = ["layer, image side", "input → output channels, kernel/stride", *_layer_header(suite["cases"].values())]
    header += both_ways("ours: TFLOP/s", "of the roof", "extra MiB")
    rows = [
        [name, record["shape"], *_layer_ratios(record), *figures(record, OURS, "tflops", "roof_share", "extra_mib")]
        for name, record in suite["cases"].items()
    ]
    return table(header, rows)


def layers(suite: dict) -> str:
    return "\n\n".join([layer_table(suite), *([layer_sums(suite)] if suite["sums"] else [])])


# ---- attention -----------------------------------------------------------------------------------------------------


def attention_summary(suite: dict) -> str:
    """Per case the best of the others, and how far ours is from the roof."""
    header = ["features, holes", *both_ways("best of the others / ours", "ours: TFLOP/s", "of the roof", "extra MiB")]
    rows = []
    for record in suite["cases"].values():
        best = [_with_target(record["best"][way], "ratio") for way in WAYS]
        rows.append([record["shape"], *best, *figures(record, OURS, "tflops", "roof_share", "extra_mib")])
    return table(header, rows)


def attention_table(suite: dict) -> str:
    """Per case and contestant its time over ours, rate and extra memory; targets in brackets."""
    records = suite["cases"].values()
    times = ["ms", "eager_ms"] if has_eager(records) else []
    header = ["features, holes", "contestant", *both_ways("time / ours", "TFLOP/s", "of the roof", "extra MiB")]
    header += both_ways("ms", "eager ms") if times else []
    rows = []
    for record in records:
        label = record["shape"]
        if "unavailable" in record:
            rows.append([label, f"not available: {record['unavailable']}", *[""] * (len(header) - 2)])
        for name, ways in record["contestants"].items():
            ratios, memory = ([_with_target(ways[way], key) for way in WAYS] for key in ("ratio", "extra_mib"))
            rates, shown = figures(record, name, "tflops", "roof_share"), figures(record, name, *times)
            rows.append([label, named(name, ways), *ratios, *rates, *memory, *shown])
            label = ""
    return table(header, rows)


def growth_table(suite: dict) -> str:
    rows = [[name, *(_with_target(ways[way], "growth") for way in WAYS)] for name, ways in suite["growth"].items()]
    return table(["ours, from 64×64 to 128×128, times", *TITLES.values()], rows)


def _with_target(one: dict, name: str) -> str:
    """A value and its target, whichever there is; in a column of ratios also whose it is, or why there is none."""
    target = one.get("target", {}).get(name)
    words = [FORMATS[name](one[name])] if name in one else []
    if name == "ratio" and "unavailable" in one:
        words.append(f"not available: {one['unavailable']}")
    if target is not None:
        words.append(f"({'≥' if name == 'ratio' else '≤'} {target:g})")
    return " ".join(words) + (f", {one['of']}" if "of" in one else "")


def attention(suite: dict) -> str:
    grown = [growth_table(suite)] if "growth" in suite else []
    return "\n\n".join([attention_summary(suite), attention_table(suite), *grown])


# ---- the others ----------------------------------------------------------------------------------------------------


def price_table(suite: dict) -> str:
    header = ["features, holes", *both_ways("k = 1 / k = 0", "k = 1: TFLOP/s", "of the roof")]
    rows = [
        [
            record["shape"],
            *(ratio(record, OURS, WITHOUT, way) for way in WAYS),
            *figures(record, OURS, "tflops", "roof_share"),
        ]
        for record in suite["cases"].values()
    ]
    return table(header, rows)


def mask_ratio_table(suite: dict) -> str:
    """A column per share of hole: the layers' ratios, attention's time and ratio."""
    records = [*suite["cases"].values()]
    shares = list(dict.fromkeys(record["share"] for record in records))
    rows = []
    for family in dict.fromkeys(record["family"] for record in records):
        of_share = {record["share"]: record for record in records if record["family"] == family}
        for title, shown in MASK_RATIOS["attention" if family == ATTENTION else "layer"].items():
            rows.append([f"{family}: {title}", *(shown(of_share[s]) if s in of_share else "" for s in shares)])
    return table(["forward, holes of", *(f"{share:.0%}" for share in shares)], rows)


MASK_RATIOS = {
    "layer": {
        "ours / bare conv": lambda record: ratio(record, OURS, BARE, FORWARD),
        "ours / ours without hole": lambda record: ratio(record, OURS, NO_HOLE, FORWARD),
    },
    "attention": {
        "ms": lambda record: figures(record, OURS, "ms", ways=[FORWARD])[0],
        "gathered / ours": lambda record: ratio(record, GATHERED, OURS, FORWARD),
    },
}


def scaling_table(suite: dict) -> str:
    """Milliseconds and extra memory of every contestant, until it ended."""
    records = suite["cases"].values()
    names = dict.fromkeys(name for record in records for name in record["contestants"])
    rows = []
    for record in records:
        rows.append([record["shape"]])
        for name in names:
            one = entry(record, name, FORWARD)
            ms, mib = figures(record, name, "ms", "extra_mib", ways=[FORWARD])
            rows[-1].append(f"{ms} ms, {mib} MiB" if ms else one.get("unavailable", ""))
    return table(["features, holes", *names], rows)


def network_table(suite: dict) -> str:
    """Of generator and training step: ours and the reference's time and extra memory."""
    eager = has_eager(suite["cases"].values())
    quantities = {"ms": "ms", **({"eager_ms": "eager ms"} if eager else {}), "extra_mib": "extra MiB"}
    rows = []
    for name, record in suite["cases"].items():
        way = STEP if record["operator"] == "training step" else FORWARD
        others = [other for other in record["contestants"] if other != OURS] or [REFERENCE]
        for other in others:
            times = [figures(record, one, *quantities, ways=[way]) for one in (OURS, other)]
            title = other if way == STEP else named(other, record["contestants"].get(other, {}))
            rows.append([f"{name}, {record['shape']}", title, ratio(record, other, OURS, way), *times[0], *times[1]])
    first, *rest = quantities.values()
    columns = [column for who in ("ours", "other") for column in (f"{who}, {first}", *rest)]
    return table(["network, images", "other operators", "other / ours", *columns], rows)


def memory_table(suite: dict) -> str:
    rows = []
    for name, record in suite["cases"].items():
        one = entry(record, OURS, FORWARD)
        shown = f"{one['extra_mib'] / 1024:.2f}" if "extra_mib" in one else f"not available: {one['unavailable']}"
        rows.append([f"{name}, {record['shape']}", shown])
    return table(["network, images", "GiB beyond the weights"], rows)


def rule_table(suite: dict) -> str:
    rows = [
        [r["channels"], r["small_pixels"], *figures(r, CONCAT, "ratio", ways=[FORWARD]), r["rule_picks"]]
        for r in suite["cases"].values()
    ]
    return table(["channels", "small pixels", "concat / phases", "rule picks"], rows)


#: How a suite of benchmarks.operators is shown.
TABLES = {
    "layers": layers,
    "attention": attention,
    "price-of-shift": price_table,
    "mask-ratios": mask_ratio_table,
    "scaling": scaling_table,
    "generator": network_table,
    "memory": memory_table,
    "training": network_table,
    "upcat-rule": rule_table,
}
