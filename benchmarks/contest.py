"""One case measured: contestants made ready, judged, timed in turns, and set beside the measured roofs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from . import cuda_graphs, gate, harness
from .harness import Timing, significant

OURS = "ours"
#: What is timed of a contestant: its forward, forward and backward, or a whole training step.
FORWARD, BOTH, STEP = "forward", "forward_backward", "step"
#: Error allowed against float64, in units of plain PyTorch's: outputs, gradients.
FACTORS = {FORWARD: 2.0, BOTH: 3.0}
#: Seconds that a contestant's first call may take, compiling being most of it; and where compiling is asked for.
FIRST_CALL_LIMIT, COMPILED_CALL_LIMIT = 60.0, 300.0
#: Seconds after which a case's rounds in one direction end early.
ROUNDS_LIMIT = 15.0
#: Rounds of eager calls beside replayed ones.
EAGER_ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run measures with."""

    device: torch.device
    dtype: torch.dtype
    roofs: Mapping[str, float]  # harness.roofs of the same run
    sizes: tuple[int, ...] = ()  # image sides; () for the suite's own
    batch: int = 2
    rounds: int = 7
    compiled: bool = False  # whether competitors that take minutes to compile take part

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def first_call_limit(self) -> float:
        return COMPILED_CALL_LIMIT if self.compiled else FIRST_CALL_LIMIT


@dataclasses.dataclass(frozen=True)
class Call:
    """A function of tensors that are bound to it, and those whose gradients belong to it."""

    run: Callable[[], Tensor]
    leaves: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    def step(self, way: str, grad: Tensor | None = None) -> Callable[[], dict[str, Tensor]]:
        """What is timed in one direction; `grad` is the output's gradient."""
        return functools.partial({FORWARD: self._forward, BOTH: self._gradients, STEP: self._step}[way], grad)

    def _forward(self, _: Tensor | None) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"output": self.run()}

    def _gradients(self, grad: Tensor) -> dict[str, Tensor]:
        output = self.run()
        gradients = torch.autograd.grad(output, [*self.leaves.values()], grad.to(output.dtype))
        return dict(zip(self.leaves, gradients, strict=True))

    def _step(self, _: Tensor | None) -> dict[str, Tensor]:
        return {"loss": self.run()}


@dataclasses.dataclass(frozen=True)
class Truth:
    """What a contestant is compared with: plain PyTorch in its dtype, which sets the tolerance, and float64."""

    plain: Call
    exact: Call
    part: Callable[[Tensor], Tensor] | None = None  # of a contestant's output, what these compute; None: all


class Contestant(NamedTuple):
    """`truth` None: something that computes another function, shown as a floor, or is judged by the case itself.
    `strict`: held to FACTORS; else half of the dtype's digits have to agree, for formulas that lose some. `capture`:
    False for one that makes CUDA graphs of its own, within which there can be no other."""

    call: Call
    truth: Truth | None = None
    strict: bool = True
    capture: bool = True


@dataclasses.dataclass(frozen=True)
class Work:
    """The least a direction takes, however it is computed: floating-point operations (a multiply-add is two), and bytes
    with every input read once and every output written once."""

    flop: int
    bytes: int


@dataclasses.dataclass
class Contest:
    """A case made ready. `work` has the directions to measure, None where nothing is counted. `absent`: contestants
    that are known not to take part, and why."""

    contestants: dict[str, Contestant]
    work: Mapping[str, Work | None]
    absent: dict[str, str] = dataclasses.field(default_factory=dict)
    facts: dict[str, object] = dataclasses.field(default_factory=dict)
    grad: Tensor | None = None  # the output's gradient, where BOTH is measured
    unit: str = OURS  # whose time the others' ratios are to
    first_call_limit: float | None = None  # seconds, where they are not the settings'

    def leave_out(self, absent: Mapping[str, str]) -> None:
        self.contestants = {name: call for name, call in self.contestants.items() if name not in absent}
        self.absent |= absent


def measure(contest: Contest, settings: Settings, limit: float = ROUNDS_LIMIT, at_least: int = 3) -> dict:
    """The record of one case::

        {**facts, "work": {direction: {"flop", "bytes"}}, "contestants": {name: {direction: entry}}}

    An entry is ``{"unavailable": why}``, or ``ms`` (median), ``quartiles_ms``, ``ratio`` (its time over that of the
    contest's unit, which is ours), ``extra_mib`` (peak beyond what was held before), and where work is counted
    ``tflops`` and ``roof_share``: the achieved rate, and its share of what the measured roofs allow at the case's FLOP
    per byte.

    On CUDA ``ms`` is the device's time, by a CUDA graph, where ``graph`` is true. Where it is false it is the eager
    time, from the host, and ``not_captured`` says why. ``eager_ms`` is the eager time in either case.
    """
    barred = judged(contest, settings.device, contest.first_call_limit or settings.first_call_limit)
    record = {
        **contest.facts,
        "work": {way: dataclasses.asdict(work) for way, work in contest.work.items() if work},
        "contestants": {name: {} for name in contest.contestants | contest.absent},
    }
    for name, why in contest.absent.items():
        record["contestants"][name] = {way: {"unavailable": why} for way in contest.work}
    for way in contest.work:
        running = {
            name: call.step(way, contest.grad)
            for name, (call, *_) in contest.contestants.items()
            if way not in barred[name]
        }
        timing, more = _timings(contest, way, running, settings, limit, at_least)
        for name in contest.contestants:
            entry = {"unavailable": barred[name].get(way)}
            if name in running:
                entry = _times(timing[name], timing.get(contest.unit)) | more[name]
                extra = harness.peak_extra_bytes(running[name], settings.device, warm=True)
                entry |= {"extra_mib": round(extra / 2**20, 2)} | _rate(contest.work[way], timing[name], settings.roofs)
            record["contestants"][name][way] = entry
    return record


def _timings(
    contest: Contest, way: str, running: Mapping[str, Callable[[], object]], settings: Settings, *limits: float
) -> tuple[dict[str, Timing], dict[str, dict]]:
    """Of all that take turns their times, and on CUDA what measure's record says of how they were taken."""
    clocks = {name: functools.partial(harness.timed, run, settings.device) for name, run in running.items()}
    if not settings.on_cuda:
        return harness.take_turns(clocks, settings.rounds, 0, *limits), {name: {} for name in running}
    graphs: dict[str, cuda_graphs.Graph] = {}
    more: dict[str, dict] = {}
    for name, run in running.items():
        try:
            if why := _why_not_captured(contest.contestants[name], way):
                for _ in range(cuda_graphs.WARMUP):
                    run()
            else:
                graphs[name] = cuda_graphs.captured(run, settings.device)
        except Exception as error:
            why = gate.reason(error)
        more[name] = {"graph": False, "not_captured": why} if why else {"graph": True}
    eager = harness.take_turns({name: clocks[name] for name in graphs}, min(EAGER_ROUNDS, settings.rounds), 0, *limits)
    replays = {name: graph.milliseconds for name, graph in graphs.items()}
    timing = harness.take_turns(clocks | replays, settings.rounds, 0, *limits)
    for name in running:
        more[name]["eager_ms"] = significant((eager if name in graphs else timing)[name].median)
    for graph in graphs.values():
        graph.free()
    return timing, more


def _why_not_captured(contestant: Contestant, way: str) -> str | None:
    if way == STEP:
        return "a training step is timed as it is run"
    return None if contestant.capture else "it makes CUDA graphs of its own"


def _times(timing: Timing, unit: Timing | None) -> dict[str, object]:
    ratio = {} if unit is None else {"ratio": significant(timing.median / unit.median)}
    quartiles = [significant(timing.lower), significant(timing.upper)]
    return {"ms": significant(timing.median), "quartiles_ms": quartiles, **ratio}


def _rate(work: Work | None, timing: Timing, roofs: Mapping[str, float]) -> dict[str, float]:
    if work is None:
        return {}
    tflops = work.flop / timing.median / 1e9
    roof = min(roofs["tflops"], roofs["gbytes_per_s"] * work.flop / work.bytes / 1e3)
    return {"tflops": significant(tflops), "roof_share": significant(tflops / roof)}


def judged(contest: Contest, device: torch.device, limit: float = FIRST_CALL_LIMIT) -> dict[str, dict[str, str]]:
    """Per contestant and direction why it is not reported; `limit` is in seconds, for a first call. Numbers of a wrong
    function are worth nothing, so a difference in one direction bars all, and so does a forward that fails."""
    barred: dict[str, dict[str, str]] = {name: {} for name in contest.contestants}
    for way in contest.work:
        expected: dict[int, tuple[dict, dict]] = {}  # contestants share truths
        for name, contestant in contest.contestants.items():
            truth = contestant.truth
            if barred[name]:
                continue
            if truth is not None and id(truth) not in expected:
                plain, exact = (judge.step(way, contest.grad)() for judge in (truth.plain, truth.exact))
                expected[id(truth)] = plain, exact
            right = functools.partial(_right, contestant, way, *expected.get(id(truth), ({}, {})))
            why = gate.refusal(contestant.call.step(way, contest.grad), right, limit, device)
            if why and (way == FORWARD or why == gate.DIFFERS):
                barred[name] = dict.fromkeys(contest.work, why)
            elif why:
                barred[name][way] = why
    return barred


def _right(contestant: Contestant, way: str, plain: dict[str, Tensor], exact: dict[str, Tensor], results: dict) -> bool:
    """Compares the results that both name."""
    truth, strict = contestant.truth, contestant.strict
    if truth is None:
        return True
    seen = {name: truth.part(result) if truth.part else result for name, result in results.items() if name in exact}
    if strict:
        return bool(seen) and all(gate.agrees(seen[name], plain[name], exact[name], FACTORS[way]) for name in seen)
    return bool(seen) and all(gate.resembles(seen[name], exact[name]) for name in seen)
