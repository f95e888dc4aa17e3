"""What the benchmarks use of the modules inside msa_model: the one place that knows their paths."""

from msa_model.commands.common import is_out_of_memory
from msa_model.config import DataConfig, LossConfig, TrainConfig
from msa_model.data import BrushMasks, Facades, ImageFolder, InpaintingData, MaskFolder, StepSampler, make_loader
from msa_model.facades import render_facade
from msa_model.generator import GeneratorConfig
from msa_model.losses import gram_matrix
from msa_model.masks import free_form_mask, spread_mask
from msa_model.training import Processes, Trainer
from msa_model.vgg import VGG16Features

__all__ = [
    "BrushMasks",
    "DataConfig",
    "Facades",
    "GeneratorConfig",
    "ImageFolder",
    "InpaintingData",
    "LossConfig",
    "MaskFolder",
    "Processes",
    "StepSampler",
    "TrainConfig",
    "Trainer",
    "VGG16Features",
    "free_form_mask",
    "gram_matrix",
    "is_out_of_memory",
    "make_loader",
    "render_facade",
    "spread_mask",
]
