"""Random flips, scalings, rotations, stretches and shifts of training images that do not leak into samples.

The pipeline of Karras, Aittala, Aila, Laine 2022 (appendix F.2 and its table of transformations), after Karras et al.
2020 ("Training generative adversarial networks with limited data"). In this order, with n, n₁, n₂ standard normal and
each but the first applied with probability ``p``:

    transformation                                          label
    mirror left-right, always with probability 1/2          1 if mirrored
    mirror top-bottom, with probability 1/2 where applied   1 if mirrored
    scale by 2^(0.2 n)                                      n
    rotate by w, uniform on ±180°                           cos w − 1, sin w
    stretch by 2^(0.2 n) along the direction v,             n cos v, n sin v
      by 2^(−0.2 n) across it, v uniform on ±180°
    shift by 0.125 n₁ widths and 0.125 n₂ heights           n₁, n₂

The network is told the labels. An image whose labels are all zero is the training image itself, to the bit, so the law
given zero labels is the law of the data, and samples drawn without labels show none of the rest.

Mirror images are exact. All the rest is one resampling: the image is interpolated to twice its resolution, read
bilinearly on a twofold grid of the transformed plane, and brought down by a low-pass filter, so that shrinking by up to
two does not alias. Both filters are those of the biorthogonal 9/7 wavelet (Cohen, Daubechies, Feauveau 1992); they are
symmetric and undo each other, hence whole-pixel shifts and quarter turns come out exact to rounding. Beyond its border an
image continues as its reflection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.numerics import streams

#: The 9/7 wavelet's low-pass filters from the centre outwards: synthesis (sum 2) doubles, analysis (sum 1) halves.
_UP = (1.115087052456994, 0.5912717631142470, -0.05754352622849957, -0.09127176311424948)
_DOWN = (0.6029490182363579, 0.2668641184428723, -0.07822326652898785, -0.01686411844287495, 0.02674875741080976)
_REACH = len(_DOWN) - 1
_LEAST = 4  # pixels along an axis


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the training images, off by default; the strengths are those of Karras et al. 2022.

    Args:
        p: probability of each transformation but the left-right mirror; 0 turns everything off. 0.12 is the published
            value for CIFAR-10, 0.15 for 64×64 faces.
        xflip: mirror half of the images left to right.
        yflip: mirror top to bottom half of those that ``p`` picks.
        scale: standard deviation of the base-2 logarithm of the scale; 0 is off.
        rotate_frac: rotations reach to ± this fraction of 180°; 0 is off.
        aniso: standard deviation of the base-2 logarithm of the stretch; 0 is off.
        translate_frac: standard deviation of the shift as a fraction of the image; 0 is off.
        inform: tell the network what was done; without it samples show the transformations.

    Raises:
        ArgumentError: for a value out of its range.
    """

    p: float = 0.0
    xflip: bool = True
    yflip: bool = True
    scale: float = 0.2
    rotate_frac: float = 1.0
    aniso: float = 0.2
    translate_frac: float = 0.125
    inform: bool = True

    def __post_init__(self) -> None:
        for name in ("p", "scale", "rotate_frac", "aniso", "translate_frac"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                kind = "a probability" if name == "p" else "a number"
                raise ArgumentError(f"augment.{name} = {value}; expected {kind} in [0, 1]")

    @property
    def active(self) -> bool:
        """Whether anything is changed at all."""
        return self.p > 0 and self.augment_dim > 0

    @property
    def augment_dim(self) -> int:
        """How many labels the network gets: 9 with every transformation."""
        single = self.xflip + self.yflip + (self.scale > 0)
        return single + 2 * ((self.rotate_frac > 0) + (self.aniso > 0) + (self.translate_frac > 0))


def augment(
    config: AugmentConfig, images: Tensor, seed: int, ids: Tensor, purpose: str = "augment"
) -> tuple[Tensor, Tensor]:
    """Transformed images (B, C, H, W) and what was done to them (B, augment_dim), both in the images' precision.

    Image i depends on itself, ``seed``, ``purpose`` and ``ids[i]`` alone, bit for bit.

    Args:
        config: which transformations, how often and how strong.
        images: (B, C, H, W), at least 4 pixels a side.
        seed: of the run.
        ids: (B,) int64, the numbers of the images in the run.
        purpose: names the stream of random numbers.

    Raises:
        ArgumentError: images of another shape, or a number of ids that does not fit.
    """
    if images.ndim != 4 or min(images.shape[-2:]) < _LEAST:
        raise ArgumentError(f"images have shape {tuple(images.shape)}; expected (B, C, H, W) with H, W ≥ {_LEAST}")
    if ids.shape != images.shape[:1]:
        raise ArgumentError(f"ids have shape {tuple(ids.shape)}; expected ({len(images)},)")
    if not config.active:
        return images, images.new_zeros(len(images), config.augment_dim)
    # float64: the last bit of a cosine may depend on its place in the batch, and must not show. Every transformation
    # has its own numbers, so that switching one off leaves the others as they were.
    u = streams.uniform(seed, ids, (9,), purpose=f"{purpose} uniform", dtype=torch.float64, device=images.device).T
    z = streams.normal(seed, ids, (4,), purpose=f"{purpose} normal", dtype=torch.float64, device=images.device).T
    on = (u[:5] < config.p).to(torch.float64)
    labels: list[Tensor] = []
    if config.xflip:
        mirrored = u[5] < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        labels.append(mirrored.to(torch.float64))
    if config.yflip:
        mirrored = (u[6] < 0.5) & (on[0] > 0)
        images = torch.where(mirrored[:, None, None, None], images.flip(-2), images)
        labels.append(mirrored.to(torch.float64))
    moved = torch.zeros_like(u[0], dtype=torch.bool)
    scale, angle, stretch, direction, dx, dy = (torch.zeros_like(u[0]) for _ in range(6))
    if config.scale > 0:
        scale, moved = config.scale * on[1] * z[0], moved | (on[1] > 0)
        labels.append(on[1] * z[0])
    if config.rotate_frac > 0:
        angle, moved = on[2] * (2 * u[7] - 1) * (math.pi * config.rotate_frac), moved | (on[2] > 0)
        labels += [angle.cos() - 1, angle.sin()]
    if config.aniso > 0:
        stretch, direction, moved = config.aniso * on[3] * z[1], (2 * u[8] - 1) * math.pi, moved | (on[3] > 0)
        labels += [on[3] * z[1] * direction.cos(), on[3] * z[1] * direction.sin()]
    if config.translate_frac > 0:
        dx, dy, moved = on[4] * z[2], on[4] * z[3], moved | (on[4] > 0)
        labels += [dx, dy]
    told = torch.stack(labels, 1).to(images.dtype)
    if config.scale > 0 or config.rotate_frac > 0 or config.aniso > 0 or config.translate_frac > 0:
        height, width = images.shape[-2:]
        shift = torch.stack((dx * (config.translate_frac * width), dy * (config.translate_frac * height)), 1)
        inverse = inverse_matrix(scale, angle, stretch, direction)
        if images.device.type == "cpu":  # where looking which ones move is free, the others cost nothing
            rows = moved.nonzero()[:, 0]
            images = images.index_copy(0, rows, warp(images[rows], inverse[rows], shift[rows]))
        else:
            images = torch.where(moved[:, None, None, None], warp(images, inverse, shift), images)
    return images, told


def inverse_matrix(scale: Tensor, angle: Tensor, stretch: Tensor, direction: Tensor) -> Tensor:
    """From a place in the new image to that in the old one, x right, y down: (B, 2, 2) in float64.

    The inverse of stretching along ``direction`` after turning by ``angle`` (counter-clockwise as seen) after scaling.

    Args:
        scale, stretch: base-2 logarithms (B,).
        angle, direction: radians (B,).
    """
    c, s = direction.cos(), direction.sin()
    along, across = torch.exp2(-stretch), torch.exp2(stretch)
    xx, xy, yy = along * c * c + across * s * s, (along - across) * c * s, along * s * s + across * c * c
    c, s = angle.cos() * torch.exp2(-scale), angle.sin() * torch.exp2(-scale)
    rows = (c * xx - s * xy, c * xy - s * yy, s * xx + c * xy, s * xy + c * yy)
    return torch.stack(rows, 1).reshape(-1, 2, 2)


def warp(images: Tensor, inverse: Tensor, shift: Tensor) -> Tensor:
    """Resample images: the new value at place u (pixels from the centre) is the old one at ``inverse @ (u − shift)``.

    Args:
        images: (B, C, H, W).
        inverse: (B, 2, 2) float64, for columns (x, y).
        shift: (B, 2) float64, pixels right and down.
    """
    height, width = images.shape[-2:]
    work = images if images.dtype in (torch.float32, torch.float64) else images.float()
    fine = _double(_double(work, -1), -2)
    # The places of the doubled output, with as many more on each side as the filter that halves it reaches out to.
    x, y = (
        (torch.arange(2 * n - 1 + 2 * _REACH, device=images.device, dtype=torch.float64) - (n - 1 + _REACH)) / 2
        for n in (width, height)
    )
    # Sums of products element by element: a matrix product's rounding may depend on the size of the batch.
    u, v = x[None, None, :] - shift[:, 0, None, None], y[None, :, None] - shift[:, 1, None, None]
    m = inverse[:, :, :, None, None]
    # In units in which the centres of the outermost pixels are −1 and 1; reflection takes place there.
    places = [(m[:, k, 0] * u + m[:, k, 1] * v) * (2 / (n - 1)) for k, n in ((0, width), (1, height))]
    grid = torch.stack(places, -1).to(work.dtype)
    read = F.grid_sample(fine, grid, mode="bilinear", padding_mode="reflection", align_corners=True)
    return _halve(_halve(read, -1), -2).to(images.dtype)


def _double(x: Tensor, dim: int) -> Tensor:
    """n samples along an axis to 2n − 1, every other one at the place of an old one; the ends are reflected."""
    x = x.movedim(dim, -1)
    n = x.shape[-1]
    before, after = x[..., 1:2], x[..., -2:-1]
    padded = torch.cat((before, x, after), -1)
    out = x.new_empty(*x.shape[:-1], 2 * n - 1)
    out[..., 0::2] = _UP[0] * x + _UP[2] * (padded[..., :-2] + padded[..., 2:])
    out[..., 1::2] = _UP[1] * (x[..., :-1] + x[..., 1:]) + _UP[3] * (padded[..., :-3] + padded[..., 3:])
    return out.movedim(-1, dim)


def _halve(x: Tensor, dim: int) -> Tensor:
    """2n + 7 samples along an axis to n, each the filtered value at every other place."""
    x = x.movedim(dim, -1)
    end = x.shape[-1] - 2 * _REACH

    def at(offset: int) -> Tensor:
        return x[..., _REACH + offset : _REACH + offset + end : 2]

    out = _DOWN[0] * at(0)
    for k in range(1, _REACH + 1):
        out = out.add_(at(-k) + at(k), alpha=_DOWN[k])
    return out.movedim(-1, dim)
