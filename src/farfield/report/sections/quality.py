"""How good the samples are: distances to the training set, beside those of held-out data, and a test for copies."""

from __future__ import annotations

from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.entrants import baseline
from farfield.analysis.images import grid_png, is_image
from farfield.metrics import sliced_wasserstein
from farfield.metrics.memorisation import COPY_RATIO
from farfield.metrics.quality import QualityReference
from farfield.report import blocks
from farfield.report.context import ReportContext
from farfield.report.registry import Section, section

COMPONENTS = 40


@section("quality", "How good the samples are", order=60, needs=("solvers",))
def quality(context: ReportContext) -> Section:
    """Fréchet and sliced Wasserstein distance, nearest-neighbour ratio, and recommended against usual sampler."""
    train, heldout, sampler = context.train, context.heldout, context.sampler
    n = min(context.sizes.samples, len(train))
    reference = QualityReference.of(train, heldout, COMPONENTS, seed=context.seed)
    features, held = reference.features, len(heldout) > 0
    affordable = context.sizes.evaluations // (n * sampler.nfe)
    seeds = [context.seed + k for k in range(max(1, min(context.sizes.repeats, affordable)))]
    draws = [context.samples[:n] if s == context.seed else context.draw(sampler, n, s) for s in seeds]

    measured = [reference.measure(x) for x in draws]
    frechet, copies = [m.frechet for m in measured], [m.copying for m in measured]
    honest, first = reference.frechet_heldout(n), copies[0]
    small = min(n, len(heldout)) if held else n
    sliced = [sliced_wasserstein(x[:small], train, seed=context.seed).value for x in draws]
    sliced_held = sliced_wasserstein(heldout[:small], train, seed=context.seed).value if held else None
    mean, sliced_mean = fmean(frechet), fmean(sliced)
    spread, sliced_spread = (stdev(v) if len(v) > 1 else 0.0 for v in (frechet, sliced))

    which = f"Seed {seeds[0]}"
    if len(seeds) > 1:
        which = f"Mean ± standard deviation over the seeds {', '.join(map(str, seeds))}"
    ratio = mean / honest.value if honest is not None and honest.value > 0 else None
    pm = f" ± {blocks.number(spread, 2)}" if len(seeds) > 1 else ""
    sliced_pm = f" ± {blocks.number(sliced_spread, 2)}" if len(seeds) > 1 else ""
    out = [_verdict(ratio, first.closer, first.copies, first.heldout_copies)]
    if not held:
        out = [
            blocks.text(
                "The model was trained on all of the data, so there are no held-out data to compare its samples with: these",
                "distances have no scale of their own, and only the share of copies can speak about memory.",
            )
        ]
    rows: list[list[Any]] = [
        [
            f"Fréchet distance to the training data, {features.components} principal components",
            blocks.number(mean) + pm,
            "–" if honest is None else blocks.number(honest.value),
            f"{n:,} samples; held out: read off at {n:,}" if held else f"{n:,} samples",
        ],
        [
            "sliced Wasserstein distance to the training data",
            blocks.number(sliced_mean) + sliced_pm,
            blocks.number(sliced_held),
            f"{small:,} samples each, 256 directions",
        ],
        [
            "median distance to the nearest training sample",
            blocks.number(float(first.distance.median())),
            blocks.number(float(first.heldout_distance.median())) if first.heldout_distance is not None else "–",
            f"{n:,} samples",
        ],
        [
            "copies: nearest at under a third of the second nearest",
            f"{100 * first.copies:.2g} %",
            f"{100 * first.heldout_copies:.2g} %" if first.heldout_copies is not None else "–",
            "0 % where nothing is copied",
        ],
        [
            "closer to the training data than a held-out sample",
            f"{100 * first.closer:.0f} %" if first.closer is not None else "–",
            "50 %",
            "100 % would be memory",
        ],
    ]
    header = ["", "the model's samples", "held-out data", "how"]
    counts = f"{len(train):,} training and {len(heldout):,} held-out samples"
    if not held:  # neither the column nor the row that compares with it
        header, rows = [header[0], header[1], header[3]], [[row[0], row[1], row[3]] for row in rows[:-1]]
        counts = f"{len(train):,} training samples"
    out.append(blocks.table(header, rows, f"{which}; {counts}; {sampler.nfe} evaluations each."))
    out.append(
        blocks.note(
            "The Fréchet distance is the squared one, in squared units of the data, between Gaussians fitted to the",
            "projections on the principal components of the training data",
            f"({100 * features.explained:.1f} % of its variance). It falls with the number of samples"
            + (
                ", so the held-out value, measured on fewer, is extrapolated to the same number (Chong & Forsyth 2020): "
                "what a perfect model would score."
                if held
                else "."
            ),
        )
    )
    if context.labels is not None:
        out.append(blocks.note("The samples have the classes of the training data, in their proportion."))
    elif context.conditional:
        out.append(blocks.note("The model takes classes and the data have none that fit: the samples are without one."))
    comparison = _comparison(context, reference)
    if comparison is not None:
        out.append(comparison[0])
    if is_image(context.data.event_shape):
        out.append(_nearest(context, draws[0], first.ratio, first.nearest))
    record: dict[str, Any] = {
        "n": n,
        "seeds": seeds,
        "nfe": sampler.nfe,
        "features": features.to_dict(),
        "frechet": {"values": frechet, "mean": mean, "std": spread, "ratio_to_heldout": ratio},
        "frechet_heldout": None if honest is None else honest.to_dict(),
        "sliced_wasserstein": {
            "values": sliced,
            "mean": sliced_mean,
            "std": sliced_spread,
            "heldout": sliced_held,
            "n": small,
        },
        "memorisation": [c.to_dict() for c in copies],
        "samplers": None if comparison is None else comparison[1],
    }
    return Section(out, record)


def _verdict(ratio: float | None, closer: float | None, copies: float, usual: float | None) -> str:
    """Two sentences on quality and on memory."""
    parts = []
    if ratio is not None:
        parts.append(
            f"The samples' Fréchet distance to the training data is {blocks.number(ratio)} times "
            "what as many held-out samples show."
        )
    if closer is not None:
        copied = copies > 0.01 + 2 * (usual or 0.0) or closer > 0.75
        share = (
            f"a sample is closer to the training data than a held-out one with probability {closer:.2f} (0.5 is honest)"
        )
        parts.append(f"There are signs of copying: {share}." if copied else f"Nothing points to copying: {share}.")
    return blocks.text(*parts)


def _comparison(context: ReportContext, reference: QualityReference) -> tuple[str, dict[str, Any]] | None:
    """Does the fast sampler cost quality? Fréchet distances of both samplers from the same noise."""
    usual, n = baseline(context.model), min(context.sizes.compared, len(context.samples))
    if n <= 2 * reference.features.components:
        return None
    fast = reference.frechet(context.samples[:n])
    slow = reference.frechet(context.draw(usual, n, context.seed))
    table = blocks.table(
        ["", "evaluations", f"Fréchet distance of {n:,} samples"],
        [["recommended sampler", context.sampler.nfe, fast], ["Heun on 18 levels", usual.nfe, slow]],
        f"Same noise (seed {context.seed}), same number of samples: what the faster sampler costs in quality.",
    )
    return table, {"n": n, "recommended": fast, "heun": slow}


def _nearest(context: ReportContext, drawn: Tensor, ratio: Tensor, nearest: Tensor) -> str:
    """The samples most suspect of being copies, above their nearest training images."""
    order = ratio.argsort()[:12]
    pictures = [drawn[order], context.train[nearest[order]]]
    data, width = grid_png(torch.cat([p.cpu() for p in pictures]), len(order))
    caption = (
        f"The {len(order)} samples whose nearest training image stands out most (top) and that image (bottom). For the "
        f"first, the distance to the nearest is {blocks.number(float(ratio[order[0]]))} of that to the second nearest; a copy "
        f"would be near 0 and counts below {COPY_RATIO:.2f}."
    )
    return blocks.figure(blocks.png(data, "Samples above their nearest training images", width), caption)
