"""The weights of the Adams rules against quadrature, textbook values and the variance-preserving integrals."""

import math
from functools import partial

import mpmath
import pytest
from scipy.integrate import quad

from farfield.processes import VP
from farfield.sampling.solvers.adams import EQUAL_STEPS, equal_step_weights, step_integrals
from farfield.sampling.solvers.deis import DEIS


def by_mpmath(known, a, b, variable):
    """The same integrals to 30 digits, of the Lagrange polynomial written as it is defined."""
    with mpmath.workdps(30):
        u = [variable(mpmath.mpf(s)) for s in known]

        def basis(j, sigma):
            v = variable(sigma)
            return mpmath.fprod((v - u[i]) / (u[j] - u[i]) for i in range(len(u)) if i != j)

        ends = [mpmath.mpf(a) * (mpmath.mpf(b) / a) ** (mpmath.mpf(k) / 6) for k in range(7)]
        return [float(mpmath.quad(partial(basis, j), ends)) for j in range(len(known))]


def vp_time(sigma):
    slope, low = mpmath.mpf("19.9"), mpmath.mpf("0.1")
    integral = mpmath.log(1 + sigma * sigma)
    return 2 * integral / (low + mpmath.sqrt(low * low + 2 * slope * integral))


VARIABLES = {"rhoab": lambda s: s, "logrho": mpmath.log, "tab": vp_time}


@pytest.mark.parametrize("variant", VARIABLES)
@pytest.mark.parametrize("many", [1, 2, 3, 4])
@pytest.mark.parametrize("high", [80.0, 0.03])
def test_weights_by_quadrature(variant, many, high):
    """All three variables, from 80 down and near zero noise; with the value at the end of the step as well."""
    known = [high / 2.1**k for k in range(many - 1, -1, -1)]
    a, b = known[0], known[0] / 9
    rule = DEIS(variant)
    for levels in (known, [b, *known[:-1]]):
        found = step_integrals(levels, a, b, rule.variable)
        wanted = by_mpmath(levels, a, b, VARIABLES[variant])
        assert found == pytest.approx(wanted, rel=3e-12, abs=3e-14 * a)
        assert sum(found) == pytest.approx(b - a, rel=1e-12)


def test_time_weights_in_the_variance_preserving_state():
    """The authors' own integral, ``x_s = (α_s/α_t) x_t + Σ ε_j ∫ ½ (α_s/α) β/sqrt(1 − α²) ℓ_j(τ) dτ``, in VP time."""
    process, times = VP(), [0.31, 0.42, 0.55]
    t, s = times[0], 0.2
    alpha = process.alpha

    def integrand(tau, j):
        basis = math.prod((tau - o) / (times[j] - o) for i, o in enumerate(times) if i != j)
        beta = 0.1 + 19.9 * tau
        return 0.5 * alpha(s) / alpha(tau) * beta / math.sqrt(1 - alpha(tau) ** 2) * basis

    wanted = [quad(integrand, t, s, args=(j,), epsabs=0, epsrel=1e-13)[0] for j in range(3)]
    levels = [process.sigma(v) for v in times]
    found = step_integrals(levels, levels[0], process.sigma(s), DEIS("tab").variable)
    assert [alpha(s) * w for w in found] == pytest.approx(wanted, rel=1e-11)


@pytest.mark.parametrize("many", [1, 2, 3, 4])
def test_equal_steps_have_the_textbook_weights(many):
    known = [2.0 + 0.5 * k for k in range(many)]
    assert step_integrals(known, 2.0, 1.5) == pytest.approx([-0.5 * c for c in EQUAL_STEPS[many]], rel=1e-13)
    assert equal_step_weights(known, 2.0, 1.5) == pytest.approx([-0.5 * c for c in EQUAL_STEPS[many]], rel=1e-15)


def test_closed_form_of_two_slopes():
    """Geometry section 2.7: ``C_0 = [(t − t₂)² − (t₁ − t₂)²]/(2(t₁ − t₂))``, ``C_1 = (t − t₁)²/(2(t₂ − t₁))``."""
    t, t1, t2 = 0.7, 1.1, 1.9
    wanted = [((t - t2) ** 2 - (t1 - t2) ** 2) / (2 * (t1 - t2)), (t - t1) ** 2 / (2 * (t2 - t1))]
    assert step_integrals([t1, t2], t1, t) == pytest.approx(wanted, rel=1e-14)
