"""Score fidelity: how much of a model's score the simple laws leave unexplained, noise level by noise level.

    FUV(σ) = E‖s_model − s_law‖² / E‖s_model‖²,    s = (D − x)/σ²,    so   FUV = E‖D_model − D_law‖² / E‖D_model − x‖²

(Wang & Vastola 2024, Eq. 28). The laws climb from the far field to the training set: *isotropic* (D = μ), *Gaussian* (mean
and covariance), *mixture* (k-means clusters with their own covariances), *empirical* (the training images as points, the
optimum of the training loss). Far from the data a model follows the Gaussian; where it departs from that, and whether it
then follows the empirical law (memorisation) or not (generalisation), is what the curves show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from farfield.analysis.catalogue import Subject, analysis
from farfield.analysis.plotting import INK, PALETTE, axes_for, dress, label_ends, marker_line
from farfield.analysis.tables import Table
from farfield.denoiser import Denoiser
from farfield.distributions import Empirical, Gaussian, GaussianMixture
from farfield.errors import ArgumentError
from farfield.numerics import streams
from farfield.numerics.spectrum import Spectrum

Protocol = Literal["noised", "noise"]

#: Wide arithmetic up to this many coordinates; above it the float32 floor of about 1e-13 is far below any network's.
_WIDE = 1024
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class LawFidelity:
    """One law's curve; every tuple runs along the noise levels.

    Attributes:
        fuv: the ratio of means, 0 where the law is the model; may exceed 1.
        standard_error: of ``fuv`` over the queries, by the delta method.
        mean_ratio: the mean over queries of each query's own ratio (the convention of published explained variances).
        quantiles: the 5, 25, 50, 75 and 95 % quantiles of those ratios.
    """

    fuv: tuple[float, ...]
    standard_error: tuple[float, ...]
    mean_ratio: tuple[float, ...]
    quantiles: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, eq=False)
class ScoreFidelity:
    """The fraction of score variance that each law leaves unexplained, by noise level.

    Attributes:
        sigmas: the noise levels, decreasing.
        laws: a curve for each law, by name.
        protocol: ``"noised"``: x = data point + σz; ``"noise"``: x = σz.
        queries, seed: number of query points at each level, and the seed that names them.
        count, dim: data points behind the laws, and coordinates of each.
        scales: square roots of the (at most ten) largest covariance eigenvalues.
        total_scale: ``sqrt(tr Σ)``, below which the far-field argument no longer promises anything.
        components: clusters of the mixture, or None where the caller chose the laws.
    """

    sigmas: tuple[float, ...]
    laws: dict[str, LawFidelity]
    protocol: Protocol
    queries: int
    seed: int
    count: int
    dim: int
    scales: tuple[float, ...]
    total_scale: float
    components: int | None

    def explained_until(self, law: str = "gaussian", unexplained: float = 0.01) -> float | None:
        """The lowest σ above which a law leaves less than a fraction unexplained, or None if it does at no level.

        Between levels the curve is interpolated linearly in log σ and log FUV.
        """
        if law not in self.laws:
            raise ArgumentError(f"law = {law!r}; this analysis has {', '.join(self.laws)}")
        curve = self.laws[law].fuv
        if not curve[0] < unexplained:
            return None
        for k in range(1, len(curve)):
            if curve[k] >= unexplained:
                low, high = math.log(max(curve[k - 1], 1e-300)), math.log(curve[k])
                share = (math.log(unexplained) - low) / (high - low)
                a, b = math.log(self.sigmas[k - 1]), math.log(self.sigmas[k])
                return math.exp(a + share * (b - a))
        return self.sigmas[-1]

    @property
    def gaussian_until(self) -> float | None:
        """The lowest σ above which the Gaussian leaves less than 1 % of the score variance unexplained."""
        return self.explained_until("gaussian", 0.01) if "gaussian" in self.laws else None

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, with ``gaussian_until``."""
        return {**asdict(self), "quantile_levels": list(_QUANTILES), "gaussian_until": self.gaussian_until}

    def summary(self) -> str:
        """Down to which level the Gaussian is all the model knows."""
        until = self.gaussian_until
        if until is None:
            return "At no level does the Gaussian with the data's mean and covariance explain 99 % of the score."
        return (
            f"The Gaussian with the data's mean and covariance explains over 99 % of the score above σ = {until:.3g}."
        )

    def tables(self) -> list[Table]:
        """FUV by level and law."""
        rows = tuple((s, *(c.fuv[k] for c in self.laws.values())) for k, s in enumerate(self.sigmas))
        title = f"unexplained fraction of the score, {self.queries} queries, protocol {self.protocol}"
        return [Table(title, ("σ", *self.laws), rows)]

    def plot(self, ax: Any = None) -> Any:
        """Unexplained fraction against σ, both on logarithmic axes, one curve for each law. Returns the figure."""
        (axes,) = axes_for(ax, width=7.6, height=4.2)
        axes.set_xscale("log")
        axes.set_yscale("log")
        ends = []
        for k, (name, curve) in enumerate(self.laws.items()):
            colour = PALETTE[k % len(PALETTE)]
            shown = [max(v, 1e-16) for v in curve.fuv]
            axes.plot(self.sigmas, shown, color=colour, linewidth=2, label=name)
            ends.append((shown[0], "Gaussian" if name == "gaussian" else name, colour))
        lowest = min(min(c.fuv) for c in self.laws.values())
        # Above 1 a law is worse than none at all; how much worse is of no interest.
        axes.set_ylim(min(max(lowest / 3, 1e-12), 1e-4), 10)
        axes.set_xlim(self.sigmas[-1], self.sigmas[0])
        axes.axhline(0.01, color=INK, alpha=0.45, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.annotate(
            "1 %", (self.sigmas[-1], 0.01), xytext=(3, 2), textcoords="offset points", fontsize=8, color=INK, alpha=0.75
        )
        if self.sigmas[-1] < self.total_scale < self.sigmas[0]:
            marker_line(axes, self.total_scale, "√tr Σ")
        until = self.gaussian_until
        if until is not None and self.sigmas[-1] < until < self.sigmas[0]:
            # Where the two lines are close their names must not be.
            near = abs(math.log(until / self.total_scale)) < 0.05 * math.log(self.sigmas[0] / self.sigmas[-1])
            marker_line(axes, until, f"Gaussian until σ = {until:.2g}", foot=0.3 if near else 0.06)
        for scale in self.scales:
            if self.sigmas[-1] < scale < self.sigmas[0]:
                axes.plot([scale, scale], [0, 0.03], color=INK, alpha=0.6, linewidth=0.8, transform=_blended(axes))
        dress(axes, "noise level σ", "unexplained fraction of the score, FUV")
        label_ends(axes, ends)
        return axes.figure


def _blended(axes: Any) -> Any:
    from matplotlib.transforms import blended_transform_factory

    return blended_transform_factory(axes.transData, axes.transAxes)


def mixture_size(count: int) -> int:
    """The clusters for ``count`` data points: √N/4, from 1 to 64 (10 for the 1,500 digits)."""
    return max(1, min(64, count, round(math.sqrt(count) / 4)))


def reference_laws(data: Tensor, *, components: int | None = None, seed: int = 0) -> dict[str, Denoiser]:
    """The four laws fitted to data: isotropic, Gaussian, mixture, empirical, in this order.

    Args:
        data: (N, *event).
        components: clusters of the mixture; by default :func:`mixture_size`. Above 64 coordinates each keeps at most 64
            eigenvalues and the mean of the rest.
        seed: of the clustering, any integer.
    """
    dim = math.prod(data.shape[1:])
    rank = None if dim <= 1024 else 512
    gaussian = Gaussian.fit(data, rank=rank)
    count = mixture_size(len(data)) if components is None else components
    kmeans = streams.derive(seed, "kmeans") % 2**32  # scikit-learn takes no other seeds
    return {
        "isotropic": Gaussian(gaussian.mean, Spectrum.isotropic(dim, 0.0)),
        "gaussian": gaussian,
        "mixture": GaussianMixture.fit(data, count, rank=None if dim <= 64 else 64, seed=kmeans),
        "empirical": Empirical(data),
    }


def score_gaps(denoiser: Denoiser, law: Denoiser, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """``‖s_model − s_law‖²`` and ``‖s_model‖²`` at each query, (B,) in float64.

    Args:
        denoiser, law: the model and the law that should explain it.
        x: queries (B, *event).
        sigma: their noise level, > 0.
    """
    with torch.no_grad():
        return _gaps(denoiser(x, sigma), law(x, sigma), x, sigma)


def _gaps(model: Tensor, law: Tensor, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    d = model.double().flatten(1)
    scale = sigma**-4
    gap = (d - law.double().flatten(1)).square().sum(1) * scale
    return gap, (d - x.double().flatten(1)).square().sum(1) * scale


def _summary(gap: Tensor, norm: Tensor) -> tuple[float, float, float, tuple[float, ...]]:
    """Ratio of means, its standard error, mean ratio and quantiles of the ratios."""
    mean = norm.mean()
    if not float(mean) > 0:  # the model's score vanishes at every query
        zero = 0.0 if not float(gap.mean()) > 0 else math.inf
        return zero, 0.0, zero, (zero,) * len(_QUANTILES)
    fuv = gap.mean() / mean
    count = len(gap)
    error = ((gap - fuv * norm).std() / (mean * math.sqrt(count))) if count > 1 else torch.zeros(())
    ratios = gap / norm.clamp(min=torch.finfo(torch.float64).tiny)
    levels = torch.tensor(_QUANTILES, dtype=torch.float64, device=gap.device)
    return float(fuv), float(error), float(ratios.mean()), tuple(torch.quantile(ratios, levels).tolist())


def default_sigmas(denoiser: Denoiser, count: int = 22) -> tuple[float, ...]:
    """Levels uniform in log σ over the model's range, at most 80 down to 0.002."""
    high, low = min(80.0, denoiser.sigma_max), max(0.002, denoiser.sigma_min)
    return tuple(high * (low / high) ** (k / (count - 1)) for k in range(count))


def score_fidelity(
    denoiser: Denoiser,
    data: Tensor,
    *,
    sigmas: Sequence[float] | None = None,
    queries: int = 512,
    protocol: Protocol = "noised",
    laws: Mapping[str, Denoiser] | None = None,
    points: Tensor | None = None,
    seed: int = 0,
    batch_size: int = 512,
    dtype: torch.dtype | None = None,
) -> ScoreFidelity:
    """Measure how much of a model's score each law leaves unexplained.

    The queries are named by ``seed`` (``numerics.streams``): query i is the same data point and the same noise z at every
    level and for every batch size, which keeps the curves smooth.

    Args:
        denoiser: the model, network or exact law.
        data: (N, *event) the training samples: the laws are fitted to them, and noised queries start from them.
        sigmas: noise levels; by default 22 over the model's range.
        queries: query points at each level, ≥ 2.
        protocol: ``"noised"``: x = a random point of ``points`` + σz, where the model was trained; the empirical law then
            sees each query's own point. ``"noise"``: x = σz, which at low σ lies far from all data. The two differ much at
            low σ (Wang & Vastola 2024, 4.2 and 4.4), so a number is worth nothing without its protocol.
        laws: laws by name; :func:`reference_laws` of the data by default.
        points: clean points for the noised queries instead of ``data``, e.g. held-out ones.
        seed: names the queries, and the clustering of the default mixture.
        batch_size: queries evaluated at once.
        dtype: of the queries; by default float64 up to 1024 coordinates and float32 above.

    Raises:
        ArgumentError: for shapes that do not fit, an argument out of range, or a model whose process has no score.
    """
    if not denoiser.process.gaussian:
        raise ArgumentError(f"score fidelity compares scores; {denoiser.process!r} has a field instead")
    for name, part in (("data", data), ("points", points)):
        if part is not None and (tuple(part.shape[1:]) != denoiser.event_shape or len(part) == 0):
            raise ArgumentError(f"{name} has shape {tuple(part.shape)}; the model takes events {denoiser.event_shape}")
    if queries < 2 or batch_size < 1:
        raise ArgumentError(f"queries = {queries}, batch_size = {batch_size}; expected at least 2 and 1")
    if protocol not in ("noised", "noise"):
        raise ArgumentError(f"protocol = {protocol!r}; expected 'noised' or 'noise'")
    levels = tuple(sorted(map(float, sigmas if sigmas is not None else default_sigmas(denoiser)), reverse=True))
    if not levels or not levels[-1] > 0:
        raise ArgumentError(f"sigmas = {list(levels)}; expected positive noise levels")
    chosen = dict(laws) if laws is not None else reference_laws(data, seed=seed)
    dtype = dtype if dtype is not None else (torch.float64 if denoiser.dim <= _WIDE else torch.float32)

    ids = torch.arange(queries)
    z = streams.normal(seed, ids, denoiser.event_shape, purpose="fidelity noise", dtype=dtype).to(data.device)
    origin: Tensor | None = None
    if protocol == "noised":
        source = data if points is None else points
        place = streams.uniform(seed, ids, purpose="fidelity point", dtype=torch.float64)
        rows = (place * len(source)).long().clamp_(max=len(source) - 1)
        origin = source[rows.to(source.device)].to(dtype)

    curves: dict[str, list[tuple[float, float, float, tuple[float, ...]]]] = {name: [] for name in chosen}
    with torch.no_grad():
        for sigma in levels:
            x = z * sigma if origin is None else origin + z * sigma
            model = torch.cat([denoiser(part, sigma) for part in x.split(batch_size)])
            for name, law in chosen.items():
                answer = torch.cat([law(part, sigma) for part in x.split(batch_size)])
                curves[name].append(_summary(*_gaps(model, answer, x, sigma)))
    covariance = _gaussian_of(chosen, data).spectrum
    values = covariance.values.sort(descending=True).values[:10].clamp(min=0).sqrt()
    mixture = chosen.get("mixture")
    return ScoreFidelity(
        sigmas=levels,
        laws={
            name: LawFidelity(*(tuple(column) for column in zip(*rows, strict=True))) for name, rows in curves.items()
        },
        protocol=protocol,
        queries=queries,
        seed=seed,
        count=len(data),
        dim=denoiser.dim,
        scales=tuple(v for v in values.tolist() if v > 0),
        total_scale=math.sqrt(max(float(covariance.trace), 0.0)),
        components=mixture.components if isinstance(mixture, GaussianMixture) else None,
    )


def _gaussian_of(laws: Mapping[str, Denoiser], data: Tensor) -> Gaussian:
    found = laws.get("gaussian")
    if isinstance(found, Gaussian):
        return found
    return Gaussian.fit(data, rank=None if math.prod(data.shape[1:]) <= 1024 else 64)


@dataclass(frozen=True)
class FidelityOptions:
    """Options of the analysis; see :func:`score_fidelity`."""

    sigmas: tuple[float, ...] | None = None
    queries: int = 512
    protocol: Protocol = "noised"
    components: int | None = None


@analysis("fidelity", about="how much of the score the simple laws explain, by noise level", options=FidelityOptions)
def analyze_fidelity(subject: Subject, options: FidelityOptions) -> ScoreFidelity:
    """:func:`score_fidelity` of a subject."""
    return score_fidelity(
        subject.model,
        subject.data,
        sigmas=options.sigmas,
        queries=options.queries,
        protocol=options.protocol,
        laws=reference_laws(subject.data, components=options.components, seed=subject.seed),
        seed=subject.seed,
    )
