"""``msa demo``: inpaints with the weights that come with the package, times the network, shows where its holes look.

The images are two facades and two photographs that the weights were not trained on. The photographs come with
scikit-image: chelsea and coffee (CC0).
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..lines import tell
from .command import Command, CommandError
from .files import make_writable
from .options import add_device, file_path, find_device

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

PHOTOS = ("chelsea", "coffee")
FACADES = 2
SIZE = 128  # pixels: the size of the images in the training of the weights
HOLE = (0.2, 0.3)
FIRST_MASK = 1_000_003


def pictures() -> dict[str, np.ndarray]:
    """Name -> (SIZE, SIZE, 3) uint8."""
    import numpy as np
    from PIL import Image
    from skimage import data

    from ..data.facades import render_facade
    from ..data.image_sources import FIRST_HELD_OUT_FACADE

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
    """Computes the PSNR over the hole pixels, in dB; result and truth (H, W, 3) uint8, valid (H, W) bool."""
    import numpy as np

    error = result[~valid].astype(np.float64) - truth[~valid]
    return float(-10 * np.log10(np.mean(error**2) / 255**2))


def forward_times(device: torch.device, size: int = 256, rounds: int = 5) -> dict[str, float]:
    """Times the paper's network on one image, with fused and with reference operators in turn; median seconds each."""
    import torch

    from ..data.brush import free_form_mask
    from ..nn.generator import Generator

    times: dict[str, list[float]] = {"auto": [], "reference": []}
    torch.manual_seed(0)
    layout: dict[str, Any] = {"device": device, "memory_format": torch.channels_last}
    networks: dict[str, Generator] = {}
    for backend in times:
        network = Generator(backend=backend).eval().to(**layout)
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


def declare(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "-o", "--out", type=file_path, default=Path("out"), metavar="OUT", help="folder for the pictures; default: out"
    )
    add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    """Fills the images, and prints the figures and times."""
    import numpy as np
    import torch
    from PIL import Image

    from ..data.brush import free_form_mask
    from ..evaluate.attention_maps import attention_maps, sheet
    from ..evaluate.fills import FILLS
    from ..evaluate.sheets import columns_sheet
    from ..inpainting import inpaint
    from ..nn.generator import Generator
    from ..weights import demo_weights

    device = find_device(arguments.device)
    make_writable(arguments.out)
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
    _write(arguments.out / "demo.png", columns_sheet(columns, enlarge=2, gap=8, margin=8, font_size=18))
    print("PSNR in the hole, dB     biharmonic   this network")
    for i, (name, truth) in enumerate(truths.items()):
        figures = [hole_psnr(filled[i], truth, valid[i]) for filled in (biharmonic, ours)]
        print(f"  {name:<22} {figures[0]:10.2f} {figures[1]:14.2f}")

    image = torch.from_numpy(truths["facade 1"]).permute(2, 0, 1)[None].float() / 255
    _, stages = attention_maps(generator, image, torch.from_numpy(valid[0])[None, None])
    _write(arguments.out / "attention-map.png", sheet(truths["facade 1"], ~valid[0], ours[0], stages))

    times = forward_times(device)
    print(
        f"the paper's network, one 256x256 image on {device}: {times['auto'] * 1e3:.0f} ms on fused operators, "
        f"{times['reference'] * 1e3:.0f} ms on reference operators ({times['reference'] / times['auto']:.2f} x)"
    )
    tell(f"pictures: {arguments.out / 'demo.png'}, {arguments.out / 'attention-map.png'}")
    return 0


def _write(path: Path, canvas: Image.Image) -> None:
    from ..data import image_files

    try:
        image_files.write(path, image_files.Picture(canvas, "PNG"))
    except image_files.ImageFileError as error:
        raise CommandError(error) from error


COMMAND = Command(
    "demo",
    "fill four sample images and time the network",
    "msa demo --out out",
    run,
    declare,
)
