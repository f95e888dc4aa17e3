"""The steps of Table 5's systems made ready, compared where several variants of a system compute the same, and timed in
turns."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from . import gate, harness
from .harness import significant
from .precision import PRECISIONS, Precision
from .systems import SYSTEMS, Batch, System

#: What the operators of a variant are: the system's own plain PyTorch, or the plain and the fused form of one operator.
PLAIN, REFERENCE, FUSED = "PyTorch", "reference", "fused"
#: The systems that have both forms, with the published depth of their U-Nets.
DEPTHS = {"pconv": 7, "ours": 8}
#: Weights and random numbers of every variant's first step.
SEED = 0
#: Differences allowed between losses, and gradients, of the variants of one system: batch norm over the few values of
#: the bottleneck magnifies roundings. Below float32, those of plain PyTorch in the same precision come on top, this
#: many times.
LOSSES, GRADIENTS = "losses", "gradients"
TOLERANCE = {LOSSES: 1e-3, GRADIENTS: 1e-2}
FACTOR = {LOSSES: 2.0, GRADIENTS: 3.0}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to run a system."""

    system: str
    operators: str
    compiled: bool = False

    @property
    def label(self) -> str:
        return f"{self.operators}, compiled" if self.compiled else self.operators

    def build(self, device: torch.device, dtype: torch.dtype, size: int) -> System:
        """From the same weights whatever the operators are. U-Nets that images of this side are too small for, or no
        multiple of 2^depth, are less deep than published."""
        torch.manual_seed(SEED)
        if self.operators == PLAIN:
            return SYSTEMS[self.system](device, dtype)
        depth = min(DEPTHS[self.system], (size & -size).bit_length() - 1)
        backend = "auto" if self.operators == FUSED else "reference"
        return SYSTEMS[self.system](device, dtype, backend=backend, depth=depth)


def variants_of(system: str, compiled: Collection[str] = ()) -> list[Variant]:
    """The ways to run a system, that which the others are compared with first. `compiled`: operators that are compiled
    too."""
    if system not in DEPTHS:
        return [Variant(system, PLAIN)]
    eager = [Variant(system, operators) for operators in (REFERENCE, FUSED)]
    return eager + [dataclasses.replace(variant, compiled=True) for variant in eager if variant.operators in compiled]


#: What every time is a multiple of.
BASELINES = tuple(Variant("ours", operators) for operators in (REFERENCE, FUSED))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a step computes: loss terms, and the gradients of all networks in one vector, on the CPU."""

    losses: Tensor
    gradient: Tensor

    @classmethod
    def of(cls, system: System, losses: dict[str, Tensor]) -> Outcome:
        parameters = [p for network in system.networks.values() for p in network.parameters()]
        gradient = torch.cat([p.grad.flatten().cpu() for p in parameters if p.grad is not None])
        return cls(torch.stack([losses[name].float().cpu() for name in sorted(losses)]), gradient)

    def difference(self, exact: Outcome) -> dict[str, float]:
        """The largest of a loss, and that of the gradient in norm, each relative to the exact one."""
        losses = ((self.losses - exact.losses).abs() / exact.losses.abs()).max().item()
        gradients = ((self.gradient - exact.gradient).norm() / exact.gradient.norm()).item()
        return {LOSSES: losses, GRADIENTS: gradients}


class Contest:
    """Variants of systems, measured.

    All are held in memory and take turns. One whose step finds no memory beside the others has its rounds later, with
    no company but the baselines.

    Attributes:
        facts: variant -> parameters, gflop (per image and step), extra_mib (peak of a step beyond weights and optimiser
            state) and difference (to the reference), or ``{"unavailable": why}``.
        turns: groups that took turns, each variant -> milliseconds of its steps.

    Both grow while `measure` runs, and stay as they are where it is interrupted.

    Args:
        batch, precision, rounds: what every step is given, how it multiplies, how often it is timed.
        compile_limit: seconds after the beginning of `measure` in which compiled variants must have become ready.
    """

    def __init__(self, batch: Batch, precision: Precision, rounds: int, compile_limit: float = math.inf) -> None:
        self.batch, self.precision, self.rounds, self.compile_limit = batch, precision, rounds, compile_limit
        self.device, self.size = batch.image.device, batch.image.shape[-1]
        self.facts: dict[Variant, dict] = {}
        self.turns: list[dict[Variant, list[float]]] = []
        self._gflop: dict[tuple[str, str], float] = {}
        self._expected: dict[str, tuple[Outcome, Outcome]] = {}  # plain and exact

    def measure(self, variants: list[Variant]) -> None:
        """The baselines first: where memory is short, the others are to be the ones that find none beside them; what is
        compiled last, as it is compared with what is not."""
        variants = sorted(variants, key=lambda variant: (variant.compiled, variant not in BASELINES))
        self._deadline = time.monotonic() + self.compile_limit
        with (
            self.precision.active(),
            gate.memory_limit(self.device),
            # Systems share code, VGG's say; past the limit torch would run it as it is.
            torch._dynamo.config.patch(recompile_limit=64),
            tqdm(desc="table 5", unit="step") as progress,
        ):
            for variant in self._together(variants, progress):
                baselines = [b for b in BASELINES if b in self.facts and "unavailable" not in self.facts[b]]
                self._together([*baselines, variant], progress)

    def _together(self, variants: list[Variant], progress: tqdm) -> list[Variant]:
        """Makes the variants ready and has them take turns; returns those to be run apart."""
        ready: dict[Variant, System] = {}
        apart: list[Variant] = []
        times: dict[Variant, list[float]] = {}
        self.turns.append(times)
        progress.total = (progress.total or 0) + (2 + self.rounds) * len(variants)

        def attempt(variant: Variant, steps: int, run: Callable[[Variant], None]) -> None:
            progress.set_postfix_str(f"{variant.system}, {variant.label}")
            why = _failure(run, variant)
            progress.update(steps)
            if why is None:
                return
            ready.pop(variant, None)
            times.pop(variant, None)
            gate.release(self.device)
            if why.startswith(gate.OUT_OF_MEMORY) and len(ready.keys() - set(BASELINES)) > 0:
                apart.append(variant)
            else:
                self.facts[variant] = {"unavailable": why}

        def prepare(variant: Variant) -> None:
            ready[variant] = variant.build(self.device, self.precision.dtype, self.size)
            with self._compile_in_time() if variant.compiled else contextlib.nullcontext():
                self._examine(variant, ready[variant])

        def take_turn(variant: Variant) -> None:
            step = ready[variant].step
            times.setdefault(variant, []).append(harness.timed(lambda: step(self.batch), self.device))

        for variant in variants:
            if any(other.system == variant.system for other in apart):  # with which it is compared, and counted
                apart.append(variant)
            else:
                attempt(variant, 2, prepare)
        for _ in range(self.rounds):
            for variant in list(ready):
                attempt(variant, 1, take_turn)
        return apart

    @contextlib.contextmanager
    def _compile_in_time(self) -> Iterator[None]:
        if self._deadline == math.inf:
            yield
            return
        late = f"not compiled in the {self.compile_limit:g} s that this run gives"
        if (left := self._deadline - time.monotonic()) <= 0:
            raise TimeoutError(late)
        try:
            with gate.time_limit(left):
                yield
        except Exception:  # the compiler wraps what ends it
            if time.monotonic() >= self._deadline:
                raise TimeoutError(late) from None
            raise

    def _examine(self, variant: Variant, system: System) -> None:
        """The first step, counted and compared, then one whose memory is watched. Both warm up.

        Raises:
            ArithmeticError: losses or gradients are not those of the reference, or it cannot be told.
        """
        counted = variant.system, variant.operators
        torch.manual_seed(SEED)
        if variant.compiled:
            if counted not in self._gflop:
                raise ArithmeticError("not counted, as it did not run without the compiler")
            system.compile()
            losses = system.step(self.batch)
        else:
            # What is counted are the calls of operators, which compiled code does not make.
            with FlopCounterMode(display=False) as counter:
                losses = system.step(self.batch)
            self._gflop[counted] = counter.get_total_flops() / len(self.batch) / 1e9
        facts = {
            "parameters": sum(p.numel() for network in system.networks.values() for p in network.parameters()),
            "gflop": significant(self._gflop[counted]),
        }
        if variant.operators != PLAIN:
            facts["difference"] = self._judged(variant, Outcome.of(system, losses))
        for network in system.networks.values():
            network.zero_grad(set_to_none=True)  # of what a step frees, the CPU's profiler sees only what it made
        extra = harness.peak_extra_bytes(lambda: system.step(self.batch), self.device, warm=True)
        self.facts[variant] = facts | {"extra_mib": significant(extra / 2**20)}

    def _judged(self, variant: Variant, outcome: Outcome) -> dict[str, float]:
        """The outcome's difference to the exact one, that of the reference in float32."""
        if variant == Variant(variant.system, REFERENCE):
            self._expected[variant.system] = outcome, self._exact(variant, outcome)
        if variant.system not in self._expected:
            raise ArithmeticError("not compared, as the reference did not run")
        plain, exact = self._expected[variant.system]
        found, usual = outcome.difference(exact), plain.difference(exact)
        for name, value in found.items():
            allowed = TOLERANCE[name] + FACTOR[name] * usual[name]
            if not value <= allowed:  # a NaN is no agreement
                raise ArithmeticError(f"{name} differ from the reference's by {value:.2g}, allowed {allowed:.2g}")
        return {name: significant(value) for name, value in found.items()}

    def _exact(self, reference: Variant, outcome: Outcome) -> Outcome:
        if self.precision == PRECISIONS["float32"]:
            return outcome
        with PRECISIONS["float32"].active():
            system = reference.build(self.device, torch.float32, self.size)
            torch.manual_seed(SEED)
            return Outcome.of(system, system.step(self.batch))


def _failure(run: Callable[[Variant], None], variant: Variant) -> str | None:
    """Why it failed, in a line, with all that the error held let go; None where it did not."""
    try:
        run(variant)
    except Exception as error:
        return gate.reason(error)
    return None
