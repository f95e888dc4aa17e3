"""What is measured of the model and its data, and not of operators: the weights that come along, the loader."""

from __future__ import annotations

from .tables import table

METHODS = {"demo": "**these weights**"}


def demo_weights_table(content: dict) -> str:
    """A row per method; PSNR / SSIM of the standard protocol per range of hole ratios, the best PSNR in bold."""
    ranges = list(dict.fromkeys((row["low"], row["high"]) for row in content["rows"]))
    rows = []
    for method in dict.fromkeys(row["method"] for row in content["rows"]):
        figures = {(r["low"], r["high"]): r["figures"]["standard"] for r in content["rows"] if r["method"] == method}
        rows.append([METHODS.get(method, method), *(_psnr_ssim(figures[range_]) for range_ in ranges)])
    return table(["PSNR, dB / SSIM", *(f"{100 * low:g}-{100 * high:g} %" for low, high in ranges)], rows)


def _psnr_ssim(figures: dict) -> str:
    return f"{figures['psnr']:.2f} / {figures['ssim']:.3f}"


def demo_weights_section(content: dict) -> str:
    facts, images = content["environment"], content["rows"][0]["images"]
    return (
        f"### The weights that come along\n\n`{facts['command']}` at commit {facts['commit']}: {images} rendered "
        f"facades of {content['size']}×{content['size']}, none of them trained on, per range of hole ratios; "
        "composites, valid pixels kept. `msa_model/weights/README.md` says how they were trained.\n\n"
        f"{demo_weights_table(content)}\n"
    )


def loader_section(content: dict) -> str:
    facts = content["environment"]
    rows = [[row["source"], f"{row['images_per_s']:.1f}", f"{content['target']:.0f}"] for row in content["rows"]]
    return (
        f"### The training loader\n\n`{facts['command']}` at commit {facts['commit']} on {facts['device']}: images and "
        f"masks of {content['size']}×{content['size']}, batch {content['batch']}, {content['workers']} workers.\n\n"
        + table(["images, masks", "images / s", "target"], rows)
        + "\n"
    )
