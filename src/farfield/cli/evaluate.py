"""``farfield evaluate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from torch import Tensor

    from farfield.data import DataSet
    from farfield.metrics.evaluation import Evaluation
    from farfield.metrics.features import Features
    from farfield.networks import Preconditioned


@dataclass(frozen=True)
class Evaluate:
    """Measure samples against the data they should resemble, beside held-out data.

    SAMPLES are folders of `farfield sample` or .npz files, one for each seed, or a model, which then draws --n samples
    for each of --seeds; that drawing goes on where it was interrupted.

    Fréchet and kernel distance, precision, recall, density, coverage, class statistics and a search for copies, on the
    features of a classifier (where there is one for the data) and on principal components.

    example:  farfield evaluate digits

    example:  farfield evaluate runs/seed-0 runs/seed-1 runs/seed-2 --data digits --json

    example:  farfield evaluate runs/mine --n 5000 --update-card runs/mine
    """

    samples: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SAMPLES")]
    """Folders or .npz files with samples, or one model."""
    data: str | None = None
    """The data: a name or a path. For a model, by default what its card names."""
    features: tuple[str, ...] = ("auto",)
    """auto (the data's classifier, and pca), pca, inception, a bundled classifier's name or a folder of one."""
    n: int | None = None
    """Samples of each seed; for a model 1,500 by default, for files all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds, where a model draws."""
    steps: int = 18
    """Noise levels of Heun's method, where a model draws."""
    sampler: Path | None = None
    """A sampler.json, in place of Heun's method."""
    work: Path | None = None
    """Where a model's samples are kept; runs/evaluate-MODEL by default."""
    batch_size: int = 64
    """Samples drawn at once; it does not change them."""
    out: Path | None = None
    """Write the figures to this file, as JSON."""
    update_card: Path | None = None
    """Write the figures into the card of the model in this folder, under training.metrics.evaluation."""
    device: str = "auto"
    """Where to compute: auto (the first GPU, or else the CPU), cpu, cuda, cuda:1."""
    quiet: bool = False
    """Show no progress."""
    json: bool = False
    """Print as JSON."""

    def run(self) -> int:
        """Measure, print, and write where asked."""
        from farfield.cli.common import print_json
        from farfield.cli.samples import read_samples, update_card, weights_of
        from farfield.errors import ArgumentError
        from farfield.metrics.evaluation import evaluate_samples
        from farfield.networks.files import write_json
        from farfield.numerics.devices import choose_device

        if not self.samples:
            raise ArgumentError("SAMPLES is missing: folders of `farfield sample`, .npz files, or a model")
        device = choose_device(self.device)
        if self.out is not None and (self.out.is_dir() or not self.out.parent.is_dir()):
            raise ArgumentError(f"--out {self.out} is a folder or in none; expected the name of a file to write")
        found = [read_samples(text) for text in self.samples]
        if any(f is None for f in found):
            if len(found) > 1:
                missing = self.samples[found.index(None)]
                raise ArgumentError(f"{missing!r} holds no samples; several SAMPLES are folders or .npz files")
            train, heldout, draws, records = self._draw(device)
        else:
            train, heldout, draws, records = self._from_files([f for f in found if f is not None])
        if self.update_card is not None:  # before the work, since it may be refused
            weights_of(self.update_card, records)
        seeds = [r["seed"] for r in records if isinstance(r.get("seed"), int)]
        about = {
            "samples": [{k: r[k] for k in _KEPT if k in r} for r in records],
            "data": {"name": train.name, "count": len(train), "digest": train.digest},
        }
        evaluation = evaluate_samples(
            draws,
            train.images,
            None if heldout is None else heldout.images,
            self._features(train, device),
            seeds=seeds if len(set(seeds)) == len(draws) else None,
            about=about,
        )
        record = evaluation.to_dict()
        if self.out is not None:
            write_json(self.out, record)
        if self.update_card is not None:
            update_card(self.update_card, record)
        if self.json:
            print_json(record)
        else:
            _print_table(evaluation)
        return 0

    def _features(self, train: DataSet, device: Any) -> list[Features]:
        """The feature maps asked for, in that order, each once."""
        from farfield.metrics.features import pca_features
        from farfield.metrics.network_features import PCA_COMPONENTS, InceptionFeatures, load_features
        from farfield.training.evaluate import evaluation_features

        out: list[Features] = []
        for name in dict.fromkeys(self.features):
            if name == "auto":
                out += evaluation_features(train, device)
            elif name == "pca":
                out.append(pca_features(train.images, min(PCA_COMPONENTS, train.images[0].numel())))
            elif name == "inception":
                out.append(InceptionFeatures(device=device))
            else:
                out.append(load_features(name, device))
        return list({f.name: f for f in out}.values())

    def _from_files(self, found: list[tuple[Tensor, dict[str, Any]]]) -> _Parts:
        """Samples that were drawn before, cut to one number."""
        from farfield.data import load
        from farfield.errors import ArgumentError

        given = [n for n in ("seeds", "steps", "sampler", "work") if getattr(self, n) != getattr(Evaluate, n)]
        if given:
            raise ArgumentError(f"--{', --'.join(given)} has no effect on samples that are there already")
        if self.data is None:
            raise ArgumentError("--data is missing: samples alone do not say what they should resemble")
        n = min(len(x) for x, _ in found)
        if self.n is not None and self.n > n:
            raise ArgumentError(f"--n {self.n}, but {n} samples are there")
        n = n if self.n is None else self.n
        shape = tuple(found[0][0].shape[1:])
        if any(tuple(x.shape[1:]) != shape for x, _ in found):
            raise ArgumentError(f"SAMPLES have shapes {[tuple(x.shape[1:]) for x, _ in found]}; expected one")
        images = len(shape) == 3 and not self.data.startswith("toy:")
        data = load(self.data, size=(shape[1], shape[2]) if images else None)
        return data.train, data.validation, [x[:n] for x, _ in found], [{**r, "n": n} for _, r in found]

    def _draw(self, device: Any) -> _Parts:
        """Samples of a model."""
        from farfield.cli.common import card_source, data_of, load_for
        from farfield.cli.samples import draw_seeds
        from farfield.errors import ArgumentError
        from farfield.interop import load

        name = self.samples[0]
        model = load(name).to(device)
        source = self.data if self.data is not None else card_source(model)
        if source is None:
            raise ArgumentError(f"--data is missing, and the card of {name!r} names no data")
        trained = data_of(model, source)
        assert trained is not None  # a source was given
        whole = load_for(model, source)
        heldout = whole.validation if len(trained) < len(whole) else None
        if trained.event_shape != model.event_shape:
            raise ArgumentError(
                f"--data has samples of shape {trained.event_shape}; the model's are {model.event_shape}"
            )
        work = self.work if self.work is not None else Path("runs") / f"evaluate-{Path(name).name}"
        draws, records = draw_seeds(
            model,
            name,
            self._sampler(model),
            1500 if self.n is None else self.n,
            self.seeds,
            work,
            labels=trained.labels,
            batch_size=self.batch_size,
            progress=not self.quiet,
        )
        return trained, heldout, draws, records

    def _sampler(self, model: Preconditioned) -> Any:
        from farfield.errors import ArgumentError
        from farfield.sampling import Sampler
        from farfield.training.evaluate import reference_sampler

        if self.sampler is None:
            if self.steps < 1:
                raise ArgumentError(f"--steps {self.steps}; expected at least 1")
            return reference_sampler(model, self.steps)
        if self.steps != Evaluate.steps:
            raise ArgumentError("--sampler says all about the sampler; --steps cannot be given with it")
        try:
            return Sampler.from_json(self.sampler.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ArgumentError(f"--sampler {self.sampler} cannot be read as text") from error


_Parts = tuple["DataSet", "DataSet | None", list["Tensor"], list[dict[str, Any]]]
#: What the record of an evaluation keeps of the record of its samples.
_KEPT = ("model", "weights", "sampler", "sampler_digest", "nfe", "n", "seed", "label", "labels", "file")

_TITLES = {
    "frechet": "Fréchet distance",
    "kernel": "kernel distance",
    "class_entropy": "class entropy",
    "class_balance": "class balance, KL",
    "class_confidence": "class confidence",
    "class_score": "class score",
    "closer": "closer than held-out",
    "median_ratio": "nearest-distance ratio",
}


def _print_table(evaluation: Evaluation) -> None:
    from rich.table import Table

    from farfield.cli.common import console

    seeds, held = len(evaluation.seeds), evaluation.n_heldout >= 8
    title = f"{evaluation.n:,} samples × {seeds} seed{'s' if seeds > 1 else ''}, {evaluation.n_train:,} training data"
    table = Table("metric", "features", "samples", *(["held-out"] if held else []), "n", title=title)
    last = evaluation.figures[0].features
    for f in evaluation.figures:
        if f.features != last:
            table.add_section()
            last = f.features
        spread = "" if f.std is None else f" ± {f.std:.2g}"
        row = [_TITLES.get(f.metric, f.metric), f.features, f"{f.mean:.4g}{spread}"]
        reference = ["–" if f.heldout is None else f"{f.heldout:.4g}"] if held else []
        table.add_row(*row, *reference, f"{f.n:,}")
    console().print(table)
