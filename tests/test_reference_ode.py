"""Reference paths of laws without a closed-form flow, against closed forms and quantiles."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Empirical, Gaussian, GaussianMixture
from farfield.errors import ArgumentError, NonFiniteError
from farfield.numerics.spectrum import Spectrum
from farfield.sampling import karras
from farfield.sampling.reference_ode import monotone_map, reference_path

WIDE = torch.float64
#: T1: mean, eigenvectors along the first two axes, eigenvalues 4 and 0.25, and its start at σ = 80.
T1 = Gaussian(torch.tensor([1, -1, 0.5], dtype=WIDE), Spectrum.low_rank(torch.eye(3, dtype=WIDE)[:, :2], [4.0, 0.25]))
START = torch.tensor([[40.0, -80.0, 120.0]], dtype=WIDE)
#: T2: a mixture on the line.
T2 = {"weights": [0.3, 0.7], "means": [-2.0, 1.0], "variances": [0.09, 0.25]}


def t2() -> GaussianMixture:
    return GaussianMixture(
        T2["weights"],
        torch.tensor(T2["means"], dtype=WIDE)[:, None],
        torch.tensor(T2["variances"], dtype=WIDE).view(2, 1, 1),
    )


def as_function(law: Gaussian) -> FunctionDenoiser:
    """The same denoiser without its class, so that it is integrated."""
    return FunctionDenoiser(lambda x, sigma: law(x, sigma), law.event_shape)


def test_the_integrator_reproduces_the_closed_form():
    """Holds gaussian_score F20 and the states of F18."""
    levels = (80.0, 12.91, 2.0, 0.5, 0.002, 0.0)
    fine = reference_path(as_function(T1), START, levels, rtol=1e-12, atol=1e-14)
    exact = reference_path(T1, START, levels, rtol=1e-12, atol=1e-14)
    assert exact.evaluations == 0 < fine.evaluations
    assert float((fine.states[:-1] - exact.states[:-1]).abs().max()) < 2e-11
    assert float((fine.states[4] - exact.states[4]).abs().max()) < 1.4e-12
    assert float((fine.denoised - exact.denoised).abs().max()) < 1e-11
    f18 = torch.tensor([
        [7.366710788, -13.757933628, 19.7843125], [2.378427532, -3.035743642, 3.4875],
        [2.004693079, -1.698254309, 1.246875], [1.974695943, -1.493744307, 0.5029875], [1.974695455, -1.493740357, 0.5],
    ], dtype=WIDE)  # fmt: skip
    assert float((exact.states[1:, 0] - f18).abs().max()) < 6e-10


def test_default_tolerances_are_not_enough():
    """Holds gaussian_score F20: scipy's own tolerances leave 2.7e-3 after 86 evaluations in σ; so here there are none."""
    from scipy.integrate import solve_ivp

    def slope(sigma, y):
        return (y - T1(torch.from_numpy(y)[None], sigma)[0].numpy()) / sigma

    loose = solve_ivp(slope, (80, 0.002), START[0].numpy())
    exact = T1.flow(START, 80.0, 0.002)[0].numpy()
    assert loose.nfev == 86
    assert abs(loose.y[:, -1] - exact).max() == pytest.approx(2.7e-3, rel=0.01)
    with pytest.raises(TypeError, match="rtol"):
        reference_path(T1, START, [80.0, 0.002])  # type: ignore[call-arg]
    ours = reference_path(as_function(T1), START, [80.0, 0.002], rtol=1e-3, atol=1e-6, method="RK45")
    assert 1e-4 < float((ours.states[-1] - T1.flow(START, 80.0, 0.002)).abs().max()) < 2.7e-3


F48 = {-160: -2.430448192, -80: -1.978945796, -40: -0.134915432, 0: 0.715976667, 40: 1.073662112, 80: 1.374150660,
       160: 1.921792418}  # fmt: skip


def test_the_flow_on_a_line_maps_quantiles():
    """Holds gaussian_score F48: the values, and the integrator to 2e-8."""
    x = torch.tensor(list(F48), dtype=WIDE)
    found = monotone_map(x, 80.0, 0.0, **T2)
    assert float((found - torch.tensor(list(F48.values()), dtype=WIDE)).abs().max()) < 6e-10
    path = reference_path(t2(), x[:, None], [80.0, 5.0, 0.5, 1e-4, 0.0], rtol=1e-10, atol=1e-12)
    assert float((path.states[-1, :, 0] - found).abs().max()) < 2e-7
    for k, sigma in enumerate(path.sigmas[1:4], 1):
        assert float((path.states[k, :, 0] - monotone_map(x, 80.0, sigma, **T2)).abs().max()) < 2e-8


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-4000, 4000), min_size=1, max_size=6),
    st.floats(0.0, 90.0),
    st.floats(0.0, 90.0),
    st.floats(0.05, 0.95),
)
def test_quantile_maps_compose_and_keep_the_order(values, first, second, weight):
    """Semigroup and monotony, far into the tails."""
    law = {"weights": [weight, 1 - weight], "means": [-2.0, 1.0], "variances": [0.09, 0.25]}
    x = torch.tensor(sorted(values), dtype=WIDE)
    halfway = monotone_map(x, 80.0, first, **law)
    there = monotone_map(x, 80.0, second, **law)
    assert torch.allclose(monotone_map(halfway, first, second, **law), there, rtol=1e-9, atol=1e-9)
    assert bool((there.diff() >= -1e-12 * there.abs().max()).all())
    assert torch.allclose(monotone_map(there, second, 80.0, **law), x, rtol=1e-9, atol=1e-7)


def test_a_single_component_is_the_gaussian_flow():
    x = torch.linspace(-200, 200, 9, dtype=WIDE)
    law = Gaussian(torch.tensor([1.5], dtype=WIDE), torch.tensor([[0.49]], dtype=WIDE))
    found = monotone_map(x, 80.0, 0.3, weights=[2.0], means=[1.5], variances=[0.49])
    assert torch.allclose(found, law.flow(x[:, None], 80.0, 0.3)[:, 0], rtol=1e-12, atol=1e-12)


def test_the_flow_of_points_ends_on_them():
    """Holds gaussian_score F51."""
    law = Empirical(torch.tensor([[-1.0], [1.0]], dtype=WIDE))
    x = torch.tensor([[-100.0], [-1e-3], [1e-3], [5.0], [200.0]], dtype=WIDE)
    path = reference_path(law, x, [80.0, 0.002, 0.0], rtol=1e-6, atol=1e-9)
    assert torch.equal(path.states[-1], torch.tensor([[-1.0], [-1.0], [1.0], [1.0], [1.0]], dtype=WIDE))


def test_batches_and_types_change_little():
    """Batches differ within the tolerances; a float32 law within its rounding; images keep their shape."""
    data = torch.randn(12, 1, 3, 3, dtype=WIDE)
    law, x = Empirical(data), 80 * torch.randn(7, 1, 3, 3, dtype=WIDE)
    nodes = [s for s in karras(6) if s > 0]
    whole = reference_path(law, x, [*nodes, 0.0], rtol=1e-8, atol=1e-9)
    assert whole.states.shape == (7, 7, 1, 3, 3)
    assert whole.denoised.shape == (6, 7, 1, 3, 3)
    assert whole.sigmas == (*nodes, 0.0)
    parts = reference_path(law, x, [*nodes, 0.0], rtol=1e-8, atol=1e-9, batch_size=3)
    assert torch.allclose(parts.states, whole.states, atol=1e-6)
    narrow = reference_path(law, x, [*nodes, 0.0], rtol=1e-6, atol=1e-7, dtype=torch.float32)
    assert narrow.states.dtype == WIDE
    assert torch.allclose(narrow.states, whole.states, atol=1e-4)
    single = reference_path(law, x, [80.0], rtol=1e-6, atol=1e-7)
    assert torch.equal(single.states[0], x)
    assert single.evaluations == 1


def test_bad_arguments():
    for bad, message in (
        ({"rtol": 0.0}, "rtol = 0"),
        ({"atol": -1.0}, "atol = -1"),
        ({"method": "LSODA"}, "'LSODA'"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"sigmas": [1.0, 2.0]}, "must decrease"),
        ({"sigmas": []}, "at least one"),
        ({"x": torch.zeros(1, 2)}, "x has shape"),
    ):
        arguments = {"x": START, "sigmas": [80.0, 1.0], "rtol": 1e-6, "atol": 1e-6} | bad
        with pytest.raises(ArgumentError, match=message):
            reference_path(T1, arguments.pop("x"), arguments.pop("sigmas"), **arguments)
    broken = FunctionDenoiser(lambda x, sigma: x * float("nan"), (3,))
    with pytest.raises(NonFiniteError, match="at sigma = 80 is not finite"):
        reference_path(broken, START, [80.0, 1.0], rtol=1e-6, atol=1e-6)
    for bad, message in (
        ({"means": [0.0]}, r"\(2,\), \(1,\)"),
        ({"weights": [-1.0, 2.0]}, "positive"),
        ({"variances": [0.0, 1.0]}, "sigma_to = 0.0"),
    ):
        with pytest.raises(ArgumentError, match=message):
            monotone_map(torch.zeros(1), 80.0, 0.0, **(T2 | bad))
