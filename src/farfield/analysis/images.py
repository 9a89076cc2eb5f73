"""Pictures of samples: a grid for images, a scatter plot for vectors."""

from __future__ import annotations

import io
import math
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.plotting import PALETTE, axes_for, dress


def is_image(event_shape: tuple[int, ...]) -> bool:
    """Whether samples of this shape can be shown as pictures: (1 or 3, H, W)."""
    return len(event_shape) == 3 and event_shape[0] in (1, 3)


def grid_png(images: Tensor, columns: int, tile: int = 40, gap: int = 2) -> tuple[bytes, int]:
    """Images (n, C, H, W) in [−1, 1] in rows of ``columns``, each enlarged by a whole factor to about ``tile`` pixels.

    Returns:
        The PNG, with transparent gaps, and its width in pixels.
    """
    from PIL import Image

    n, channels, height, width = images.shape
    factor = max(1, round(tile / max(height, width)))
    grey = ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    grey = grey.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    h, w = height * factor, width * factor
    rows = math.ceil(n / columns)
    canvas = torch.zeros(rows * (h + gap) - gap, columns * (w + gap) - gap, 4, dtype=torch.uint8)
    for k, image in enumerate(grey):
        y, x = (k // columns) * (h + gap), (k % columns) * (w + gap)
        canvas[y : y + h, x : x + w, :3] = (
            image.expand(3, h, w).permute(1, 2, 0) if channels == 1 else image.permute(1, 2, 0)
        )
        canvas[y : y + h, x : x + w, 3] = 255
    buffer = io.BytesIO()
    Image.fromarray(canvas.numpy(), "RGBA").save(buffer, format="PNG", optimize=True)
    return buffer.getvalue(), canvas.shape[1]


def scatter(samples: Tensor, data: Tensor, ax: Any = None) -> Any:
    """Samples over data points in the plane; above two dimensions on the data's first two principal components."""
    flat, base = samples.double().flatten(1), data.double().flatten(1)
    names = ("x₁", "x₂")
    if base.shape[1] > 2:
        centre = base.mean(0)
        _, _, axes_ = torch.linalg.svd(base[:4096] - centre, full_matrices=False)
        flat, base = (flat - centre) @ axes_[:2].T, (base - centre) @ axes_[:2].T
        names = ("first principal component", "second principal component")
    elif base.shape[1] == 1:
        jitter = torch.linspace(0, 1, len(base), dtype=torch.float64).unsqueeze(1)
        own = torch.linspace(0, 1, len(flat), dtype=torch.float64).unsqueeze(1)
        flat, base = torch.cat((flat, own), 1), torch.cat((base, jitter), 1)
        names = ("x", "sample number (scaled)")
    (axes,) = axes_for(ax, width=5.4, height=5.0)
    axes.scatter(base[:2000, 0], base[:2000, 1], s=4, color=PALETTE[7], alpha=0.45, linewidths=0, label="data")
    axes.scatter(flat[:, 0], flat[:, 1], s=6, color=PALETTE[0], alpha=0.8, linewidths=0, label="samples")
    if base.shape[1] == 2:
        axes.set_aspect("equal", adjustable="datalim")
    dress(axes, *names)
    axes.legend(frameon=False, fontsize=9, markerscale=2)
    return axes.figure
