"""Time maps and kernels: values of the literature, derivatives by finite differences, inverses."""

import math

import pytest
import torch

from farfield.errors import ArgumentError
from farfield.processes import DDPM, VE, VP, Diffusion, SubVP

MAPS = {
    "vp": VP(),
    "vp-soft": VP(0.1, 2.0),
    "sub-vp": SubVP(),
    "ve": VE(),
    "ddpm": DDPM(),
    "ddpm-cosine": DDPM(schedule="cosine"),
}


def times(time_map):
    """Times inside the range, off the nodes of the discrete maps."""
    part = torch.tensor([0.0313, 0.1717, 0.4171, 0.7073, 0.9511], dtype=torch.float64)
    return time_map.t_min + part * (time_map.t_max - time_map.t_min)


@pytest.mark.parametrize("name", MAPS)
def test_inverse(name):
    time_map = MAPS[name]
    t = times(time_map)
    torch.testing.assert_close(time_map.time(time_map.sigma(t)), t, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MAPS)
def test_derivatives_by_finite_differences(name):
    time_map = MAPS[name]
    t = times(time_map)
    h = 1e-6 * (time_map.t_max - time_map.t_min)
    for value, slope in ((time_map.sigma, time_map.sigma_derivative), (time_map.alpha, time_map.alpha_derivative)):
        numeric = (value(t + h) - value(t - h)) / (2 * h)
        torch.testing.assert_close(slope(t), numeric, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", MAPS)
def test_coefficients_carry_the_kernel(name):
    """g² = d(s²)/dt − 2 f s² for the kernel N(α x₀, s² I) of dx = f x dt + g dw."""
    time_map = MAPS[name]
    t = times(time_map)
    h = 1e-6 * (time_map.t_max - time_map.t_min)
    growth = (time_map.std(t + h) ** 2 - time_map.std(t - h) ** 2) / (2 * h)
    expected = growth - 2 * time_map.drift(t) * time_map.std(t) ** 2
    torch.testing.assert_close(time_map.diffusion(t) ** 2, expected, rtol=2e-5, atol=1e-9)


def test_vp_values():
    """Geometry fact 61."""
    vp = VP(0.1, 20.0)
    for t, sigma in ((0.001, 0.0104859927867), (0.1, 0.340176529077), (0.5, 3.41291830907), (1.0, 152.166970284)):
        assert vp.sigma(t) == pytest.approx(sigma, rel=1e-11)
    assert vp.alpha(1.0) == pytest.approx(0.00657158649493, rel=1e-11)


def test_vp_and_sub_vp_diffusion_coefficients():
    """Song et al. (2021): g² = β for VP and β (1 − e^{−2B}) for sub-VP."""
    t = torch.linspace(0.05, 1, 7, dtype=torch.float64)
    beta, b = 0.1 + 19.9 * t, 0.1 * t + 19.9 * t * t / 2
    torch.testing.assert_close(VP().diffusion(t) ** 2, beta)
    torch.testing.assert_close(SubVP().diffusion(t) ** 2, beta * (1 - torch.exp(-2 * b)))


def test_ddpm_linear_anchors():
    """Gaussian score, section 1.4: sigma/alpha of the linear schedule with 1000 steps."""
    table = DDPM()
    anchors = {999: 157.407, 899: 60.271, 799: 25.528, 699: 11.940, 599: 6.1352, 499: 3.4241, 99: 0.33883, 0: 0.010001}
    for index, sigma in anchors.items():
        assert table.sigma(float(index)) == pytest.approx(sigma, rel=5e-5)
    assert table.alpha(999.0) == pytest.approx(0.0063528, rel=1e-5)


def test_ddpm_cosine_is_the_closed_form_below_the_cap():
    """Nichol & Dhariwal (2021), Eq. 17."""
    table = DDPM(schedule="cosine")
    for index in (0, 10, 500, 900):
        bar = (
            math.cos(((index + 1) / 1000 + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)
        ) ** 2
        assert table.sigma(float(index)) == pytest.approx(math.sqrt(1 / bar - 1), rel=1e-9)
    assert float(table.betas.max()) == 0.999


def test_conversion_to_ve_and_back():
    x = torch.randn(3, 2, dtype=torch.float64)
    state, sigma = VP().to_ve(x, 0.4)
    back, t = VP().from_ve(state, sigma)
    torch.testing.assert_close(back, x)
    assert t == pytest.approx(0.4)


@pytest.mark.parametrize("name", MAPS)
def test_conversion_goes_row_by_row_and_keeps_the_type(name):
    """As many rows as columns: a time belongs to a row, not to a column."""
    time_map = MAPS[name]
    t = times(time_map)
    x = torch.randn(5, 5, 5)
    state, sigma = time_map.to_ve(x, t)
    assert state.dtype == sigma.dtype == torch.float32
    for i in range(5):
        torch.testing.assert_close(state[i], x[i] / float(time_map.alpha(t[i])))
        assert float(sigma[i]) == pytest.approx(time_map.sigma(float(t[i])), rel=1e-6)
    back, again = time_map.from_ve(state, time_map.sigma(t))
    assert back.dtype == torch.float32
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(again, t)
    assert time_map.to_ve(x, t[0])[0].dtype == torch.float32
    with pytest.raises(ArgumentError, match="t has shape"):
        time_map.to_ve(x, t[:3])
    with pytest.raises(ArgumentError, match="sigma has shape"):
        time_map.from_ve(x, time_map.sigma(t[:3]))


@pytest.mark.parametrize("name", MAPS)
def test_maps_follow_the_device_of_their_argument(name):
    """On the meta device, which stands here for any that is not the CPU."""
    time_map, t = MAPS[name], torch.ones(3, device="meta")
    methods = (time_map.sigma, time_map.time, time_map.alpha, time_map.drift, time_map.sigma_derivative)
    assert all(method(t).device.type == "meta" for method in methods)
    x = torch.zeros(3, 2, device="meta")
    for time in (0.5, t):
        state, sigma = time_map.to_ve(x, time)
        back, _ = time_map.from_ve(state, sigma)
        assert back.device.type == "meta"
        assert back.dtype == torch.float32


def test_diffusion_kernel_and_renoise():
    process = Diffusion()
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(20000, 3, generator=generator)
    x = process.perturb(x0, 0.5, generator)
    assert float((x - x0).std()) == pytest.approx(0.5, rel=0.02)
    y = process.renoise(x, 0.5, 1.3, generator)
    assert float((y - x0).std()) == pytest.approx(1.3, rel=0.02)
    levels = torch.linspace(0.1, 2.0, 20000)
    assert float(((process.perturb(x0, levels, generator) - x0) / levels[:, None]).std()) == pytest.approx(1, rel=0.02)
    squared = torch.tensor([0.7, 2.0], dtype=torch.float64)
    density = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64))
    point = torch.tensor([0.3, 0.4, 0.5], dtype=torch.float64)
    full = process.log_kernel((point**2).sum(), 0.8, 3) + process.log_normalizer(0.8, 3)
    assert float(full) == pytest.approx(float(density.log_prob(point).sum()), rel=1e-12)
    torch.testing.assert_close(process.log_kernel(squared, 0.5, 3), -squared / 0.5)


def test_bad_arguments():
    with pytest.raises(ArgumentError, match="beta_min"):
        VP(20, 0.1)
    with pytest.raises(ArgumentError, match="sigma_min"):
        VE(50, 0.01)
    with pytest.raises(ArgumentError, match="'linear' or 'cosine'"):
        DDPM(schedule="square")  # type: ignore[arg-type]
    for start, end in ((1e-4, 1.5), (0.0, 0.02), (0.03, 0.02), (1e-4, 1.0), (1e-4, float("nan"))):
        with pytest.raises(ArgumentError, match="beta_start"):
            DDPM(beta_start=start, beta_end=end)
    with pytest.raises(ArgumentError, match="sigma_from"):
        Diffusion().renoise(torch.zeros(1, 2), 1.0, 0.5)
    with pytest.raises(ArgumentError, match="sigma has shape"):
        Diffusion().perturb(torch.zeros(3, 2), torch.ones(2))
