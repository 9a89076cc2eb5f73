"""How far down from high noise a Gaussian is all that a trained network knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from farfield.analysis.catalogue import Subject
from farfield.analysis.fidelity import reference_laws, score_fidelity
from farfield.analysis.fidelity_result import ScoreFidelity
from farfield.analysis.plotting import INK
from farfield.analysis.published import CIFAR10, CLASS_GAIN, EXPLAINED_ABOVE, MNIST
from farfield.analysis.tables import Cell, Table
from farfield.data import load as load_data
from farfield.errors import unknown_name
from farfield.experiments.base import Outcome, Settings, Verdict, available, experiment
from farfield.interop.load import bundled_models, load

#: The bundled models and the published network's levels, with the claim's own.
MODELS = ("digits", "cifar10")
SIGMAS = (80.0, 40.0, 20.0, 10.0, 5.0, 2.0, EXPLAINED_ABOVE, 1.0, 0.5, 0.2, 0.1, 0.05, 0.01)
QUERIES = 512
COMPONENTS = 10


def subjects(settings: Settings) -> list[Subject]:
    """The bundled models that the settings ask for, each with its training images; those without data are left out.

    Raises:
        ArgumentError: for a name that is no bundled model.
        DataError: if no model's data can be opened.
    """
    names, known = settings.data or MODELS, bundled_models()
    for name in names:
        if name not in known:
            raise unknown_name("model of this experiment", name, known)
    found = []
    for name in available(names, settings.progress):
        model = load(name)
        part = load_data(name, size=(model.event_shape[-2], model.event_shape[-1]), split="train")
        found.append(
            Subject(model, part.images, name, labels=part.labels, seed=settings.seed, progress=settings.progress)
        )
    return found


@experiment(
    "gaussian-fidelity",
    claim=f"Above σ = {EXPLAINED_ABOVE} the Gaussian with the data's mean and covariance explains more than 99 % of the "
    "variance of a trained network's score",
    source="Wang & Vastola 2024, section 4.2 and figure 6; published values of CIFAR-10 from the authors' companion code",
    cost="about three minutes on one CPU core with both models",
)
def fidelity(settings: Settings) -> Outcome:
    """Unexplained variance by σ and law, at noised images and at pure noise, beside the published figures."""
    tables, figures, words, checks = [], {}, [], []
    for subject in subjects(settings):
        laws = reference_laws(subject.data, components=(COMPONENTS,), labels=subject.labels, seed=subject.seed)
        noised, noise = (
            score_fidelity(
                subject.model, subject.data, sigmas=SIGMAS, queries=QUERIES, protocol=protocol, laws=laws,
                seed=subject.seed, progress=subject.progress,
            )
            for protocol in ("noised", "noise")
        )  # fmt: skip
        published = subject.name == "cifar10"
        tables += [_by_law(subject.name, noised, published), _by_protocol(subject.name, noised, noise, published)]
        figures[f"fidelity-{subject.name}"] = _figure(noised, published)
        checks += [_explained(found) for found in (noised, noise)]
        words.append(_words(subject.name, noised, noise))
    verdict: Verdict = "holds" if all(checks) else "holds in part" if any(checks) else "does not hold"
    about = {"queries": QUERIES, "components": COMPONENTS, "seed": settings.seed, "sigmas": list(SIGMAS)}
    return Outcome(verdict, "; ".join(words), tuple(tables), figures, about)


def _explained(found: ScoreFidelity) -> bool:
    """Whether the Gaussian leaves under 1 % at every level of the claim."""
    fuv = found.laws["gaussian"].fuv
    return all(value < 0.01 for s, value in zip(found.sigmas, fuv, strict=True) if s >= EXPLAINED_ABOVE)


def _words(name: str, noised: ScoreFidelity, noise: ScoreFidelity) -> str:
    at = noised.sigmas.index(EXPLAINED_ABOVE)
    shares = [1 - found.laws["gaussian"].fuv[at] for found in (noised, noise)]
    until = ["no level" if f.gaussian_until is None else f"σ = {f.gaussian_until:.3g}" for f in (noised, noise)]
    rest = noised.laws["gaussian"].denoiser.fuv[at]
    said = (
        f"{name}: at σ = {EXPLAINED_ABOVE} the Gaussian explains {shares[0]:.2%} of the score at noised images and "
        f"{shares[1]:.2%} at pure noise, over 99 % down to {until[0]} and {until[1]} (of the denoiser it leaves {rest:.1%})"
    )
    if "classes" in noised.laws:
        gains = [
            g - c
            for s, g, c in zip(noised.sigmas, noised.laws["gaussian"].fuv, noised.laws["classes"].fuv, strict=True)
            if s >= EXPLAINED_ABOVE
        ]
        said += (
            f"; a Gaussian for each class explains {min(gains):.2g} to {max(gains):.2g} more there "
            f"(published: 0 to {CLASS_GAIN:.2g})"
        )
    if name == "digits":
        left = MNIST.at("gaussian", 1.0)
        said += f"; published for MNIST, which the claim does not name: {left:.2%} left at σ = 1"
    low = len(noised.sigmas) - 1
    order = [law for law in noised.ranking(low) if law in ("gaussian", "classes", "empirical")]
    return f"{said}; at σ = {noised.sigmas[low]:g} the order of fit is {', '.join(order)}"


def _by_law(name: str, found: ScoreFidelity, published: bool) -> Table:
    columns, rows = ["σ"], [[s] for s in found.sigmas]
    cells: list[list[Cell]] = [list(row) for row in rows]
    for law, curve in found.laws.items():
        columns.append(law)
        for k, s in enumerate(found.sigmas):
            cells[k].append(curve.mean_ratio[k])
            if published and law in CIFAR10.score:
                cells[k].append(CIFAR10.at(law, s))
        if published and law in CIFAR10.score:
            columns.append("published")
    columns.append("fits best")
    for k, row in enumerate(cells):
        row.append(found.ranking(k)[0])
    title = f"{name}: unexplained fraction of the score at {QUERIES} noised images, mean of ratios"
    if published:
        title += f"; published: {CIFAR10.network}, 32×32"
    return Table(title, tuple(columns), tuple(map(tuple, cells)))


def _by_protocol(name: str, noised: ScoreFidelity, noise: ScoreFidelity, published: bool) -> Table:
    own, other = noised.laws["gaussian"], noise.laws["gaussian"]
    columns = ["σ", "noised images", "95 % from", "to", "mean of ratios", "pure noise", "denoiser"]
    cells: list[list[Cell]] = [
        [s, own.fuv[k], own.low[k], own.high[k], own.mean_ratio[k], other.fuv[k], own.denoiser.mean_ratio[k]]
        for k, s in enumerate(noised.sigmas)
    ]
    if published:
        columns.append("denoiser, published")
        for row, s in zip(cells, noised.sigmas, strict=True):
            row.append(CIFAR10.denoiser_at("gaussian", s))
    return Table(f"{name}: what the Gaussian leaves unexplained", tuple(columns), tuple(map(tuple, cells)))


def _figure(found: ScoreFidelity, published: bool) -> Any:
    figure = found.plot()
    if published:
        score, denoiser = figure.axes
        _dots(score, CIFAR10.sigmas, CIFAR10.score["gaussian"])
        _dots(denoiser, CIFAR10.denoiser_sigmas, CIFAR10.denoiser["gaussian"])
    return figure


def _dots(axes: Any, sigmas: Sequence[float], values: Sequence[float]) -> None:
    axes.plot(
        sigmas, values, linestyle="none", marker="o", markersize=4.5, markerfacecolor="none", color=INK,
        label="Gaussian, published, CIFAR-10 32×32",
    )  # fmt: skip
    (handle,) = [line for line in axes.get_lines() if line.get_label().endswith("32×32")]
    axes.legend(
        handles=[handle], frameon=False, fontsize=8, loc="lower left" if values[0] > values[-1] else "lower right"
    )
