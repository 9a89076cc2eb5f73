"""The stable target field against the exact numbers of its source's facts, by enumeration of all batches."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from farfield.distributions import Empirical
from farfield.objectives import VEObjective, stable_target
from farfield.processes import VE, VP

from .test_empirical import StudentT

F64 = torch.float64
#: The five-point fixture, at σ = 1.
FIVE = torch.tensor([-2.0, -1, 0, 1, 3], dtype=F64)


def column(values) -> Tensor:
    return torch.as_tensor(values, dtype=F64).reshape(-1, 1)


def scores(noisy: Tensor, sigma: float, reference: Tensor, **rest) -> Tensor:
    """(ȳ − x)/σ² of one-dimensional states (B, 1): (B,)."""
    return ((stable_target(noisy, sigma, reference, **rest)[0] - noisy) / sigma**2).squeeze(1)


# -- two points -------------------------------------------------------------------------------------------------------


def two_points(sigma: float, n: int) -> tuple[float, float]:
    """V_STF of n i.i.d. points of ±1, and the largest error of the mean target; quadrature in x, binomial in the batch."""
    x = torch.arange(-1 - 9 * sigma, 1 + 9 * sigma, min(sigma / 8, sigma**2 / 2.5), dtype=F64)
    density = sum(torch.exp(-((x - c) ** 2) / (2 * sigma**2)) for c in (-1, 1))
    density /= density.sum()
    up = torch.sigmoid(2 * x / sigma**2)  # the chance that the source is +1
    true = (torch.tanh(x / sigma**2) - x) / sigma**2
    mean, variance, total = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x)

    def binomial(k: int) -> float:
        if not 0 <= k <= n - 1:
            return 0.0
        return math.exp(math.lgamma(n) - math.lgamma(k + 1) - math.lgamma(n - k) - (n - 1) * math.log(2))

    reach = 7 * math.sqrt(n) / 2 + 8
    for k in range(max(0, int(n / 2 - reach)), min(n, int(n / 2 + reach)) + 1):
        chance = up * binomial(k - 1) + (1 - up) * binomial(k)
        target = scores(column(x), sigma, column([1.0] * k + [-1.0] * (n - k)))
        mean, total = mean + chance * target, total + chance
        variance += chance * (target - true) ** 2
    torch.testing.assert_close(total, torch.ones_like(x), atol=1e-11, rtol=0)
    return float((density * variance).sum()), float((mean - true).abs().max())


SIZES = (1, 2, 4, 16, 64, 256, 1024)
TWO_POINTS = {
    0.25: (0.025143983, 0.012571992, 0.0049172111, 8.7263883e-4, 2.0968136e-4, 5.1957683e-5, 1.296129e-5, 0.013262827),
    0.5: (1.0975585, 0.54877927, 0.22281926, 0.042146342, 0.010153499, 0.0025172521, 6.2802664e-4, 0.64266312),
    1.0: (0.44959951, 0.22479975, 0.09788584, 0.020569183, 0.0049915254, 0.0012393313, 3.0930956e-4, 0.31655535),
    2.0: (0.049746608, 0.024873304, 0.01166989, 0.0027032797, 6.6422014e-4, 1.6536289e-4, 4.129793e-5, 0.042274515),
    4.0: (0.0036759923, 0.0018379961, 9.0005554e-4, 2.1952905e-4, 5.4515811e-5, 1.3605968e-5, 3.4000549e-6, 0.0034811656),
}  # fmt: skip


@pytest.mark.parametrize("sigma", TWO_POINTS)
def test_two_points(sigma):
    """stable_target_field facts 8, 9 and 15: variances, no bias, half at n = 2, n V → C, and V_DSM/n far away."""
    *table, limit = TWO_POINTS[sigma]
    values = []
    for n, expected in zip(SIZES, table, strict=True):
        value, bias = two_points(sigma, n)
        assert value == pytest.approx(expected, rel=1e-6)
        assert bias < 1e-10 / sigma**2
        values.append(value)
    assert values[1] == pytest.approx(values[0] / 2, rel=1e-9)
    assert all((n - 1) * v < values[0] for n, v in zip(SIZES, values, strict=True))
    assert 1024 * values[-1] == pytest.approx(limit, rel=2.5e-3)
    x = torch.arange(-1 - 9 * sigma, 1 + 9 * sigma, min(sigma / 8, sigma**2 / 2.5), dtype=F64)
    density = sum(torch.exp(-((x - c) ** 2) / (2 * sigma**2)) for c in (-1, 1))
    up = torch.sigmoid(2 * x / sigma**2)
    constant = float((density / density.sum() * 16 * up**2 * (1 - up) ** 2).sum()) / sigma**4
    assert constant == pytest.approx(limit, rel=1e-7)
    if sigma == 4.0:
        assert values[2] / values[0] == pytest.approx(0.244847, abs=1e-6)


def test_source_left_out_is_biased():
    """stable_target_field fact 12 (P8): n'² E‖bias‖² is 0.0611 at n' = 256 for two points at σ = 1."""
    n, x = 256, torch.arange(-9.0, 9.0, 0.125, dtype=F64)
    density = sum(torch.exp(-((x - c) ** 2) / 2) for c in (-1, 1))
    mean = torch.zeros_like(x)
    for k in range(n // 2 - 64, n // 2 + 65):
        chance = math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))
        mean += chance * scores(column(x), 1.0, column([1.0] * k + [-1.0] * (n - k)))
    bias = mean - (torch.tanh(x) - x)
    assert n**2 * float((density / density.sum() * bias**2).sum()) == pytest.approx(0.0611, abs=5e-5)


# -- five points ------------------------------------------------------------------------------------------------------


def posterior(x: float) -> Tensor:
    return torch.softmax(-((x - FIVE) ** 2) / 2, 0)


def enumerate_batches(x: float, n: int, replace: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Targets, their chances given x, and within-batch variances, over all ordered batches of n with the source first."""
    batches = torch.tensor([b for b in product(range(5), repeat=n) if replace or len(set(b)) == n])
    chance = posterior(x)[batches[:, 0]] / len({tuple(b) for b in batches[:, 1:].tolist()} or [0])
    if not replace:
        chance = chance / chance.sum()
    # n copies of the five points; a batch picks one of each copy.
    allowed = torch.nn.functional.one_hot(batches, 5).bool().flatten(1)
    noisy = column([x]).expand(len(batches), 1)
    target, facts = stable_target(noisy, 1.0, FIVE.repeat(n).unsqueeze(1), allowed=allowed, diagnostics=True)
    return (target - noisy).squeeze(1), chance, facts.within


FIXTURE = {
    0.4: (-0.197726506584, 0.742197630883, (0.388697810315, 0.259547239700, 0.192944465290),
          (0.300322855174, 0.147438222428, 0.052595948815, 0.0)),
    2.0: (-0.224540510778, 1.317205228776, (0.940537432061, 0.706481179914, 0.554368004392),
          (0.846370482882, 0.476385122312, 0.197412903075, 0.0)),
}  # fmt: skip


@pytest.mark.parametrize("x", FIXTURE)
def test_five_points(x):
    """stable_target_field facts 10, 11 and 14: mean and variance of the target, and the law of total variance."""
    score, conditional, replaced, distinct = FIXTURE[x]
    assert float(posterior(x) @ FIVE) - x == pytest.approx(score, abs=1e-11)
    cases = [(n, True, v) for n, v in zip((1, 2, 3, 4), (conditional, *replaced), strict=True)]
    cases += [(n, False, v) for n, v in zip((2, 3, 4, 5), distinct, strict=True)]
    for n, replace, expected in cases:
        target, chance, within = enumerate_batches(x, n, replace)
        assert float(chance.sum()) == pytest.approx(1, abs=1e-12)
        assert float(chance @ target) == pytest.approx(score, abs=1e-11)
        variance = float(chance @ (target - score) ** 2)
        assert variance == pytest.approx(expected, abs=1e-11)
        assert variance + float(chance @ within) == pytest.approx(conditional, abs=1e-11)
        if (x, n, replace) == (0.4, 2, True):
            assert float(chance @ within) == pytest.approx(0.353499820567, abs=1e-11)
        if (x, n, replace) == (0.4, 3, True):
            assert float(chance @ within) == pytest.approx(0.482650391183, abs=1e-11)


def test_five_points_without_source():
    """stable_target_field fact 12: the mean target of n' points that need not hold the source is not the score."""
    for n, expected in zip((1, 2, 3, 4), (-0.2, -0.316985477884, -0.299778467850, -0.275962046328), strict=True):
        target, _, _ = enumerate_batches(0.4, n)
        plain = torch.full_like(target, 1 / len(target))
        assert float(plain @ target) == pytest.approx(expected, abs=1e-11)


def test_other_reference_laws():
    """stable_target_field fact 12 (P9): corrected weights are unbiased, plain ones are not; cells need no correction."""
    q, copies = torch.tensor([0.1, 0.2, 0.3, 0.3, 0.1], dtype=F64), (6, 3, 2, 2, 6)  # copies ∝ p₀/q
    for x, plain_mean, corrected_variance, cell_variance in (
        (0.4, -0.156892545951, 0.32551472, 0.60158315),
        (2.0, -0.363146240096, 1.04931880, 0.74850727),
    ):
        score, weight = FIXTURE[x][0], posterior(x)
        means, variance, cells = [0.0, 0.0], 0.0, [0.0, 0.0]
        for a, b in product(range(5), repeat=2):
            chance = float(weight[a] * q[b])
            pair = FIVE[[a, b]].unsqueeze(1)
            counted = FIVE[[a] * copies[a] + [b] * copies[b]].unsqueeze(1)
            plain, corrected = (float(scores(column([x]), 1.0, ref)) for ref in (pair, counted))
            means = [means[0] + chance * plain, means[1] + chance * corrected]
            variance += chance * (corrected - score) ** 2
            if (a < 2) == (b < 2):
                chance = float(weight[a]) / (2 if a < 2 else 3)
                cells = [cells[0] + chance * plain, cells[1] + chance * (plain - score) ** 2]
        assert means == pytest.approx([plain_mean, score], abs=1e-11)
        assert variance == pytest.approx(corrected_variance, abs=1e-8)
        assert cells == pytest.approx([score, cell_variance], abs=1e-8)


def multisets(n: int) -> Tensor:
    """All counts of five points in a batch of n, (M, 5)."""
    grid = torch.cartesian_prod(*[torch.arange(n + 1)] * 4)
    grid = grid[grid.sum(1) <= n]
    return torch.cat((grid, (n - grid.sum(1)).unsqueeze(1)), 1)


@pytest.mark.parametrize(
    ("x", "table", "limit", "wrong"),
    [
        (0.4, (0.777396, 0.763789, 0.739544, 0.726416, 0.720321), 0.714574251131, 0.658059242221),
        (2.0, (1.881075, 2.255531, 2.265782, 2.255074, 2.251322), 2.248423800087, 2.140118201024),
    ],
)
def test_asymptotics(x, table, limit, wrong):
    """stable_target_field fact 13 (P4): n V(x) → E[w ‖f − s‖²], and not to the covariance printed in theorem 1."""
    score, weight = FIXTURE[x][0], posterior(x)
    ratio, f = weight * 5, FIVE - x
    assert float((weight * ratio * (f - score) ** 2).sum()) == pytest.approx(limit, abs=1e-11)
    assert float((ratio * f).square().mean() - (ratio * f).mean() ** 2) == pytest.approx(wrong, abs=1e-11)
    for n, expected in zip((2, 5, 10, 20, 40), table, strict=True):
        counts = multisets(n)
        log = math.lgamma(n + 1) - torch.lgamma(counts.double() + 1).sum(1) - n * math.log(5)
        chance = log.exp() * (counts.double() @ ratio) / n
        keep = chance > 1e-12
        counts, chance = counts[keep], chance[keep]
        allowed = (torch.arange(n) < counts.unsqueeze(2)).flatten(1)  # the first so many of n copies of each point
        noisy = column([x]).expand(len(counts), 1)
        target = scores(noisy, 1.0, FIVE.repeat_interleave(n).unsqueeze(1), allowed=allowed)
        assert float(chance.sum()) == pytest.approx(1, abs=1e-7)
        assert float(chance @ target) == pytest.approx(score, abs=1e-7)
        assert n * float(chance @ (target - score) ** 2) == pytest.approx(expected, abs=2e-6)
    assert abs(table[-1] - limit) < 0.12 * abs(table[-1] - wrong)


# -- other facts with numbers -----------------------------------------------------------------------------------------


class Line(nn.Module):
    """A denoiser whose score is ``a x + b`` at σ = 1."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(-0.3, dtype=F64))
        self.b = nn.Parameter(torch.tensor(0.1, dtype=F64))

    def forward(self, x: Tensor, sigma: Tensor, **condition) -> Tensor:
        return x + self.a * x + self.b


@pytest.mark.parametrize(
    ("n", "loss", "variance"),
    [
        (1, 0.7580000000, 0.6756054753),
        (2, 0.4999049787, 0.4175104539),
        (3, 0.3752284548, 0.2928339301),
    ],
)
def test_expected_gradient(n, loss, variance):
    """stable_target_field fact 28 (P3): the objective's expected gradient is that of DSM for every n; losses differ by V."""
    z = torch.arange(-8.0, 8.01, 0.125, dtype=F64)
    batches = torch.tensor(list(product(range(5), repeat=n)))
    batch, node = (t.flatten() for t in torch.meshgrid(torch.arange(len(batches)), torch.arange(len(z)), indexing="ij"))
    chance = (torch.exp(-(z**2) / 2) / torch.exp(-(z**2) / 2).sum())[node] / len(batches)
    images, noise = FIVE[batches[batch, 0]].unsqueeze(1), z[node].unsqueeze(1)
    allowed = torch.nn.functional.one_hot(batches, 5).bool().flatten(1)[batch]
    ones = torch.ones(len(images), dtype=F64)
    target, _ = stable_target(images + noise, ones, FIVE.repeat(n).unsqueeze(1), allowed=allowed)
    model = Line()
    losses = VEObjective()(model, images, ones, noise, 0.5, target=target if n > 1 else None)
    total = (chance * losses).sum()
    total.backward()
    assert float(model.a.grad) / 2 == pytest.approx(-0.18, abs=1e-9)
    assert float(model.b.grad) / 2 == pytest.approx(0.04, abs=1e-9)
    assert float(total.detach()) == pytest.approx(loss, abs=1e-9)
    exact = Empirical(FIVE.unsqueeze(1))(images + noise, 1.0)
    spread = (target - exact).square().squeeze(1)
    assert float((chance * spread).sum()) == pytest.approx(variance, abs=1e-9)
    assert loss - variance == pytest.approx(0.0823945247, abs=1e-9)


def test_classes_are_masked():
    """stable_target_field fact 29: a row with a class sees its class alone; a hidden one sees all."""
    reference, classes, x = column([-1.0, 1.0]), torch.tensor([0, 1]), column([0.3])
    for sigma, conditional, mixed in ((0.5, 2.8, 2.13462), (1.0, 0.7, -0.00869), (2.0, 0.175, -0.05629)):
        seen = scores(x, sigma, reference, labels=torch.tensor([1]), reference_labels=classes)
        assert float(seen) == pytest.approx(conditional, abs=1e-12)
        for labels in (None, torch.tensor([-1])):
            seen = scores(x, sigma, reference, labels=labels, reference_labels=classes)
            assert float(seen) == pytest.approx(mixed, abs=1e-5)
    rows = column([0.3, 0.3])
    target, _ = stable_target(rows, 1.0, reference, labels=torch.tensor([1, 0]), reference_labels=classes)
    assert torch.equal(target, column([1.0, -1.0]))


def test_reduction_depends_on_the_data():
    """stable_target_field fact 30: 64-d normal points, N = 2048; V_STF/V_DSM by n, near the peak and far away."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(2048, 64, dtype=F64, generator=generator)
    law, sizes = Empirical(data), (16, 64, 256, 1024)
    for sigma, expected in ((2.0, (0.86, 0.70, 0.48, 0.23)), (10.0, (0.107, 0.029, 0.0073, 0.0018))):
        ratios = []
        for n in sizes:
            stable, plain = [], []
            for _ in range(max(4, 3000 // n)):
                reference = data[torch.randint(2048, (n,), generator=generator)]
                images = reference[:256]
                noisy = images + sigma * torch.randn(images.shape, dtype=F64, generator=generator)
                exact = law(noisy, sigma)
                target, _ = stable_target(noisy, sigma, reference, source=torch.arange(len(images)))
                stable.append((target - exact).square().sum(1))
                plain.append((images - exact).square().sum(1))
            ratios.append(float(torch.cat(stable).mean() / torch.cat(plain).mean()))
        assert ratios == pytest.approx(list(expected), rel=0.07)


def test_vp_in_ve_coordinates():
    """stable_target_field facts 21 and 22: the VP target is the VE target of x/α at σ/α, divided by α."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(40, 3, dtype=F64, generator=generator)
    t = torch.tensor([1e-3, 0.1, 0.5, 1.0], dtype=F64)
    vp = VP()
    alpha, std = vp.alpha(t), vp.std(t)
    assert alpha[[2, 3, 0]].tolist() == pytest.approx([0.2811828808, 0.0065715865, 0.9999450265], abs=1e-10)
    assert float(std[3]) == pytest.approx(0.9999784069, abs=1e-10)
    assert vp.sigma(1.0) == pytest.approx(152.16697, abs=1e-5)
    assert VE().sigma(0.5) == pytest.approx(0.7071067812, abs=1e-10)
    x = alpha.unsqueeze(1) * reference[:4] + std.unsqueeze(1) * torch.randn(4, 3, dtype=F64, generator=generator)
    squared = (x.unsqueeze(1) - alpha.reshape(-1, 1, 1) * reference).square().sum(2)
    weights = torch.softmax(-squared / (2 * std.unsqueeze(1) ** 2), 1)
    native = (alpha.unsqueeze(1) * (weights @ reference) - x) / std.unsqueeze(1) ** 2
    state, sigma = vp.to_ve(x, t)
    target, facts = stable_target(state, sigma, reference, source=torch.arange(4), diagnostics=True)
    score = (target - state) / sigma.unsqueeze(1) ** 2 / alpha.unsqueeze(1)
    torch.testing.assert_close(score, native, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(facts.source, weights.diagonal(), rtol=1e-9, atol=1e-12)


def test_poisson_weights_become_gaussian() -> None:
    """Holds stable_target_field fact 26: with r = σ√D the kernel (‖x − y‖² + r²)^(−(N+D)/2) tends to the Gaussian one.

    The source does not print its three points, so the rate is held: the difference falls as 1/D, to under 1e-6 at D = 1e6.
    """
    points = torch.tensor([[0.0, 0.0], [1.0, 0.5], [-0.5, 1.5]], dtype=torch.float64)
    x = torch.tensor([[0.3, 0.4]], dtype=torch.float64)
    gaussian = Empirical(points).weights(x, 0.8)
    gaps = [float((Empirical(points, StudentT(d)).weights(x, 0.8) - gaussian).abs().max()) for d in (1, 128, 2048, 1e6)]
    assert 1e-3 < gaps[0] < 0.2
    assert gaps[1] * 128 == pytest.approx(gaps[2] * 2048, rel=0.1)
    assert gaps[3] < 1e-6
