"""Measures time, memory and roofs, and checks results; every benchmark takes what it needs from here."""

# ruff: noqa: F401

from ..model import is_out_of_memory
from .case import (
    BOTH,
    FORWARD,
    OURS,
    STEP,
    Alternative,
    Case,
    Prepared,
    Reference,
    Row,
    Settings,
    Work,
    check,
    measure_case,
    measure_prepared,
)
from .correctness import DIFFERS, OUT_OF_MEMORY, agrees, first_call, reason, resembles, time_limit
from .environment import PRECISIONS, ROOT, Precision, facts, roofs
from .memory import free_memory, memory_limit, peak_extra_bytes, release
from .timing import Timing, interleave, significant, synchronize, take_turns, timed, timing_of
