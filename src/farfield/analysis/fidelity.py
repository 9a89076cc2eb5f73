"""Score fidelity: how much of a model's score the simple laws leave unexplained, noise level by noise level.

    FUV(σ) = E‖s_model − s_law‖² / E‖s_model‖²,    s = (D − x)/σ²,    so   FUV = E‖D_model − D_law‖² / E‖D_model − x‖²

(Wang & Vastola 2024, Eq. 28). The laws climb from the far field to the training set: *isotropic* (D = μ), *Gaussian* (mean
and covariance), *mixture* (k-means clusters with their own covariances), *empirical* (the training images as points, the
optimum of the training loss). Far from the data a model follows the Gaussian; where it departs from that, and whether it
then follows the empirical law (memorisation) or not (generalisation), is what the curves show.

At high noise the score is almost ``−x/σ²`` for every law, and even the mean alone explains it. What a law knows about the
data is the fraction of the *denoiser* that it leaves unexplained, ``E‖D_model − D_law‖² / E‖D_model‖²``, which stands beside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from farfield.analysis.catalogue import Subject, analysis
from farfield.analysis.fidelity_result import LawFidelity, Protocol, ScoreFidelity
from farfield.analysis.ratios import Ratios, ratios, resamples
from farfield.analysis.reference_laws import mixture_size, reference_laws
from farfield.data.progress import track
from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian, GaussianMixture
from farfield.errors import ArgumentError
from farfield.numerics import streams

__all__ = [
    "FidelityOptions",
    "LawFidelity",
    "Protocol",
    "Ratios",
    "ScoreFidelity",
    "analyze_fidelity",
    "check_denoiser",
    "default_sigmas",
    "descending",
    "draw_queries",
    "mixture_size",
    "reference_laws",
    "score_fidelity",
    "score_gaps",
]

#: Wide arithmetic up to this many coordinates; above it the float32 floor of about 1e-13 is far below any network's.
_WIDE = 256


def score_gaps(denoiser: Denoiser, law: Denoiser, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """``‖s_model − s_law‖²`` and ``‖s_model‖²`` at each query, (B,) in float64.

    Args:
        denoiser, law: the model and the law that should explain it.
        x: queries (B, *event).
        sigma: their noise level, > 0.
    """
    with torch.no_grad():
        model, answer = denoiser(x, sigma).double(), law(x, sigma).double()
    scale = sigma**-4
    return _squares(model - answer) * scale, _squares(model - x.double()) * scale


def _squares(values: Tensor) -> Tensor:
    """Squared norms (B,) of (B, *event)."""
    return values.flatten(1).square().sum(1)


def default_sigmas(denoiser: Denoiser, count: int = 22) -> tuple[float, ...]:
    """Levels uniform in log σ over the model's range, at most 80 down to 0.002, the one nearest to σ = 1 moved there."""
    high, low = min(80.0, denoiser.sigma_max), max(0.002, denoiser.sigma_min)
    levels = [high * (low / high) ** (k / (count - 1)) for k in range(count)]
    inner = range(1, count - 1)  # the ends stay
    if inner and low < 1 < high:
        levels[min(inner, key=lambda k: abs(math.log(levels[k])))] = 1.0
    return tuple(levels)


def descending(sigmas: Sequence[float]) -> tuple[float, ...]:
    """Noise levels in falling order.

    Raises:
        ArgumentError: if there are none, or one is not a positive number.
    """
    levels = tuple(sorted(map(float, sigmas), reverse=True))
    if not levels or not levels[-1] > 0 or not levels[0] < math.inf:
        raise ArgumentError(f"sigmas = {list(levels)}; expected positive noise levels")
    return levels


def check_denoiser(denoiser: Denoiser, **parts: Tensor | None) -> None:
    """Raise ``ArgumentError`` unless the model has a score and the data named in ``parts`` have its shape."""
    if not denoiser.process.gaussian:
        raise ArgumentError(f"score fidelity compares scores; {denoiser.process!r} has a field instead")
    for name, part in parts.items():
        if part is not None and (tuple(part.shape[1:]) != denoiser.event_shape or len(part) == 0):
            raise ArgumentError(f"{name} has shape {tuple(part.shape)}; the model takes events {denoiser.event_shape}")


def draw_queries(
    points: Tensor, queries: int, protocol: Protocol, seed: int, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor]:
    """Where queries start from and their noise: query i at level σ is ``x = origin_i + σ z_i``, or ``σ z_i``.

    Both depend on seed and i alone (``numerics.streams``): query i is the same data point and the same noise at every level
    and for every batch size, which keeps curves smooth.

    Args:
        points: clean points (N, *event) for noised queries.
        queries: how many.
        protocol: ``"noised"``, or ``"noise"`` for which the origin is None.
        seed: names the queries.
        dtype: of the queries.

    Returns:
        The origins (Q, *event) or None, and z (Q, *event), on the device of ``points``.
    """
    ids = torch.arange(queries)
    z = streams.normal(seed, ids, points.shape[1:], purpose="fidelity noise", dtype=dtype).to(points.device)
    if protocol == "noise":
        return None, z
    place = streams.uniform(seed, ids, purpose="fidelity point", dtype=torch.float64)
    rows = (place * len(points)).long().clamp_(max=len(points) - 1)
    return points[rows.to(points.device)].to(dtype), z


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
    batch_size: int = 128,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> ScoreFidelity:
    """Measure how much of a model's score, and of its denoiser, each law leaves unexplained.

    Args:
        denoiser: the model, network or exact law.
        data: (N, *event) the training samples: the laws are fitted to them, and noised queries start from them.
        sigmas: noise levels; by default 22 over the model's range.
        queries: query points at each level, ≥ 2; see :func:`draw_queries`.
        protocol: ``"noised"``: x = a random point of ``points`` + σz, where the model was trained; the empirical law then
            sees each query's own point. ``"noise"``: x = σz, which at low σ lies far from all data. The two differ much at
            low σ (Wang & Vastola 2024, 4.2 and 4.4), so a number is worth nothing without its protocol.
        laws: laws by name; :func:`~farfield.analysis.reference_laws.reference_laws` of the data by default.
        points: clean points for the noised queries instead of ``data``, e.g. held-out ones.
        seed: names the queries, the clustering of the default mixture, and the bootstrap of the bands.
        batch_size: queries evaluated at once.
        dtype: of the queries; by default float64 up to 256 coordinates and float32 above.
        progress: show a bar on the standard error where a person watches it.

    Raises:
        ArgumentError: for shapes that do not fit, an argument out of range, or a model whose process has no score.
    """
    check_denoiser(denoiser, data=data, points=points)
    if queries < 2 or batch_size < 1:
        raise ArgumentError(f"queries = {queries}, batch_size = {batch_size}; expected at least 2 and 1")
    if protocol not in ("noised", "noise"):
        raise ArgumentError(f"protocol = {protocol!r}; expected 'noised' or 'noise'")
    levels = descending(sigmas if sigmas is not None else default_sigmas(denoiser))
    chosen = dict(laws) if laws is not None else reference_laws(data, seed=seed)
    dtype = dtype if dtype is not None else (torch.float64 if denoiser.dim <= _WIDE else torch.float32)
    origin, z = draw_queries(data if points is None else points, queries, protocol, seed, dtype)

    # For each law the squares of D_model − D_law, D_law − x, D_law; for the model those of D − x and D: (levels, Q).
    own = torch.empty(2, len(levels), queries, dtype=torch.float64, device=z.device)
    squares = {name: torch.empty(3, len(levels), queries, dtype=torch.float64, device=z.device) for name in chosen}
    with torch.no_grad():
        steps = track(enumerate(levels), len(levels), "score fidelity", threshold=1 if progress else len(levels) + 1)
        for k, sigma in steps:
            for i in range(0, queries, batch_size):
                part = slice(i, i + batch_size)
                x = z[part] * sigma if origin is None else origin[part] + z[part] * sigma
                state, model = x.double(), denoiser(x, sigma).double()
                own[:, k, part] = torch.stack((_squares(model - state), _squares(model)))
                for name, law in chosen.items():
                    answer = law(x, sigma).double()
                    squares[name][:, k, part] = torch.stack(
                        (_squares(model - answer), _squares(answer - state), _squares(answer))
                    )
    counts = resamples(queries, seed)
    covariance = _gaussian_of(chosen, data).spectrum
    values = covariance.values.sort(descending=True).values[:10].clamp(min=0).sqrt()
    mixture = chosen.get("mixture")
    return ScoreFidelity(
        sigmas=levels,
        laws={name: _curves(own, table, counts) for name, table in squares.items()},
        protocol=protocol,
        queries=queries,
        seed=seed,
        count=len(data),
        dim=denoiser.dim,
        scales=tuple(v for v in values.tolist() if v > 0),
        total_scale=math.sqrt(max(float(covariance.trace), 0.0)),
        components=mixture.components if isinstance(mixture, GaussianMixture) else None,
    )


def _curves(own: Tensor, squares: Tensor, counts: Tensor) -> LawFidelity:
    gap, law_score, law_mean = squares
    score = ratios(gap, own[0], counts)
    return LawFidelity(
        **vars(score),
        reversed=ratios(gap, law_score, counts),
        denoiser=ratios(gap, own[1], counts),
        denoiser_reversed=ratios(gap, law_mean, counts),
    )


def _gaussian_of(laws: Mapping[str, Denoiser], data: Tensor) -> Gaussian:
    found = laws.get("gaussian")
    if isinstance(found, Gaussian):
        return found
    return Gaussian.fit(data, rank=None if math.prod(data.shape[1:]) <= 1024 else 64)


@dataclass(frozen=True)
class FidelityOptions:
    """Options of the analysis; see :func:`score_fidelity`.

    Attributes:
        components: clusters of the mixture, or several such numbers for several mixtures.
        classes: whether a Gaussian for each class is among the laws, where the data have classes.
    """

    sigmas: tuple[float, ...] | None = None
    queries: int = 512
    protocol: Protocol = "noised"
    components: int | tuple[int, ...] | None = None
    classes: bool = True


@analysis("fidelity", about="how much of the score the simple laws explain, by noise level", options=FidelityOptions)
def analyze_fidelity(subject: Subject, options: FidelityOptions) -> ScoreFidelity:
    """:func:`score_fidelity` of a subject, against all laws of :func:`reference_laws`."""
    return score_fidelity(
        subject.model,
        subject.data,
        sigmas=options.sigmas,
        queries=options.queries,
        protocol=options.protocol,
        laws=reference_laws(
            subject.data,
            components=options.components,
            labels=subject.labels if options.classes else None,
            spherical=True,
            seed=subject.seed,
        ),
        seed=subject.seed,
        progress=subject.progress,
    )
