"""PIC, Pluralistic Image Completion (Zheng et al. 2019): its networks and its training step.

Every convolution has spectral norm, a bias and an orthogonal initial weight; the activation is LeakyReLU(0.1).
The description leaves some choices, which are settled as follows:

- The published initial weights have gain 0.02; here it is 1. Spectral norm divides the gain out again, so the networks
  start as the same functions. With 0.02, Adam's first steps are large beside the weights: one power iteration a step
  cannot follow them, and losses of 10⁴ to 10¹⁵ have been seen after the first step.
- kl_posterior compares the posterior with a normal distribution whose variance is the share of hole pixels, as the
  paper's prior adapts to their number; kl_prior compares it with the learned prior. Both are means.
- While the generator learns, the discriminators' weights get no gradients, and the score of the truth has no graph.
  Then a step at 256×256 counts 138 GFLOP per image, which is the known figure; with these gradients it is 155.
- The discriminator does not run the residual block 256→128 (0.48 M parameters) that merges short- and long-term
  attention, since it has a decoder's feature only: 138 GFLOP leave no room for it. The known sizes, 3.64, 2.40 and
  1.59 M, count this block, and the vectors of the power iterations, which are buffers here.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from .common import Batch, Sum, System, instance_norm, spectral_norm, update, without_gradients

#: Weights of the terms of the generator's loss, by the beginning of their names.
WEIGHTS = {"kl": 80, "l1": 20, "adversarial": 1}
ACTIVATION = nn.LeakyReLU(0.1)


def normed(layer: nn.Module) -> nn.Module:
    nn.init.orthogonal_(layer.weight)  # before the norm, whose singular vectors start from this weight
    return spectral_norm(layer)


def conv(width: int, out_width: int, kernel: int = 3, padding: int | str = "same") -> nn.Module:
    return normed(nn.Conv2d(width, out_width, kernel, padding=padding))


def doubling(width: int, out_width: int) -> nn.Module:
    return normed(nn.ConvTranspose2d(width, out_width, kernel_size=3, stride=2, padding=1, output_padding=1))


def residual_block(width: int, hidden: int, out_width: int) -> nn.Module:
    """Activation, 3×3 to `hidden` channels, activation, 3×3, plus a 1×1 shortcut."""
    layers = nn.Sequential(ACTIVATION, conv(width, hidden), ACTIVATION, conv(hidden, out_width))
    return Sum(layers, conv(width, out_width, 1))


def halving_block(width: int, out_width: int) -> nn.Module:
    """A residual block, both of whose branches are average-pooled: the pool of the sum is the sum of the pools."""
    return nn.Sequential(residual_block(width, width, out_width), nn.AvgPool2d(2))


def first_block(width: int) -> nn.Module:
    """The block that takes an image: 3×3, activation, 3×3, pool, plus pool, 1×1."""
    layers = nn.Sequential(conv(3, width), ACTIVATION, conv(width, width), nn.AvgPool2d(2))
    return Sum(layers, nn.Sequential(nn.AvgPool2d(2), conv(3, width, 1)))


def decoder_block(width: int, out_width: int) -> nn.Module:
    """Instance norm, activation, 3×3, instance norm, activation, transposed 3×3 that doubles the size; plus a second
    transposed 3×3 as shortcut."""
    first = instance_norm(width), ACTIVATION, conv(width, out_width)
    second = instance_norm(out_width), ACTIVATION, doubling(out_width, out_width)
    return Sum(nn.Sequential(*first, *second), doubling(width, out_width))


def output(width: int) -> nn.Module:
    """An image in [-1, 1]: activation, reflection pad, 3×3 to three channels, tanh."""
    return nn.Sequential(ACTIVATION, nn.ReflectionPad2d(1), conv(width, 3, padding=0), nn.Tanh())


class SelfAttention(nn.Module):
    """Adds to every pixel γ times the mean of all, weighted by softmax(QᵀQ): queries, a 1×1 convolution to a quarter of
    the channels, are keys too, and values are the features themselves. γ starts at 0, as in self-attention GANs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = conv(width, width // 4, 1)
        self.gamma = nn.Parameter(torch.zeros(()))

    def weights(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2)
        return torch.softmax(query.mT @ query, dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * attend(self.weights(x), x) + x


class ShortLongAttention(SelfAttention):
    """Self-attention within the decoder (short) and, by the same weights, attention to the encoder's feature, taken
    where the image is a hole (long), merged by a residual block."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.alpha = nn.Parameter(torch.zeros(()))
        self.merge = residual_block(2 * width, width, width)

    def forward(self, x: Tensor, feature: Tensor, valid: Tensor) -> Tensor:
        """Takes and returns (N, C, H, W); valid (N, 1, H, W) is 1 or, in a hole, 0."""
        weights = self.weights(x)
        short = self.gamma * attend(weights, x) + x
        long = self.alpha * (1 - valid) * attend(weights, feature) + valid * feature
        return self.merge(torch.cat([short, long], dim=1))


def attend(weights: Tensor, values: Tensor) -> Tensor:
    """Weighted means of the values' pixels: weights (N, HW, HW) with rows of sum 1, values (N, C, H, W)."""
    return (values.flatten(2) @ weights.mT).view_as(values)


class Encoder(nn.Module):
    """Halves the masked image and its complement five times, and finds a distribution of latents for each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width, 4 * width, 4 * width)
        self.blocks = nn.ModuleList([first_block(width), *itertools.starmap(halving_block, itertools.pairwise(widths))])
        last = widths[-1]
        self.inference = nn.Sequential(*(residual_block(last, last, last) for _ in range(6)))
        self.prior, self.posterior = (residual_block(last, last, 2 * last) for _ in range(2))

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Takes N images that are 0 in their holes, then N complements, which are 0 elsewhere. Returns the features of
        the first N, at H/2 … H/32, and the parameters (N, 256, H/32, W/32) of the prior, given the masked images, and
        of the posterior, given the complements."""
        features = [images]
        for block in self.blocks:
            features.append(block(features[-1]))
        masked, complement = features[-1].chunk(2)
        of_masked = [feature.chunk(2)[0] for feature in features[1:]]
        return of_masked, self.prior(self.inference(masked)), self.posterior(complement)


def latents_of(parameters: Tensor) -> Normal:
    """The distribution of latents (N, 128, H, W) with these parameters (N, 256, H, W), in float32."""
    mean, raw_deviation = parameters.float().chunk(2, dim=1)
    return Normal(mean, F.softplus(raw_deviation), validate_args=False)  # a check would wait for the device


class Generator(nn.Module):
    """Latents and the encoder's features to images of four sizes, each the next block's input as well."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (4 * width, 4 * width, 4 * width, 2 * width, width)
        self.latent = residual_block(widths[0], widths[0], widths[0])
        # From the third block on, the image of the block before is an input too.
        ins = (widths[0], widths[0], *(channels + 3 for channels in widths[1:-1]))
        self.blocks = nn.ModuleList(map(decoder_block, ins, widths))
        self.outputs = nn.ModuleList(map(output, widths[1:]))
        self.attention = ShortLongAttention(widths[1])

    def forward(self, latents: Tensor, last_feature: Tensor, feature: Tensor, valid: Tensor) -> list[Tensor]:
        """Takes maps of H/32 (latents and the encoder's last feature) and of H/8 (its third feature and the mask);
        returns images (N, 3, H/s, W/s) in [-1, 1] for s = 8, 4, 2, 1."""
        x = self.blocks[0](self.latent(latents) + last_feature)
        x = self.attention(self.blocks[1](x), feature, valid)
        images = [self.outputs[0](x)]
        for block, output in zip(self.blocks[2:], self.outputs[1:], strict=True):
            x = block(torch.cat([x, images[-1]], dim=1))
            images.append(output(x))
        return images


def make_discriminator(width: int) -> nn.Module:
    """Five halvings with self-attention after the third: (N, 3, H, W) in [-1, 1] -> scores (N, 1, H/32 - 2, W/32 - 2);
    H and W multiples of 32, at least 96."""
    last = 4 * width
    return nn.Sequential(
        *(first_block(width), halving_block(width, 2 * width), halving_block(2 * width, last), SelfAttention(last)),
        *(halving_block(last, last), halving_block(last, last), residual_block(last, last, last)),
        *(ACTIVATION, conv(last, 1, padding=0)),
    )


class PIC(System):
    """Trains two paths through one encoder and one generator, with a discriminator each: generation, whose latents come
    from the masked image (the prior), and reconstruction, whose latents come from its complement (the posterior).

    `width` is that of the first blocks; 32 as published.
    """

    def __init__(self, device: torch.device, precision: torch.dtype = torch.float32, width: int = 32) -> None:
        self.encoder, self.generator = Encoder(width), Generator(width)
        self.discriminators = nn.ModuleDict(
            {f"discriminator_{path}": make_discriminator(width) for path in ("generation", "reconstruction")}
        )
        networks = {"encoder": self.encoder, "generator": self.generator, **self.discriminators}
        super().__init__(device, precision, networks)
        generating = [*self.encoder.parameters(), *self.generator.parameters()]
        self.generator_optimizer, self.discriminator_optimizer = (
            torch.optim.Adam(parameters, lr=1e-4, betas=(0.0, 0.999), fused=True)
            for parameters in (generating, self.discriminators.parameters())
        )

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Updates the discriminators, then encoder and generator. H and W are multiples of 32, at least 96, and every
        mask has a hole."""
        truth, valid = 2 * batch.image - 1, batch.mask.float()
        with self.autocast():
            features, *parameters = self.encoder(torch.cat([truth * valid, truth * (1 - valid)]))
            prior, posterior = map(latents_of, parameters)
            latents = torch.cat([prior.rsample(), posterior.rsample()])
            twice = (torch.cat([t, t]) for t in (features[-1], features[2], _every(8, valid)))  # for both paths
            images = self.generator(latents, *twice)
        generation, reconstruction = zip(*(image.chunk(2) for image in images), strict=True)
        of_generation, of_reconstruction = self.discriminators.values()
        terms = {}
        with self.autocast():
            for (name, discriminator), fakes in zip(self.discriminators.items(), images[-1].chunk(2), strict=True):
                real, fake = discriminator(torch.cat([truth, fakes.detach()])).float().chunk(2)
                terms[name] = (real - 1).square().mean() + fake.square().mean()  # least squares
        update(self.discriminator_optimizer, sum(terms.values()))
        with self.autocast(), without_gradients(self.discriminators):
            score = of_generation(generation[-1]).float()
            wanted, found = of_reconstruction(truth).float(), of_reconstruction(reconstruction[-1]).float()
        hole_share = 1 - valid.mean((1, 2, 3), keepdim=True)
        adapted = Normal(torch.zeros_like(hole_share), hole_share.sqrt(), validate_args=False)
        generator_terms = {
            "kl_posterior": kl_divergence(posterior, adapted).mean(),
            "kl_prior": kl_divergence(posterior, prior).mean(),
            "l1_reconstruction": _l1(reconstruction, truth, torch.ones_like(valid)),
            "l1_generation": _l1(generation, truth, valid),
            "adversarial_generation": (score - 1).square().mean(),
            "adversarial_reconstruction": (found - wanted).square().mean(),
        }
        weighted = [WEIGHTS[name.partition("_")[0]] * term for name, term in generator_terms.items()]
        update(self.generator_optimizer, sum(weighted))
        return terms | generator_terms


def _l1(images: tuple[Tensor, ...], truth: Tensor, valid: Tensor) -> Tensor:
    """Σ over the four scales of the mean absolute difference to the average-pooled truth, counted where valid is 1."""
    total = 0
    for image in images:
        scale = truth.shape[-1] // image.shape[-1]
        difference = (image.float() - F.avg_pool2d(truth, scale)).abs()
        total = total + (difference * _every(scale, valid)).mean()
    return total


def _every(scale: int, mask: Tensor) -> Tensor:
    return mask[:, :, ::scale, ::scale]
