"""The systems of Table 5, each a whole training step: ``SYSTEMS["pconv"](device).step(batch)`` runs one."""

from .common import HOLE, Batch, System, make_batch
from .edgeconnect import EdgeConnectEdge, EdgeConnectInpainting
from .ours import Ours
from .pconv import PConv
from .pic import PIC

__all__ = ["HOLE", "SYSTEMS", "Batch", "System", "make_batch"]

#: In the order of Table 5. All take (device, precision=torch.float32); PConv and Ours also backend and depth.
SYSTEMS: dict[str, type[System]] = {
    "pic": PIC,
    "pconv": PConv,
    "edgeconnect-edge": EdgeConnectEdge,
    "edgeconnect-inpainting": EdgeConnectInpainting,
    "ours": Ours,
}
