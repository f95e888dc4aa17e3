"""The memory suite: what the whole network holds, beyond its weights and the image, while it fills one large image.

Size and batch are fixed, since a target belongs to them: ``--size`` and ``--batch`` do not scale them.
"""

from __future__ import annotations

import dataclasses

from .contest import FORWARD, OURS, Contest, Settings
from .network import HOLE, NETWORKS, WHOLE, contestants_of, image_and_mask
from .suites import Case, Suite

SIZE = 1024
#: Seconds of the first forward: it is memory that is measured.
PATIENCE = 300.0


def prepare(settings: Settings) -> Contest:
    """Ours alone: the reference takes a minute for such an image on a CPU, and is its judge."""
    image, mask = image_and_mask(SIZE, dataclasses.replace(settings, batch=1), settings.dtype)
    contestants, _ = contestants_of(NETWORKS[WHOLE], image, mask, settings)
    return Contest({OURS: contestants[OURS]}, {FORWARD: None}, first_call_limit=PATIENCE)


def cases(settings: Settings) -> list[Case]:
    facts = {"size": SIZE, "batch": 1, "hole": list(HOLE)}
    return [Case(f"{WHOLE} {SIZE}", "generator", f"1×3×{SIZE}×{SIZE}", (OURS,), prepare, facts=facts)]


SUITE = Suite("the generator's forward on one large image: memory beyond the weights", cases)
