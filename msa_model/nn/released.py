"""Weights of the authors' released code, and how they map onto ours."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from . import torch_files
from .generator import Generator

_WHO = "msa_model.load_released"
#: Attention stages of the released code and the decoder layers that they follow.
_STAGES = {"CA_1": 4, "CA_2": 3}
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def released_keys(depth: int = 8) -> dict[str, str]:
    """The mapping: key of the released generator's state dict -> key of ours.

    ==============================  =================================================  ==================
    released                        ours                                               for
    ==============================  =================================================  ==================
    ``enc_i.conv.*``                ``encoder.(i-1).conv.*``                           i = 1 … depth
    ``enc_i.bn.*``                  ``encoder.(i-1).norm.*``                           i = 2 … depth
    ``dec_i.conv.*``                ``decoder.i.conv.*``                               i = depth … 1
    ``dec_i.bn.*``                  ``decoder.i.norm.*``                               i = depth … 2
    ``CA_j.SqueezeExc.blocks.k.*``  ``attention.(5-j).squeeze_excitation.blocks.k.*``  j = 1, 2; k = 0, 2
    ``CA_j.combiner.*``             ``attention.(5-j).combiner.*``                     j = 1, 2
    ==============================  =================================================  ==================

    Args:
        depth: encoder layers; 8 in the released code.
    """
    modules = {}
    for level in range(1, depth + 1):
        modules[f"enc_{level}.conv"] = f"encoder.{level - 1}.conv"
        modules[f"dec_{level}.conv"] = f"decoder.{level}.conv"
        if level > 1:
            modules[f"enc_{level}.bn"] = f"encoder.{level - 1}.norm"
            modules[f"dec_{level}.bn"] = f"decoder.{level}.norm"
    for stage, level in _STAGES.items():
        for layer in (0, 2):
            modules[f"{stage}.SqueezeExc.blocks.{layer}"] = f"attention.{level}.squeeze_excitation.blocks.{layer}"
        modules[f"{stage}.combiner"] = f"attention.{level}.combiner"
    return {
        f"{theirs}.{name}": f"{ours}.{name}"
        for theirs, ours in modules.items()
        for name in (_BATCH_NORM if theirs.endswith(".bn") else ("weight", "bias"))
    }


def load_released(path: str | os.PathLike, device: str | torch.device = "cpu", *, backend: str = "auto") -> Generator:
    """Builds our generator, ``variant="released"``, from weights of the authors' released code.

    Width, depth and the squeeze-and-excitation's ratio are those of the file. The forward is the released one's up to
    rounding; what differs in code and not in numbers: masks have one plane per concatenated part instead of one per
    channel.

    Args:
        path: a checkpoint (a file of ``torch.save``), a dict whose entry ``generator`` is the state dict; a bare state
            dict is taken too. Keys may begin with ``module.``; batch norm's ``num_batches_tracked`` may be missing.
            Read with ``weights_only=True``: no code in the file is run.
        device: where the weights go.
        backend: of the operators.

    Returns:
        The generator, in evaluation mode. Its ``save`` writes a file that :meth:`Generator.load` reads.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file; keys missing, unknown or of another shape, by name.
    """
    content = torch_files.read(path, _WHO)
    if isinstance(content, Mapping) and "generator" in content:
        content = content["generator"]
    found = torch_files.state_dict(content, path, _WHO)
    options = _architecture(found, path)
    with torch.device("meta"):
        generator = Generator(**options, variant="released", backend=backend)
    keys = released_keys(generator.config.depth)
    ours = generator.state_dict()
    counters = [name for name in keys if name.endswith("num_batches_tracked")]
    wrong = torch_files.differences(found, {theirs: ours[name] for theirs, name in keys.items()}, optional=counters)
    if wrong:
        raise ValueError(f"{_WHO}: {path} is not the released generator's: {wrong}")
    generator.to_empty(device=device)
    zero = torch.zeros((), dtype=torch.long)
    generator.load_state_dict({name: found.get(theirs, zero) for theirs, name in keys.items()})
    return generator.eval()


def _architecture(found: Mapping[str, Tensor], path: str | os.PathLike) -> dict:
    """Options of the generator that has these weights."""
    depths = [int(match[1]) for name in found if (match := re.fullmatch(r"enc_(\d+)\.conv\.weight", name))]
    first, excitation = found.get("enc_1.conv.weight"), found.get("CA_1.SqueezeExc.blocks.0.weight")
    telling = {"enc_1.conv.weight": first, "CA_1.SqueezeExc.blocks.0.weight": excitation}
    for name, weight in telling.items():
        if weight is None or weight.dim() < 2 or weight.numel() == 0:
            raise ValueError(
                f"{_WHO}: {path} is not the released generator's: no usable {name} (it has "
                f"{', '.join(list(found)[:4])} ...)"
            )
    if not max(_STAGES.values()) <= max(depths) <= 12:
        raise ValueError(f"{_WHO}: {path} has {max(depths)} encoder layers, wanted 4 to 12, 8 as a rule")
    ratio = excitation.shape[0] / excitation.shape[-1]
    return {"base_width": first.shape[0], "depth": max(depths), "se_ratio": ratio}
