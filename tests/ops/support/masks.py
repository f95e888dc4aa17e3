"""Masks by name: the patterns at which such code breaks, and the forms in which an operator takes them."""

import torch


def _border(h, w):
    inside = torch.zeros(h, w, dtype=torch.bool)
    inside[1:-1, 1:-1] = True
    return ~inside


def _single(h, w):
    plane = torch.zeros(h, w, dtype=torch.bool)
    plane[h // 2, w // 3] = True
    return plane


def _row(h, w):
    plane = torch.zeros(h, w, dtype=torch.bool)
    plane[h // 2] = True
    return plane


#: name -> bool (h, w), True = valid.
PATTERNS = {
    "all_valid": lambda h, w: torch.ones(h, w, dtype=torch.bool),
    "all_hole": lambda h, w: torch.zeros(h, w, dtype=torch.bool),
    "one_valid_pixel": _single,
    "one_hole_pixel": lambda h, w: ~_single(h, w),
    "checkerboard": lambda h, w: (torch.arange(h)[:, None] + torch.arange(w)) % 2 == 0,
    "one_valid_row": _row,
    "one_hole_row": lambda h, w: ~_row(h, w),
    "valid_border": _border,
    "hole_border": lambda h, w: ~_border(h, w),
    "right_half": lambda h, w: (torch.arange(w) >= w // 2).expand(h, w).clone(),
}

#: Every pattern, and "mixed": a different pattern for each image of the batch.
NAMES = [*PATTERNS, "mixed"]
MIXED = ["one_hole_pixel", "all_hole", "checkerboard"]

#: How a plane becomes an argument of partial_conv2d.
FORMS = ["plane", "batch_expanded", "channels", "channels_expanded", "grouped"]


def plane(name, n, h, w):
    """The (n, 1, h, w) bool mask of that name."""
    names = [MIXED[i % len(MIXED)] if name == "mixed" else name for i in range(n)]
    return torch.stack([PATTERNS[each](h, w) for each in names])[:, None] if n else torch.zeros(0, 1, h, w).bool()


def in_form(form, mask, channels):
    """The mask as the argument of that form, and the (N,1,H,W) or (N,C,H,W) mask that it stands for."""
    if form == "plane":
        return mask, mask
    if form == "batch_expanded":
        mask = mask[:1].expand(mask.shape[0], -1, -1, -1)
        return mask, mask.clone()
    if form == "channels":
        mask = torch.cat([mask.roll((c, -c), dims=(2, 3)) for c in range(channels)], dim=1)
        return mask, mask
    if form == "channels_expanded":
        mask = mask.expand(-1, channels, -1, -1)
        return mask, mask.clone()
    first = max(1, channels // 3)
    parts = [(first, mask)] + ([(channels - first, mask.flip(3))] if channels > first else [])
    return parts, torch.cat([part.expand(-1, count, -1, -1) for count, part in parts], dim=1)


def random_plane(valid_share, n, h, w):
    return torch.rand(n, 1, h, w) < valid_share
