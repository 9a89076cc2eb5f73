"""Learning dynamics, measured: how far a network in training is from the simple laws, and how much of each direction it knows.

A look at the network is one row: for each noise level and law the unexplained fraction of the score and of the denoiser,

    E‖D_net − D_law‖² / E‖D_net − x‖²    and    E‖D_net − D_law‖² / E‖D_net‖²,

and for each leading principal component u_k of the data the *gain*, the slope of ``u_k · D_net`` on ``u_k · x`` over the
queries, which is ``λ_k/(λ_k + σ²)`` where the network is the Gaussian law. Rows at growing steps show the order in which
structure is learned (Wang & Vastola 2024, section 5, figures 12 and 13): the Gaussian first, then a few clusters, then detail.

The queries of a level are the same at every look, noised data points named by a seed (protocol ``"noised"`` of
:func:`~farfield.analysis.fidelity.score_fidelity`, and its very points), and the laws answer them once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.fidelity import descending, draw_queries
from farfield.analysis.reference_laws import reference_laws
from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError, NonFiniteError

#: Noise levels of a probe: from where samples differ in detail to where the data are a point.
SIGMAS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
#: Laws of a probe, from coarse to fine.
LAWS = ("gaussian", "mixture:4", "mixture:16", "empirical")
#: Wide arithmetic up to this many coordinates, as for score fidelity.
_WIDE = 256
_MIXTURE = re.compile(r"mixture:([1-9]\d{0,5})")


def check_law(name: str) -> str:
    """The name of a law, if it is one.

    Raises:
        ArgumentError: for anything but ``isotropic``, ``spherical``, ``gaussian``, ``empirical`` and ``mixture:K``.
    """
    if name not in ("isotropic", "spherical", "gaussian", "empirical") and not _MIXTURE.fullmatch(name):
        raise ArgumentError(
            f"law {name!r}; expected isotropic, spherical, gaussian, mixture:K (K clusters) or empirical"
        )
    return name


def named_laws(data: Tensor, names: Sequence[str] = LAWS, seed: int = 0) -> dict[str, Denoiser]:
    """Laws of :func:`~farfield.analysis.reference_laws.reference_laws` by name, in the order given.

    Args:
        data: (N, *event).
        names: see :func:`check_law`.
        seed: of the clustering.

    Raises:
        ArgumentError: for an unknown name, or more clusters than points.
    """
    sizes = [int(match[1]) for name in names if (match := _MIXTURE.fullmatch(check_law(name)))]
    # One cluster costs next to nothing.
    found = reference_laws(data, components=tuple(dict.fromkeys(sizes)) or (1,), spherical=True, seed=seed)
    return {name: found[name] for name in names}


@dataclass(frozen=True)
class _Level:
    """All that a look needs at one noise level and that does not depend on the network."""

    sigma: float
    x: Tensor
    answers: Tensor  # (laws, queries, *event)
    coordinates: Tensor  # of the queries along the components, centred over the queries (queries, K)


class LearningProbe:
    """A look at a network, the same at every step; calling it gives a row.

    Args:
        data: (N, *event) the training samples: noised queries start from them, and components are theirs.
        laws: laws by name; :func:`named_laws` of the data by default.
        sigmas: noise levels, > 0.
        queries: query points at each level, ≥ 2.
        components: leading principal components whose gain is measured; at most the number of coordinates.
        seed: names the queries, and the clustering of the default laws.
        device: of the networks that will be looked at; by default that of the data. The laws answer where the data are.
        batch_size: queries evaluated at once.

    Attributes:
        sigmas: the levels, decreasing.
        variances: λ of the components, descending.

    Raises:
        ArgumentError: for an argument out of range.
    """

    def __init__(
        self,
        data: Tensor,
        laws: Mapping[str, Denoiser] | None = None,
        sigmas: Sequence[float] = SIGMAS,
        *,
        queries: int = 256,
        components: int = 16,
        seed: int = 0,
        device: torch.device | str | None = None,
        batch_size: int = 512,
    ) -> None:
        self.sigmas = descending(sigmas)
        if queries < 2 or batch_size < 1 or components < 0:
            raise ArgumentError(
                f"queries = {queries}, batch_size = {batch_size}, components = {components}; expected at least 2, 1 and 0"
            )
        chosen = dict(laws) if laws is not None else named_laws(data, seed=seed)
        event = tuple(data.shape[1:])
        for name, law in chosen.items():
            if law.event_shape != event:
                raise ArgumentError(f"law {name!r} has events {law.event_shape}; the data have {event}")
        self.event_shape, self.laws, self.queries, self.seed = event, tuple(chosen), queries, seed
        self.batch_size, self.device = batch_size, torch.device(device) if device is not None else data.device
        dim = math.prod(event)
        dtype = torch.float64 if dim <= _WIDE else torch.float32
        mean, basis, self.variances = _components(data, chosen.get("gaussian"), min(components, dim))
        self._mean = mean.to(self.device, dtype).flatten()
        self._basis = basis.to(self.device, dtype)

        origin, z = draw_queries(data, queries, "noised", seed, dtype)
        assert origin is not None
        self._levels = [self._level(origin + z * sigma, sigma, chosen) for sigma in self.sigmas]

    @torch.no_grad()
    def _level(self, x: Tensor, sigma: float, laws: Mapping[str, Denoiser]) -> _Level:
        answers = x.new_empty(len(laws), *x.shape)
        for answer, law in zip(answers, laws.values(), strict=True):
            answer.copy_(self._ask(law, x, sigma))
        x = x.to(self.device)
        along = (x.flatten(1) - self._mean) @ self._basis
        return _Level(sigma, x, answers.to(self.device), along - along.mean(0))

    def _ask(self, denoiser: Denoiser, x: Tensor, sigma: float) -> Tensor:
        return torch.cat([denoiser(part, sigma) for part in x.split(self.batch_size)])

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser) -> dict[str, Any]:
        """A row: what the denoiser is at this moment.

        Args:
            denoiser: on the probe's device, in eval mode; one with classes is asked without a class.

        Returns:
            JSON-safe: ``sigmas``, ``queries``, ``seed``, ``variances`` (λ_k); ``laws``, for each law ``score`` and
            ``denoiser``, the unexplained fractions by level; ``gains``, by level and component.

        Raises:
            ArgumentError: for a denoiser of other events.
            NonFiniteError: if it answers with NaN or infinity.
        """
        if denoiser.event_shape != self.event_shape:
            raise ArgumentError(f"the denoiser takes events {denoiser.event_shape}; the probe has {self.event_shape}")
        found = torch.stack([self._look(denoiser, level) for level in self._levels]).tolist()  # the one wait
        for level, row in zip(self._levels, found, strict=True):
            if not all(map(math.isfinite, row)):
                raise NonFiniteError(f"the network's answers at sigma = {level.sigma:g} hold NaN or infinite values")
        count = len(self.laws)
        return {
            "sigmas": list(self.sigmas),
            "queries": self.queries,
            "seed": self.seed,
            "variances": list(self.variances),
            "laws": {
                name: {"score": [row[k] for row in found], "denoiser": [row[count + k] for row in found]}
                for k, name in enumerate(self.laws)
            },
            "gains": [row[2 * count :] for row in found],
        }

    def _look(self, denoiser: Denoiser, level: _Level) -> Tensor:
        """Unexplained fractions of score and denoiser by law, then gains: (2 laws + components,) in float64."""
        d = self._ask(denoiser, level.x, level.sigma)
        # A law's answer is compared in its own precision; only sums need to be wide.
        gaps = torch.stack([(d - answer).flatten().double().square().sum() for answer in level.answers.unbind()])
        tiny = torch.finfo(torch.float64).tiny
        score = (d - level.x).flatten().double().square().sum().clamp(min=tiny)
        size = d.flatten().double().square().sum().clamp(min=tiny)
        c = level.coordinates
        along = (d.flatten(1) - self._mean) @ self._basis
        gains = (along * c).double().sum(0) / c.double().square().sum(0)
        return torch.cat((gaps / score, gaps / size, gains))


def _components(data: Tensor, law: Denoiser | None, count: int) -> tuple[Tensor, Tensor, tuple[float, ...]]:
    """Mean (*event), leading eigenvectors (d, count) and their variances; those of the Gaussian law where it has them."""
    fits = isinstance(law, Gaussian) and law.spectrum.basis is not None and law.spectrum.rank >= count
    found = law if fits else Gaussian.fit(data, rank=count)
    assert isinstance(found, Gaussian)
    basis = found.spectrum.basis
    assert basis is not None
    return found.mean, basis[:, :count], tuple(found.spectrum.values[:count].tolist())
