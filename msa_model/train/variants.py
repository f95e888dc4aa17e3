"""The variants of the ablation study (Section 5.3.2, Fig. 10)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import TrainConfig

#: Name -> what differs, by key of the configuration. "first" keeps the first of the configuration's attention levels.
VARIANTS: dict[str, dict[str, object]] = {
    "ours": {},
    "adversarial-0": {"loss.adversarial": 0.0},
    "adversarial-0.001": {"loss.adversarial": 0.001},
    "adversarial-1": {"loss.adversarial": 1.0},
    "no-perceptual-no-style": {"loss.perceptual": 0.0, "loss.style": 0.0},
    "no-attention": {"generator.attention_levels": ()},
    "one-stage": {"generator.attention_levels": "first"},
    "released-attention": {"generator.variant": "released"},
    "renormalized": {"generator.renormalize": True},
    "region-norm": {"generator.norm": "region"},
}


def variant(config: TrainConfig, name: str) -> TrainConfig:
    """Makes the configuration of a variant; its folder is a subfolder of the configuration's."""
    changed = dataclasses.replace(config, out=str(Path(config.out) / name))
    for key, value in VARIANTS[name].items():
        part, field = key.split(".")
        if value == "first":
            value = config.generator.attention_levels[:1]
        new_part = dataclasses.replace(getattr(changed, part), **{field: value})
        changed = dataclasses.replace(changed, **{part: new_part})
    return changed


def differs(config: TrainConfig, name: str) -> bool:
    """Whether the variant has another network or loss than the configuration itself."""
    changed = variant(config, name)
    without_features = config.loss.vgg == "none" and set(VARIANTS[name]) == {"loss.perceptual", "loss.style"}
    return not without_features and (changed.generator, changed.loss) != (config.generator, config.loss)
