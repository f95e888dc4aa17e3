"""Fixtures that several of the operators' test files share."""

import pytest


@pytest.fixture
def small_plans(monkeypatch):
    """Plans of the Triton attention for maps that the interpreter gets through: scratch rows are multiples of 128,
    which all blocks of columns divide too, and there are two programs where a GPU would get hundreds, so that even
    small maps have several spans or slots, and spans several blocks."""
    from msa_ops.triton import attention_plan as planning

    for name, value in {"COLUMNS": 128, "PROGRAMS": 2, "SPAN_PROGRAMS": 2}.items():
        monkeypatch.setattr(planning, name, value)
    planning.plan.cache_clear()
    yield
    planning.plan.cache_clear()
