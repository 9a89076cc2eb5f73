"""How likely a model finds data that it was trained on, and data that it was not, beside the Gaussian of the data.

Bits per dimension (``metrics.likelihood``) of a few training and a few held-out samples. A model that gives its training
samples fewer bits than the held-out ones has learned them rather than the law. The Gaussian's bits, of the same dequantised
samples at the same level, are what mean and covariance alone are worth.

Beside it the order of likelihoods along sampling (:mod:`~farfield.analysis.likelihood_order`): whether the model's output and
the next state are more likely, under the training data blurred to the level's bandwidth, than the state they come from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.catalogue import Subject, analysis
from farfield.analysis.likelihood_order import LikelihoodOrder, measure_order
from farfield.analysis.noise_range import rounding
from farfield.analysis.plotting import INK, PALETTE, axes_for, dress
from farfield.analysis.tables import Table
from farfield.distributions import Empirical, Gaussian
from farfield.errors import ArgumentError
from farfield.metrics.dequantisation import Dequantisation, dequantise
from farfield.metrics.likelihood import Likelihood, log_likelihood
from farfield.numerics import streams


@dataclass(frozen=True, eq=False)
class LikelihoodReport:
    """Likelihoods by set: ``"training"`` and, where there is one, ``"held out"``; and their order along sampling.

    Attributes:
        sets: the model's likelihoods; empty where they were left out.
        gaussian: bits per dimension under the data's Gaussian, of the same samples.
        order: densities along trajectories under the training data, or None where they were left out.
    """

    sets: dict[str, Likelihood]
    gaussian: dict[str, tuple[float, ...]]
    order: LikelihoodOrder | None = None

    @property
    def gap(self) -> float | None:
        """Mean bits of the held-out samples less those of the training samples; None without held-out ones."""
        if "held out" not in self.sets:
            return None
        return self.sets["held out"].mean_bits[0] - self.sets["training"].mean_bits[0]

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return {
            "sets": {name: found.to_dict() for name, found in self.sets.items()},
            "gaussian_bits_per_dim": self.gaussian,
            "gap": self.gap,
            "order": None if self.order is None else self.order.to_dict(),
        }

    def summary(self) -> str:
        """Mean bits by set, the Gaussian's, and the gap; then the order of likelihoods."""
        order = [] if self.order is None else [self.order.summary()]
        return " ".join([*([self._bits()] if self.sets else []), *order])

    def _bits(self) -> str:
        parts = []
        for name, found in self.sets.items():
            mean, error = found.mean_bits
            parts.append(f"{mean:.3f} ± {error:.3f} bits/dim on {len(found.log_prob)} {name} samples")
        found = next(iter(self.sets.values()))
        kind = f"lattice of step {found.step:.4g}, dequantisation {found.dequantisation}" if found.step else "densities"
        name = list(self.sets)[-1]
        other = sum(self.gaussian[name]) / len(self.gaussian[name])
        text = f"{', '.join(parts)} ({kind}, at σ = {found.sigma_min:.3g}); the data's Gaussian: {other:.3f} ({name})."
        if self.gap is not None:
            text += f" Held out costs {abs(self.gap):.3f} bits/dim {'more' if self.gap >= 0 else 'less'} than training."
        return text

    def tables(self) -> list[Table]:
        """Means by set; the order level by level."""
        order = [] if self.order is None else self.order.tables()
        if not self.sets:
            return order
        rows = tuple(
            (
                name, len(f.log_prob), *f.mean_bits, sum(self.gaussian[name]) / len(self.gaussian[name]),
                float(f.log_prob.mean()), float(f.error.max()), _mean(f.probe_error), float(f.products.double().mean()),
            )
            for name, f in self.sets.items()
        )  # fmt: skip
        columns = (
            "samples", "number", "bits/dim", "± error", "Gaussian's bits/dim", "log p, nats", "integration error",
            "probe error", "Jacobian products",
        )  # fmt: skip
        return [Table("likelihood", columns, rows), *order]

    def plot(self, ax: Any = None) -> Any:
        """Bits per dimension of every sample, the model's against the Gaussian's; then the order's two panels.

        Args:
            ax: as many axes as there are panels (1, 2 or 3), or None for a new figure.

        Returns:
            The figure.
        """
        count = bool(self.sets) + 2 * (self.order is not None)
        axes = axes_for(ax, count, width=5.6 if count == 1 else 4.8 * count, height=4.6 if count == 1 else 4.2)
        if self.sets:
            self._draw_bits(axes[0])
        if self.order is not None and len(axes) >= 2:
            self.order.plot(axes[-2:])
        return axes[0].figure

    def _draw_bits(self, axes: Any) -> None:
        both: list[float] = []
        for (name, found), colour in zip(self.sets.items(), PALETTE, strict=False):
            ours, theirs = found.bits_per_dim.tolist(), self.gaussian[name]
            axes.plot(
                theirs, ours, "o", color=colour, markersize=5, alpha=0.8, label=f"{name}, mean {found.mean_bits[0]:.2f}"
            )
            both += [*ours, *theirs]
        ends = (min(both), max(both))
        axes.plot(ends, ends, color=INK, alpha=0.4, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            "as the Gaussian", (ends[1], ends[1]), xytext=(-4, -2), textcoords="offset points", fontsize=8, color=INK,
            ha="right", va="top",
        )  # fmt: skip
        dress(
            axes,
            "bits/dim under the data's Gaussian",
            "bits/dim under the model",
            "below the line the model knows more",
        )
        axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="best")


def _mean(values: Tensor) -> float | None:
    mean = float(values.mean())
    return mean if math.isfinite(mean) else None


@dataclass(frozen=True)
class LikelihoodOptions:
    """Options of the analysis; see :func:`~farfield.metrics.likelihood.log_likelihood`.

    ``step`` is the lattice's; None finds it in the data, 0 asks for densities. ``bits`` and ``ordering`` say what is measured;
    ``trajectories``, ``steps``, ``solver`` and ``bandwidth`` are of the ordering, see
    :func:`~farfield.analysis.likelihood_order.measure_order`.
    """

    n: int = 8
    probes: int = 2
    dequantisation: Dequantisation = "noise"
    step: float | None = None
    skip: float | None = None
    tolerance: float = 0.1
    bits: bool = True
    ordering: bool = True
    trajectories: int = 32
    steps: int = 18
    solver: str = "euler"
    bandwidth: float | None = None


@analysis(
    "likelihood",
    about="bits per dimension of training and held-out samples, and the order of likelihoods along sampling",
    options=LikelihoodOptions,
)
def analyze_likelihood(subject: Subject, options: LikelihoodOptions) -> LikelihoodReport:
    """Likelihoods of ``n`` training and ``n`` held-out samples, chosen by the seed, and the order along trajectories."""
    if options.n < 1:
        raise ArgumentError(f"n = {options.n}; expected at least 1")
    if not options.bits and not options.ordering:
        raise ArgumentError("bits and ordering are both false; expected at least one of them")
    order = None
    if options.ordering:
        order = measure_order(
            subject.model, Empirical(subject.data), n=options.trajectories, steps=options.steps, solver=options.solver,
            bandwidth=options.bandwidth, seed=subject.seed,
        )  # fmt: skip
    sets, theirs = _likelihoods(subject, options) if options.bits else ({}, {})
    return LikelihoodReport(sets, theirs, order)


def _likelihoods(
    subject: Subject, options: LikelihoodOptions
) -> tuple[dict[str, Likelihood], dict[str, tuple[float, ...]]]:
    """The model's likelihoods by set, and the Gaussian's bits of the same samples."""
    model, data = subject.model, subject.data
    step = rounding(data, subject.seed).step if options.step is None else options.step or None
    law = Gaussian.fit(data, rank=None if model.dim <= 1024 else 512)
    sets: dict[str, Likelihood] = {}
    theirs: dict[str, tuple[float, ...]] = {}
    for number, (name, source) in enumerate((("training", data), ("held out", subject.heldout))):
        if source is None or not len(source):
            continue
        order = streams.permutation(subject.seed, len(source), purpose=f"likelihood {name}")[: options.n]
        x, first = source[order.to(source.device)], number * options.n
        found = log_likelihood(
            model, x, step=step, dequantisation=options.dequantisation, control=law, probes=options.probes,
            gaussian=None if options.skip is None else law, sigma_skip=options.skip, tolerance=options.tolerance,
            seed=subject.seed, first=first,
        )  # fmt: skip
        sets[name] = found
        theirs[name] = _under(law, x, found, subject.seed, first)
    return sets, theirs


def _under(law: Gaussian, x: Tensor, found: Likelihood, seed: int, first: int) -> tuple[float, ...]:
    """Bits per dimension of the same dequantised samples under the Gaussian at the same level."""
    y, correction = x.double(), torch.zeros(len(x), dtype=torch.float64, device=x.device)
    blur = found.sigma_min
    if found.step is not None and found.dequantisation is not None:
        y, correction = dequantise(y, found.step, found.dequantisation, found.sigma_min, seed, first)
        if found.dequantisation == "uniform":  # the spread of a cell is part of what the samples now are
            blur = math.hypot(blur, found.step / math.sqrt(12))
    bits = -(law.log_prob(y, blur) + correction) / (law.dim * math.log(2))
    return tuple(bits.tolist())
