"""What can be measured: suites of operators × competitors × shapes, by name."""

from __future__ import annotations

from collections.abc import Sequence

from . import attention, layers, mask_ratios, memory, network, scaling, shift_price, training, upcat_rule
from .contest import Settings
from .names import unknown
from .suites import Case, Suite

SUITES: dict[str, Suite] = {
    "layers": layers.SUITE,
    "attention": attention.SUITE,
    "price-of-shift": shift_price.SUITE,
    "mask-ratios": mask_ratios.SUITE,
    "scaling": scaling.SUITE,
    "generator": network.SUITE,
    "memory": memory.SUITE,
    "training": training.SUITE,
    "upcat-rule": upcat_rule.SUITE,
}


def select(
    settings: Settings, suites: Sequence[str] = (), operators: Sequence[str] = (), shapes: Sequence[str] = ()
) -> dict[str, list[Case]]:
    """The cases asked for, by suite, in the registry's order; nothing asked for means all. Suites without any are left
    out.

    Raises:
        ValueError: an unknown name, with the nearest and all the known ones; a size that a suite cannot have; nothing
            that answers to all that was asked for.
    """
    for name in suites:
        if name not in SUITES:
            raise ValueError(unknown("suite", name, SUITES))
    found = {name: suite.cases(settings) for name, suite in SUITES.items() if not suites or name in suites}
    every = [case for cases in found.values() for case in cases]
    for name in operators:
        if not any(case.operator == name for case in every):
            raise ValueError(unknown("operator", name, (case.operator for case in every)))
    for name in shapes:
        if not any(case.answers_to(name) for case in every):
            raise ValueError(unknown("case", name, (case.family or case.name for case in every)))
    chosen = {name: [case for case in cases if _wanted(case, operators, shapes)] for name, cases in found.items()}
    chosen = {name: cases for name, cases in chosen.items() if cases}
    if not chosen:
        raise ValueError(f"no case of {', '.join(operators)} is called {', '.join(shapes)}; --list shows what there is")
    return chosen


def _wanted(case: Case, operators: Sequence[str], shapes: Sequence[str]) -> bool:
    return (not operators or case.operator in operators) and (not shapes or any(map(case.answers_to, shapes)))


def listing(selected: dict[str, list[Case]]) -> str:
    """Suites with their cases: name, operator, shape, contestants."""
    lines = []
    for name, cases in selected.items():
        lines.append(f"{name}: {SUITES[name].summary}")
        width = max(len(case.name) for case in cases)
        for case in cases:
            lines.append(f"  {case.name:<{width}}  {case.operator:<20}  {case.shape}")
        for contestants in dict.fromkeys(case.contestants for case in cases):
            lines.append(f"  contestants: {'; '.join(contestants)}")
    return "\n".join(lines)
