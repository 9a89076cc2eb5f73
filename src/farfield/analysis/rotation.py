"""Sampling as a rotation from noise to sample, measured on a model beside the Gaussian's own prediction.

The model's trajectories, as states of the variance-preserving twin, are compared with ``(α_t − α_T κ) x_0 + κ x_T``, built
from their own ends; the error is ‖difference‖²/‖x_T‖². The Gaussian of the data, started from the same noise, has the
closed-form error ``Σ ρ_k² c̄_k²/‖x_T‖²`` (``rotation_gains.py``) and never one above ``Σ c̄_k² min(1, λ_k)/‖x_T‖²``, about
the number of directions of variance above 1 over the dimension. Flatness is measured on both (``planarity.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from farfield.analysis.catalogue import Subject, analysis
from farfield.analysis.planarity import Planarity, planarity, vp_alpha, vp_states
from farfield.analysis.plotting import INK, PALETTE, axes_for, dress
from farfield.analysis.rotation_gains import rotation_bound, rotation_remainder, rotation_weights
from farfield.analysis.tables import Table
from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.distributions.gaussian_flow import GaussianFlow
from farfield.distributions.gaussian_modes import all_variances
from farfield.errors import ArgumentError
from farfield.sampling import Sampler, karras


@dataclass(frozen=True, eq=False)
class Rotation:
    """A model's trajectories beside rotations and beside the Gaussian's; tuples along the levels, from noise to sample.

    Attributes:
        sigmas, alphas: the levels and their signal scales.
        error, error_std: mean and standard deviation over the samples of the model's relative rotation error.
        gaussian_error: the Gaussian's from the same noise, in closed form.
        bound: its bound at all levels.
        plane, gaussian_plane: flatness of the model's trajectories and of the Gaussian's.
        samples, nfe, seed: of the runs.
    """

    sigmas: tuple[float, ...]
    alphas: tuple[float, ...]
    error: tuple[float, ...]
    error_std: tuple[float, ...]
    gaussian_error: tuple[float, ...]
    bound: float
    plane: Planarity
    gaussian_plane: Planarity
    samples: int
    nfe: int
    seed: int

    @property
    def worst(self) -> tuple[float, float]:
        """The largest mean rotation error, and its σ."""
        k = max(range(len(self.error)), key=self.error.__getitem__)
        return self.error[k], self.sigmas[k]

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        value = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return value | {"plane": self.plane.to_dict(), "gaussian_plane": self.gaussian_plane.to_dict()}

    def summary(self) -> str:
        """How flat, and how far from a rotation."""
        error, sigma = self.worst
        return (
            f"The best plane holds {self.plane.in_plane:.2%} of the trajectories' energy (the Gaussian's: "
            f"{self.gaussian_plane.in_plane:.2%}); at most {self.plane.worst_off_plane:.2%} of a state is off the plane of its "
            f"noise and its sample. The rotation formula errs most at σ = {sigma:.3g}, by {error:.2%} of ‖x_T‖²; for the "
            f"Gaussian by at most {max(self.gaussian_error):.2%}."
        )

    def tables(self) -> list[Table]:
        """Errors and angles by level."""
        columns = (
            "σ", "α", "rotation error", "± std", "of the Gaussian", "off the plane", "of the Gaussian ", "angle", "atan2(q, p)",
            "arccos α",
        )  # fmt: skip
        rows = zip(
            self.sigmas, self.alphas, self.error, self.error_std, self.gaussian_error, self.plane.off_plane,
            self.gaussian_plane.off_plane, self.plane.angle, self.plane.weight_angle, self.plane.expected_angle, strict=True,
        )  # fmt: skip
        spectra = tuple(
            (k + 1, a, b)
            for k, (a, b) in enumerate(zip(self.plane.explained, self.gaussian_plane.explained, strict=True))
        )
        title = f"trajectories of {self.samples} samples; errors over ‖x_T‖², angles in degrees"
        return [
            Table(title, columns, tuple(rows)),
            Table("energy of the stacked states", ("direction", "model", "Gaussian"), spectra),
        ]

    def plot(self, ax: Any = None) -> Any:
        """The plane with its trajectories, the angle against arccos α, and the errors. Returns the figure.

        Args:
            ax: three axes, or None for a new figure.
        """
        plane, angle, errors = axes_for(ax, 3, width=13.2, height=4.2)
        _draw_plane(self, plane)
        expected = self.plane.expected_angle
        angle.plot([0, 90], [0, 90], color=INK, alpha=0.4, linewidth=1, linestyle=(0, (4, 3)))
        angle.plot(expected, self.plane.weight_angle, color=PALETTE[0], linewidth=2, label="weights, atan2(q, p)")
        angle.plot(expected, self.plane.angle, color=PALETTE[1], linewidth=2, label="angle in the plane")
        label = "Gaussian: angle in the plane"
        angle.plot(
            expected, self.gaussian_plane.angle, color=PALETTE[1], linewidth=1.2, linestyle=(0, (2, 2)), label=label
        )
        angle.set_xlim(92, -2)
        dress(angle, "arccos α, degrees  (sampling runs to the right)", "degrees", "a rotation stays on the diagonal")
        angle.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper right")
        _draw_errors(self, errors)
        return plane.figure


def _draw_plane(found: Rotation, axes: Any) -> None:
    points = found.plane.coordinates
    for i in range(min(points.shape[1], 8)):
        axes.plot(points[:, i, 1], points[:, i, 0], color=PALETTE[0], alpha=0.5, linewidth=1.1)
    closed = found.gaussian_plane.coordinates
    for i in range(min(closed.shape[1], 8)):
        axes.plot(closed[:, i, 1], closed[:, i, 0], color=PALETTE[1], alpha=0.6, linewidth=1, linestyle=(0, (2, 2)))
    axes.plot([], [], color=PALETTE[0], label="model")
    axes.plot([], [], color=PALETTE[1], linestyle=(0, (2, 2)), label="Gaussian, same noise")
    axes.plot([0], [1], "o", color=INK, markersize=4)
    axes.annotate("noise x_T", (0, 1), xytext=(4, 4), textcoords="offset points", fontsize=8, color=INK)
    axes.margins(0.12)
    axes.set_aspect("equal", adjustable="datalim")
    dress(axes, "along the sample x_0, beside x_T  (in ‖x_T‖)", "along the noise x_T  (in ‖x_T‖)", "in the plane")
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower left")


def _draw_errors(found: Rotation, axes: Any) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    shown = [k for k, s in enumerate(found.sigmas) if s > 0]
    sigmas = [found.sigmas[k] for k in shown]
    for values, colour, style, name in (
        (found.error, PALETTE[0], "-", "rotation error"),
        (found.gaussian_error, PALETTE[0], (0, (2, 2)), "Gaussian: rotation error"),
        (found.plane.off_plane, PALETTE[2], "-", "off the plane"),
        (found.gaussian_plane.off_plane, PALETTE[2], (0, (2, 2)), "Gaussian: off the plane"),
    ):
        # The ends are 0 by construction and have no place on a logarithmic axis.
        curve = [values[k] if values[k] > 1e-9 else float("nan") for k in shown]
        axes.plot(sigmas, curve, color=colour, linewidth=1.8, linestyle=style, label=name)
    axes.axhline(found.bound, color=INK, alpha=0.5, linewidth=0.9, linestyle=(0, (1, 2)))
    axes.annotate(
        "bound for the Gaussian",
        (sigmas[0], found.bound),
        xytext=(2, 3),
        textcoords="offset points",
        fontsize=8,
        color=INK,
    )
    axes.set_xlim(sigmas[0], sigmas[-1])
    dress(axes, "noise level σ  (sampling runs to the right)", "share of the energy", "what is no rotation")
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower center")


def gaussian_rotation_error(law: Gaussian, x: Tensor, sigma_from: float, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """‖R_t‖²/‖x_T‖² of the Gaussian's flow, and its bound Σ c̄² min(1, λ)/‖x_T‖².

    Args:
        law: the Gaussian.
        x: (B, *event) variance-exploding states at ``sigma_from``.
        sigma_from: where the flow starts.
        sigmas: (L,) levels.

    Returns:
        (L, B) and (B,) in float64.
    """
    path = GaussianFlow(law).path(x, sigma_from)
    spectrum, top = law.spectrum, vp_alpha(sigma_from)
    alpha = torch.tensor([vp_alpha(s) for s in sigmas.tolist()], dtype=torch.float64, device=spectrum.values.device)
    variances = all_variances(spectrum)
    gains = rotation_remainder(variances, alpha[:, None], top).square()  # (L, r) or (L, r + 1)
    squares = path.coefficients.double().square()
    if path.outside is not None:
        squares = torch.cat((squares, path.outside.double().square().sum(1, keepdim=True)), 1)
    squares = squares * top**2
    norm = (x.flatten(1).double() * top).square().sum(1)
    bound = rotation_bound(squares.sqrt(), variances)
    return gains @ squares.T / norm, bound / norm


def rotation(
    denoiser: Denoiser, law: Gaussian, *, sampler: Sampler | None = None, n: int = 32, seed: int = 0
) -> Rotation:
    """Run a sampler and compare its trajectories with rotations.

    Args:
        denoiser: the model.
        law: the data's Gaussian.
        sampler: how to solve; by default Heun on 40 Karras levels within the model's range. It must start in pure noise.
        n, seed: the samples.

    Raises:
        ArgumentError: for a run of fewer than two steps.
    """
    low, high = max(0.002, denoiser.sigma_min), min(80.0, denoiser.sigma_max)
    plan = sampler if sampler is not None else Sampler("heun", karras(40, low, high))
    run = plan(denoiser, n, seed, trajectory=True)
    assert run.trajectory is not None
    sigmas = run.trajectory.sigmas
    if len(sigmas) < 3:
        raise ArgumentError(f"sampler: its run has {len(sigmas) - 1} step; expected at least 2")
    return rotation_of(run.trajectory.states, sigmas, law, nfe=run.nfe, seed=seed)


def rotation_of(states: Tensor, sigmas: tuple[float, ...], law: Gaussian, *, nfe: int = 0, seed: int = 0) -> Rotation:
    """The comparison for given variance-exploding states (L, B, *event) at L decreasing levels, the last the samples."""
    alphas = tuple(vp_alpha(s) for s in sigmas)
    turned = vp_states(states.double(), sigmas)
    tensor = torch.tensor(alphas, dtype=torch.float64, device=states.device)
    for_sample, for_noise = rotation_weights(tensor, alphas[0])
    shape = (-1, *(1,) * (states.ndim - 1))
    predicted = for_sample.view(shape) * turned[-1] + for_noise.view(shape) * turned[0]
    norm = turned[0].flatten(1).square().sum(1)
    error = (turned - predicted).flatten(2).square().sum(2) / norm
    levels = torch.tensor(sigmas, dtype=torch.float64)
    closed, bound = gaussian_rotation_error(law, states[0], sigmas[0], levels)
    ours = GaussianFlow(law).path(states[0].double(), sigmas[0]).state(levels)
    return Rotation(
        sigmas=tuple(sigmas),
        alphas=alphas,
        error=tuple(error.mean(1).tolist()),
        error_std=tuple(error.std(1, correction=0).tolist()),
        gaussian_error=tuple(closed.mean(1).tolist()),
        bound=float(bound.mean()),
        plane=planarity(turned, alphas),
        gaussian_plane=planarity(vp_states(ours, sigmas), alphas),
        samples=states.shape[1],
        nfe=nfe,
        seed=seed,
    )


@dataclass(frozen=True)
class RotationOptions:
    """Options of the analysis; see :func:`rotation`."""

    n: int = 32
    solver: str = "heun"
    grid: Literal["karras", "log_snr"] = "karras"
    steps: int = 40


@analysis(
    "rotation",
    about="how flat trajectories are, and how near to rotations of noise into sample",
    options=RotationOptions,
)
def analyze_rotation(subject: Subject, options: RotationOptions) -> Rotation:
    """:func:`rotation` of a subject, with the Gaussian of its data."""
    from farfield.sampling import log_snr

    model = subject.model
    low, high = max(0.002, model.sigma_min), min(80.0, model.sigma_max)
    nodes = (karras if options.grid == "karras" else log_snr)(options.steps, low, high)
    law = Gaussian.fit(subject.data, rank=None if model.dim <= 1024 else 512)
    return rotation(model, law, sampler=Sampler(options.solver, nodes), n=options.n, seed=subject.seed)
