"""The generator of Tables 1 and 2: a U-Net of partial convolutions with attention stages in the decoder."""

from __future__ import annotations

import dataclasses
import json
import os
import reprlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msa_ops import partial_conv2d, partial_conv2d_upcat

from .. import user_files
from . import state_dicts
from .attention_block import AttentionBlock
from .generator_config import GeneratorConfig as GeneratorConfig  # a public name of this file too
from .normalization import RegionNorm2d
from .safetensors_files import SafetensorsFile, json_object

FORMAT = "msa_model.Generator"

# Of a file that is loaded: a network of this width has 8.6 thousand million weights.
_WIDEST_IN_A_FILE = 1024


def make_norm(config: GeneratorConfig, width: int) -> nn.Module:
    """Makes a layer's normalisation."""
    return RegionNorm2d(width) if config.norm == "region" else nn.BatchNorm2d(width)


def apply_norm(norm: nn.Module, x: Tensor, filled: Tensor, known: Tensor | None) -> Tensor:
    """Normalises x; only region norm uses the masks: `filled` of the features, `known` of the image."""
    return norm(x, known, filled) if isinstance(norm, RegionNorm2d) else norm(x)


class EncoderLayer(nn.Module):
    """Encode_i: partial convolution with stride 2, normalisation in all layers but the first, ReLU."""

    def __init__(self, config: GeneratorConfig, level: int) -> None:
        super().__init__()
        kernel = {1: 7, 2: 5, 3: 5}.get(level, 3)
        in_width, width = config.encoder_width(level - 1), config.encoder_width(level)
        self.padding = kernel // 2
        self.conv = nn.Conv2d(in_width, width, kernel, stride=2, padding=self.padding)
        self.norm = make_norm(config, width) if level > 1 else nn.Identity()
        # The image is masked already. The first layer has no norm, so the zeros in its holes pass ReLU unchanged, and
        # the second layer's input is masked too. Region norm keeps such zeros, batch norm does not.
        self.input_is_masked = level <= 2 or config.norm == "region"
        self.backend = config.backend

    def forward(self, x: Tensor, mask: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Runs the layer.

        Args:
            x: (N,C,H,W).
            mask: (N,1,H,W) bool.
            known: the image's mask at half the size of x, (N,1,H/2,W/2) bool; only region norm needs it.

        Returns:
            Features and mask at half the size.
        """
        x, mask = partial_conv2d(
            x,
            mask,
            self.conv.weight,
            self.conv.bias,
            stride=2,
            padding=self.padding,
            input_is_masked=self.input_is_masked,
            backend=self.backend,
        )
        return F.relu(apply_norm(self.norm, x, mask, known), inplace=True), mask


class DecoderLayer(nn.Module):
    """Decode_i: nearest ×2, concatenation with the encoder's features, partial convolution.

    Normalisation and LeakyReLU(0.2) follow in all layers but the last.
    """

    def __init__(self, config: GeneratorConfig, level: int) -> None:
        super().__init__()
        width = config.decoder_width(level)
        low_width = config.encoder_width(level) if level == config.depth else config.decoder_width(level + 1)
        self.conv = nn.Conv2d(low_width + config.encoder_width(level - 1), width, kernel_size=3, padding=1)
        self.is_last = level == 1
        self.norm = nn.Identity() if self.is_last else make_norm(config, width)
        # The skip connection of the last two layers is the masked image, or Encode_1's features: see EncoderLayer.
        self.skip_is_masked = level <= 2 or config.norm == "region"
        self.backend = config.backend

    def forward(
        self, low: Tensor, low_mask: Tensor, skip: Tensor, skip_mask: Tensor, known: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Runs the layer.

        Args:
            low: features of the layer before, (N,C1,h,w).
            low_mask: (N,1,h,w) bool.
            skip: features of the encoder, (N,C2,2h,2w).
            skip_mask: (N,1,2h,2w) bool.
            known: the image's mask, (N,1,2h,2w) bool; only region norm needs it.

        Returns:
            Features and mask of size (2h,2w).
        """
        x, mask = partial_conv2d_upcat(
            low,
            low_mask,
            skip,
            skip_mask,
            self.conv.weight,
            self.conv.bias,
            skip_is_masked=self.skip_is_masked,
            backend=self.backend,
        )
        if not self.is_last:
            x = F.leaky_relu(apply_norm(self.norm, x, mask, known), 0.2, inplace=True)
        return x, mask


class Generator(nn.Module):
    """The inpainting network of the paper.

    The arguments are those of `GeneratorConfig`. Their defaults give exactly Tables 1 and 2, with 33.69 M parameters.
    """

    def __init__(
        self,
        base_width: int = 64,
        depth: int = 8,
        variant: str = "paper",
        attention_levels: tuple[int, ...] = (4, 3),
        scale: float = 10.0,
        radius: int = 1,
        renormalize: bool = False,
        mask_reduction: str = "nearest",
        se_ratio: float = 1.0,
        backend: str = "auto",
        norm: str = "batch",
    ) -> None:
        super().__init__()
        self.config = config = GeneratorConfig(
            base_width,
            depth,
            variant,
            attention_levels,
            scale,
            radius,
            renormalize,
            mask_reduction,
            se_ratio,
            backend,
            norm,
        )
        self.encoder = nn.ModuleList(EncoderLayer(config, level) for level in range(1, depth + 1))
        self.decoder = nn.ModuleDict({str(level): DecoderLayer(config, level) for level in range(depth, 0, -1)})
        self.attention = nn.ModuleDict(
            {
                str(level): AttentionBlock(
                    config.decoder_width(level),
                    se_ratio,
                    scale=scale,
                    radius=radius,
                    renormalize=renormalize,
                    variant=variant,
                    backend=backend,
                )
                for level in sorted(config.attention_levels, reverse=True)
            }
        )
        for module in self.modules():
            # Without data there is nothing to draw, and torch would import its compiler to find that out.
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, a=0.2)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Predicts the whole image. What ``image`` holds in its holes is ignored.

        Args:
            image: (N, 3, H, W), values in [0, 1]; any H, W ≥ 1.
            mask: (N, 1, H, W), 1 (any non-zero) = valid, 0 = hole; bool, uint8 or floating-point.

        Returns:
            The prediction (N, 3, H, W), not clamped.

        Raises:
            ValueError: shapes do not fit. In training mode also: the bottleneck holds a single value per channel (one
                image no larger than 2^depth), which has no variance. With synchronised statistics the values of all
                processes count.
        """
        self._check(image, mask)
        height, width = image.shape[2:]
        block = 2**self.config.depth
        # The padding is hole, which partial convolution ignores.
        margins = (0, -width % block, 0, -height % block)
        valid = F.pad(mask != 0, margins)
        masked = torch.where(valid, F.pad(image, margins), 0.0)
        values = image.shape[0] * (masked.shape[2] // block) * (masked.shape[3] // block)
        # Asks the norm for its mode, because fine-tuning trains the weights while the statistics are frozen.
        if self._bottleneck_norm().training and values == 1 and not self._synchronises():
            raise ValueError(
                f"msa_model.Generator: {self.config.norm} norm cannot be trained on a single value per channel, which "
                f"is what one {height}x{width} image leaves at the bottleneck (1/{block} of its size): use a batch of "
                "at least 2, larger images or a smaller depth"
            )

        # i -> the image's mask at 1/2^i of its size, for the sizes at which a layer needs it.
        asked = range(1, self.config.depth + 1) if self.config.norm == "region" else ()
        known = {i: self._stage_mask(valid, 2**i) for i in {*asked, *(int(level) - 1 for level in self.attention)}}
        features, masks = [masked], [valid]
        for level, layer in enumerate(self.encoder, 1):
            x, m = layer(features[-1], masks[-1], known.get(level))
            features.append(x)
            masks.append(m)
        x, m = features.pop(), masks.pop()
        for name, layer in self.decoder.items():
            x, m = layer(x, m, features.pop(), masks.pop(), known.get(int(name) - 1))
            if name in self.attention:
                x = self.attention[name](x, known[int(name) - 1])
        return x[:, :, :height, :width]

    def _bottleneck_norm(self) -> nn.Module:
        """The normalisation of the deepest encoder layer."""
        return self.encoder[-1].get_submodule("norm")

    def _synchronises(self) -> bool:
        """Whether the bottleneck's normalisation shares its statistics with other processes."""
        norm = self._bottleneck_norm()
        if isinstance(norm, RegionNorm2d):
            return norm.synchronises()
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        return isinstance(norm, nn.SyncBatchNorm) and distributed and torch.distributed.get_world_size() > 1

    def _stage_mask(self, valid: Tensor, factor: int) -> Tensor:
        """Reduces the image's mask to 1/factor of its size."""
        if self.config.mask_reduction == "nearest":
            return valid[:, :, ::factor, ::factor]
        n, _, h, w = valid.shape
        return valid.reshape(n, 1, h // factor, factor, w // factor, factor).all(5).all(3)

    @staticmethod
    def _check(image: Tensor, mask: Tensor) -> None:
        if image.dim() != 4 or image.shape[1] != 3 or min(image.shape[2:]) < 1:
            raise ValueError(f"msa_model.Generator: image must have shape (N, 3, H, W), got {tuple(image.shape)}")
        if mask.shape != (image.shape[0], 1, *image.shape[2:]):
            raise ValueError(
                f"msa_model.Generator: mask must have shape {(image.shape[0], 1, *image.shape[2:])}, "
                f"got {tuple(mask.shape)}"
            )

    def save(self, path: str | os.PathLike, dtype: torch.dtype | None = None) -> None:
        """Writes weights and configuration to a safetensors file. On an error no partly written file is left.

        Args:
            path: the file.
            dtype: of the weights in the file. float16 halves the file; the loaded generator is float32 again. The
                statistics of the normalisation keep their dtype. None: everything keeps its dtype.
        """
        from safetensors.torch import save_file

        path = Path(path)
        metadata = {"format": FORMAT, "config": json.dumps(dataclasses.asdict(self.config))}
        weights = {name for name, _ in self.named_parameters()}
        tensors = {
            name: t.detach().to(dtype if dtype is not None and name in weights else t.dtype).contiguous()
            for name, t in self.state_dict().items()
        }
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            save_file(tensors, temporary, metadata)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike, device: str | torch.device = "cpu", **overrides: Any) -> Generator:
        """Loads a generator that `save` wrote.

        The file is not trusted. Its header is compared with the network of its configuration, of which at that time
        only the shapes exist; memory is taken for a file that fits, and no code in it is run.

        Args:
            path: the safetensors file.
            device: where the weights go.
            overrides: configuration entries to change, for example ``backend="reference"``.

        Returns:
            The generator, in evaluation mode.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is not a generator's, its configuration is impossible, its weights do not fit the
                configuration or are not finite.
        """
        who = "msa_model.Generator"
        try:
            file = user_files.open_file(path)
        except FileNotFoundError:
            raise FileNotFoundError(f"{who}: no weights at {path}") from None
        except user_files.NotAFileError as error:
            raise ValueError(f"{who}: {path}: {error.strerror}") from None
        with file:
            try:
                content = SafetensorsFile(file)
            except ValueError as error:
                raise ValueError(f"{who}: {path} is not a readable safetensors file ({error})") from error
            if content.metadata.get("format") != FORMAT:
                raise ValueError(f"{who}: {path} was not written by Generator.save")
            try:
                options = json_object(content.metadata.get("config", ""))
            except ValueError as error:
                raise ValueError(f"{who}: {path}: its configuration cannot be read: {error}") from None
            known = {field.name for field in dataclasses.fields(GeneratorConfig)}
            if unknown := sorted(options.keys() - known):
                raise ValueError(f"{who}: {path}: its configuration has an unknown option {reprlib.repr(unknown[0])}")
            try:
                GeneratorConfig(**options)
            except ValueError as error:
                raise ValueError(f"{who}: {path}: {str(error).removeprefix(f'{who}: ')}") from None
            config = GeneratorConfig(**(options | overrides))
            if config.base_width > _WIDEST_IN_A_FILE:
                raise ValueError(
                    f"{who}: {path}: its base_width is {config.base_width}, at most {_WIDEST_IN_A_FILE} is loaded"
                )
            with torch.device("meta"):
                generator = cls(**dataclasses.asdict(config))
            wanted = generator.state_dict()
            if wrong := state_dicts.differences(content.entries, wanted):
                raise ValueError(f"{who}: {path} does not fit its configuration: {wrong}")
            try:
                state = {name: tensor.to(device, wanted[name].dtype) for name, tensor in content.tensors()}
            except ValueError as error:
                raise ValueError(f"{who}: {path} is not a readable safetensors file ({error})") from error
        if wrong := state_dicts.not_finite(state):
            raise ValueError(f"{who}: {path} holds weights that are not finite: {wrong}")
        generator.load_state_dict(state, assign=True)
        return generator.eval()
