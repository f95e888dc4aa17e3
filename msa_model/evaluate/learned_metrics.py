"""LPIPS and FID, from files of weights that the user provides. Nothing is downloaded."""

from __future__ import annotations

import importlib.util
import os
from importlib import resources

import numpy as np
import torch
from torch import Tensor, nn

from .. import user_files
from ..nn import state_dicts

_ALEXNET = {"features.0.weight": (64, 3, 11, 11), "features.10.weight": (256, 256, 3, 3)}
_VGG16 = {"features.0.weight": (64, 3, 3, 3), "features.28.weight": (512, 512, 3, 3)}
_LPIPS_FILES = (
    "; wanted is torchvision's alexnet-owt-7be5be79.pth or vgg16-397923af.pth, as torchvision.models downloads them"
)
_SMALLEST_SIDE = 32  # of an image for LPIPS; below it the deepest features have no pixel


def _alexnet() -> tuple[list[nn.Module], tuple[int, ...]]:
    """Builds the layers of torchvision's ``features``, and lists those whose output LPIPS compares."""
    conv, pool = nn.Conv2d, nn.MaxPool2d(3, 2)
    layers: list[nn.Module] = [conv(3, 64, 11, 4, 2), nn.ReLU(), pool, conv(64, 192, 5, padding=2), nn.ReLU(), pool]
    for width, next_width in ((192, 384), (384, 256), (256, 256)):
        layers += [conv(width, next_width, 3, padding=1), nn.ReLU()]
    return layers, (1, 4, 7, 9, 11)


def _vgg16() -> tuple[list[nn.Module], tuple[int, ...]]:
    """As `_alexnet`, of VGG-16."""
    layers: list[nn.Module] = []
    taps, width = [], 3
    for next_width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(width, next_width, 3, padding=1), nn.ReLU()]
            width = next_width
        taps.append(len(layers) - 1)
        layers.append(nn.MaxPool2d(2))
    return layers[:-1], tuple(taps)


class Lpips(nn.Module):
    """Learned perceptual image patch similarity (Zhang et al. 2018, version 0.1).

    The network is AlexNet or VGG-16, whichever the file holds. Its features at five depths are scaled to unit length
    over channels; the squared differences are weighted per channel, averaged over pixels and added up. torchmetrics
    computes the same, but needs torchvision for the networks. Here the networks are lists of layers, and the channel
    weights are torchmetrics' files.

    Args:
        path: torchvision's weights of either network, a file of ``torch.save``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is of another kind; weights are missing or of another shape, which the message names.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__()
        who = "msa_model.Lpips"
        found = state_dicts.state_dict(state_dicts.read(path, who, _LPIPS_FILES), path, who, _LPIPS_FILES)
        shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
        builders = {"alex": (_ALEXNET, _alexnet), "vgg": (_VGG16, _vgg16)}
        fitting = [n for n, (signature, _) in builders.items() if signature.items() <= shapes.items()]
        if not fitting:
            raise ValueError(f"{who}: {path} holds neither AlexNet nor VGG-16{_LPIPS_FILES}")
        self.network = fitting[0]
        layers, self.taps = builders[self.network][1]()
        self.features = nn.Sequential(*layers)
        wanted = self.state_dict()
        if wrong := state_dicts.differences({key: t for key, t in found.items() if key in wanted}, wanted):
            raise ValueError(f"{who}: {path} is not torchvision's: {wrong}{_LPIPS_FILES}")
        used = {key: found[key] for key in wanted}
        if wrong := state_dicts.not_finite(used):
            raise ValueError(f"{who}: {path} holds weights that are not finite: {wrong}{_LPIPS_FILES}")
        self.load_state_dict(used)
        shipped = resources.files("torchmetrics") / f"functional/image/lpips_models/{self.network}.pth"
        weights = state_dicts.state_dict(state_dicts.read(str(shipped), who), str(shipped), who)
        for index in range(len(self.taps)):
            self.register_buffer(f"weight{index}", weights[f"lin{index}.model.1.weight"])
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, image: Tensor, truth: Tensor) -> Tensor:
        """Computes the distances of two batches (N, 3, H, W), floating-point in [0, 1]; (N,), 0 for equal images."""
        distance = torch.zeros(len(image), device=image.device)
        for index, (a, b) in enumerate(zip(self._unit_features(image), self._unit_features(truth), strict=True)):
            weighted = (a - b).square() * getattr(self, f"weight{index}")
            distance = distance + weighted.sum(dim=1).mean(dim=(1, 2))
        return distance

    def _unit_features(self, image: Tensor) -> list[Tensor]:
        x = (2 * image - 1 - self.mean) / self.deviation
        found = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.taps:
                found.append(x / (1e-8 + x.square().sum(dim=1, keepdim=True)).sqrt())
        return found

    def distance(self, image: np.ndarray, truth: np.ndarray) -> float:
        """Computes the distance of two images (H, W, 3) uint8.

        Raises:
            ValueError: a side shorter than 32.
        """
        if min(image.shape[:2]) < _SMALLEST_SIDE:
            raise ValueError(
                f"msa_model.Lpips: an image of {image.shape[1]}x{image.shape[0]} pixels is too small; at least "
                f"{_SMALLEST_SIDE}x{_SMALLEST_SIDE}"
            )
        a, b = (_bytes(picture, self.mean.device).float() / 255 for picture in (image, truth))
        return self(a, b).item()


def load_inception(path: str | os.PathLike) -> nn.Module:
    """Loads the Inception network of FID, (N, 3, H, W) uint8 -> (N, 2048), of torchmetrics and torch-fidelity.

    Args:
        path: torch-fidelity's ``weights-inception-2015-12-05-6726825d.pth``.

    Raises:
        FileNotFoundError: no such file.
        ModuleNotFoundError: torch-fidelity, which has the network for these weights, is not installed.
        ValueError: another kind of file.
    """
    from torchmetrics.image.fid import NoTrainInceptionV3

    who = "msa_model.load_inception"
    try:
        user_files.check(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"msa_model: no Inception weights at {path}") from None
    if importlib.util.find_spec("torch_fidelity"):
        # The network's own code opens the file again. It is read here first, so that it is known to hold tensors only.
        state_dicts.state_dict(state_dicts.read(path, who), path, who)
    try:
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path))
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "FID needs torch-fidelity, which has the Inception network for these weights: pip install torch-fidelity",
            name="torch_fidelity",
        ) from error
    except Exception as error:  # torch.load and load_state_dict raise errors of several types
        raise ValueError(f"msa_model: {path} is not torch-fidelity's file of Inception weights: {error}") from error
    network.num_features = 2048
    return network


class Frechet:
    """Computes the Fréchet inception distance of several sets of images from one set of true images.

    Every set has a torchmetrics `FrechetInceptionDistance`. They share the network and the features of the truth.

    Args:
        network: (N, 3, H, W) uint8 -> (N, d), with ``num_features`` = d.
        methods: names of the sets.
    """

    def __init__(self, network: nn.Module, methods: list[str]) -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance

        weight = next(network.parameters(), None)
        self._device = torch.device("cpu") if weight is None else weight.device
        self._network = network
        self._metrics = {name: FrechetInceptionDistance(feature=network).to(self._device) for name in methods}

    def add_truth(self, image: np.ndarray) -> None:
        """Adds a true image, (H, W, 3) uint8."""
        first, *others = self._metrics.values()
        first.update(_bytes(image, self._device), real=True)
        for metric in others:
            for state in ("sum", "cov_sum", "num_samples"):
                setattr(metric, f"real_features_{state}", getattr(first, f"real_features_{state}"))

    def add(self, method: str, image: np.ndarray) -> None:
        """Adds a method's image, (H, W, 3) uint8."""
        self._metrics[method].update(_bytes(image, self._device), real=False)

    def distance(self, method: str) -> float | None:
        """Computes a method's distance; None with fewer than two images.

        With fewer images than features the distance is biased, and large.
        """
        metric = self._metrics[method]
        return metric.compute().item() if metric.real_features_num_samples > 1 else None


def _bytes(image: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].to(device)
