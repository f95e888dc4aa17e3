"""Loads weights of the authors' released code."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from . import state_dicts
from .generator import Generator

_WHO = "msa_model.load_released"
#: Attention stages of the released code and the decoder layers that they follow.
_STAGES = {"CA_1": 4, "CA_2": 3}
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def released_keys(depth: int = 8) -> dict[str, str]:
    """Maps the keys of the released generator's state dict to those of ours.

    | released                      | ours                                              | for                |
    | ----------------------------- | ------------------------------------------------- | ------------------ |
    | `enc_i.conv.*`                | `encoder.(i-1).conv.*`                            | i = 1 … depth      |
    | `enc_i.bn.*`                  | `encoder.(i-1).norm.*`                            | i = 2 … depth      |
    | `dec_i.conv.*`                | `decoder.i.conv.*`                                | i = depth … 1      |
    | `dec_i.bn.*`                  | `decoder.i.norm.*`                                | i = depth … 2      |
    | `CA_j.SqueezeExc.blocks.k.*`  | `attention.(5-j).squeeze_excitation.blocks.k.*`   | j = 1, 2; k = 0, 2 |
    | `CA_j.combiner.*`             | `attention.(5-j).combiner.*`                      | j = 1, 2           |

    Args:
        depth: encoder layers; 8 in the released code.

    Returns:
        Released key -> our key.
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
    """Builds our generator with ``variant="released"`` from weights of the authors' released code.

    Width, depth and the ratio of the squeeze-and-excitation come from the file. The forward equals the released one up
    to rounding. The code differs in one point: masks have one plane per concatenated part and not one per channel.

    Args:
        path: a checkpoint (a file of ``torch.save``): a dict whose entry ``generator`` is the state dict, or a bare
            state dict. Keys may begin with ``module.``; ``num_batches_tracked`` of batch norm may be missing. The file
            is read with ``weights_only=True``, so no code in it is run.
        device: where the weights go.
        backend: backend of the operators.

    Returns:
        The generator, in evaluation mode. Its ``save`` writes a file that `Generator.load` reads.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is of another kind; keys are missing, unknown or of another shape, which the message names.
    """
    content = state_dicts.read(path, _WHO)
    if isinstance(content, Mapping) and "generator" in content:
        content = content["generator"]
    found = state_dicts.state_dict(content, path, _WHO)
    options = _architecture(found, path)
    try:
        with torch.device("meta"):
            generator = Generator(**options, variant="released", backend=backend)
    except ValueError as error:
        raise ValueError(f"{_WHO}: {path} is not the released generator's: {error}") from None
    keys = released_keys(generator.config.depth)
    ours = generator.state_dict()
    counters = [name for name in keys if name.endswith("num_batches_tracked")]
    wrong = state_dicts.differences(found, {theirs: ours[name] for theirs, name in keys.items()}, optional=counters)
    if wrong:
        raise ValueError(f"{_WHO}: {path} is not the released generator's: {wrong}")
    if wrong := state_dicts.not_finite(found):
        raise ValueError(f"{_WHO}: {path} holds weights that are not finite: {wrong}")
    zero = torch.zeros((), dtype=torch.long)
    state = {name: found.get(theirs, zero).to(device, ours[name].dtype, copy=True) for theirs, name in keys.items()}
    generator.load_state_dict(state, assign=True)
    return generator.eval()


def _architecture(found: Mapping[str, Tensor], path: str | os.PathLike) -> dict:
    """Finds the options of the generator that has these weights."""
    depths = [int(match[1]) for name in found if (match := re.fullmatch(r"enc_([0-9]{1,3})\.conv\.weight", name))]
    first, excitation = found.get("enc_1.conv.weight"), found.get("CA_1.SqueezeExc.blocks.0.weight")
    for name, weight in (("enc_1.conv.weight", first), ("CA_1.SqueezeExc.blocks.0.weight", excitation)):
        if weight is None or weight.dim() < 2 or weight.numel() == 0:
            raise ValueError(
                f"{_WHO}: {path} is not the released generator's: no usable {name} (it has "
                f"{', '.join(list(found)[:4])} ...)"
            )
    assert first is not None
    assert excitation is not None
    if not max(_STAGES.values()) <= max(depths) <= 12:
        raise ValueError(f"{_WHO}: {path} has {max(depths)} encoder layers, wanted 4 to 12, 8 as a rule")
    ratio = excitation.shape[0] / excitation.shape[-1]
    return {"base_width": first.shape[0], "depth": max(depths), "se_ratio": ratio}
