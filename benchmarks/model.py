"""What the benchmarks use of the modules inside msa_model: the one place that knows their paths."""

# ruff: noqa: F401

from msa_model.data import (
    BrushMasks,
    Facades,
    ImageFolder,
    InpaintingData,
    MaskFolder,
    StepSampler,
    free_form_mask,
    make_loader,
    render_facade,
    spread_mask,
)
from msa_model.memory import is_out_of_memory
from msa_model.nn.generator import GeneratorConfig
from msa_model.nn.losses import gram_matrix
from msa_model.nn.vgg import VGG16Features
from msa_model.train.config import DataConfig, LossConfig, TrainConfig
from msa_model.train.processes import Processes
from msa_model.train.trainer import Trainer
