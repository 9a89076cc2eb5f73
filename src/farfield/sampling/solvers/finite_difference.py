"""Second-order rules as finite differences of the denoiser along the trajectory (Chen et al., table 1).

With r the denoiser's output at (x, σ) and ``h = σ' − σ < 0``, a step of each of them is

    x' = (σ'/σ) x + (1 − σ'/σ) r − ½ (h²/σ) Ṙ,        Ṙ = γ · (a difference of outputs) / (an interval of σ) ≈ dr/dσ.

They differ in Ṙ alone: which two outputs, over which interval, with which factor γ. The two-stage rules and
DPM-Solver++(2M) are the same as their native forms to rounding; the multistep rules in ε are once the earlier output has
been carried to the present state (:func:`transported`), and agree to leading order otherwise.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from farfield.errors import ArgumentError

#: The arithmetic of a rule: its own, or that of the finite differences.
Form = Literal["native", "finite_difference"]


class Master(NamedTuple):
    """One step of the master update.

    Attributes:
        ratio: σ'/σ.
        weight: of the difference of outputs, ``−½ (h²/σ) γ / interval``.
    """

    ratio: float
    weight: float


def check_form(form: str) -> None:
    """Raise ``ArgumentError`` unless ``form`` is one of the two."""
    if form not in ("native", "finite_difference"):
        raise ArgumentError(f"form = {form!r}; expected 'native' or 'finite_difference'")


def master(start: float, end: float, gamma: float, interval: float) -> Master:
    """The plan of a step.

    Args:
        start, end: σ and σ', ``start > end >= 0``.
        gamma: γ of the table.
        interval: what the difference of outputs is divided by, with its sign: ``Ṙ = γ · difference / interval``.
    """
    h = end - start
    return Master(end / start, -0.5 * h * h / start * gamma / interval)


def master_step(x: Tensor, r: Tensor, difference: Tensor | None, plan: Master) -> Tensor:
    """``ratio · x + (1 − ratio) · r + weight · difference``; Euler's step where there is no difference.

    Args:
        x: the state (B, *event) at σ.
        r: the output ``D(x, σ)``.
        difference: of outputs, the numerator of Ṙ without γ; None at a start-up step. It may be overwritten by the caller
            afterwards, and is not by this function.
        plan: from :func:`master`.
    """
    base = r.lerp(x, plan.ratio)
    return base if difference is None else base.add_(difference, alpha=plan.weight)


def transported(x: Tensor, slope: Tensor, sigma: float) -> Tensor:
    """``r̃₂ = x − σ ε₂``: the output that an earlier slope ε₂ means at the present state and level.

    With it in place of the earlier output r₂ the rows of the multistep rules are identities, whatever the step before was.
    """
    return x.sub(slope, alpha=sigma)
