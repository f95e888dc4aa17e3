"""``python -m tests.wheel.numbers`` prints, as JSON, how far the installed library is from its float64 reference.

Per operation: the largest difference of the output and the gradients, as a share of the largest value of each. The
exit status is 1 where a share is above `ROUNDINGS` times the dtype's eps.
"""

import json
import sys

import torch

import msa_ops
from msa_model import Generator, demo_weights

ROUNDINGS = 32
LAYERS = {
    "partial_conv2d": (
        lambda x, w, m, **how: msa_ops.partial_conv2d(x, m, w, padding=1, **how)[0],
        (2, 8, 24, 20),
        (12, 8, 3, 3),
    ),
    "partial_conv2d_upcat": (
        lambda x, w, m, **how: msa_ops.partial_conv2d_upcat(x[..., ::2, ::2], m[..., ::2, ::2], x, m, w, **how)[0],
        (2, 6, 24, 20),
        (5, 12, 3, 3),
    ),
    "hole_attention": (
        lambda x, w, m, **how: msa_ops.hole_attention(x, m, scale=10.0, radius=1, **how) * w,
        (2, 8, 12, 10),
        (1,),
    ),
}


def share(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return ((ours.double() - exact).abs().max() / exact.abs().max()).item()


def layer(operation, image_shape, weight_shape, dtype) -> float:
    """The largest share over the output and the gradients of the image and the weight."""
    draw = torch.Generator().manual_seed(1)
    image, weight = (torch.randn(shape, generator=draw).to(dtype) for shape in (image_shape, weight_shape))
    mask = torch.ones(image_shape[0], 1, *image_shape[2:])
    mask[..., 3:9, 4:8] = 0
    found = []
    for kind, how in ((dtype, {"backend": "cpu"}), (torch.float64, {"backend": "reference"})):
        leaves = [tensor.to(kind).requires_grad_() for tensor in (image, weight)]
        output = operation(*leaves, mask.to(kind), **how)
        upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
        found.append([output.detach(), *torch.autograd.grad(output, leaves, upstream.to(dtype).to(kind))])
    return max(map(share, *found))


def network() -> float:
    """The generator with the weights that come along, in float32, against its float64 reference."""
    draw = torch.Generator().manual_seed(3)
    image, mask = torch.rand(1, 3, 64, 64, generator=draw), torch.ones(1, 1, 64, 64)
    mask[..., 20:44, 16:40] = 0
    ours = Generator.load(demo_weights())
    exact = Generator.load(demo_weights(), backend="reference").double()
    with torch.no_grad():
        return share(ours(image, mask), exact(image.double(), mask))


def main() -> int:
    shares = {
        (f"{name} {str(dtype).removeprefix('torch.')}", dtype): layer(*case, dtype)
        for name, case in LAYERS.items()
        for dtype in (torch.float32, torch.bfloat16)
    }
    shares["network float32", torch.float32] = network()
    print(json.dumps({name: found for (name, _), found in shares.items()}))
    return int(any(not found <= ROUNDINGS * torch.finfo(dtype).eps for (_, dtype), found in shares.items()))


if __name__ == "__main__":
    sys.exit(main())
