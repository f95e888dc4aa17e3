"""Measures one case: its alternatives are made ready, checked, timed in turns, and set beside the measured roofs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..model import is_out_of_memory
from . import correctness, graphs, memory, timing
from .timing import Timing, significant

OURS = "ours"
#: A pass is what is timed of an alternative: its forward, forward and backward, or a whole training step.
FORWARD, BOTH, STEP = "forward", "forward+backward", "step"
#: The error allowed against float64, in units of plain PyTorch's: for outputs, for gradients.
FACTORS = {FORWARD: 2.0, BOTH: 3.0}
#: Seconds that a first call may take, most of it for compiling; and where compiling is asked for.
FIRST_CALL_LIMIT, COMPILED_CALL_LIMIT = 60.0, 300.0
#: Seconds after which the rounds of one pass end early.
ROUNDS_LIMIT = 15.0
#: Rounds of eager calls beside replayed ones.
EAGER_ROUNDS = 5

#: A flat row of a result file: case, alternative, pass and quantities by column.
Row = dict[str, object]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run measures with. `sizes`: image sides, () for the suite's own; `compiled`: whether alternatives that
    take minutes to compile take part."""

    device: torch.device
    dtype: torch.dtype
    roofs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    sizes: tuple[int, ...] = ()
    batch: int = 2
    rounds: int = 7
    compiled: bool = False

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def size(self) -> int:
        """Returns the first of the sizes, for suites that have one."""
        return self.sizes[0] if self.sizes else 256

    @property
    def first_call_limit(self) -> float:
        return COMPILED_CALL_LIMIT if self.compiled else FIRST_CALL_LIMIT


@dataclasses.dataclass(frozen=True)
class Alternative:
    """One way to compute a case.

    Args:
        run: a function without arguments; the tensors are bound to it.
        leaves: the tensors whose gradients are computed, by name.
        reference: what its results are compared with. None for an alternative that computes another function and is
            shown as a bound, or that the case itself has checked.
        is_strict: whether its error is held to FACTORS; else half of the dtype's digits have to agree, for formulas
            that lose some.
        capture: False for one that makes CUDA graphs of its own, within which there can be no other.
    """

    run: Callable[[], Tensor]
    leaves: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    reference: Reference | None = None
    is_strict: bool = True
    capture: bool = True

    def step(self, which: str, grad: Tensor | None = None) -> Callable[[], dict[str, Tensor]]:
        """Returns what is timed of one pass; `grad` is the output's gradient."""
        return functools.partial(self._step, which, grad)

    def _step(self, which: str, grad: Tensor | None) -> dict[str, Tensor]:
        with torch.set_grad_enabled(which != FORWARD):
            output = self.run()
        if which != BOTH:
            return {"output": output}
        gradients = torch.autograd.grad(output, [*self.leaves.values()], grad.to(output.dtype))
        return dict(zip(self.leaves, gradients, strict=True))


@dataclasses.dataclass(frozen=True)
class Reference:
    """Plain PyTorch in the alternatives' dtype, which sets the tolerance, and in float64. `part` takes from an
    alternative's output what these compute; None for all of it."""

    plain: Alternative
    exact: Alternative
    part: Callable[[Tensor], Tensor] | None = None


@dataclasses.dataclass(frozen=True)
class Work:
    """The least that a pass takes, however it is computed: floating-point operations (a multiply-add is two), and bytes
    with every input read once and every output written once."""

    flop: int
    bytes: int


@dataclasses.dataclass
class Prepared:
    """A case with its tensors.

    Args:
        work: by pass, where it is counted.
        absent: alternatives that do not take part, and why.
        grad: the output's gradient, where the backward is measured.
        baseline: the alternative whose time the ratios are to.
        columns: more columns of the case's rows.
        first_call_limit: seconds, in place of the settings'.
    """

    alternatives: dict[str, Alternative]
    work: Mapping[str, Work] = dataclasses.field(default_factory=dict)
    absent: dict[str, str] = dataclasses.field(default_factory=dict)
    grad: Tensor | None = None
    baseline: str = OURS
    columns: dict[str, object] = dataclasses.field(default_factory=dict)
    first_call_limit: float | None = None

    def leave_out(self, absent: Mapping[str, str]) -> None:
        self.alternatives = {name: one for name, one in self.alternatives.items() if name not in absent}
        self.absent |= absent


@dataclasses.dataclass(frozen=True)
class Case:
    """One operator on one shape. `family`: a further name that it can be asked for by, shared with the same case of
    other sizes or holes; `columns`: more columns of its rows."""

    name: str  # unique in its suite
    operator: str
    shape: str
    alternatives: tuple[str, ...]
    prepare: Callable[[Settings], Prepared]
    passes: tuple[str, ...] = (FORWARD, BOTH)
    family: str = ""
    columns: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def answers_to(self, name: str) -> bool:
        """Compares names; `x` will do for `×`."""
        return name.replace("x", "×") in (self.name.replace("x", "×"), self.family.replace("x", "×"))


def measure_case(case: Case, settings: Settings, absent: Mapping[str, str] | None = None, **limits: float) -> list[Row]:
    """Returns `measure_prepared`'s rows with case, operator, shape and the case's columns. Where memory does not
    suffice for the case's own tensors or its reference, every row says so. `absent`: alternatives that do not take
    part, and why."""
    columns = {"case": case.name, "operator": case.operator, "shape": case.shape, **case.columns}
    try:
        prepared = case.prepare(settings)
        prepared.leave_out(absent or {})
        return [columns | row for row in measure_prepared(prepared, case.passes, settings, **limits)]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        why = correctness.reason(error)
    memory.release(settings.device)
    return [
        columns | {"alternative": name, "pass": which, "unavailable": why}
        for name in case.alternatives
        for which in case.passes
    ]


def measure_prepared(
    prepared: Prepared, passes: Sequence[str], settings: Settings, limit: float = ROUNDS_LIMIT, at_least: int = 3
) -> list[Row]:
    """Returns one row per alternative and pass: alternative, pass, the case's columns, and either ``unavailable`` with
    the reason or

    - ``ms``, ``lower_ms``, ``upper_ms``: median and quartiles. On CUDA the device's time, by a CUDA graph, where
      ``graph`` is true; where it is false the eager time, from the host, and ``not_captured`` says why.
    - ``eager_ms``: on CUDA, the eager time in either case.
    - ``ratio``: the time over that of the case's baseline, which is ours unless the case says otherwise.
    - ``extra_mib``: the peak beyond what was held before.
    - where work is counted, ``flop``, ``bytes``, ``tflops`` (the achieved rate) and ``roof_share`` (its share of what
      the measured roofs allow at the case's FLOP per byte).
    """
    unavailable = check(prepared, passes, settings.device, prepared.first_call_limit or settings.first_call_limit)
    rows: dict[tuple[str, str], Row] = {}
    for which in passes:
        running = {
            name: one.step(which, prepared.grad)
            for name, one in prepared.alternatives.items()
            if which not in unavailable[name]
        }
        times, more = _timings(prepared, which, running, settings, limit=limit, at_least=at_least)
        baseline = times.get(prepared.baseline)
        for name, run in running.items():
            extra = memory.peak_extra_bytes(run, settings.device, warm=True)
            quantities = _quantities(times[name], baseline, prepared.work.get(which), settings.roofs)
            rows[name, which] = quantities | more[name] | {"extra_mib": round(extra / 2**20, 2)}
    reasons = unavailable | {name: dict.fromkeys(passes, why) for name, why in prepared.absent.items()}
    return [
        {"alternative": name, "pass": which, **prepared.columns}
        | rows.get((name, which), {"unavailable": reasons[name].get(which)})
        for name in reasons
        for which in passes
    ]


def _timings(
    prepared: Prepared, which: str, running: Mapping[str, Callable[[], object]], settings: Settings, **limits: float
) -> tuple[dict[str, Timing], dict[str, Row]]:
    """Times all in turns, on CUDA the replays of their graphs; returns with it how the times were taken."""
    clocks = {name: functools.partial(timing.timed, run, settings.device) for name, run in running.items()}
    if not settings.on_cuda:
        return timing.take_turns(clocks, settings.rounds, **limits), {name: {} for name in running}
    captured: dict[str, graphs.Graph] = {}
    more: dict[str, Row] = {}
    for name, run in running.items():
        try:
            if why := _why_not_captured(prepared.alternatives[name], which):
                for _ in range(graphs.WARMUP):
                    run()
            else:
                captured[name] = graphs.captured(run, settings.device)
        except Exception as error:
            why = correctness.reason(error)
        more[name] = {"graph": False, "not_captured": why} if why else {"graph": True}
    rounds = min(EAGER_ROUNDS, settings.rounds)
    eager = timing.take_turns({name: clocks[name] for name in captured}, rounds, **limits)
    replays = {name: graph.milliseconds for name, graph in captured.items()}
    times = timing.take_turns(clocks | replays, settings.rounds, **limits)
    for name in running:
        more[name]["eager_ms"] = significant((eager if name in captured else times)[name].median)
    for graph in captured.values():
        graph.free()
    return times, more


def _why_not_captured(alternative: Alternative, which: str) -> str | None:
    if which == STEP:
        return "a training step is timed as it is run"
    return None if alternative.capture else "it makes CUDA graphs of its own"


def _quantities(time: Timing, baseline: Timing | None, work: Work | None, roofs: Mapping[str, float]) -> Row:
    row: Row = {"ms": time.median, "lower_ms": time.lower, "upper_ms": time.upper}
    if baseline:
        row["ratio"] = time.median / baseline.median
    if work:
        tflops = work.flop / time.median / 1e9
        roof = min(roofs["tflops"], roofs["gbytes_per_s"] * work.flop / work.bytes / 1e3)
        row |= {"tflops": tflops, "roof_share": tflops / roof}
    return {name: significant(value) for name, value in row.items()} | (dataclasses.asdict(work) if work else {})


def check(
    prepared: Prepared, passes: Sequence[str], device: torch.device, limit: float = FIRST_CALL_LIMIT
) -> dict[str, dict[str, str]]:
    """Makes the first calls, compares their results with the reference, and returns by alternative and pass why there
    is no figure. A wrong result in one pass leaves no figure in any, and so does a forward that fails."""
    unavailable: dict[str, dict[str, str]] = {name: {} for name in prepared.alternatives}
    for which in passes:
        expected: dict[int, tuple[dict, dict]] = {}  # alternatives share references
        for name, alternative in prepared.alternatives.items():
            reference = alternative.reference
            if unavailable[name]:
                continue
            if reference is not None and id(reference) not in expected:
                plain, exact = (one.step(which, prepared.grad)() for one in (reference.plain, reference.exact))
                expected[id(reference)] = plain, exact
            is_right = functools.partial(_is_right, alternative, which, *expected.get(id(reference), ({}, {})))
            why = correctness.first_call(alternative.step(which, prepared.grad), is_right, limit, device)
            if why and (which == FORWARD or why == correctness.DIFFERS):
                unavailable[name] = dict.fromkeys(passes, why)
            elif why:
                unavailable[name][which] = why
    return unavailable


def _is_right(
    alternative: Alternative, which: str, plain: dict[str, Tensor], exact: dict[str, Tensor], results: dict
) -> bool:
    """Compares the results that alternative and reference both name."""
    reference = alternative.reference
    if reference is None:
        return True
    seen = {name: reference.part(one) if reference.part else one for name, one in results.items() if name in exact}
    if alternative.is_strict:
        return bool(seen) and all(
            correctness.agrees(seen[name], plain[name], exact[name], FACTORS[which]) for name in seen
        )
    return bool(seen) and all(correctness.resembles(seen[name], exact[name]) for name in seen)
