"""Measures time, memory and roofs, and checks results; every benchmark takes what it needs from here."""

# ruff: noqa: F401

from ..model import is_out_of_memory
from .case import BOTH, FORWARD, OURS, STEP, Alternative, Case, Prepared, Row, Settings, Suite, check, measure_case
from .correctness import DIFFERS, OUT_OF_MEMORY, first_call, reason, time_limit
from .environment import PRECISIONS, ROOT, Precision, facts, roofs
from .memory import memory_limit, peak_extra_bytes, release
from .timing import Timing, significant, synchronize, take_turns, timed, timing_of
