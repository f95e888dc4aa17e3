"""How a result file of ``python -m benchmarks.operators`` is shown in the README: per suite a paragraph, a short table,
and what is long folded away."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from . import plots, tables
from .contest import BOTH, FORWARD


def section(content: dict, pictures: Mapping[str, str]) -> str:
    """Markdown of one file. `pictures`: path of each picture that belongs to it, from the README's folder."""
    facts, roofs = content["environment"], content["roofs"]
    where = f"driver {facts['driver']}, CUDA {facts['cuda']}" if "driver" in facts else f"{facts['threads']} threads"
    parts = [
        f"### Operators on {facts['device']}, {content['dtype']}",
        f"`{facts['command']}` at commit {facts['commit']}; torch {facts['torch']}, {where}. Roofs of the same run: "
        f"{roofs['tflops']:g} TFLOP/s (matrix product), {roofs['gbytes_per_s']:g} GB/s (copy). TFLOP/s are of counted "
        "work, whatever a contestant computes: the products of a plain convolution; of attention the two products "
        "over hole × background pixels, 3.5 times that with the backward.",
    ]
    if facts["device_kind"] == "cuda":
        parts[-1] += (
            " Times are the device's, of calls in a CUDA graph that is replayed; *eager* is the time of a call from "
            "Python, and where a contestant waits for the host, which no graph can hold, the only one."
        )
    for name, result in content["suites"].items():
        parts += SUITES[name](result)
    parts += [f"![{ALT[name]}]({path})\n\n*{CAPTIONS[name]}*" for name, path in pictures.items()]
    return "\n\n".join(parts) + "\n"


ALT = {
    "scaling": "time and extra memory of attention against the size of the map",
    "roofline": "achieved rates of layers and attention under the measured roofs",
}
CAPTIONS = {
    "scaling": "Attention on growing maps; × marks where a contestant ended.",
    "roofline": "Encoder (E) and decoder (D) layers and attention, ours. A layer can lie above the roof where it needs "
    "fewer products than are counted, as the decoder's does, or where its data stay in cache.",
}


def pictures_of(content: dict) -> dict[str, Callable[[dict], bytes]]:
    """The pictures that a result file has data for."""
    suites = content["suites"]
    drawn: dict[str, Callable[[dict], bytes]] = {}
    if "scaling" in suites:
        drawn["scaling"] = plots.scaling
    if any(plots.achieved(content, way) for way in (FORWARD, BOTH)):
        drawn["roofline"] = plots.roofline
    return drawn


def folded(summary: str, text: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def _layers(suite: dict) -> list[str]:
    return [
        f"**The generator's 16 partial convolutions**, {_images(suite)}, channels_last. *Bare conv* is `F.conv2d` on a "
        "ready-made concatenation; *channel masks* is the published formulation with one mask channel per feature "
        "channel.",
        *([tables.layer_sums(suite)] if suite["sums"] else []),
        folded("Every layer", tables.layer_table(suite)),
    ]


def _images(suite: dict) -> str:
    """ "batch 2, brush masks with 20-30 % hole", of all the sizes there are."""
    cases = suite["cases"].values()
    batches = dict.fromkeys(f"batch {case['batch']}" for case in cases)
    holes = dict.fromkeys("-".join(f"{100 * share:.0f}" for share in case["hole"]) for case in cases)
    return f"{', '.join(batches)}, brush masks with {', '.join(holes)} % hole"


def _attention(suite: dict) -> list[str]:
    return [
        "**Hole attention**, k = 1, irregular holes, features at random; targets in brackets. *N×N matrix* is Eqs. 6-8 "
        "as one writes them down in PyTorch, *compiled* the same under `torch.compile` (compile time does not count), "
        "*gathered* our plain reference on hole × background pixels; the *fold* forms let Eq. 8 act on unfolded "
        "values.",
        tables.attention_summary(suite),
        folded("Every contestant", tables.attention_table(suite)),
        *([tables.growth_table(suite)] if "growth" in suite else []),
    ]


def _price(suite: dict) -> list[str]:
    return [
        "**The price of shift propagation**: our own attention with (k = 1) and without (k = 0).",
        tables.price_table(suite),
    ]


def _mask_ratios(suite: dict) -> list[str]:
    return [
        "**Holes from none to most**, forward: the layers against a bare convolution and against themselves without a "
        "hole; attention's work is hole × background pixels.",
        tables.mask_ratio_table(suite),
    ]


def _scaling(suite: dict) -> list[str]:
    return [folded("Attention on growing maps, forward", tables.scaling_table(suite))]


def _generator(suite: dict) -> list[str]:
    return [f"**The whole network**, forward, {_images(suite)}:", tables.network_table(suite)]


def _memory(suite: dict) -> list[str]:
    return [f"**One large image**, forward, {_images(suite)}: peak memory.", tables.memory_table(suite)]


def _training(suite: dict) -> list[str]:
    return [
        f"**A training step** of generator and discriminator without VGG, {_images(suite)}:",
        tables.network_table(suite),
    ]


def _rule(suite: dict) -> list[str]:
    return [folded("Where the decoder's four-phase form wins", tables.rule_table(suite))]


SUITES: dict[str, Callable[[dict], list[str]]] = {
    "layers": _layers,
    "attention": _attention,
    "price-of-shift": _price,
    "mask-ratios": _mask_ratios,
    "scaling": _scaling,
    "generator": _generator,
    "memory": _memory,
    "training": _training,
    "upcat-rule": _rule,
}
