"""How long a model's samples travel together with those of the simple laws, from the same noise.

The model and each law start at the same x_T and are followed through the same noise levels, each along its own path:

    state deviation      MSE(σ) = mean over coordinates of (x_σ^model − x_σ^law)²
    denoiser deviation   the same of D(x_σ, σ), each at its own state
    sample distance      the same at the end, or LPIPS

(Wang & Vastola 2024, section 4.3, Figs. 7, 8, 15, 18.) The source calls two paths *still together* while MSE < 0.01. That
tells what one sees; it is far too lax a rule for how many steps may be skipped, for which the unexplained score variance is
the measure (:mod:`farfield.analysis.fidelity`). Gaussians are followed by formula, other laws by adaptive Runge-Kutta, and
networks by a fine multistep run, whose own error is measured. The analysis ``deviation`` adds the comparison with the optimal
denoiser of the training set along both paths (:mod:`farfield.analysis.diagnosis`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from farfield.analysis.catalogue import Subject, analysis
from farfield.analysis.deviation_plot import draw_deviation, law_words
from farfield.analysis.diagnosis import score_deviation
from farfield.analysis.diagnosis_curves import Band as Band
from farfield.analysis.diagnosis_curves import band
from farfield.analysis.diagnosis_findings import DeviationFindings
from farfield.analysis.diagnosis_follow import DiagnosisOptions
from farfield.analysis.diagnosis_result import ScoreDeviation
from farfield.analysis.gaussian_deviation import can_compare, gaussian_deviation
from farfield.analysis.images import is_image
from farfield.analysis.solver_table import fine_solution
from farfield.analysis.subject_laws import subject_laws
from farfield.analysis.tables import Table
from farfield.denoiser import Denoiser
from farfield.distributions import Distribution, Gaussian
from farfield.errors import ArgumentError, unknown_name
from farfield.metrics.image_distance import (
    PairDistance,
    PairedComparison,
    PairStatistics,
    PixelDistance,
    pair_distance,
    pair_statistics,
    paired_comparison,
)
from farfield.numerics import streams
from farfield.sampling import Prior, Sampler
from farfield.sampling.reference_ode import ReferencePath, reference_path

#: "Still together" (Wang & Vastola 2024, section 4.3).
TOGETHER = 0.01

#: Tolerances of the laws' paths. Errors are about 1e-5 at σ = 80 and 1e-6 at the end, far below what any figure shows.
RTOL, ATOL = 1e-6, 1e-7

#: The laws see float64 states up to this many coordinates; above it float32, several times faster and as good here.
_WIDE = 64


@dataclass(frozen=True)
class LawDeviation:
    """One law beside the model.

    Attributes:
        state: MSE of the states, at every level (the end included).
        denoised: MSE of the denoiser outputs, at every positive level.
        end: distance of the final samples, one value for each start.
    """

    state: Band
    denoised: Band
    end: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class TrajectoryDeviation:
    """Deviation of a model's paths from those of the laws.

    Attributes:
        sigmas: the levels, decreasing; the last usually 0.
        laws: by name.
        n, seed: number of starts, and the seed that names them.
        nfe: evaluations of the model for each path.
        distance: how the final samples are compared, ``"mse"`` or ``"lpips-…"``.
        solver_mse: mean squared change of the model's samples when its run has half the steps: below this a deviation says
            nothing. None where the model is an exact law or the sampler was given.
        event_shape: of one sample.
        pictures: the first final samples by name, the model's under ``"model"``; empty where they are no images.
    """

    sigmas: tuple[float, ...]
    laws: dict[str, LawDeviation]
    n: int
    seed: int
    nfe: int
    distance: str
    solver_mse: float | None
    event_shape: tuple[int, ...]
    pictures: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def _law(self, name: str) -> LawDeviation:
        if name not in self.laws:
            raise unknown_name("law", name, self.laws)
        return self.laws[name]

    def together_until(self, law: str = "gaussian", threshold: float = TOGETHER) -> float:
        """The level down to which the states' mean MSE stays below a threshold, on the way down from the top.

        Between levels the curve is interpolated linearly in log σ and log MSE. 0 if the paths are together to the end.

        Raises:
            ArgumentError: for a law that is not there, or a threshold that is not positive.
        """
        if not threshold > 0:
            raise ArgumentError(f"threshold = {threshold}; expected a positive mean square")
        curve = self._law(law).state.mean
        for k in range(1, len(curve)):
            if curve[k] >= threshold:
                above, here = self.sigmas[k - 1], self.sigmas[k]
                if not (here > 0 and curve[k - 1] > 0):
                    return above
                share = math.log(threshold / curve[k - 1]) / math.log(curve[k] / curve[k - 1])
                return above * (here / above) ** share
        return self.sigmas[-1]

    def end(self, law: str) -> PairStatistics:
        """The distance of the final samples to a law's."""
        return pair_statistics(torch.tensor(self._law(law).end, dtype=torch.float64))

    def compare(self, first: str, second: str) -> PairedComparison:
        """Whose final samples are closer to the model's, start by start?"""
        a, b = (torch.tensor(self._law(name).end, dtype=torch.float64) for name in (first, second))
        return paired_comparison(a, b)

    def to_dict(self) -> dict[str, Any]:
        """All curves, distances and comparisons as plain values; the pictures are left out."""
        names = list(self.laws)
        return {
            "sigmas": list(self.sigmas),
            "laws": {name: asdict(law) for name, law in self.laws.items()},
            "n": self.n,
            "seed": self.seed,
            "nfe": self.nfe,
            "distance": self.distance,
            "solver_mse": self.solver_mse,
            "threshold": TOGETHER,
            "together_until": {name: self.together_until(name) for name in names},
            "end": {name: self.end(name).to_dict() for name in names},
            "comparisons": [
                {"first": a, "second": b, **self.compare(a, b).to_dict()}
                for i, a in enumerate(names)
                for b in names[i + 1 :]
            ],
        }

    def summary(self) -> str:
        """How long the model stays with the Gaussian, and which law ends closest to it."""
        name = "gaussian" if "gaussian" in self.laws else next(iter(self.laws))
        until = self.together_until(name)
        label = law_words(name)
        where = "to the end" if until == 0 else f"down to σ = {until:.3g}"
        first = f"The model's paths stay within MSE {TOGETHER:g} of the {label}'s {where}."
        ends = {law: self.end(law).mean for law in self.laws}
        nearest = min(ends, key=ends.__getitem__)
        text = f"{first} The {law_words(nearest)} ends nearest to the model's samples ({self.distance} {ends[nearest]:.3g})."
        if name != "empirical" and "empirical" in self.laws:
            verdict = self.compare(name, "empirical").verdict(f"the {label}'s sample", "the empirical law's")
            text += f" Seed by seed, {verdict}."
        return text

    def tables(self) -> list[Table]:
        """States by level and law; the ends."""
        names = list(self.laws)
        rows = tuple((s, *(self.laws[name].state.mean[k] for name in names)) for k, s in enumerate(self.sigmas))
        first = Table(f"mean squared deviation of the states, {self.n} starts", ("σ", *names), rows)
        ends = tuple(
            (name, e.mean, e.low, e.high, e.median, self.together_until(name))
            for name, e in ((name, self.end(name)) for name in names)
        )
        columns = ("law", "mean", "95 % from", "to", "median", f"together (MSE < {TOGETHER:g}) until σ")
        return [first, Table(f"distance of the final samples ({self.distance})", columns, ends)]

    def plot(self, ax: Any = None) -> Any:
        """States (left) and denoiser outputs (right) against σ, with a strip of samples below for images.

        Args:
            ax: two axes for the curves alone, or None for a new figure.
        """
        return draw_deviation(self, TOGETHER, ax)


def _law_type(law: Denoiser) -> torch.dtype:
    return torch.float64 if law.dim <= _WIDE else torch.float32


def _mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean over coordinates of the squared difference, (L, B), of (L, B, *event)."""
    return (a.double() - b.double()).flatten(2).square().mean(2)


def trajectory_deviation(
    model: Denoiser,
    laws: Mapping[str, Denoiser],
    *,
    n: int = 64,
    seed: int = 0,
    steps: int = 36,
    sampler: Sampler | None = None,
    distance: PairDistance | None = None,
    shown: int = 10,
    batch_size: int = 64,
    dtype: torch.dtype = torch.float32,
    rtol: float = RTOL,
    atol: float = ATOL,
) -> TrajectoryDeviation:
    """Follow a model and each law from the same noise and measure how they part.

    Start i of a seed is the noise of the sampler's sample i. Two Gaussians are compared in coefficients
    (:func:`gaussian_deviation`).

    Args:
        model: a network or an exact law.
        laws: by name; a Gaussian among them makes the model's run exact where the model is that Gaussian.
        n: starts.
        seed: names them.
        steps: levels of the Karras grid, within the model's range and at most 80 to 0.002.
        sampler: how the model is run instead: it starts from the prior, and its levels are the nodes of the comparison.
        distance: of the final samples; pixel MSE by default.
        shown: final samples kept to be shown, where they are images.
        batch_size: starts at a time.
        dtype: of the model's states.
        rtol, atol: of the adaptive paths, see :func:`~farfield.sampling.reference_ode.reference_path`.

    Raises:
        ArgumentError: for laws of another shape, an argument out of range, a process without a Gaussian kernel, or a sampler
            that does not start from the prior.
    """
    if not laws:
        raise ArgumentError("laws is empty; expected at least one law to compare with")
    for name, law in laws.items():
        if law.event_shape != model.event_shape:
            raise ArgumentError(f"law {name!r} has events {law.event_shape}; the model {model.event_shape}")
    if n < 1 or batch_size < 1 or steps < 2 or shown < 0:
        raise ArgumentError(
            f"n = {n}, batch_size = {batch_size}, steps = {steps}, shown = {shown}; expected at least 1, 1, 2 and 0"
        )
    if not model.process.gaussian:
        raise ArgumentError(f"paths are compared from Gaussian noise; the model belongs to {model.process!r}")
    measure = distance if distance is not None else PixelDistance()
    gaussian = next((law for law in laws.values() if isinstance(law, Gaussian) and law.spectrum.trace > 0), None)
    exact = sampler is None and isinstance(model, Distribution)
    run = sampler if sampler is not None else fine_solution(model, steps, gaussian)
    if not isinstance(run.start, Prior):
        raise ArgumentError(f"sampler starts with {run.start.name!r}; paths are compared from the prior")

    gaps: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in laws}
    pictures: dict[str, list[Tensor]] = {name: [] for name in ("model", *laws)}
    keep = shown if is_image(model.event_shape) else 0
    levels: tuple[float, ...] = ()
    solver_mse: float | None = None
    nfe = 0
    for first in range(0, n, batch_size):
        count = min(batch_size, n - first)
        path = _own_path(model, run, count, seed, first, dtype, exact, (rtol, atol))
        levels, nfe = path.sigmas, max(nfe, path.evaluations)
        if first == 0 and sampler is None and not exact and steps >= 4:
            coarse = fine_solution(model, steps // 2, gaussian)(model, count, seed, dtype=dtype)
            solver_mse = float(_mse(coarse.x[None], path.states[-1:]).mean())
        room = max(0, keep - first)
        pictures["model"].append(path.states[-1][:room].float().cpu())
        for name, law in laws.items():
            other = reference_path(
                law, path.states[0], levels, rtol=rtol, atol=atol, batch_size=batch_size, dtype=_law_type(law)
            )  # fmt: skip
            if exact and can_compare(model, law):
                assert isinstance(model, Gaussian)
                assert isinstance(law, Gaussian)
                state, output = gaussian_deviation(model, law, path.states[0], levels)
                output = output[: len(path.denoised)]
            else:
                state = _mse(path.states, other.states)
                output = _mse(path.denoised, other.denoised[: len(path.denoised)])
            ends = measure(path.states[-1], other.states[-1])
            gaps[name].append((state.cpu(), output.cpu(), ends.cpu()))
            pictures[name].append(other.states[-1][:room].float().cpu())
    found = {}
    for name, parts in gaps.items():
        state, output, ends = (torch.cat([p[k] for p in parts], -1) for k in range(3))
        found[name] = LawDeviation(band(state), band(output), tuple(ends.tolist()))
    return TrajectoryDeviation(
        levels,
        found,
        n,
        seed,
        nfe,
        measure.name,
        solver_mse,
        model.event_shape,
        {name: torch.cat(parts) for name, parts in pictures.items()} if keep else {},
    )


def _own_path(
    model: Denoiser,
    run: Sampler,
    count: int,
    seed: int,
    first: int,
    dtype: torch.dtype,
    exact: bool,
    tolerances: tuple[float, float],
) -> ReferencePath:
    """The model's path: by formula or integrator for an exact law, by the sampler for a network."""
    if exact:
        device = next((t.device for t in model.buffers()), torch.device("cpu"))
        ids = torch.arange(first, first + count, device=device)
        z = streams.normal(seed, ids, model.event_shape, purpose="start", dtype=torch.float64)
        top = run.grid.levels[0]
        rtol, atol = tolerances
        return reference_path(
            model, top * z, run.levels, rtol=rtol, atol=atol, batch_size=count, dtype=_law_type(model)
        )  # fmt: skip
    out = run(model, count, seed, first=first, trajectory=True, dtype=dtype)
    assert out.trajectory is not None
    curves = out.trajectory
    return ReferencePath(tuple(map(float, curves.sigmas)), curves.states, curves.denoised, out.nfe)


@dataclass(frozen=True)
class DeviationOptions(DiagnosisOptions):
    """Options of the analysis; see :func:`trajectory_deviation`, :func:`subject_laws` and :func:`score_deviation`.

    Attributes:
        steps, laws, components, distance: of the part against the laws.
        against: ``"laws"``, the ``"training set"``, or ``"both"``.
    """

    steps: int = 36
    laws: tuple[str, ...] | None = None
    components: int | None = None
    distance: str = "mse"
    against: Literal["both", "laws", "training set"] = "both"


@analysis(
    "deviation",
    about="how long samples travel with the simple laws, and how the score differs from the training set's",
    options=DeviationOptions,
)
def analyze_deviation(
    subject: Subject, options: DeviationOptions
) -> TrajectoryDeviation | ScoreDeviation | DeviationFindings:
    """:func:`trajectory_deviation` and :func:`~farfield.analysis.diagnosis.score_deviation` of a subject."""
    if options.against == "training set":
        return score_deviation(subject.model, **options.arguments(subject))
    found = trajectory_deviation(
        subject.model,
        subject_laws(subject, options.laws, options.components),
        n=options.n,
        seed=subject.seed,
        steps=options.steps,
        distance=pair_distance(options.distance, subject.data.device),
        shown=options.shown,
        batch_size=options.batch_size,
    )
    if options.against == "laws":
        return found
    return DeviationFindings(found, score_deviation(subject.model, **options.arguments(subject)))
