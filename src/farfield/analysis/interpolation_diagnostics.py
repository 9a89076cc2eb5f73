"""Are latents on the shell that a model was trained on? Checks of norm, variance and angle before anything is decoded.

At noise level σ a latent is about N(0, σ² I): its norm is σ√d up to a relative 1/√(2d), and two of them are at right angles up
to 1/√d. ``‖z‖²/σ²`` follows χ²_d, which says how unusual a norm is. Linear interpolation of independent latents shortens
them to sqrt((1 − α)² + α²) of that, off the shell in any dimension worth the name, and the model answers such states with
blur (Chen et al., A geometric perspective on diffusion models, appendix E). Latents of encoded data show here as well what
the encoding did to them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.plotting import INK, PALETTE, axes_for, dress, label_ends
from farfield.analysis.tables import Table
from farfield.errors import ArgumentError
from farfield.sampling.interpolation import MODES, angle, angle_deviation

#: A norm further out than this share of the law's draws, on both sides together, is worth a warning.
UNUSUAL = 2e-3
#: Below this relative distance from the shell a norm is not worth one, however many coordinates make it significant.
NEGLIGIBLE = 0.02


@dataclass(frozen=True, eq=False)
class LatentDiagnostics:
    """Norms of latents against the shell of N(0, σ² I); arrays are (F, B): F frames of B sets, float64.

    Attributes:
        sigma: the noise level.
        dim: coordinates of one latent.
        alphas: (F,) where the frames lie between the ends; None for latents that are no frames.
        ratio: ‖z‖/(σ√d); its square is the variance of a coordinate over σ².
        quantile: the share of the law's draws with a smaller norm, in [0, 1].
        kurtosis: of the coordinates; 3 for normal ones, NaN where they do not vary, as a single one.
        angle: (B,) between the first and the last frame, radians; None for latents that are no frames.
        band: the ratios between which all but 0.2 % of the law's draws lie.
        mode: how the frames were made, or "".
    """

    sigma: float
    dim: int
    alphas: tuple[float, ...] | None
    ratio: Tensor
    quantile: Tensor
    kurtosis: Tensor
    angle: Tensor | None
    band: tuple[float, float]
    mode: str = ""

    @property
    def variance(self) -> Tensor:
        """(F,) the variance of a coordinate over σ², mean over the sets."""
        return self.ratio.square().mean(1)

    @property
    def outside(self) -> Tensor:
        """(F,) share of the sets whose norm is outside the band, by more than 2 %."""
        far = (self.ratio < self.band[0]) | (self.ratio > self.band[1])
        return (far & ((self.ratio - 1).abs() > NEGLIGIBLE)).double().mean(1)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to mind before decoding, in sentences; none where all is well."""
        said = []
        if bool((self.outside > 0).any()):
            k = int((self.ratio.mean(1) - 1).abs().argmax())
            worst = float(self.ratio[k].mean())
            where = f"at α = {self.alphas[k]:.2g}" if self.alphas is not None else f"of latent {k}"
            what = "falls short of" if worst < 1 else "lies beyond"
            text = f"The norm {where} {what} the shell of the noise at {worst:.3f} of its radius"
            if self.alphas is not None and 0 < k < len(self.alphas) - 1 and self.mode in ("linear", ""):
                text += "; expect blur: n-linear or sine keep it"
            said.append(text + ".")
        if self.angle is not None and self.dim > 3:
            off = (self.angle - math.pi / 2).abs() / angle_deviation(self.dim)
            worst_set = int(off.argmax())
            if float(off[worst_set]) > 5:
                said.append(
                    f"The ends are at {math.degrees(float(self.angle[worst_set])):.0f}°, "
                    f"{float(off[worst_set]):.0f} standard deviations from a right angle: they are not independent, and the "
                    "modes that count on that change the norm (slerp does not)."
                )
        return tuple(said)

    def summary(self) -> str:
        """The range of the norms, and the warnings."""
        low, high = float(self.ratio.min()), float(self.ratio.max())
        text = (
            f"{self.mode or 'Latents'}: norms from {low:.3f} to {high:.3f} of σ√d; "
            f"the noise itself has {self.band[0]:.3f} to {self.band[1]:.3f}."
        )
        return " ".join((text, *self.warnings))

    def tables(self) -> list[Table]:
        """A row for each frame, means over the sets."""
        places = self.alphas if self.alphas is not None else range(len(self.ratio))
        rows = tuple(
            (p, float(r.mean()), float(v), float(q.median()), _finite(float(k.mean())))
            for p, r, v, q, k in zip(places, self.ratio, self.variance, self.quantile, self.kurtosis, strict=True)
        )
        first = "α" if self.alphas is not None else "latent"
        columns = (first, "norm / σ√d", "variance / σ²", "quantile of the norm", "kurtosis")
        return [Table(f"{self.mode or 'latents'} at σ = {self.sigma:.4g}, d = {self.dim:,}", columns, rows)]

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-safe."""
        return {
            "mode": self.mode,
            "sigma": self.sigma,
            "dim": self.dim,
            "alphas": None if self.alphas is None else list(self.alphas),
            "ratio": self.ratio.tolist(),
            "quantile": self.quantile.tolist(),
            "kurtosis": [[_finite(k) for k in row] for row in self.kurtosis.tolist()],
            "angle": None if self.angle is None else self.angle.tolist(),
            "band": list(self.band),
            "warnings": list(self.warnings),
        }

    def plot(self, ax: Any = None) -> Any:
        """The norms against α, over the band of the noise. Returns the figure."""
        return plot_norms({self.mode or "latents": self}, ax)


def _finite(value: float) -> float | None:
    """None for the kurtosis of what does not vary."""
    return value if math.isfinite(value) else None


def latent_diagnostics(
    latents: Tensor,
    sigma: float,
    *,
    alphas: Sequence[float] | Tensor | None = None,
    centre: Tensor | None = None,
    mode: str = "",
) -> LatentDiagnostics:
    """Norms, variance, kurtosis and angle of latents.

    Args:
        latents: frames (F, B, *event) with ``alphas``, or latents (n, *event) without.
        sigma: their noise level, > 0.
        alphas: (F,) where the frames lie, as :func:`farfield.sampling.interpolation.interpolate` took them.
        centre: (*event) the mean of their law; 0 by default.
        mode: how they were made.

    Raises:
        ArgumentError: for shapes that do not fit, or a level that is not positive.
    """
    from scipy.stats import chi2

    if not 0 < sigma < math.inf:
        raise ArgumentError(f"sigma = {sigma}; expected a positive noise level")
    places = None if alphas is None else tuple(float(a) for a in alphas)
    frames = latents.unsqueeze(1) if places is None else latents
    if frames.ndim < 3 or frames.numel() == 0 or (places is not None and len(places) != len(frames)):
        expected = "(n, *event)" if places is None else f"({len(places)}, B, *event)"
        raise ArgumentError(f"latents have shape {tuple(latents.shape)}; expected {expected}, with at least one row")
    shifted = frames if centre is None else frames - centre.to(frames)
    flat = (shifted.flatten(2).double() / sigma).cpu()
    dim = flat.shape[2]
    squares = flat.square().sum(2)
    centred = flat - flat.mean(2, keepdim=True)
    second = centred.square().mean(2)
    low, high = chi2.ppf([UNUSUAL / 2, 1 - UNUSUAL / 2], dim)
    return LatentDiagnostics(
        sigma=float(sigma),
        dim=dim,
        alphas=places,
        ratio=(squares / dim).sqrt(),
        quantile=torch.from_numpy(chi2.cdf(squares.numpy(), dim)),
        kurtosis=torch.where(second > 0, centred.pow(4).mean(2) / second.square(), torch.nan),
        angle=None if places is None else angle(shifted[0], shifted[-1]).cpu(),
        band=(math.sqrt(float(low) / dim), math.sqrt(float(high) / dim)),
        mode=mode,
    )


def plot_norms(found: Mapping[str, LatentDiagnostics], ax: Any = None) -> Any:
    """Norms of several modes against α in one panel, with the band of the noise. Returns the figure.

    Args:
        found: diagnostics by mode, all of one level.
        ax: axes to draw on; a new figure by default.
    """
    (axes,) = axes_for(ax, width=6.4, height=3.2)
    first = next(iter(found.values()))
    axes.axhspan(*first.band, color=INK, alpha=0.08, linewidth=0)
    ends = []
    for name, one in found.items():
        # A mode keeps its colour whichever are shown; they meet at the ends, so the names stand in a legend.
        colour = PALETTE[MODES.index(name) if name in MODES else 5]  # type: ignore[arg-type]
        mean = one.ratio.mean(1).tolist()
        if one.alphas is None:
            axes.plot(range(len(mean)), mean, "o", color=colour, markersize=4)
            ends.append((mean[-1], name, colour))
        else:
            style = "--" if name == "slerp" else "-"
            axes.plot(one.alphas, mean, style, color=colour, linewidth=2, label=name)
    dress(axes, "latent" if first.alphas is None else "α", "norm of the latent / σ√d")
    if first.alphas is None:
        label_ends(axes, ends)
    else:
        axes.set_xlim(0, 1)
        axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    values = [r for one in found.values() for r in one.ratio.mean(1).tolist()]
    low, high = min(*values, first.band[0]), max(*values, first.band[1])
    axes.set_ylim(low - 0.05, high + 0.05)
    axes.annotate(
        "noise", (0.5, first.band[1]), xytext=(0, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
        fontsize=8, color=INK, alpha=0.75, ha="center",
    )  # fmt: skip
    return axes.figure


def detail(images: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels, (n,) in float64: small for blurred images.

    Args:
        images: (n, C, H, W) with H and W of at least 2.
    """
    if images.ndim != 4 or min(images.shape[2:]) < 2:
        raise ArgumentError(f"images have shape {tuple(images.shape)}; expected (n, C, H, W) of at least 2 × 2 pixels")
    x = images.double()
    across, down = x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]
    return (across.square().mean((1, 2, 3)) + down.square().mean((1, 2, 3))) / 2
