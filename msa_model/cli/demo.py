"""``make demo``: inpaints with the weights that come with the package, times the network, shows where its holes look.

The images are two facades and two photographs that the weights were not trained on. The photographs come with
scikit-image: chelsea and coffee (CC0).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from . import Generator, inpaint
from .attention_maps import attention_maps, sheet
from .evaluation_inputs import FIRST_HELD_OUT_FACADE
from .facades import render_facade
from .fills import FILLS
from .masks import free_form_mask
from .weights import demo_weights

PHOTOS = ("chelsea", "coffee")
FACADES = 2
SIZE = 128  # what the weights were trained at
HOLE = (0.2, 0.3)
FIRST_MASK = 1_000_003


def pictures() -> dict[str, np.ndarray]:
    """Name -> (SIZE, SIZE, 3) uint8."""
    from skimage import data

    found = {f"facade {i + 1}": render_facade(SIZE, FIRST_HELD_OUT_FACADE + i) for i in range(FACADES)}
    for name in PHOTOS:
        photo = Image.fromarray(getattr(data, name)())
        side = min(photo.size)
        left, top = ((extent - side) // 2 for extent in photo.size)
        found[name] = np.asarray(
            photo.resize((SIZE, SIZE), Image.Resampling.LANCZOS, (left, top, left + side, top + side))
        )
    return found


def hole_psnr(result: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> float:
    """PSNR in dB over the hole pixels; result and truth (H, W, 3) uint8, valid (H, W) bool."""
    error = result[~valid].astype(np.float64) - truth[~valid]
    return float(-10 * np.log10(np.mean(error**2) / 255**2))


def forward_times(device: torch.device, size: int = 256, rounds: int = 5) -> dict[str, float]:
    """Median seconds of the full-width network's forward on one image, fused and reference operators taking turns."""
    times: dict[str, list[float]] = {"auto": [], "reference": []}
    torch.manual_seed(0)
    networks = {}
    for backend in times:
        network = Generator(backend=backend).eval().to(device, memory_format=torch.channels_last)
        if networks:
            network.load_state_dict(networks["auto"].state_dict())
        networks[backend] = network
    image = torch.rand(1, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    mask = free_form_mask(size, size, HOLE, FIRST_MASK)[None].to(device)
    with torch.inference_mode():
        for round_ in range(rounds + 1):
            for backend, network in networks.items():
                start = time.perf_counter()
                network(image, mask)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if round_:  # the first round warms up
                    times[backend].append(time.perf_counter() - start)
    return {backend: statistics.median(values) for backend, values in times.items()}


def save_columns(columns: dict[str, list[np.ndarray]], path: Path) -> None:
    """Images (SIZE, SIZE, 3) uint8 at twice their size, columns side by side under their titles."""
    gap, title, side = 8, 28, 2 * SIZE
    rows = len(next(iter(columns.values())))
    canvas = Image.new("RGB", (len(columns) * (side + gap) + gap, rows * (side + gap) + title), "white")
    draw = ImageDraw.Draw(canvas)
    for column, (name, images) in enumerate(columns.items()):
        x = gap + column * (side + gap)
        draw.text((x + side // 2, title // 2), name, fill="black", anchor="mm", font=ImageFont.load_default(size=18))
        for row, pixels in enumerate(images):
            large = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
            canvas.paste(large, (x, title + row * (side + gap)))
    canvas.save(path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m msa_model.demo", description=__doc__.split("\n\n")[0])
    parser.add_argument("-o", "--out", type=Path, default=Path("out"), help="folder for the pictures")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    generator = Generator.load(demo_weights(), device)

    truths = pictures()
    valid = [free_form_mask(SIZE, SIZE, HOLE, FIRST_MASK + i)[0].numpy() for i in range(len(truths))]
    with_holes = [np.where(v[..., None], t, 255).astype(np.uint8) for t, v in zip(truths.values(), valid, strict=True)]
    biharmonic = [FILLS["biharmonic"](t, v) for t, v in zip(truths.values(), valid, strict=True)]
    ours = [
        np.asarray(inpaint(generator, Image.fromarray(truth), Image.fromarray(~v)))
        for truth, v in zip(truths.values(), valid, strict=True)
    ]
    columns = {"input": with_holes, "biharmonic": biharmonic, "this network": ours, "truth": list(truths.values())}
    save_columns(columns, arguments.out / "demo.png")
    print("PSNR in the hole, dB     biharmonic   this network")
    for i, (name, truth) in enumerate(truths.items()):
        figures = [hole_psnr(filled[i], truth, valid[i]) for filled in (biharmonic, ours)]
        print(f"  {name:<22} {figures[0]:10.2f} {figures[1]:14.2f}")

    image = torch.from_numpy(truths["facade 1"]).permute(2, 0, 1)[None].float() / 255
    _, stages = attention_maps(generator, image, torch.from_numpy(valid[0])[None, None])
    sheet(truths["facade 1"], ~valid[0], ours[0], stages).save(arguments.out / "attention-map.png")

    times = forward_times(device)
    print(
        f"the paper's network, one 256x256 image on {device}: {times['auto'] * 1e3:.0f} ms on fused operators, "
        f"{times['reference'] * 1e3:.0f} ms on reference operators ({times['reference'] / times['auto']:.2f} x)"
    )
    print(f"pictures: {arguments.out / 'demo.png'}, {arguments.out / 'attention-map.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
