"""Random calls of every operator against an independent float64 formula, and wrong arguments, which must be refused.

A crash of native code ends the process; the lines that faulthandler then prints name the case: its function is called
``case_<number>_of_seed_<seed>``.
"""

import faulthandler
import os

import numpy as np
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # heeded when triton is imported

from . import operators_attention, operators_convolution, operators_refused
from .operators_draw import chance, choice

faulthandler.enable()
KINDS = {
    operators_convolution.convolution: 0.4,
    operators_convolution.upcat: 0.2,
    operators_attention.shift: 0.14,
    operators_attention.holes: 0.12,
    operators_attention.hole_map: 0.04,
    operators_refused.public: 0.06,
    operators_refused.raw: 0.04,
}


def _draw(rng) -> str:
    return choice(rng, list(KINDS), list(KINDS.values()))(rng)


def case(rng, folder) -> str:
    """Draws one call and checks it. Uninitialised memory is NaN meanwhile, and one call in twenty has three threads."""
    seed, number = rng.bit_generator.seed_seq.entropy
    threads = torch.get_num_threads()
    before = torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory
    torch.set_num_threads(3 if chance(rng, 0.05) else 1)
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = True
    named = type(_draw)(_draw.__code__.replace(co_name=f"case_{number}_of_seed_{seed}"), _draw.__globals__)
    try:
        with np.errstate(all="ignore"):  # of Triton's interpreter
            return named(rng)
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]
