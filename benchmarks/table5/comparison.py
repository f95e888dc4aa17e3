"""Runs the training steps of Table 5's systems: checks that the variants of one system compute the same, and times all
variants in turns."""

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

from .. import measure
from ..measure import PRECISIONS, Precision, significant
from .systems import SYSTEMS, Batch, System

#: A variant's operators: a system's own plain PyTorch, or the reference and the fused form of the same operators.
PLAIN, REFERENCE, FUSED = "PyTorch", "reference", "fused"
#: The systems that have both forms, with the published depth of their U-Nets.
DEPTHS = {"pconv": 7, "ours": 8}
#: Seeds the weights and the random numbers of every variant's first step.
SEED = 0
#: Differences allowed between losses, and gradients, of the variants of one system: batch norm over the few values of
#: the bottleneck magnifies roundings. Below float32, those of plain PyTorch in the same precision are added, this many
#: times.
TOLERANCE = {"losses": 1e-3, "gradients": 1e-2}
FACTOR = {"losses": 2.0, "gradients": 3.0}


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
        """Builds the system; weights do not depend on the operators. A U-Net is less deep than published where the
        images' side is no multiple of 2^depth."""
        torch.manual_seed(SEED)
        if self.operators == PLAIN:
            return SYSTEMS[self.system](device, dtype)
        depth = min(DEPTHS[self.system], (size & -size).bit_length() - 1)
        backend = "auto" if self.operators == FUSED else "reference"
        return SYSTEMS[self.system](device, dtype, backend=backend, depth=depth)


def variants_of(system: str, compiled: Collection[str] = ()) -> list[Variant]:
    """Returns the variants of a system, the reference first. `compiled`: operators that are compiled too."""
    if system not in DEPTHS:
        return [Variant(system, PLAIN)]
    eager = [Variant(system, operators) for operators in (REFERENCE, FUSED)]
    return eager + [dataclasses.replace(variant, compiled=True) for variant in eager if variant.operators in compiled]


#: Ratios are times over those of these variants.
BASELINES = tuple(Variant("ours", operators) for operators in (REFERENCE, FUSED))
#: EdgeConnect's two stages are trained one after the other; the paper adds them up.
EDGECONNECT = Variant("edgeconnect-edge", PLAIN), Variant("edgeconnect-inpainting", PLAIN)


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
        """Returns the largest difference of a loss, and that of the gradient in norm, relative to the exact ones."""
        losses = ((self.losses - exact.losses).abs() / exact.losses.abs()).max().item()
        gradients = ((self.gradient - exact.gradient).norm() / exact.gradient.norm()).item()
        return {"losses": losses, "gradients": gradients}


class Comparison:
    """Measures variants of systems.

    All stay in memory and take turns. A variant whose step finds no memory beside the others has its rounds later,
    beside the baselines only.

    Attributes:
        facts: variant -> parameters, gflop (per image and step), extra_mib (peak of a step beyond weights and optimiser
            state), loss_difference and gradient_difference (to the reference), or ``{"unavailable": why}``.
        turns: groups that took turns, each variant -> milliseconds of its steps.

    Both grow while `run` runs, and keep what they have where it is interrupted.

    Args:
        batch, precision, rounds: the images of every step, its precision, and how often it is timed.
        compile_limit: seconds after the start of `run` within which compiled variants must be ready.
    """

    def __init__(self, batch: Batch, precision: Precision, rounds: int, compile_limit: float = math.inf) -> None:
        self.batch, self.precision, self.rounds, self.compile_limit = batch, precision, rounds, compile_limit
        self.device, self.size = batch.image.device, batch.image.shape[-1]
        self.facts: dict[Variant, dict] = {}
        self.turns: list[dict[Variant, list[float]]] = []
        self._gflop: dict[tuple[str, str], float] = {}
        self._expected: dict[str, tuple[Outcome, Outcome]] = {}  # system -> plain and exact outcome

    def run(self, variants: list[Variant]) -> None:
        """Measures the variants: baselines first, so that others run apart where memory is short; compiled ones last,
        since they are compared with the eager ones."""
        variants = sorted(variants, key=lambda variant: (variant.compiled, variant not in BASELINES))
        self._deadline = time.monotonic() + self.compile_limit
        with (
            self.precision.active(),
            measure.memory_limit(self.device),
            # Systems share code, such as VGG's; past the limit torch would run it uncompiled.
            torch._dynamo.config.patch(recompile_limit=64),
            tqdm(desc="table 5", unit="step") as progress,
        ):
            for variant in self._together(variants, progress):
                baselines = [b for b in BASELINES if b in self.facts and "unavailable" not in self.facts[b]]
                self._together([*baselines, variant], progress)

    def _together(self, variants: list[Variant], progress: tqdm) -> list[Variant]:
        """Prepares the variants and times them in turns; returns those that must run apart."""
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
            measure.release(self.device)
            if why.startswith(measure.OUT_OF_MEMORY) and ready.keys() - set(BASELINES):
                apart.append(variant)
            else:
                self.facts[variant] = {"unavailable": why}

        def prepare(variant: Variant) -> None:
            ready[variant] = variant.build(self.device, self.precision.dtype, self.size)
            with self._compile_in_time() if variant.compiled else contextlib.nullcontext():
                self._examine(variant, ready[variant])

        def take_turn(variant: Variant) -> None:
            step = ready[variant].step
            times.setdefault(variant, []).append(measure.timed(lambda: step(self.batch), self.device))

        for variant in variants:
            if any(other.system == variant.system for other in apart):  # it needs that variant's outcome and FLOP count
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
            with measure.time_limit(left):
                yield
        except Exception:  # the compiler wraps the TimeoutError
            if time.monotonic() >= self._deadline:
                raise TimeoutError(late) from None
            raise

    def _examine(self, variant: Variant, system: System) -> None:
        """Counts and checks the first step, and measures the memory of the second. Both warm up.

        Raises:
            ArithmeticError: losses or gradients differ from the reference's, or cannot be compared.
        """
        counted = variant.system, variant.operators
        torch.manual_seed(SEED)
        if variant.compiled:
            if counted not in self._gflop:
                raise ArithmeticError("not counted, as it did not run without the compiler")
            system.compile()
            losses = system.step(self.batch)
        else:
            # The counter sees calls of operators, which compiled code does not make.
            with FlopCounterMode(display=False) as counter:
                losses = system.step(self.batch)
            self._gflop[counted] = counter.get_total_flops() / len(self.batch) / 1e9
        facts = {
            "gflop": significant(self._gflop[counted]),
            "parameters": sum(p.numel() for network in system.networks.values() for p in network.parameters()),
        }
        if variant.operators != PLAIN:
            facts |= self._check(variant, Outcome.of(system, losses))
        for network in system.networks.values():
            network.zero_grad(set_to_none=True)  # the CPU's profiler sees only memory that the step itself allocated
        extra = measure.peak_extra_bytes(lambda: system.step(self.batch), self.device, warm=True)
        self.facts[variant] = facts | {"extra_mib": significant(extra / 2**20)}

    def _check(self, variant: Variant, outcome: Outcome) -> dict[str, float]:
        """Returns the outcome's differences to the exact one, that of the reference in float32."""
        if variant == Variant(variant.system, REFERENCE):
            self._expected[variant.system] = outcome, self._exact(variant, outcome)
        if variant.system not in self._expected:
            raise ArithmeticError("not compared, as the reference did not run")
        plain, exact = self._expected[variant.system]
        found, usual = outcome.difference(exact), plain.difference(exact)
        for name, value in found.items():
            allowed = TOLERANCE[name] + FACTOR[name] * usual[name]
            if not value <= allowed:  # true of NaN
                raise ArithmeticError(f"{name} differ from the reference's by {value:.2g}, allowed {allowed:.2g}")
        return {
            "loss_difference": significant(found["losses"]),
            "gradient_difference": significant(found["gradients"]),
        }

    def _exact(self, reference: Variant, outcome: Outcome) -> Outcome:
        if self.precision == PRECISIONS["float32"]:
            return outcome
        with PRECISIONS["float32"].active():
            system = reference.build(self.device, torch.float32, self.size)
            torch.manual_seed(SEED)
            return Outcome.of(system, system.step(self.batch))

    def rows(self, variants: list[Variant], roof: float) -> list[measure.Row]:
        """Returns what is known of every variant so far, in order, and EdgeConnect's sum after its stages. `roof` is in
        TFLOP/s."""
        found = []
        for variant in variants:
            if variant in self.facts:
                found.append(self._row(variant.system, (variant,), roof))
            if variant == EDGECONNECT[-1] and self._turns_of(EDGECONNECT):
                found.append(self._row("edgeconnect", EDGECONNECT, roof))
        return found

    def _row(self, system: str, parts: tuple[Variant, ...], roof: float) -> measure.Row:
        """Returns one row of the result, of variants that are trained one after the other: the facts and, per image,
        milliseconds with their quartiles, achieved TFLOP/s, the share of the roof, and the ratio to each baseline that
        took turns with them. `apart`: nothing but the baselines did, for want of memory."""
        shape = f"{len(self.batch)}×3×{self.size}×{self.size}"
        row = {"suite": "table5", "case": system, "operator": "training step", "shape": shape}
        row |= {"alternative": parts[0].label, "pass": measure.STEP}
        facts = [self.facts[part] for part in parts]
        if "unavailable" in facts[0]:
            return row | facts[0]
        row |= facts[0] | {
            "gflop": significant(sum(fact["gflop"] for fact in facts)),
            "parameters": sum(fact["parameters"] for fact in facts),
            "extra_mib": max(fact["extra_mib"] for fact in facts),
        }
        if turns := self._turns_of(parts):
            # An interrupted round may lack some of them.
            steps = [sum(times) for times in zip(*(turns[part] for part in parts), strict=False)]
            timing = measure.timing_of([milliseconds / len(self.batch) for milliseconds in steps])
            tflops = row["gflop"] / timing.median
            row |= {
                "ms": significant(timing.median),
                "lower_ms": significant(timing.lower),
                "upper_ms": significant(timing.upper),
                "rounds": len(steps),
                "apart": turns is not self.turns[0],
                "tflops": significant(tflops),
                "roof_share": significant(tflops / roof),
            }
            for baseline in BASELINES:
                if turns.get(baseline):
                    ratio = timing.median * len(self.batch) / measure.timing_of(turns[baseline]).median
                    row[f"ratio_{baseline.operators}"] = significant(ratio)
        return row

    def _turns_of(self, parts: tuple[Variant, ...]) -> dict[Variant, list[float]] | None:
        """Returns the turns that all the parts took together."""
        return next((turns for turns in self.turns if all(turns.get(part) for part in parts)), None)


def _failure(run: Callable[[Variant], None], variant: Variant) -> str | None:
    """Returns why the run failed, in a line, and releases what the error held; None where it did not fail."""
    try:
        run(variant)
    except Exception as error:
        return measure.reason(error)
    return None
