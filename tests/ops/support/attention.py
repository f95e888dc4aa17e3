"""Attention with shift propagation (Eqs. 6-8) written out over all pairs of pixels in float64, and what rounding may do
to it."""

import torch


def propagated(weights, h, w, radius):
    """Σ_δ weights(p+δ, q+δ) of (…, H·W, H·W) matrices: Eq. 8. It is its own transpose."""
    maps = weights.reshape(-1, h, w, h, w)
    total = torch.zeros_like(maps)
    for dy in range(max(-radius, 1 - h), min(radius, h - 1) + 1):
        for dx in range(max(-radius, 1 - w), min(radius, w - 1) + 1):
            to_y, from_y = slice(max(0, -dy), min(h, h - dy)), slice(max(0, dy), min(h, h + dy))
            to_x, from_x = slice(max(0, -dx), min(w, w - dx)), slice(max(0, dx), min(w, w + dx))
            total[:, to_y, to_x, to_y, to_x] += maps[:, from_y, from_x, from_y, from_x]
    return total.reshape(weights.shape)


def _softmax(query, key, is_query, is_key, scale):
    """s* of Eqs. 6, 7 for maps (N,C,H,W) and bool masks (N,1,H,W): (N, H·W, H·W), zero outside the masks."""
    rows, columns = is_query.flatten(1)[:, :, None], is_key.flatten(1)[:, None, :]
    scores = (scale * query.flatten(2).mT @ key.flatten(2)).masked_fill(~columns, -torch.inf)
    return scores.masked_fill(~columns.any(2, keepdim=True), 0.0).softmax(2) * rows * columns


def shifted_weights(query, key, is_query, is_key, scale, radius):
    """s' of Eq. 8, (N, H·W, H·W)."""
    h, w = query.shape[2:]
    rows, columns = is_query.flatten(1)[:, :, None], is_key.flatten(1)[:, None, :]
    return propagated(_softmax(query, key, is_query, is_key, scale), h, w, radius) * rows * columns


def shift_attention(query, key, value, is_query, is_key, scale=1.0, radius=0, renormalize=False):
    weights = shifted_weights(query, key, is_query, is_key, scale, radius)
    if renormalize:
        weights = weights / weights.sum(2, keepdim=True).clamp_min(1e-300)
    return (weights @ value.flatten(2).mT).mT.reshape(value.shape)


def hole_attention(x, mask, scale=10.0, radius=1, renormalize=False, eps=1e-6):
    """The paper's variant for maps (N,C,H,W) and bool masks (N,1,H,W)."""
    unit = x / x.norm(dim=1, keepdim=True).clamp_min(eps)
    attended = shift_attention(unit, unit, x, ~mask, mask, scale, radius, renormalize)
    total = shifted_weights(unit, unit, ~mask, mask, scale, radius).sum(2).reshape(mask.shape)
    return torch.where(mask | (total == 0), x, attended)


def magnitudes(query, key, value, is_query, is_key, upstream, scale=1.0, radius=0, renormalize=False):
    """What rounding may do to shift_attention and its gradients, in units of the rounding of one sum.

    Returns four maps, for the output and the gradients of query, key and value: the error to first order if every sum
    Σt on the way is wrong by Σ|t| (one unit), independently of the others, so that what they do to a later sum adds up
    as squares. A score is wrong by its own Σ|t|, and by itself when the exponential takes it; exp turns that into a
    relative error of the weight, and the softmax's denominator into one of the whole row (Blanchard, Higham and Higham,
    Accurately computing the log-sum-exp and softmax functions, IMA J. Numer. Anal. 41, 2021). The rest is linear.
    """
    h, w = query.shape[2:]
    q, k, v, g = (t.detach().double().flatten(2).mT for t in (query, key, value, upstream))
    rows, columns = is_query.flatten(1)[:, :, None], is_key.flatten(1)[:, None, :]
    pairs = rows & columns

    def shift(weights):
        return propagated(weights, h, w, radius) * pairs

    # Variable names: x2 is the square of the error of x.
    s = _softmax(query.detach().double(), key.detach().double(), is_query, is_key, scale)
    scores = scale * q @ k.mT
    below = (scores.masked_fill(~columns, -torch.inf).amax(2, keepdim=True) - scores).masked_fill(~pairs, 0.0)
    scores2 = (abs(scale) * q.abs() @ k.abs().mT + below) ** 2
    s2 = s**2 * (1 + scores2 + (s**2 * scores2).sum(2, keepdim=True))
    weights = shift(s)
    weights2 = shift(s2) + weights**2
    total, total2 = torch.ones_like(weights[..., :1]), torch.zeros_like(weights[..., :1])  # relative
    if renormalize:
        total = weights.sum(2, keepdim=True)
        total = torch.where(total > 0, total, 1.0)
        total2 = 1 + weights2.sum(2, keepdim=True) / total**2
    output = weights @ v / total
    output2 = (weights2 @ v**2 + (weights @ v.abs()) ** 2) / total**2 + output**2 * total2

    g, g2 = g / total, (g / total) ** 2 * total2
    value2 = weights2.mT @ g**2 + weights.mT**2 @ g2 + (weights.mT @ g.abs()) ** 2
    d, d2 = g @ v.mT, (g.abs() @ v.abs().mT) ** 2 + g2 @ (v**2).mT
    if renormalize:
        d = d - (g * output).sum(2, keepdim=True)
        d2 = d2 + ((g * output).abs().sum(2, keepdim=True)) ** 2 + (g**2 * output2).sum(2, keepdim=True)
    d, d2 = shift(d * pairs), shift(d2 * pairs) + shift(d.abs() * pairs) ** 2
    along = (s * d).sum(2, keepdim=True)
    along2 = (s2 * (d - along) ** 2 + s**2 * d2).sum(2, keepdim=True) + (s * d.abs()).sum(2, keepdim=True) ** 2
    ds, ds2 = s * (d - along), s2 * (d - along) ** 2 + s**2 * (d2 + along2)
    query2 = scale**2 * (ds2 @ k**2 + (ds.abs() @ k.abs()) ** 2)
    key2 = scale**2 * (ds2.mT @ q**2 + (ds.mT.abs() @ q.abs()) ** 2)
    return [error.sqrt().mT.reshape(*error.shape[:1], -1, h, w) for error in (output2, query2, key2, value2)]


def hole_magnitudes(x, mask, upstream, scale=10.0, radius=1, renormalize=False, eps=1e-6):
    """The same for hole_attention's output and gradient, whose queries and keys are the unit vectors of x."""
    x, upstream = x.detach().double(), upstream.detach().double()
    norm = x.norm(dim=1, keepdim=True).clamp_min(eps)
    unit = x / norm
    fills = ~mask & mask.flatten(1).any(1)[:, None, None, None]
    probe = upstream * fills
    output, query, key, value = magnitudes(unit, unit, x, fills, mask, probe, scale, radius, renormalize)
    unit_error = query + key
    along = (unit * unit_error).square().sum(1, keepdim=True).sqrt()
    gradient = value + (unit_error + unit.abs() * along) / norm + upstream.abs() * ~fills
    return [torch.where(fills, output, x.abs()), gradient]
