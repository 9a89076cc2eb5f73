"""Between two samples: linear, slerp and normalised linear interpolation of their noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from farfield.analysis.images import is_image
from farfield.analysis.interpolation_diagnostics import LatentDiagnostics, detail, latent_diagnostics
from farfield.analysis.interpolation_plot import draw_interpolation
from farfield.metrics.memorisation import nearest_distances
from farfield.numerics import streams
from farfield.report import blocks
from farfield.report.context import BATCH, ReportContext
from farfield.report.registry import Section, section
from farfield.sampling.encoding import decode_noise
from farfield.sampling.interpolation import Mode, interpolate

SHOWN: tuple[Mode, ...] = ("linear", "slerp", "n-linear")
FRAMES, PAIRS, QUICK_PAIRS = 9, 32, 16


@section("interpolation", "Between two samples", order=48, needs=("solvers",))
def interpolation(context: ReportContext) -> Section:
    """Frames between the first two samples, and what the middle of many pairs has lost, by mode."""
    sampler, event = context.sampler, context.data.event_shape
    pairs = QUICK_PAIRS if context.quick else PAIRS
    condition: dict[str, Any] = {}
    label = None
    if context.labels is not None:
        label = int(context.labels.mode().values)
    noise = streams.normal(context.seed, range(2 * pairs), event, purpose="start").to(context.device)
    first, second = noise[0::2], noise[1::2]
    alphas = torch.linspace(0, 1, FRAMES, dtype=torch.float64).tolist()
    paths = torch.stack([interpolate(first[:1], second[:1], alphas, mode)[:, 0] for mode in SHOWN])
    middles = torch.stack([interpolate(first, second, 0.5, mode) for mode in SHOWN])
    every = torch.cat((paths.flatten(0, 1), middles.flatten(0, 1), first))
    if label is not None:
        condition["labels"] = torch.full((len(every),), label, device=context.device)
    decoded = decode_noise(context.model, every, sampler, batch_size=BATCH, **condition).x
    decoded = decoded.clamp(-1, 1) if is_image(event) else decoded
    shown, middle, ends = decoded.split((len(SHOWN) * FRAMES, len(SHOWN) * pairs, pairs))
    frames: dict[str, Tensor] = dict(zip(SHOWN, shown.view(len(SHOWN), FRAMES, *event), strict=True))
    norms: dict[str, LatentDiagnostics] = {
        mode: latent_diagnostics(z.unsqueeze(1), 1.0, alphas=alphas, mode=mode)
        for mode, z in zip(SHOWN, paths, strict=True)
    }
    figure = draw_interpolation(frames, norms, data=context.train)
    colours = ", ".join(SHOWN)
    of_class = "" if label is None else f", class {label}"
    caption = (
        f"Noise between that of samples 0 and 1 of seed {context.seed}, decoded with {sampler.nfe} evaluations each{of_class}. "
        "A plain mixture of two noises is shorter than noise (0.71 of its length in the middle, lower panel; the band holds "
        "99.8 % of noise), and a model answers states off that shell with blur. Divided by √((1 − α)² + α²) (n-linear), or "
        "taken along the great circle (slerp), it is noise again (Chen et al., A geometric perspective on diffusion models, "
        "appendix E)."
    )
    rows, data = _middles(context, middle.view(len(SHOWN), pairs, *event), middles, ends)
    columns = ("middle of the way", "norm / σ√d", "nearest training sample", "detail / that of samples")
    out = [
        blocks.text(_sentence(rows, is_image(event))),
        blocks.figure(
            blocks.svg(figure, f"Frames between two samples by {colours}, and norms of their noise", 48), caption
        ),
        blocks.details("The numbers", blocks.table(columns, rows, f"means over {pairs} pairs")),
        blocks.note(
            f"More of it: farfield interpolate {context.source or context.name} --samples 0 1 --modes all; between images of "
            "the data with --from-data."
        ),
    ]
    return Section(out, {"frames": FRAMES, "label": label, "nfe": sampler.nfe, "middles": data})


def _middles(
    context: ReportContext, decoded: Tensor, latents: Tensor, ends: Tensor
) -> tuple[list[list[Any]], list[dict[str, Any]]]:
    """Norm, distance to the data and detail in the middle of each pair, by mode, and of the samples themselves."""
    image = is_image(context.data.event_shape) and min(context.data.event_shape[1:]) > 1
    base = float(detail(ends).mean()) if image else None

    def row(name: str, x: Tensor, z: Tensor | None) -> list[Any]:
        near = float(nearest_distances(x, context.train, 1)[0].mean())
        norm = None if z is None else float(latent_diagnostics(z, 1.0).ratio.mean())
        return [name, norm, near, None if not base else float(detail(x).mean()) / base]

    rows = [row(mode, x, z) for mode, x, z in zip(SHOWN, decoded, latents, strict=True)]
    rows.append(row("samples (the ends)", ends, None))
    names = ("mode", "norm", "nearest", "detail")
    return rows, [dict(zip(names, r, strict=True)) for r in rows]


def _sentence(rows: list[list[Any]], image: bool) -> str:
    linear, n_linear = rows[0], rows[2]
    text = (
        "Halfway between two noises the plain mixture has "
        f"{blocks.number(linear[1])} of the length of noise, its normalised form {blocks.number(n_linear[1])}."
    )
    if image and linear[3] is not None:
        text += (
            f" Decoded, the first keeps {blocks.number(100 * linear[3])} % of the fine detail of samples, the second "
            f"{blocks.number(100 * n_linear[3])} %."
        )
    return text
