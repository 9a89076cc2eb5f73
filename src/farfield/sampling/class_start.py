"""Teleports of conditional models: each class along the flow of its own Gaussian."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Spectrum
from farfield.processes import Process
from farfield.sampling.guidance import ClassifierFree, Guidance
from farfield.sampling.guided_gaussian import GuidedGaussian
from farfield.sampling.small_batches import filled
from farfield.sampling.solvers.base import on_device
from farfield.sampling.starts import NOTHING, STARTS, GridPolicy, LateGrid


@dataclass(frozen=True, eq=False)
class ClassTeleport(LateGrid):
    """The same noise carried along the flow of its class's Gaussian; of the pooled one where the class has none.

    Classifier-free guidance of the sampler acts on the way, with the pooled Gaussian as the unconditional law
    (:class:`~farfield.sampling.guided_gaussian.GuidedGaussian`); other guidance does not.

    Args:
        gaussians: one for each class, None for a class with too few images.
        pooled: of all images.
        sigma: the level of the start.
        grid_policy: as for :class:`~farfield.sampling.starts.Teleport`.

    Raises:
        ArgumentError: for something else than Gaussians, or Gaussians of several shapes.
    """

    gaussians: Sequence[Gaussian | None]
    pooled: Gaussian
    sigma: float
    grid_policy: GridPolicy = "regrid"
    name: ClassVar[str] = "class_teleport"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "gaussians", tuple(self.gaussians))
        if not isinstance(self.pooled, Gaussian):
            raise ArgumentError(f"pooled is a {type(self.pooled).__name__}; expected a Gaussian")
        for k, law in enumerate(self.gaussians):
            if law is not None and not (isinstance(law, Gaussian) and law.event_shape == self.pooled.event_shape):
                raise ArgumentError(f"gaussians[{k}] is not a Gaussian of shape {self.pooled.event_shape}, nor None")

    @classmethod
    def fit(
        cls,
        images: Tensor,
        labels: Tensor,
        sigma: float,
        *,
        basis: Literal["own", "pooled"] = "own",
        rank: int | None = None,
        least: int | None = None,
        grid_policy: GridPolicy = "regrid",
    ) -> Self:
        """The Gaussians of labelled images.

        Args:
            images: (N, *event).
            labels: (N,) class numbers ≥ 0.
            sigma, grid_policy: of the start.
            basis: ``"own"`` eigenvectors of each class; or ``"pooled"``, where each class has its own mean and its own
                variances along the eigenvectors of all images: far fewer numbers, and guidance has a closed form.
            rank: eigenvalues kept one by one; all by default.
            least: a class with fewer images goes with the pooled Gaussian; by default as many as an eigenbasis has
                directions, or 16 where the basis is pooled.

        Raises:
            ArgumentError: if labels and images disagree, or ``basis`` is unknown.
        """
        if labels.ndim != 1 or len(labels) != len(images) or labels.is_floating_point():
            raise ArgumentError(f"labels have shape {tuple(labels.shape)}; expected {len(images)} class numbers")
        if basis not in ("own", "pooled"):
            raise ArgumentError(f"basis = {basis!r}; expected 'own' or 'pooled'")
        pooled = Gaussian.fit(images, rank=rank)
        if least is None:
            least = 16 if basis == "pooled" else max(pooled.spectrum.rank, 2)
        found: list[Gaussian | None] = []
        for c in range(int(labels.max()) + 1):
            rows = images[(labels == c).to(images.device)]
            if len(rows) < least:
                found.append(None)
            else:
                found.append(Gaussian.fit(rows, rank=rank) if basis == "own" else on_basis_of(pooled, rows))
        return cls(tuple(found), pooled, sigma, grid_policy)

    @property
    def laws(self) -> tuple[Denoiser, ...]:
        """All Gaussians."""
        return (self.pooled, *(law for law in self.gaussians if law is not None))

    def state(
        self,
        z: Tensor,
        top: float,
        process: Process,
        condition: Mapping[str, Any] = NOTHING,
        guidance: Sequence[Guidance] = (),
    ) -> Tensor:
        """Each row along its class's flow."""
        guides = [part for part in guidance if isinstance(part, ClassifierFree)]
        if len(guides) > 1:
            raise ArgumentError("a teleport by class knows no flow under two classifier-free guidances; use one")
        pooled = on_device(self.pooled, z.device)
        x = top * z
        classes = self._classes(condition.get("labels"), len(z))
        if classes is None:
            return pooled.flow(x, top, self.sigma)
        result = torch.empty_like(x)
        for c in torch.unique(classes).tolist():
            rows = torch.nonzero(classes == c)[:, 0].to(z.device)
            own = self.gaussians[c] if c >= 0 else None
            law: Gaussian | GuidedGaussian = pooled if own is None else on_device(own, z.device)
            if own is not None and guides:
                law = GuidedGaussian(on_device(own, z.device), pooled, guides[0])
            # How many rows a class has depends on the batch; the sample must not.
            result[rows] = law.flow(x[filled(rows, self.pooled.dim)], top, self.sigma)[: len(rows)]
        return result

    def _classes(self, labels: Tensor | None, n: int) -> Tensor | None:
        """The class of each row, −1 for none; labels as networks take them: class numbers, or rows with a 1."""
        if labels is None:
            return None
        if labels.ndim == 2:
            top = labels.max(1)
            labels = torch.where(top.values > 0, top.indices, -1)
        classes = labels.reshape(-1).long().expand(n)
        if not -1 <= int(classes.min()) <= int(classes.max()) < len(self.gaussians):
            raise ArgumentError(
                f"labels reach from {int(classes.min())} to {int(classes.max())}; "
                f"the start has Gaussians for 0 to {len(self.gaussians) - 1}, and -1 stands for no class"
            )
        return classes

    def to_dict(self) -> dict[str, Any]:
        """The parameters."""
        names = ("gaussians", "pooled", "sigma", "grid_policy")
        return {"name": self.name, **{name: getattr(self, name) for name in names}}


def on_basis_of(pooled: Gaussian, rows: Tensor) -> Gaussian:
    """The rows' own mean and their variances along the eigenvectors of ``pooled``, with the mean variance outside them."""
    spectrum = pooled.spectrum
    y = rows.to(pooled.mean).flatten(1)
    mean = y.double().mean(0)
    centred = y - mean.to(y.dtype)
    values = spectrum.project(centred).double().square().mean(0)
    tail = 0.0
    if spectrum.tail_dim:
        total = centred.double().square().sum(1).mean()
        tail = max(float(total - values.sum()) / spectrum.tail_dim, 0.0)
    mean = mean.to(pooled.mean.dtype).view(pooled.event_shape)
    if spectrum.kind == "basis":
        assert spectrum.basis is not None
        return Gaussian(mean, Spectrum.low_rank(spectrum.basis, values, tail))
    rotation = spectrum.channel_basis if isinstance(spectrum.channel_basis, Tensor) else None
    if spectrum.kind == "dct":
        assert spectrum.event_shape is not None
        return Gaussian(mean, Spectrum.dct(spectrum.event_shape, values, rotation))
    return Gaussian(mean, Spectrum.diagonal(values))


STARTS[ClassTeleport.name] = ClassTeleport
