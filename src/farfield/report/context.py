"""What the sections of a report share, each thing computed once and only when a section asks for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from farfield.analysis import ScoreFidelity, SolverTable, Subject, reference_laws, score_fidelity, solver_errors
from farfield.analysis.entrants import baseline, default_entrants
from farfield.analysis.solver_table import NFES, Reference, reference_solution
from farfield.data import DataSet
from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.errors import FarfieldError
from farfield.sampling import Sampler
from farfield.training.labels import labels_like

T = TypeVar("T")

#: Samples drawn at once; it bounds memory and changes no sample.
BATCH = 256


@dataclass(frozen=True)
class Sizes:
    """How much work each section does.

    Attributes:
        shown: samples on the page.
        samples: drawn for the quality numbers, for each seed; up to ``repeats`` seeds, as long as all of them together
            cost no more than ``evaluations``.
        compared: samples drawn with the recommended sampler and with Heun for a comparison.
        queries, levels: of the score fidelity.
        trajectories: whose shape is measured.
        solver_n: samples on which the solvers are compared; ``fine`` steps of the reference, ``nfes`` budgets.
    """

    shown: int = 64
    samples: int = 1500
    repeats: int = 3
    evaluations: int = 45_000
    compared: int = 400
    queries: int = 384
    levels: int = 22
    trajectories: int = 64
    solver_n: int = 32
    fine: int = 200
    nfes: tuple[int, ...] = NFES


QUICK = Sizes(
    shown=48, samples=300, repeats=1, compared=100, queries=96, levels=10, trajectories=32, solver_n=12, fine=64,
    nfes=(6, 10, 16),
)  # fmt: skip


@dataclass
class ReportContext:
    """The model, the data, and what follows from both.

    Attributes:
        model: the denoiser.
        data: the data set; ``train`` and ``heldout`` are its parts.
        name: what the model is called.
        seed: of everything random.
        quick: whether sizes are cut down.
        sizes: how much work each section does.
        source: how the reader loads the model; ``name`` where it is None.
        out: the folder of the report, as given; None where there is none.
    """

    model: Denoiser
    data: DataSet
    name: str
    seed: int = 0
    quick: bool = False
    sizes: Sizes = field(default_factory=Sizes)
    source: str | None = None
    out: Path | None = None
    _kept: dict[str, Any] = field(default_factory=dict, repr=False)

    def once(self, name: str, make: Callable[[], T]) -> T:
        """The value of ``make``, computed at the first call; an error is kept as well, and raised again."""
        if name not in self._kept:
            try:
                self._kept[name] = make()
            except Exception as error:
                self._kept[name] = error
        found = self._kept[name]
        if isinstance(found, Exception):
            raise found
        return cast(T, found)

    def peek(self, name: str) -> Any:
        """What ``once`` has kept under a name, or None if it failed or was not asked for."""
        found = self._kept.get(name)
        return None if isinstance(found, Exception) else found

    @property
    def card(self) -> dict[str, Any]:
        """The model's card, empty for models that have none (exact laws)."""
        found = getattr(self.model, "card", None)
        return dict(found) if isinstance(found, Mapping) else {}

    @property
    def training(self) -> dict[str, Any]:
        """What the card says about the training, or nothing."""
        found = self.card.get("training")
        return dict(found) if isinstance(found, Mapping) else {}

    @property
    def trained_digest(self) -> str | None:
        """The digest of the data that the model was trained on, or None where the card does not say."""
        data = self.training.get("data")
        digest = data.get("digest") if isinstance(data, Mapping) else None
        return digest if isinstance(digest, str) else None

    @property
    def trained_on_all(self) -> bool:
        """Whether the card says that the model saw all of the data given here: there are then no held-out data."""
        return self.trained_digest == self.data.digest

    @property
    def train_set(self) -> DataSet:
        """The part of the data that the model was trained on: all of it if the card says so, else by the data's own split."""
        return self.data if self.trained_on_all else self.data.train

    @property
    def conditional(self) -> bool:
        """Whether the model takes classes."""
        return int(getattr(self.model, "label_dim", 0)) > 0

    @property
    def labels(self) -> Tensor | None:
        """The classes of the training samples, if the model takes classes and the data have some that it knows."""
        labels = self.train_set.labels
        if not self.conditional or labels is None or int(labels.max()) >= int(getattr(self.model, "label_dim", 0)):
            return None
        return labels.to(self.device)

    @property
    def class_remark(self) -> str | None:
        """For sections that measure a conditional model without a class: what that means; None for any other model."""
        if not self.conditional:
            return None
        here = "The model takes classes; what this section measures is its answer without one"
        config = self.training.get("config")
        labels = config.get("labels") if isinstance(config, Mapping) else None
        dropout = labels.get("dropout") if isinstance(labels, Mapping) else None
        if dropout == 0:
            return (
                f"{here}, and it was never trained to give one (labels.dropout was 0): "
                "these numbers say little about samples with a class."
            )
        return f"{here}, which it learnt where classes were hidden in training: the law of all classes together."

    @property
    def train(self) -> Tensor:
        """The training samples (N, *event), on the model's device."""
        return self.once("train", lambda: self.train_set.images.to(self.device))

    @property
    def heldout(self) -> Tensor:
        """The held-out samples, on the model's device; none where the model was trained on all of the data."""

        def take() -> Tensor:
            return (self.data.images[:0] if self.trained_on_all else self.data.validation.images).to(self.device)

        return self.once("heldout", take)

    @property
    def device(self) -> torch.device:
        """Where the model's tensors are."""
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            return tensor.device
        return torch.device("cpu")

    @property
    def subject(self) -> Subject:
        """The model and its data as the analyses take them."""
        labels = self.train_set.labels
        return Subject(
            self.model,
            self.train,
            self.name,
            None if labels is None else labels.to(self.device),
            self.heldout,
            seed=self.seed,
        )

    @property
    def laws(self) -> dict[str, Denoiser]:
        """The laws of the score fidelity, fitted to the training samples."""
        return self.once("laws", lambda: reference_laws(self.train, seed=self.seed))

    @property
    def gaussian(self) -> Gaussian:
        """The training samples' Gaussian; in more than 1024 coordinates its 64 leading ones with a tail, to stay small."""

        def fit() -> Gaussian:
            dim = math.prod(self.data.event_shape)
            if dim > 1024:
                return Gaussian.fit(self.train, rank=64)
            found = self.laws["gaussian"]
            assert isinstance(found, Gaussian)
            return found

        return self.once("gaussian", fit)

    @property
    def fidelity(self) -> ScoreFidelity:
        """Score fidelity at noised training samples."""

        def measure() -> ScoreFidelity:
            from farfield.analysis.fidelity import default_sigmas

            return score_fidelity(
                self.model,
                self.train,
                sigmas=default_sigmas(self.model, self.sizes.levels),
                queries=self.sizes.queries,
                laws=self.laws,
                seed=self.seed,
            )

        return self.once("fidelity", measure)

    @property
    def teleports(self) -> tuple[float, ...]:
        """Levels down to which the Gaussian leaves 0.01 % and 0.1 % of the score unexplained."""
        try:
            found = [self.fidelity.explained_until("gaussian", u) for u in (1e-4, 1e-3)]
        except FarfieldError:
            return ()
        return tuple(s for s in found if s is not None)

    @property
    def reference(self) -> Reference:
        """A fine solution of the model's ODE."""
        return self.once("reference", self._solve_finely)

    def _solve_finely(self) -> Reference:
        s = self.sizes
        return reference_solution(
            self.model, s.solver_n, self.seed, gaussian=self.gaussian, levels=s.fine, batch_size=BATCH
        )  # fmt: skip

    @property
    def solvers(self) -> SolverTable:
        """Error against evaluations of the usual samplers."""

        def measure() -> SolverTable:
            s = self.sizes
            return solver_errors(
                self.model,
                nfes=s.nfes,
                n=s.solver_n,
                seed=self.seed,
                gaussian=self.gaussian,
                entrants=default_entrants(self.model, self.gaussian, self.teleports, quick=self.quick),
                reference=self.reference,
                batch_size=BATCH,
            )

        return self.once("solvers", measure)

    @property
    def sampler(self) -> Sampler:
        """The recommended sampler; Heun on 18 levels where the comparison of solvers failed."""

        def choose() -> Sampler:
            try:
                return self.solvers.recommended()
            except Exception:
                return baseline(self.model)

        return self.once("sampler", choose)

    def draw(self, sampler: Sampler, n: int, seed: int) -> Tensor:
        """``n`` samples of a seed, (n, *event); of a conditional model with the classes of the data, in their proportion."""
        labels = self.labels
        condition: dict[str, Any] = {} if labels is None else {"labels": labels_like(labels, n, seed)}
        return sampler(self.model, n, seed, batch_size=BATCH, **condition).x

    @property
    def samples(self) -> Tensor:
        """Samples of the recommended sampler from the report's seed, enough for the page and the quality numbers."""
        count = max(self.sizes.shown, min(self.sizes.samples, len(self.train)))
        return self.once("samples", lambda: self.draw(self.sampler, count, self.seed))
