"""Low-rank mixtures in float32: certified pruning, and what it must not change."""

import pytest
import torch

from farfield.distributions import GaussianMixture, stacking
from farfield.distributions import mixture_pruning as module
from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Spectrum

F64 = torch.float64
LEVELS = (0.002, 0.05, 0.5, 2.0, 10.0, 80.0)


@pytest.fixture(autouse=True)
def _always(monkeypatch):
    # Small laws, too, take the way of large ones.
    monkeypatch.setattr(module, "SMALL", 0)


def low_rank(separation=1.0, tail=0.0, k=12, d=96, r=6, dtype=torch.float32):
    """Image-like components that share a centre up to ``separation``; the last one has half of the rank."""
    spectra = []
    for i in range(k):
        own = r if i + 1 < k else r // 2
        basis = torch.linalg.qr(torch.randn(d, own, dtype=dtype))[0]
        spectra.append(Spectrum.low_rank(basis, 5 * torch.arange(1, own + 1).double() ** -1.2, tail))
    return GaussianMixture(torch.rand(k) + 0.1, separation * torch.randn(k, d, dtype=dtype) + 0.5, spectra)


def plain(law, x, sigma):
    """Logits and mean by the differentiable way in float64."""
    terms = law._terms(x.double(), sigma)
    w = terms.logits.softmax(1)
    return terms.logits, law.centre + sum(terms.mean(part, w, F64) for part in terms.parts())


@pytest.mark.parametrize("sigma", LEVELS)
@pytest.mark.parametrize(("separation", "tail"), [(0.05, 0.0), (0.3, 0.02), (1.0, 0.0)])
def test_float32_and_float64_states(sigma, separation, tail):
    """The mean in float32 to about 1e-5 and in float64 to 1e-12; densities and responsibilities as without pruning."""
    law = low_rank(separation, tail)
    x = law.sample(24, sigma=sigma)
    x[0] = (law.means[0] + law.means[1]) / 2  # between two components
    x[1] = law.means.mean(0) + 3
    logits, mean = plain(law, x, sigma)
    torch.testing.assert_close(law(x, sigma).double(), mean, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(law(x.double(), sigma), mean, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(law.log_prob(x, sigma), logits.logsumexp(1), atol=1e-8, rtol=1e-13)
    torch.testing.assert_close(law.weights(x, sigma), logits.softmax(1), atol=1e-9, rtol=1e-6)
    v = torch.randn_like(x)
    product, trace = law._terms(x, sigma).jvp(v, x.dtype)[1], law._terms(x, sigma).trace()
    torch.testing.assert_close(law.jvp(x, sigma, v)[1], product, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(law.trace(x, sigma), trace, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("sigma", LEVELS)
@pytest.mark.parametrize("eps", [1e-3, 1e-9, 1e-30])
def test_the_certificate_holds(sigma, eps):
    """What is left out weighs no more than the bound, the bound no more than ε, and the mean moves by no more than told."""
    for separation in (0.05, 0.3, 2.0):
        law = low_rank(separation)
        x = law.sample(20, sigma=sigma)
        found = law.prune(x, sigma, eps)
        logits, mean = plain(law, x, sigma)
        left_out = (logits.softmax(1) * ~found.kept).sum(1)
        assert bool((left_out <= found.discarded * (1 + 1e-9)).all())
        assert bool((found.discarded <= eps).all())
        assert bool(found.kept.any(1).all())
        w = logits.masked_fill(~found.kept, -torch.inf).softmax(1)
        terms = law._terms(x.double(), sigma)
        each = torch.stack([
            sum(terms.mean(part, row.expand(20, -1), F64) for part in terms.parts()) for row in torch.eye(law.components)
        ])  # fmt: skip
        diameter = torch.cdist(each.transpose(0, 1), each.transpose(0, 1)).amax((1, 2))
        pruned = torch.einsum("bk,kbd->bd", w, each) + law.centre
        assert bool(((pruned - mean).norm(dim=1) <= found.discarded * diameter + 1e-12).all())


def test_pruning_prunes():
    """Where components are told apart one is kept; far from all of them, all are."""
    law = low_rank(1.0)
    x = law.sample(30, sigma=0.05)
    assert float(law.prune(x, 0.05).kept.double().sum(1).mean()) == 1
    assert bool(law.prune(x, 1e3).kept.all())


def test_distances_alone_may_decide(monkeypatch):
    """Tight components far apart: no more than a few pairs are ever projected."""
    law, asked = low_rank(20.0, tail=0.5), []
    project = stacking.Bases.project_pairs

    def counted(self, y, row, counts, wide):
        asked.append(len(row))
        return project(self, y, row, counts, wide)

    monkeypatch.setattr(stacking.Bases, "project_pairs", counted)
    monkeypatch.setattr(module.Screen, "_columns", lambda self: pytest.fail("all components were projected"))
    x = law.sample(16, sigma=0.3)
    value = law(x, 0.3)
    assert sum(asked) <= 3 * 16
    torch.testing.assert_close(value.double(), plain(law, x, 0.3)[1], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("sparse", [0.0, 1.0])
def test_lifting_pairs_or_everything_is_the_same(sparse, monkeypatch):
    monkeypatch.setattr(module, "SPARSE", sparse)
    law = low_rank(0.3)
    for sigma in (0.5, 3.0):
        x = law.sample(16, sigma=sigma)
        torch.testing.assert_close(law(x, sigma).double(), plain(law, x, sigma)[1], atol=2e-5, rtol=1e-5)


def test_rows_have_their_own_levels_and_batches_may_be_cut(monkeypatch):
    law = low_rank(0.3)
    x, levels = law.sample(6, sigma=1.0), torch.tensor([0.01, 0.1, 1.0, 3.0, 9.0, 80.0])
    for call in (law.forward, law.log_prob, law.weights, law.trace):
        rows = torch.cat([call(x[i : i + 1], float(levels[i])) for i in range(6)])
        torch.testing.assert_close(call(x, levels), rows, atol=1e-6, rtol=1e-6)
        whole = call(x, torch.full((6,), 0.7))
        torch.testing.assert_close(call(x, torch.tensor(0.7)), whole)
        with monkeypatch.context() as patch:
            patch.setattr(module, "CHUNK", 2 * law.components * law.rank)
            torch.testing.assert_close(call(x, levels), rows, atol=1e-6, rtol=1e-6)
    kept = law.prune(x, levels).kept
    assert torch.equal(kept, torch.cat([law.prune(x[i : i + 1], float(levels[i])).kept for i in range(6)]))


def test_close_calls_are_settled_in_float64(monkeypatch):
    """Two components that differ by less than float32 sees at small σ: the weights are those of float64."""
    d, r = 256, 16
    basis = torch.linalg.qr(torch.randn(d, r))[0]
    other = torch.linalg.qr(basis + 3e-5 * torch.randn(d, r))[0]
    means = torch.zeros(2, d)
    law = GaussianMixture([0.5, 0.5], means, [Spectrum.low_rank(b, torch.full((r,), 30.0)) for b in (basis, other)])
    x = law.sample(40, sigma=0.002)
    logits, _ = plain(law, x, 0.002)
    y = x.double() - law.centre
    screen = module.Screen(law, y, 0.002**2, 1e-9)
    exact = logits.softmax(1)
    assert float((screen.logits.softmax(1) - exact).abs().max()) > 1e-3
    torch.testing.assert_close(screen.weights(), exact, atol=1e-7, rtol=0)
    off = (screen.logits - logits).abs()[screen.kept]
    assert float(off.max()) <= 1.5 * float(screen.likely.max())


def test_derivatives_and_transforms_take_the_plain_way():
    law = low_rank(0.3)
    x = law.sample(3, sigma=1.0)
    state = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(law.log_prob(state, 1.0).sum(), state)
    torch.testing.assert_close(law.score(x, 1.0), score, atol=1e-4, rtol=1e-4)
    v = torch.randn_like(x)
    forward = torch.func.jvp(lambda z: law(z, 1.0), (x,), (v,))[1]
    torch.testing.assert_close(forward, law.jvp(x, 1.0, v)[1], atol=1e-4, rtol=1e-4)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, v)
        product = torch.autograd.forward_ad.unpack_dual(law(dual, 1.0)).tangent
    torch.testing.assert_close(product, forward)
    mapped = torch.func.vmap(lambda z: law(z[None], 1.0)[0])(x)
    torch.testing.assert_close(mapped, law(x, 1.0), atol=1e-5, rtol=1e-5)
    sigma = torch.tensor(1.0, requires_grad=True)
    (slope,) = torch.autograd.grad(law.log_prob(x, sigma).sum(), sigma)
    change = law.log_prob(x.double(), 1 + 1e-5) - law.log_prob(x.double(), 1 - 1e-5)
    assert float(slope) == pytest.approx(float(change.sum()) / 2e-5, rel=1e-4)


def test_autocast_does_not_reach_the_law():
    law = low_rank(0.3)
    x = law.sample(8, sigma=0.5)
    expected = law(x, 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(law(x, 0.5), expected)
        torch.testing.assert_close(law.prune(x, 0.5).kept, law.prune(x, 0.5).kept)


def test_a_lower_matrix_precision_widens_the_bounds(monkeypatch):
    law = low_rank(0.3)
    y = law.sample(8, sigma=0.5).double() - law.centre
    before = module.Screen(law, y, 0.25, 1e-9)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    after = module.Screen(law, y, 0.25, 1e-9)
    assert int(after.kept.sum()) >= int(before.kept.sum())
    assert float(after.likely.max()) > 1e4 * float(before.likely.max())


# -- storage ----------------------------------------------------------------------------------------------------------


def test_bases_are_held_once_in_the_type_of_the_means():
    law = low_rank()
    assert law.bases.dtype == torch.float32
    x = law.sample(4, sigma=0.5)
    for state in (x, x.double()):
        law(state, 0.5)
        law.jvp(state, 0.5, state)
    assert law.stacked._narrow is None
    held = sum(b.numel() * b.element_size() for b in law.stacked.buffers())
    assert held == 4 * law.components * law.rank * (law.dim + law.rank)
    wide = low_rank(dtype=F64)
    assert wide.bases.dtype == F64
    assert wide.stacked.tilt is None


def test_rounded_bases_are_straightened():
    """Columns rounded to float32 are oblique by 1e-8, which float64 states must not see."""
    law = low_rank(d=512)
    for k in range(3):
        u = law.stacked.straight(k)
        torch.testing.assert_close(u.T @ u, torch.eye(6, dtype=F64), atol=1e-13, rtol=0)
    assert float(law.stacked.tilt.abs().max()) > 1e-10
    y = torch.randn(3, 512, dtype=F64)
    c = law.stacked.project(y)
    torch.testing.assert_close(c[:, 1], y @ law.stacked.straight(1), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        law.stacked.lift(c, F64), sum(c[:, k, :3 if k == 11 else 6] @ law.stacked.straight(k)[:, :3 if k == 11 else 6].T
                                      for k in range(12)), atol=1e-12, rtol=0
    )  # fmt: skip


def test_changes_of_type_keep_the_law():
    law = low_rank(0.3, dtype=F64)
    x = law.sample(5, sigma=0.5)
    value, density = law(x, 0.5), law.log_prob(x, 0.5)
    narrow = law.float()
    assert narrow.bases.dtype == torch.float32
    torch.testing.assert_close(narrow(x, 0.5), value, atol=1e-5, rtol=1e-5)
    single = narrow.log_prob(x, 0.5)
    torch.testing.assert_close(single, density, atol=1e-4, rtol=1e-6)
    again = narrow.double()
    assert again.stacked.tilt is None
    torch.testing.assert_close(again.log_prob(x, 0.5), single, atol=1e-9, rtol=1e-12)
    half = low_rank(0.3).half()
    assert half.bases.dtype == torch.float32
    assert half(x.half(), 0.5).dtype == torch.float16


def test_bad_arguments_are_named():
    law = low_rank()
    x = law.sample(2)
    for eps in (0.0, 1.0):
        with pytest.raises(ArgumentError, match="eps"):
            law.prune(x, 1.0, eps)
    with pytest.raises(ArgumentError, match="sigma"):
        law.prune(x, 0.0)
    with pytest.raises(ArgumentError, match="sigma"):
        law(x, torch.ones(3))
    with pytest.raises(ArgumentError, match="shape"):
        law.prune(x[:, :5], 1.0)
    point = GaussianMixture([0.5, 0.5], torch.randn(2, 4), Spectrum.isotropic(4, 0.0))
    assert bool((point.prune(torch.randn(3, 4), 0.1).discarded <= 1e-9).all())
