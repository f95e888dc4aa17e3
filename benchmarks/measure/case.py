"""Measures one case: its alternatives are made ready, checked, timed in turns, and set beside the measured roofs."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

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


@dataclasses.dataclass(frozen=True, eq=False)
class Alternative:
    """One way to compute a case.

    Args:
        function: of the inputs, in their order; returns a tensor.
        inputs: by name. Gradients are computed of those that require one.
        reference: the same in plain PyTorch and the same dtype, which sets the tolerance, and which gives the right
            result in float64. None for an alternative that computes another function and is shown as a bound, or that
            the case itself has checked.
        part: of a reference that computes a part of the output only: takes this part from the whole.
        is_strict: whether its error is held to FACTORS; else half of the dtype's digits have to agree, for formulas
            that lose some.
        capture: False for one that makes CUDA graphs of its own, within which there can be no other.
    """

    function: Callable[..., Tensor]
    inputs: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    reference: Alternative | None = None
    part: Callable[[Tensor], Tensor] = lambda output: output
    is_strict: bool = True
    capture: bool = True

    @property
    def leaves(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.inputs.items() if tensor.requires_grad}

    def run(self) -> Tensor:
        return self.function(*self.inputs.values())

    def step(self, which: str, grad: Tensor | None = None) -> dict[str, Tensor]:
        """Does what is timed of one pass, and returns output or gradients; `grad` is the output's gradient."""
        with torch.set_grad_enabled(which != FORWARD):
            output = self.run()
        if which != BOTH:
            return {"output": output}
        leaves = self.leaves
        gradients = torch.autograd.grad(output, [*leaves.values()], grad.to(output.dtype))
        return dict(zip(leaves, gradients, strict=True))

    def double(self) -> Alternative:
        """Returns the same on the same numbers in float64."""
        inputs = {
            name: x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x
            for name, x in self.inputs.items()
        }
        is_network = isinstance(self.function, nn.Module)
        function = copy.deepcopy(self.function).double() if is_network else self.function
        return dataclasses.replace(self, function=function, inputs=inputs)


@dataclasses.dataclass
class Prepared:
    """A case with its tensors.

    Args:
        flop: the least operations of a pass, however it is computed (a multiply-add is two), where they are counted.
        unavailable: alternatives that cannot be reported, and why.
        grad: the output's gradient, where the backward is measured.
        baseline: the alternative whose time the ratios are to.
        columns: more columns of the case's rows.
        mask_bytes: of a mask that the operator returns beside its output.
    """

    alternatives: dict[str, Alternative]
    flop: Mapping[str, int] = dataclasses.field(default_factory=dict)
    unavailable: Mapping[str, str] = dataclasses.field(default_factory=dict)
    grad: Tensor | None = None
    baseline: str = OURS
    columns: Mapping[str, object] = dataclasses.field(default_factory=dict)
    mask_bytes: int = 0

    def bytes(self, which: str) -> int:
        """Returns the least bytes of a pass of ours: every input read once, the output (as large as its gradient)
        written once; in the backward the output's gradient and the inputs but masks read, their gradients written."""
        ours = self.alternatives[OURS]
        inputs = ours.inputs.values()
        forward = sum(x.nbytes for x in inputs) + self.grad.nbytes + self.mask_bytes
        if which == FORWARD:
            return forward
        read = self.grad.nbytes + sum(x.nbytes for x in inputs if x.is_floating_point())
        return forward + read + sum(x.nbytes for x in ours.leaves.values())


@dataclasses.dataclass(frozen=True)
class Case:
    """One operator on one shape. `columns`: more columns of its rows."""

    name: str  # unique in its suite
    operator: str
    shape: str
    alternatives: tuple[str, ...]
    prepare: Callable[[Settings], Prepared]
    passes: tuple[str, ...] = (FORWARD, BOTH)
    columns: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def answers_to(self, name: str) -> bool:
        """Compares with the whole name, and the name without its last word; `x` will do for `×`."""
        own = self.name.replace("x", "×")
        return name.replace("x", "×") in (own, own.rpartition(" ")[0])


@dataclasses.dataclass(frozen=True)
class Suite:
    """Cases that are measured one after the other and shown in one table.

    Args:
        title, about: what the measurements' page says above the table; result files hold both.
        cases: makes the cases, which may depend on device and sizes.
        totals: makes further rows from all rows, such as sums over cases.
    """

    title: str
    about: str
    cases: Callable[[Settings], list[Case]]
    totals: Callable[[Sequence[Row]], list[Row]] = lambda rows: []


def measure_case(case: Case, settings: Settings) -> list[Row]:
    """Returns one row per alternative and pass: case, operator, shape, the case's columns, alternative, pass, and
    either ``unavailable`` with the reason or

    - ``ms``, ``lower_ms``, ``upper_ms``: median and quartiles. On CUDA the device's time, by a CUDA graph, where
      ``graph`` is true; where it is false the eager time, from the host, and ``not_captured`` says why.
    - ``eager_ms``: on CUDA, the eager time in either case.
    - ``ratio``: the time over that of the case's baseline, which is ours unless the case says otherwise.
    - ``extra_mib``: the peak beyond what was held before.
    - where work is counted, ``flop``, ``bytes``, ``tflops`` (the achieved rate) and ``roof_share`` (its share of what
      the measured roofs allow at the case's FLOP per byte).

    Where memory does not suffice for the case's own tensors or its reference, every row says so.
    """
    columns = {"case": case.name, "operator": case.operator, "shape": case.shape, **case.columns}
    try:
        return [columns | row for row in _rows(case.prepare(settings), case.passes, settings)]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        why = correctness.reason(error)
    memory.release(settings.device)
    names = [(name, which) for name in case.alternatives for which in case.passes]
    return [columns | {"alternative": name, "pass": which, "unavailable": why} for name, which in names]


def _rows(prepared: Prepared, passes: Sequence[str], settings: Settings) -> list[Row]:
    unavailable = check(prepared, passes, settings)
    rows: dict[tuple[str, str], Row] = {}
    for which in passes:
        running = {
            name: functools.partial(one.step, which, prepared.grad)
            for name, one in prepared.alternatives.items()
            if which not in unavailable[name]
        }
        times, more = _times(prepared, which, running, settings)
        for name, run in running.items():
            extra = {"extra_mib": round(memory.peak_extra_bytes(run, settings.device) / 2**20, 2)}
            quantities = _quantities(prepared, which, times[name], times.get(prepared.baseline), settings.roofs)
            rows[name, which] = quantities | more[name] | extra
    return [
        {"alternative": name, "pass": which, **prepared.columns}
        | rows.get((name, which), {"unavailable": unavailable[name].get(which)})
        for name in prepared.alternatives
        for which in passes
    ]


def _times(
    prepared: Prepared, which: str, running: Mapping[str, Callable[[], object]], settings: Settings
) -> tuple[dict[str, Timing], dict[str, Row]]:
    """Times all in turns, on CUDA the replays of their graphs; returns with it how the times were taken."""
    clocks = {name: functools.partial(timing.timed, run, settings.device) for name, run in running.items()}
    if not settings.on_cuda:
        return timing.take_turns(clocks, settings.rounds), {name: {} for name in running}
    captured: dict[str, graphs.Graph] = {}
    more: dict[str, Row] = {}
    for name, run in running.items():
        why = None
        if which == STEP:
            why = "a training step is timed as it is run"
        elif not prepared.alternatives[name].capture:
            why = "it makes CUDA graphs of its own"
        try:
            if why:
                for _ in range(graphs.WARMUP):
                    run()
            else:
                captured[name] = graphs.captured(run, settings.device)
        except Exception as error:
            why = correctness.reason(error)
        more[name] = {"graph": False, "not_captured": why} if why else {"graph": True}
    eager = timing.take_turns({name: clocks[name] for name in captured}, min(EAGER_ROUNDS, settings.rounds))
    replays = {name: graph.milliseconds for name, graph in captured.items()}
    times = timing.take_turns(clocks | replays, settings.rounds)
    for name in running:
        more[name]["eager_ms"] = significant((times | eager)[name].median)
    for graph in captured.values():
        graph.free()
    return times, more


def _quantities(
    prepared: Prepared, which: str, time: Timing, baseline: Timing | None, roofs: Mapping[str, float]
) -> Row:
    row: Row = {"ms": time.median, "lower_ms": time.lower, "upper_ms": time.upper}
    if baseline:
        row["ratio"] = time.median / baseline.median
    if which not in prepared.flop:
        return {name: significant(value) for name, value in row.items()}
    flop, moved = prepared.flop[which], prepared.bytes(which)
    tflops = flop / time.median / 1e9
    roof = min(roofs["tflops"], roofs["gbytes_per_s"] * flop / moved / 1e3)
    row |= {"tflops": tflops, "roof_share": tflops / roof}
    return {name: significant(value) for name, value in row.items()} | {"flop": flop, "bytes": moved}


def check(prepared: Prepared, passes: Sequence[str], settings: Settings) -> dict[str, dict[str, str]]:
    """Makes the first calls, compares their results with the reference, and returns by alternative and pass why there
    is no figure. A wrong result in one pass leaves no figure in any, and so does a forward that fails."""
    unavailable: dict[str, dict[str, str]] = {
        name: dict.fromkeys(passes, prepared.unavailable[name]) if name in prepared.unavailable else {}
        for name in prepared.alternatives
    }
    for which in passes:
        expected: dict[Alternative | None, list[dict]] = {None: [{}, {}]}  # alternatives share references
        for name, alternative in prepared.alternatives.items():
            if unavailable[name]:
                continue
            reference = alternative.reference
            if reference not in expected:
                expected[reference] = [one.step(which, prepared.grad) for one in (reference, reference.double())]
            run = functools.partial(alternative.step, which, prepared.grad)
            is_right = functools.partial(_is_right, alternative, which, *expected[reference])
            why = correctness.first_call(run, is_right, settings.first_call_limit, settings.device)
            if why and (which == FORWARD or why == correctness.DIFFERS):
                unavailable[name] = dict.fromkeys(passes, why)
            elif why:
                unavailable[name][which] = why
    return unavailable


def _is_right(
    alternative: Alternative, which: str, plain: dict[str, Tensor], exact: dict[str, Tensor], results: dict
) -> bool:
    """Compares the results that alternative and reference both name."""
    if alternative.reference is None:
        return True
    seen = {name: alternative.reference.part(one) for name, one in results.items() if name in exact}
    if alternative.is_strict:
        agree = [correctness.agrees(one, plain[name], exact[name], FACTORS[which]) for name, one in seen.items()]
    else:
        agree = [correctness.resembles(one, exact[name]) for name, one in seen.items()]
    return bool(agree) and all(agree)
