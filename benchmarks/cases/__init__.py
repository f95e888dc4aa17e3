"""What can be measured: the table of contents of the suites, and the choice among their cases."""

from __future__ import annotations

from collections.abc import Sequence

from ..measure import Case, Settings, Suite
from ..options import unknown
from . import attention, decoder_forms, layers, mask_ratios, networks

SUITES: dict[str, Suite] = {
    "layers": layers.SUITE,
    "attention": attention.SUITE,
    "shift-propagation": attention.SHIFT_PROPAGATION,
    "mask-ratios": mask_ratios.SUITE,
    "scaling": attention.SCALING,
    "generator": networks.GENERATOR,
    "memory": networks.MEMORY,
    "training": networks.TRAINING,
    "upcat-rule": decoder_forms.SUITE,
}


def select(
    settings: Settings, suites: Sequence[str] = (), operators: Sequence[str] = (), cases: Sequence[str] = ()
) -> dict[str, list[Case]]:
    """Returns the cases asked for by suite; nothing asked for means all. Suites without any are left out.

    Raises:
        ValueError: an unknown name, with the nearest and all the known ones; a size that a suite cannot have; no case
            that answers to all that was asked for.
    """
    for name in suites:
        if name not in SUITES:
            raise ValueError(unknown("suite", name, SUITES))
    found = {name: suite.cases(settings) for name, suite in SUITES.items() if not suites or name in suites}
    every = [case for some in found.values() for case in some]
    for name in operators:
        if not any(case.operator == name for case in every):
            raise ValueError(unknown("operator", name, (case.operator for case in every)))
    for name in cases:
        if not any(case.answers_to(name) for case in every):
            raise ValueError(unknown("case", name, (case.name for case in every)))

    def is_wanted(case: Case) -> bool:
        return (not operators or case.operator in operators) and (not cases or any(map(case.answers_to, cases)))

    chosen = {name: [case for case in some if is_wanted(case)] for name, some in found.items()}
    if not any(chosen.values()):
        raise ValueError(f"no case of {', '.join(operators)} is called {', '.join(cases)}; --list shows what there is")
    return {name: some for name, some in chosen.items() if some}


def listing(selected: dict[str, list[Case]]) -> str:
    """Returns suites with their cases: name, operator, shape, alternatives."""
    lines = []
    for name, cases in selected.items():
        lines.append(f"{name}: {SUITES[name].title}")
        lines += [f"  {case.name:<24}  {case.operator:<20}  {case.shape}" for case in cases]
        lines += [f"  alternatives: {'; '.join(names)}" for names in dict.fromkeys(case.alternatives for case in cases)]
    return "\n".join(lines)
