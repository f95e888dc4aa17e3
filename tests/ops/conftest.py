"""Fixtures that several of the attention's test files share."""

import copy

import pytest

from .support.internals import MISSING, triton

#: Sizes that the interpreter gets through, whose time goes by the number of operations, not of elements: tiles of 32
#: queries, blocks as large as a scratch row of a small map (128, which the map's own block divides), and two programs
#: where a GPU would get hundreds. So maps of a few dozen pixels have several tiles, and maps of 80 several blocks and
#: spans. A step of a sum over queries must divide a tile. A GPU's own sizes are compiled in test_triton_compile.
ROWS, COLUMNS, BLOCK = 32, 128, 128


@pytest.fixture
def small_plans(monkeypatch):
    """Plans of the Triton attention for small maps; does nothing where there is no Triton."""
    if MISSING["triton"] is not None:
        return
    planning = triton("attention_planning")
    for module in (planning, triton("attention_call"), triton("attention_holes")):
        if hasattr(module, "ROWS"):
            monkeypatch.setattr(module, "ROWS", ROWS)
    launch = copy.deepcopy(planning.LAUNCH)
    for parameters in (p for table in launch.values() for p in table.values()):
        if "BLOCK" in parameters:
            parameters["BLOCK"] = BLOCK
        if "DEPTH" in parameters:
            parameters["DEPTH"] = min(parameters["DEPTH"], ROWS)
    for name, value in {"COLUMNS": COLUMNS, "PROGRAMS": 2, "SPAN_PROGRAMS": 2, "LAUNCH": launch}.items():
        monkeypatch.setattr(planning, name, value)
    planning.plan.cache_clear()
    yield
    planning.plan.cache_clear()
