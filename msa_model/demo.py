"""``make demo``: trains a small generator on a few photographs and inpaints holes it has never seen.

The photographs come with scikit-image: chelsea and coffee (CC0), astronaut and rocket (public domain: NASA, SpaceX),
brick, grass and gravel (CC0).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import Generator, inpaint
from .losses import reconstruction_loss
from .masks import free_form_mask

PHOTOS = ("chelsea", "coffee", "astronaut", "rocket", "brick", "grass", "gravel")
SHOWN = ("chelsea", "coffee", "astronaut")
SIZE, BATCH = 128, 4
TRAINING_SEED, HELD_OUT_SEED = 1, 1_000_003


def load_photos() -> dict[str, Tensor]:
    """Name -> (3, H, W) in [0, 1], the shorter side SIZE·5/4."""
    from skimage import data

    photos = {}
    for name in PHOTOS:
        pixels = np.atleast_3d(getattr(data, name)())
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).expand(3, -1, -1).float()[None] / 255
        factor = SIZE * 1.25 / min(image.shape[2:])
        photos[name] = F.interpolate(image, scale_factor=factor, mode="bilinear", antialias=True)[0].clamp(0, 1)
    return photos


def random_crops(photos: list[Tensor], count: int, rng: np.random.Generator) -> Tensor:
    """(count, 3, SIZE, SIZE), flipped left-right half of the time."""
    crops = []
    for _ in range(count):
        photo = photos[rng.integers(len(photos))]
        y, x = (int(rng.integers(extent - SIZE + 1)) for extent in photo.shape[1:])
        crop = photo[:, y : y + SIZE, x : x + SIZE]
        crops.append(crop.flip(2) if rng.random() < 0.5 else crop)
    return torch.stack(crops)


def train(generator: Generator, photos: list[Tensor], seconds: float, max_steps: int, device: torch.device) -> int:
    """Trains for a number of seconds or steps, whichever ends first, and returns the number of steps."""
    from tqdm import tqdm

    rng = np.random.default_rng(TRAINING_SEED)
    optimizer = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.99))
    generator.train()
    start, step = time.monotonic(), 0
    bar_format = "{desc} {percentage:3.0f}%|{bar}| {postfix}"
    with tqdm(total=round(seconds), desc="training", bar_format=bar_format, file=sys.stderr) as bar:
        while (elapsed := time.monotonic() - start) < seconds and step < max_steps:
            # Cosine decay over the time there is.
            progress = max(elapsed / seconds, step / max_steps)
            optimizer.param_groups[0]["lr"] = 2e-3 * 0.5 * (1 + np.cos(np.pi * progress)) + 1e-5
            image = random_crops(photos, BATCH, rng).to(device, memory_format=torch.channels_last)
            mask = torch.stack([free_form_mask(SIZE, SIZE, (0.1, 0.35), rng) for _ in range(len(image))]).to(device)
            loss = reconstruction_loss(generator(image, mask), image, mask)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            bar.update(round(time.monotonic() - start) - bar.n)
            if step % 5 == 0:
                bar.set_postfix_str(f"step {step}, loss {loss.item():.3f}, {elapsed / step:.2f} s/step")
    return step


def hole_psnr(result: Tensor, truth: Tensor, mask: Tensor) -> float:
    """PSNR in dB over the hole pixels of all images."""
    hole = (mask == 0).expand_as(truth)
    return -10 * torch.log10((result - truth)[hole].square().mean()).item()


def mean_colour_fill(image: Tensor, mask: Tensor) -> Tensor:
    """Holes filled with the mean colour of the valid pixels."""
    valid = (mask != 0).to(image.dtype)
    mean = (image * valid).sum(dim=(2, 3), keepdim=True) / valid.sum(dim=(2, 3), keepdim=True)
    return torch.where(mask != 0, image, mean)


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
    mask = free_form_mask(size, size, (0.2, 0.3), HELD_OUT_SEED)[None].to(device)
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


def picture(columns: list[Tensor]) -> np.ndarray:
    """Columns of images (N, 3, H, W) side by side, images below each other, with white gutters; (H', W', 3) uint8."""
    padded = [F.pad(column, (4, 4, 4, 4), value=1.0) for column in columns]
    rows = torch.cat([torch.cat(list(column), dim=1) for column in padded], dim=2)
    rows = F.interpolate(rows[None], scale_factor=2, mode="nearest")[0]
    return (rows.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def save_picture(columns: list[Tensor], titles: list[str], path: Path) -> None:
    from PIL import Image, ImageDraw, ImageFont

    body = Image.fromarray(picture(columns))
    sheet = Image.new("RGB", (body.width, body.height + 36), "white")
    sheet.paste(body, (0, 36))
    draw = ImageDraw.Draw(sheet)
    for index, title in enumerate(titles):
        centre = (index + 0.5) * body.width / len(titles)
        draw.text((centre, 18), title, fill="black", anchor="mm", font=ImageFont.load_default(size=18))
    sheet.save(path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m msa_model.demo", description=__doc__.split("\n\n")[0])
    parser.add_argument("-o", "--out", type=Path, default=Path("out"), help="folder for picture and weights")
    parser.add_argument("--seconds", type=float, default=90, help="training time (default 90)")
    parser.add_argument("--steps", type=int, default=4000, help="at most this many steps")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    arguments.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(TRAINING_SEED)
    photos = load_photos()
    generator = Generator(base_width=24, depth=5).to(device, memory_format=torch.channels_last)
    steps = train(generator, list(photos.values()), arguments.seconds, arguments.steps, device)

    truth = torch.stack([_centre_crop(photos[name]) for name in SHOWN])
    mask = torch.stack([free_form_mask(SIZE, SIZE, (0.2, 0.3), HELD_OUT_SEED + i) for i in range(len(SHOWN))])
    composite = inpaint(generator, truth, mask)
    with torch.inference_mode():
        prediction = generator.eval()(truth.to(device), mask.to(device)).cpu()
    generator.save(arguments.out / "demo.safetensors")
    with_holes = torch.where(mask, truth, 1.0)
    save_picture(
        [with_holes, prediction, composite, truth],
        ["input with holes", "prediction", "composite", "truth"],
        arguments.out / "demo.png",
    )

    ours, mean = hole_psnr(composite, truth, mask), hole_psnr(mean_colour_fill(truth, mask), truth, mask)
    print(f"trained {steps} steps of {BATCH} images {SIZE}x{SIZE} on {device}")
    print(f"PSNR in the hole: {ours:.2f} dB, filled with the mean colour {mean:.2f} dB ({ours - mean:+.2f} dB)")
    times = forward_times(device)
    print(
        f"full network, one 256x256 image: {times['auto'] * 1e3:.0f} ms on fused operators, "
        f"{times['reference'] * 1e3:.0f} ms on reference operators ({times['reference'] / times['auto']:.2f} x)"
    )
    print(f"picture: {arguments.out / 'demo.png'}   weights: {arguments.out / 'demo.safetensors'}")
    return 0 if ours > mean else 1


def _centre_crop(photo: Tensor) -> Tensor:
    y, x = ((extent - SIZE) // 2 for extent in photo.shape[1:])
    return photo[:, y : y + SIZE, x : x + SIZE]


if __name__ == "__main__":
    sys.exit(main())
