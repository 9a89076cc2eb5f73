"""Distances between paired images: how far is one model's sample from another's, drawn from the same noise?

Pixel distance is the mean square over all coordinates. The perceptual distance is LPIPS (Zhang, Isola, Efros, Shechtman,
Wang 2018) from the authors' package, on images first enlarged to 224 pixels: at 32 or 64 pixels the borders of its
convolutions weigh too much (Wang & Vastola 2024, A.3). Which of two sets is closer to a third is decided pair by pair, by
Wilcoxon's signed-rank test (1945) and the sign test.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.metrics.network_features import in_fixed_batches, module_digest

Trunk = Literal["alex", "vgg", "squeeze"]
Interpolation = Literal["bilinear", "bicubic", "nearest"]

#: Side of the images that LPIPS sees.
SIDE = 224

#: How the files of the trunks' weights begin, as torchvision names them.
_TRUNK_FILES = {"alex": "alexnet-owt-", "vgg": "vgg16-", "squeeze": "squeezenet1_1-"}


class PairDistance(Protocol):
    """A distance of paired samples: (N, *event) and (N, *event) to (N,) float64."""

    name: str

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """The distance of each pair."""


def _check_pairs(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or first.ndim < 2 or len(first) == 0:
        raise ArgumentError(
            f"the pairs have shapes {tuple(first.shape)} and {tuple(second.shape)}; expected (N, *event) twice, N >= 1"
        )


def pixel_mse(first: Tensor, second: Tensor) -> Tensor:
    """The mean over coordinates of the squared difference of each pair, (N,) in float64.

    Args:
        first, second: (N, *event), N ≥ 1.

    Raises:
        ArgumentError: for shapes that differ.
    """
    _check_pairs(first, second)
    return (first.double() - second.double()).flatten(1).square().mean(1)


class PixelDistance:
    """:func:`pixel_mse` as a :class:`PairDistance`."""

    name = "mse"

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """The mean squared difference of each pair, (N,) in float64."""
        return pixel_mse(first, second)


class PerceptualDistance:
    """LPIPS, version 0.1 with its linear calibration, computed by the package ``lpips``.

    Images are clamped to [−1, 1], one channel is shown as three, and each is resized to 224×224. The source does not say
    how; here it is bilinear without aligned corners (antialiased where an image is larger), unless told otherwise. Nothing
    is downloaded: the weights of the trunk have to lie in torch's own cache, where torchvision puts them.

    Args:
        net: the trunk: ``"alex"`` (AlexNet), ``"vgg"`` (VGG-16) or ``"squeeze"`` (SqueezeNet 1.1).
        device: where to compute.
        batch: pairs a call.
        interpolation: ``"bilinear"``, ``"bicubic"`` or ``"nearest"``.

    Attributes:
        name: e.g. ``"lpips-alex"``.
        digest: SHA-256 of the weights, trunk and calibration together.

    Raises:
        ArgumentError: for an unknown trunk or interpolation, where the package is not installed, or where the trunk's
            weights are missing; says what to do.
    """

    def __init__(
        self,
        net: Trunk = "alex",
        device: torch.device | str = "cpu",
        batch: int = 16,
        interpolation: Interpolation = "bilinear",
    ) -> None:
        if net not in _TRUNK_FILES:
            raise ArgumentError(f"net = {net!r}; expected {', '.join(map(repr, _TRUNK_FILES))}")
        if interpolation not in get_args(Interpolation):
            raise ArgumentError(f"interpolation = {interpolation!r}; expected 'bilinear', 'bicubic' or 'nearest'")
        if batch < 1:
            raise ArgumentError(f"batch = {batch}; expected at least 1")
        try:
            import lpips
        except ImportError as error:
            raise ArgumentError(
                f"the distance 'lpips-{net}' needs the package lpips: pip install 'farfield[lpips]'"
            ) from error
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        if not any(cache.glob(f"{_TRUNK_FILES[net]}*.pth")):
            raise ArgumentError(
                f"the distance 'lpips-{net}' finds no weights {_TRUNK_FILES[net]}*.pth in {cache}; nothing is downloaded "
                "here: put there the file of that name from download.pytorch.org/models"
            )
        self.model = lpips.LPIPS(net=net, version="0.1", verbose=False).to(device).eval().requires_grad_(False)
        self.net, self.interpolation = net, interpolation
        self.device, self.batch = torch.device(device), batch
        self.name, self.digest = f"lpips-{net}", module_digest(self.model)

    def _ready(self, x: Tensor) -> Tensor:
        x = x.to(self.device).float().clamp(-1, 1).expand(-1, 3, -1, -1)
        if self.interpolation == "nearest":
            return torch.nn.functional.interpolate(x, size=(SIDE, SIDE), mode="nearest")
        return torch.nn.functional.interpolate(
            x, size=(SIDE, SIDE), mode=self.interpolation, align_corners=False, antialias=True
        ).clamp(-1, 1)

    def _run(self, pairs: Tensor) -> Tensor:
        distance: Tensor = self.model(self._ready(pairs[:, 0]), self._ready(pairs[:, 1]))
        return distance.flatten(1).double()

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """The distance of each pair of images (N, 1 or 3, H, W) in [−1, 1]: (N,) float64, ≥ 0.

        Raises:
            ArgumentError: for shapes that differ or are not those of images.
        """
        _check_pairs(first, second)
        if first.ndim != 4 or first.shape[1] not in (1, 3):
            raise ArgumentError(f"the images have shape {tuple(first.shape)}; expected (N, 1 or 3, H, W)")
        return in_fixed_batches(self._run, torch.stack((first, second), 1), self.batch, self.name).flatten()


def pair_distance(name: str, device: torch.device | str = "cpu") -> PairDistance:
    """A distance by name: ``"mse"``, ``"lpips-alex"``, ``"lpips-vgg"`` or ``"lpips-squeeze"``.

    Raises:
        ArgumentError: for another name, or where LPIPS cannot be computed.
    """
    if name == "mse":
        return PixelDistance()
    for net in get_args(Trunk):
        if name == f"lpips-{net}":
            return PerceptualDistance(net, device)
    known = ", ".join(("mse", *(f"lpips-{net}" for net in _TRUNK_FILES)))
    raise ArgumentError(f"distance = {name!r}; expected one of {known}")


# -- statistics -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairStatistics:
    """Distances of n pairs in numbers.

    Attributes:
        mean: their mean.
        low, high: its 95 % confidence interval, by Student's t; equal to the mean for one pair.
        median: their median.
        n: number of pairs.
    """

    mean: float
    low: float
    high: float
    median: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return asdict(self)


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and its 95 % confidence interval."""
    from scipy.stats import t

    mean, n = float(values.mean()), len(values)
    half = float(t.ppf(0.975, n - 1)) * float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return mean, mean - half, mean + half


def _checked(values: Tensor, name: str) -> np.ndarray:
    flat = values.detach().double().cpu().numpy()
    if flat.ndim != 1 or not len(flat) or not np.isfinite(flat).all():
        raise ArgumentError(f"{name} has shape {flat.shape}; expected (n,) finite distances, n >= 1")
    return flat


def pair_statistics(distances: Tensor) -> PairStatistics:
    """Mean with its confidence interval, and median, of distances (n,).

    Raises:
        ArgumentError: for none, or values that are not finite.
    """
    values = _checked(distances, "distances")
    return PairStatistics(*_interval(values), float(np.median(values)), len(values))


@dataclass(frozen=True)
class PairedComparison:
    """Two sets of distances from the same n references, compared pair by pair.

    Attributes:
        difference: mean of first − second; negative where the first set is closer.
        low, high: its 95 % confidence interval, by Student's t.
        closer: the fraction of references to which the first is closer; ties count half.
        wilcoxon: two-sided p-value of the signed-rank test that the differences are symmetric about 0.
        sign: two-sided p-value of the sign test that either is closer equally often.
        n: number of references.
    """

    difference: float
    low: float
    high: float
    closer: float
    wilcoxon: float
    sign: float
    n: int

    @property
    def significant(self) -> bool:
        """Whether the signed-rank test rejects equality at 5 %."""
        return self.wilcoxon < 0.05

    def verdict(self, first: str, second: str) -> str:
        """Which of the two, under these names, is closer, and how surely: half a sentence."""
        if not self.significant:
            return f"{first} and {second} cannot be told apart by distance (Wilcoxon p = {self.wilcoxon:.2g})"
        # The test is about the typical pair; where one far pair turns the mean around, the count decides.
        ahead = self.closer > 0.5 if self.closer != 0.5 else self.difference < 0
        near, far = (first, second) if ahead else (second, first)
        share = self.closer if ahead else 1 - self.closer
        return f"{near} is closer than {far} in {100 * share:.0f} % of pairs (Wilcoxon p = {self.wilcoxon:.2g})"

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {**asdict(self), "significant": self.significant}


def paired_comparison(first: Tensor, second: Tensor) -> PairedComparison:
    """Compare two sets of distances (n,) whose entries i belong to the same reference, e.g. the same seed.

    Raises:
        ArgumentError: for sizes that differ, none at all, or values that are not finite.
    """
    from scipy.stats import binomtest, wilcoxon

    a, b = _checked(first, "first"), _checked(second, "second")
    if a.shape != b.shape:
        raise ArgumentError(f"first has {len(a)} distances and second {len(b)}; expected as many")
    gaps = a - b
    below, above = int((gaps < 0).sum()), int((gaps > 0).sum())
    decided = below + above
    rank = float(wilcoxon(gaps[gaps != 0]).pvalue) if decided else 1.0
    sign = float(binomtest(below, decided).pvalue) if decided else 1.0
    return PairedComparison(*_interval(gaps), (below + (len(a) - decided) / 2) / len(a), rank, sign, len(a))
