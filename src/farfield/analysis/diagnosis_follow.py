"""The set-up that the score-deviation diagnosis and the replay audit share: law, starts, sampler, and both paths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.catalogue import Subject
from farfield.analysis.diagnosis_paths import Paths, check_sampler, paired_paths, plain_sampler
from farfield.analysis.diagnosis_starts import StartKind, StartStates, start_states
from farfield.analysis.images import is_image
from farfield.denoiser import Denoiser
from farfield.distributions import Empirical
from farfield.errors import ArgumentError
from farfield.sampling import Sampler


def takes_classes(model: Denoiser, labels: Tensor | None) -> bool:
    """Whether a model is conditional and knows the classes of the data."""
    known = int(getattr(model, "label_dim", 0))
    return labels is not None and known > 0 and int(labels.max()) < known


def optimal_law(data: Tensor, labels: Tensor | None = None, mirror: bool = False) -> Empirical:
    """The law of the training data, whose denoiser is the optimum of the training loss.

    Args:
        data: (N, *event).
        labels: (N,) their classes, where the optimum is to be restricted to them.
        mirror: add every image's mirror image (…, W), for a model that was trained on mirrored images without being told;
            for other augmentations pass the transformed images as data.

    Raises:
        ArgumentError: for ``mirror`` of what is no image.
    """
    if mirror:
        if not is_image(tuple(data.shape[1:])):
            raise ArgumentError(f"mirror = True, but the data have shape {tuple(data.shape)}; expected images")
        data = torch.cat((data, data.flip(-1)))
        labels = None if labels is None else labels.repeat(2)
    return Empirical(data, labels=labels)


@dataclass(frozen=True)
class DiagnosisOptions:
    """Options that the analyses by name share; see :func:`~farfield.analysis.diagnosis.score_deviation`.

    Attributes:
        solver, levels: of the sampler, on Karras levels within the model's range.
        mirror: count mirror images as training data, for a model trained on them without being told.
    """

    n: int = 32
    shown: int = 10
    batch_size: int = 64
    starts: StartKind = "gaussian"
    solver: str = "heun"
    levels: int = 18
    neighbours: int = 5
    mirror: bool = False

    def arguments(self, subject: Subject) -> dict[str, Any]:
        """Arguments of a diagnosis of a subject: the law of its data, the sampler, and the options."""
        labels = subject.labels if takes_classes(subject.model, subject.labels) else None
        return {
            "data": optimal_law(subject.data, labels, self.mirror),
            "sampler": plain_sampler(subject.model, self.levels, self.solver),
            "seed": subject.seed,
            "n": self.n,
            "shown": self.shown,
            "batch_size": self.batch_size,
            "starts": self.starts,
            "neighbours": self.neighbours,
        }


@dataclass(frozen=True, eq=False)
class Setup:
    """What is asked for; arguments as for :func:`~farfield.analysis.diagnosis.score_deviation`."""

    n: int
    seed: int
    starts: StartKind | Tensor
    sampler: Sampler | None
    neighbours: int
    shown: int
    batch_size: int
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Followed:
    """Both paths, and what they were made with."""

    law: Empirical
    sampler: Sampler
    begin: StartStates
    paths: Paths

    @property
    def condition(self) -> Mapping[str, Tensor]:
        """The classes of the starts, as denoisers take them."""
        return self.begin.condition

    @property
    def conditional(self) -> bool:
        """Whether the starts have classes."""
        return self.begin.classes is not None


def follow(
    model: Denoiser, data: Tensor | Empirical, labels: Tensor | None, conditional: bool | None, setup: Setup
) -> Followed:
    """Check, start and follow a model and the optimal denoiser of its data.

    Raises:
        ArgumentError: see :func:`~farfield.analysis.diagnosis.score_deviation`.
    """
    if setup.n < 1 or setup.batch_size < 1 or setup.shown < 0 or setup.neighbours < 1:
        raise ArgumentError(
            f"n = {setup.n}, batch_size = {setup.batch_size}, neighbours = {setup.neighbours}, shown = {setup.shown}; "
            "expected at least 1, 1, 1 and 0"
        )
    if conditional is None:
        own = data.labels if isinstance(data, Empirical) else labels
        conditional = takes_classes(model, own if isinstance(own, Tensor) else None)
    law = data if isinstance(data, Empirical) else optimal_law(data, labels if conditional else None)
    if law.event_shape != model.event_shape:
        raise ArgumentError(f"data have events {law.event_shape}; the model {model.event_shape}")
    if not (model.process.gaussian and law.process.gaussian):
        raise ArgumentError(f"paths are compared under Gaussian diffusion; the model belongs to {model.process!r}")
    least = law.count
    if conditional:
        if not isinstance(law.labels, Tensor):
            raise ArgumentError("conditional = True, but the data have no labels")
        least = int(torch.unique(law.labels, return_counts=True)[1].min())
    if setup.neighbours > least:
        raise ArgumentError(f"neighbours = {setup.neighbours}; expected at most {least}, the points to choose from")
    run = setup.sampler if setup.sampler is not None else plain_sampler(model, 18)
    check_sampler(run)
    begin = start_states(
        setup.starts, model, law, setup.n, setup.seed, (min(s for s in run.levels if s > 0), run.levels[0]),
        conditional=conditional, batch_size=setup.batch_size, dtype=setup.dtype,
    )  # fmt: skip
    paths = paired_paths(model, law, begin.x, run, begin.condition, seed=setup.seed, batch_size=setup.batch_size)
    return Followed(law, run, begin, paths)


def pictures_of(model: Denoiser, rows: Mapping[str, Tensor], shown: int) -> dict[str, Tensor]:
    """The first samples of each name, on the CPU; none where they are no images."""
    if not shown or not is_image(model.event_shape):
        return {}
    return {name: part[:shown].float().cpu() for name, part in rows.items()}
