"""Region-wise normalisation: valid pixels and hole pixels have their own statistics."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RegionNorm2d(nn.Module):
    r"""Normalises two regions separately: the valid pixels of the image, and its hole.

    Means are over the positions p of a region r of the whole batch, per channel:

        μᵣ = mean x(p),    σᵣ² = mean (x(p) - μᵣ)²,    y(p) = γᵣ (x(p) - μᵣ) / √(σᵣ² + eps) + βᵣ        p ∈ r

    The features of a hole are predicted and have another distribution than those of known pixels. If both shared one
    normalisation, the hole would shift the mean and variance of the known pixels. This layer follows RN-B of Yu et al.,
    *Region Normalization for Image Inpainting* (AAAI 2020). As there, every region has its own γ and β (shared ones
    would force both regions to the same mean and deviation), and the statistics are those of the batch. Unlike there,
    running statistics per region are kept for evaluation, as in batch normalisation, so that the result for an image
    does not depend on its batch.

    The rows of all parameters and buffers are [valid, hole]. An empty region has no influence, and its γ and β get zero
    gradients. A region with a single value has no variance, and comes out as βᵣ. A region with fewer than two values
    leaves its running statistics unchanged. Statistics are float32 (float64 for float64 input); neither they nor the
    gradients ever divide by zero.

    Args:
        channels: C.
        eps, momentum: as for `torch.nn.BatchNorm2d`; the running variance is the unbiased one, as there.
        sync: whether statistics are those of all processes in training mode, if torch.distributed is initialised. This
            takes one all-gather in the forward and one all-reduce in the backward, so all processes must call the
            layer. The attribute may be changed at any time.
        process_group: the processes that share statistics; None: all.

    Attributes:
        weight, bias: γ and β, (2, C).
        running_mean, running_var: (2, C).
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        channels: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        sync: bool = True,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"msa_model.RegionNorm2d: channels must be positive, got {channels!r}")
        self.channels, self.eps, self.momentum = channels, eps, momentum
        self.sync, self.process_group = sync, process_group
        self.weight = nn.Parameter(torch.ones(2, channels))
        self.bias = nn.Parameter(torch.zeros(2, channels))
        self.register_buffer("running_mean", torch.zeros(2, channels))
        self.register_buffer("running_var", torch.ones(2, channels))

    def forward(self, x: Tensor, mask: Tensor, filled: Tensor | None = None) -> Tensor:
        """Normalises x.

        Args:
            x: (N, C, H, W), floating-point.
            mask: (N, 1, H, W) of this layer, 1 (any non-zero) = valid, 0 = hole; bool, uint8 or floating-point.
            filled: (N, 1, H, W), 0 where x holds no value yet, like the holes that partial convolution leaves. These
                positions are in neither region, and come out as zero. None: every position holds a value.

        Returns:
            (N, C, H, W) in the dtype of x.

        Raises:
            ValueError: shapes that do not fit.
        """
        self._check(x, mask, filled)
        valid, hole = mask != 0, mask == 0
        if filled is not None:
            filled = filled != 0
            valid, hole = valid & filled, hole & filled
        if not self.training:
            mean, variance = self.running_mean, self.running_var
            scale = self.weight * torch.rsqrt(variance + self.eps)
            shift = self.bias - mean * scale
            y = _wide(x) * _by_region(valid, scale) + _by_region(valid, shift)
            return torch.where(valid | hole, y, 0.0).to(x.dtype)
        y, count, mean, m2 = _Normalize.apply(x, valid, hole, self.weight, self.bias, self.eps, self._group())
        with torch.no_grad():
            step = self.momentum * (count >= 2).to(mean.dtype)  # (2, 1)
            unbiased = m2 / (count - 1).clamp_min(1)
            self.running_mean += step * (mean - self.running_mean)
            self.running_var += step * (unbiased - self.running_var)
        return y

    def synchronises(self) -> bool:
        """Whether the layer now shares its statistics with other processes."""
        return self._group() is not None

    def _group(self) -> dist.ProcessGroup | None:
        if not (self.sync and dist.is_available() and dist.is_initialized()):
            return None
        group = self.process_group or dist.group.WORLD
        return group if dist.get_world_size(group) > 1 else None

    def _check(self, x: Tensor, mask: Tensor, filled: Tensor | None) -> None:
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f"msa_model.RegionNorm2d: x must have shape (N, {self.channels}, H, W), got {tuple(x.shape)}"
            )
        for name, plane in (("mask", mask), ("filled", filled)):
            if plane is not None and plane.shape != (x.shape[0], 1, *x.shape[2:]):
                wanted = (x.shape[0], 1, *x.shape[2:])
                raise ValueError(f"msa_model.RegionNorm2d: {name} must have shape {wanted}, got {tuple(plane.shape)}")

    def extra_repr(self) -> str:
        return f"{self.channels}, eps={self.eps}, momentum={self.momentum}, sync={self.sync}"


class _Normalize(torch.autograd.Function):
    """Normalises in training mode, with gradients written by hand.

    Autograd would keep tensors of several times the size of x; and this way the sums of all processes take one
    collective call in each direction.
    """

    @staticmethod
    def forward(ctx, x, valid, hole, weight, bias, eps, group):
        wide, regions = _wide(x), (valid, hole)
        count = torch.stack([region.sum() for region in regions]).to(wide.dtype)[:, None]  # (2, 1)
        mean = _sums(wide, regions) / count.clamp_min(1)
        # Σ (x - μ)² and not Σ x² - n μ², which loses digits to cancellation.
        m2 = _sums((wide - _by_region(valid, mean)).square(), regions)
        if group is not None:
            count, mean, m2 = _merged(count, mean, m2, group)
        inverse = torch.rsqrt(m2 / count.clamp_min(1) + eps)
        normalized = (wide - _by_region(valid, mean)) * _by_region(valid, inverse)
        y = normalized * _by_region(valid, weight) + _by_region(valid, bias)
        ctx.save_for_backward(x, valid, hole, weight, count, mean, inverse)
        ctx.group = group
        ctx.mark_non_differentiable(count, mean, m2)
        ctx.set_materialize_grads(False)
        return torch.where(valid | hole, y, 0.0).to(x.dtype), count, mean, m2

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y, *_):
        if grad_y is None:
            return (None,) * 7
        x, valid, hole, weight, count, mean, inverse = ctx.saved_tensors
        grad, regions = _wide(grad_y), (valid, hole)
        normalized = (_wide(x) - _by_region(valid, mean)) * _by_region(valid, inverse)
        sums = _sums(grad, regions)
        products = _sums(grad * normalized, regions)
        grad_weight, grad_bias = products.to(weight.dtype), sums.to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, None, None, grad_weight, grad_bias, None, None
        if ctx.group is not None:
            # Through the statistics, x influences the losses of all processes. The gradients of γ and β are this
            # process's own, as those of all parameters, which DistributedDataParallel averages.
            both = torch.stack([sums, products])
            dist.all_reduce(both, group=ctx.group)
            sums, products = both
        n = count.clamp_min(1)
        grad_x = grad - _by_region(valid, sums / n) - normalized * _by_region(valid, products / n)
        grad_x = torch.where(valid | hole, grad_x * _by_region(valid, weight * inverse), 0.0)
        return grad_x.to(x.dtype), None, None, grad_weight, grad_bias, None, None


def _by_region(valid: Tensor, rows: Tensor) -> Tensor:
    """Gives each position the row of its region: (2, C) -> (N, C, H, W)."""
    return torch.where(valid, rows[0].view(1, -1, 1, 1), rows[1].view(1, -1, 1, 1))


def _sums(x: Tensor, regions: tuple[Tensor, Tensor]) -> Tensor:
    """Sums per region and channel, (2, C). `where` keeps inf and NaN of other positions out, a product would not."""
    return torch.stack([torch.where(region, x, 0.0).sum(dim=(0, 2, 3)) for region in regions])


def _merged(count: Tensor, mean: Tensor, m2: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Merges the statistics of all processes (Chan's parallel variance)."""
    packed = torch.cat([count, mean, m2], dim=1)
    everyone = [torch.empty_like(packed) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, packed, group=group)
    counts, means, m2s = torch.stack(everyone).split([1, mean.shape[1], mean.shape[1]], dim=2)
    total = counts.sum(0)
    merged = (counts * means).sum(0) / total.clamp_min(1)
    return total, merged, (m2s + counts * (means - merged).square()).sum(0)


def _wide(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()
