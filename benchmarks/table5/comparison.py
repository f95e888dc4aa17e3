"""Runs the training steps of Table 5's systems: checks that the variants of one system compute the same, and times all
variants in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from .. import measure
from ..measure import PRECISIONS, Precision, significant
from .report import PAPER
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
    operators: str = PLAIN
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
        return [Variant(system)]
    eager = [Variant(system, operators) for operators in (REFERENCE, FUSED)]
    return eager + [dataclasses.replace(variant, compiled=True) for variant in eager if variant.operators in compiled]


#: EdgeConnect's two stages are trained one after the other; the paper adds them up.
STAGES = Variant("edgeconnect-edge"), Variant("edgeconnect-inpainting")
#: What a step computes: loss terms, and the gradients of all networks in one vector, on the CPU.
Outcome = dict[str, Tensor]


class Comparison:
    """Measures variants of systems. All stay in memory and take turns.

    Args:
        batch, precision, rounds: the images of every step, its precision, and how often it is timed.
        compile_limit: seconds after the start of `run` within which compiled variants must be ready.
    """

    def __init__(self, batch: Batch, precision: Precision, rounds: int, compile_limit: float) -> None:
        self.batch, self.precision, self.rounds, self.compile_limit = batch, precision, rounds, compile_limit
        self.device, (self.images, _, _, self.size) = batch.image.device, batch.image.shape
        # Both grow while `run` runs: what `_examine` found out, or why there is nothing, and milliseconds of steps.
        self.facts: dict[Variant, dict] = {}
        self.times: dict[Variant, list[float]] = {}
        self._expected: dict[str, tuple[Outcome, Outcome]] = {}  # system -> outcome of the reference, and exact outcome

    def run(self, variants: list[Variant]) -> None:
        """Prepares all variants, compiled ones last, since they are compared with the eager ones; then times them."""
        deadline = time.monotonic() + self.compile_limit
        systems: dict[Variant, System] = {}

        def prepare(variant: Variant) -> None:
            left = max(deadline - time.monotonic(), 1e-3)
            try:
                with measure.time_limit(left) if variant.compiled else contextlib.nullcontext():
                    systems[variant] = variant.build(self.device, self.precision.dtype, self.size)
                    self.facts[variant] = self._examine(variant, systems[variant])
            except Exception:  # the compiler wraps the TimeoutError
                if variant.compiled and time.monotonic() >= deadline:
                    raise TimeoutError(f"not compiled in the {self.compile_limit:g} s that this run gives") from None
                raise

        def take_turn(variant: Variant) -> None:
            milliseconds = measure.timed(lambda: systems[variant].step(self.batch), self.device)
            self.times.setdefault(variant, []).append(milliseconds)

        def attempt(run: Callable[[Variant], None], variant: Variant) -> None:
            progress.set_postfix_str(f"{variant.system}, {variant.label}")
            try:
                run(variant)
            except Exception as error:
                self.facts[variant] = {"unavailable": measure.reason(error)}
            progress.update()
            if "unavailable" in self.facts[variant]:  # the error is gone, and with it the tensors of its frames
                systems.pop(variant, None)
                self.times.pop(variant, None)
                measure.release(self.device)

        with (
            self.precision.active(),
            measure.memory_limit(self.device),
            # Systems share code, such as VGG's; past the limit torch would run it uncompiled.
            torch._dynamo.config.patch(recompile_limit=64),
            tqdm(desc="table 5", unit="step", total=(1 + self.rounds) * len(variants)) as progress,
        ):
            for variant in sorted(variants, key=lambda variant: variant.compiled):
                attempt(prepare, variant)
            for _ in range(self.rounds):
                for variant in list(systems):
                    attempt(take_turn, variant)

    def _examine(self, variant: Variant, system: System) -> dict[str, float]:
        """Counts and checks the first step, and measures the memory of the second. Both warm up. Returns gflop (per
        image and step), parameters, extra_mib (peak of a step beyond weights and optimiser state), and differences to
        the reference.

        Raises:
            ArithmeticError: losses or gradients differ from the reference's, or cannot be compared.
        """
        torch.manual_seed(SEED)
        if variant.compiled:  # the counter sees calls of operators, which compiled code does not make
            gflop = self.facts[dataclasses.replace(variant, compiled=False)].get("gflop")
            if gflop is None:
                raise ArithmeticError("not counted, as it did not run without the compiler")
            system.compile()
            losses = system.step(self.batch)
        else:
            with FlopCounterMode(display=False) as counter:
                losses = system.step(self.batch)
            gflop = significant(counter.get_total_flops() / self.images / 1e9)
        facts = {"gflop": gflop, "parameters": sum(p.numel() for p in system.networks.parameters())}
        if variant.operators != PLAIN:
            facts |= self._check(variant, _outcome(system, losses))
        system.networks.zero_grad()  # the CPU's profiler sees only memory that the step itself allocated
        extra = measure.peak_extra_bytes(lambda: system.step(self.batch), self.device)
        return facts | {"extra_mib": significant(extra / 2**20)}

    def _check(self, variant: Variant, outcome: Outcome) -> dict[str, float]:
        """Returns the outcome's differences to the exact one, that of the reference in float32."""
        if variant == Variant(variant.system, REFERENCE):
            exact = outcome
            if self.precision != PRECISIONS["float32"]:
                with PRECISIONS["float32"].active():
                    system = variant.build(self.device, torch.float32, self.size)
                    torch.manual_seed(SEED)
                    exact = _outcome(system, system.step(self.batch))
            self._expected[variant.system] = outcome, exact
        if variant.system not in self._expected:
            raise ArithmeticError("not compared, as the reference did not run")
        plain, exact = self._expected[variant.system]
        found, usual = _differences(outcome, exact), _differences(plain, exact)
        for name, value in found.items():
            allowed = TOLERANCE[name] + FACTOR[name] * usual[name]
            if not value <= allowed:  # true of NaN
                raise ArithmeticError(f"{name} differ from the reference's by {value:.2g}, allowed {allowed:.2g}")
        return {"loss_difference": significant(found["losses"]), "gradient_difference": significant(found["gradients"])}

    def rows(self, roof: float) -> list[measure.Row]:
        """Returns what is known so far of every variant, in the order of Table 5, with EdgeConnect's sum after its
        stages: the facts and, per image, milliseconds with their quartiles, achieved TFLOP/s, the share of the roof
        (in TFLOP/s), and the ratios to Ours."""
        facts, times = dict(self.facts), dict(self.times)
        if all(stage in times for stage in STAGES):
            times[Variant("edgeconnect")] = [
                sum(pair) for pair in zip(*(times[stage] for stage in STAGES), strict=False)
            ]
            edge, inpainting = (facts[stage] for stage in STAGES)
            facts[Variant("edgeconnect")] = {
                "gflop": significant(edge["gflop"] + inpainting["gflop"]),
                "parameters": edge["parameters"] + inpainting["parameters"],
                "extra_mib": max(edge["extra_mib"], inpainting["extra_mib"]),
            }
        shape = f"{self.images}×3×{self.size}×{self.size}"
        found = []
        for variant in sorted(facts, key=lambda variant: list(PAPER).index(variant.system)):
            row = {"suite": "table5", "case": variant.system, "operator": "training step", "shape": shape}
            row |= {"alternative": variant.label, "pass": measure.STEP} | facts[variant]
            if variant in times:
                timing = measure.timing_of([milliseconds / self.images for milliseconds in times[variant]])
                tflops = row["gflop"] / timing.median
                row |= {
                    "ms": significant(timing.median),
                    "lower_ms": significant(timing.lower),
                    "upper_ms": significant(timing.upper),
                    "rounds": len(times[variant]),
                    "tflops": significant(tflops),
                    "roof_share": significant(tflops / roof),
                }
                for baseline in (REFERENCE, FUSED):
                    if ours := times.get(Variant("ours", baseline)):
                        ratio = timing.median * self.images / measure.timing_of(ours).median
                        row[f"ratio_{baseline}"] = significant(ratio)
            found.append(row)
        return found


def _outcome(system: System, losses: dict[str, Tensor]) -> Outcome:
    terms = torch.stack([losses[name].detach().float() for name in sorted(losses)])
    gradients = torch.cat([p.grad.flatten().cpu() for p in system.networks.parameters() if p.grad is not None])
    return {"losses": terms.cpu(), "gradients": gradients}


def _differences(found: Outcome, exact: Outcome) -> dict[str, float]:
    """Returns the largest difference of a loss, and that of the gradient in norm, relative to the exact ones."""
    losses = ((found["losses"] - exact["losses"]).abs() / exact["losses"].abs()).max().item()
    gradients = ((found["gradients"] - exact["gradients"]).norm() / exact["gradients"].norm()).item()
    return {"losses": losses, "gradients": gradients}
