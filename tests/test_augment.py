"""Augmentation: exact where it can be, told to the network, and silent where the labels are zero."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farfield.errors import ArgumentError
from farfield.training.augment import _DOWN, _UP, AugmentConfig, augment, inverse_matrix, warp

OFF = {"xflip": False, "yflip": False, "scale": 0.0, "rotate_frac": 0.0, "aniso": 0.0, "translate_frac": 0.0}
PUBLISHED = AugmentConfig(p=0.12)


def only(p: float = 1.0, **on: object) -> AugmentConfig:
    return AugmentConfig(p=p, **{**OFF, **on})  # type: ignore[arg-type]


def moved(images, scale=0.0, angle=0.0, stretch=0.0, direction=0.0, shift=(0.0, 0.0)):
    n = len(images)
    values = [torch.full((n,), v, dtype=torch.float64) for v in (scale, angle, stretch, direction)]
    return warp(images, inverse_matrix(*values), torch.tensor([shift] * n, dtype=torch.float64))


def blob(size=33, sharp=30.0, x=0.2, y=-0.1, aspect=1.0):
    """A smooth spot, (1, 1, size, size), float64; places in units of half the image."""
    r = torch.linspace(-1, 1, size, dtype=torch.float64)
    return torch.exp(-sharp * ((r[None, :] - x) ** 2 + aspect * (r[:, None] - y) ** 2))[None, None]


def centre(image):
    """Centre of mass (x, y) in pixels from the centre, and the second moments about it."""
    size = image.shape[-1]
    r = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    w = image[0, 0] / image.sum()
    x, y = float((w.sum(0) * r).sum()), float((w.sum(1) * r).sum())
    return x, y, float((w.sum(0) * (r - x) ** 2).sum()), float((w.sum(1) * (r - y) ** 2).sum())


def test_published_setting_has_nine_labels():
    assert (AugmentConfig().augment_dim, AugmentConfig().active, PUBLISHED.active) == (9, False, True)
    assert only(xflip=True, yflip=True).augment_dim == 2
    assert not only().active


def test_off_returns_the_input_itself():
    x, ids = torch.randn(3, 1, 8, 8), torch.arange(3)
    out, told = augment(AugmentConfig(), x, 0, ids)
    assert out is x
    assert torch.equal(told, torch.zeros(3, 9))


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 8, 8), (2, 5, 9)])
def test_flips_are_exact_and_told(shape):
    x, ids = torch.randn(64, *shape), torch.arange(64)
    out, told = augment(only(xflip=True, yflip=True), x, 3, ids)
    seen = set()
    for before, after, (left_right, top_bottom) in zip(x, out, told.tolist(), strict=True):
        dims = [d for d, flag in ((-1, left_right), (-2, top_bottom)) if flag]
        assert torch.equal(after, before.flip(dims) if dims else before)
        seen.add((left_right, top_bottom))
    assert len(seen) == 4


def test_filters_undo_each_other():
    """Doubling and then halving is the identity: Σₖ down[k] up[2n − k] = δₙ, and neither changes a constant."""
    up, down = (torch.tensor([*taps[:0:-1], *taps], dtype=torch.float64) for taps in (_UP, _DOWN))
    product = torch.nn.functional.conv1d(up[None, None], down.flip(0)[None, None], padding=8)[0, 0]
    middle = len(product) // 2
    expected = torch.zeros_like(product[middle % 2 :: 2])
    expected[middle // 2] = 1
    torch.testing.assert_close(product[middle % 2 :: 2], expected, rtol=0, atol=1e-12)
    assert float(down.sum()) == pytest.approx(1, abs=1e-12)
    assert float(up[0::2].sum()) == pytest.approx(1, abs=1e-12)
    assert float(up[1::2].sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 9, 9), (2, 6, 11)])
def test_whole_pixels_and_quarter_turns_are_exact(shape):
    x = torch.randn(2, *shape, dtype=torch.float64)
    near = {"rtol": 0, "atol": 1e-11}
    torch.testing.assert_close(moved(x), x, **near)
    torch.testing.assert_close(moved(x, shift=(2, -1))[..., :-1, 2:], x[..., 1:, :-2], **near)
    torch.testing.assert_close(moved(x, angle=math.pi), x.flip((-1, -2)), **near)
    if shape[1] == shape[2]:
        torch.testing.assert_close(moved(x, angle=math.pi / 2), torch.rot90(x, 1, (-2, -1)), **near)
    torch.testing.assert_close(moved(x.float()), x.float(), rtol=0, atol=3e-5)


def test_a_spot_goes_where_it_should():
    """Right and down for a positive shift, counter-clockwise for a positive angle, outwards for a positive scale."""
    image = blob()
    x, y, xx, yy = centre(image)
    assert (x, y) == pytest.approx((3.2, -1.6), abs=1e-3)
    assert centre(moved(image, shift=(1.5, -2.25)))[:2] == pytest.approx((x + 1.5, y - 2.25), abs=0.02)
    c, s = math.cos(0.7), math.sin(0.7)
    # y points down: counter-clockwise as seen takes (x, y) to (cx + sy, −sx + cy)
    assert centre(moved(image, angle=0.7))[:2] == pytest.approx((c * x + s * y, c * y - s * x), abs=0.02)
    grown = centre(moved(image, scale=0.5))
    assert grown[:2] == pytest.approx((x * 2**0.5, y * 2**0.5), abs=0.03)
    # squared widths of 4.3 pixels², to which reading between pixels adds a little
    assert grown[2:] == pytest.approx((2 * xx, 2 * yy), abs=0.25)
    image = blob(x=0.0, y=0.0)  # in the middle, so that no reflection comes into sight
    assert centre(moved(image, stretch=0.5))[2:] == pytest.approx((2 * xx, yy / 2), abs=0.25)
    assert centre(moved(image, stretch=0.5, direction=math.pi / 2))[2:] == pytest.approx((xx / 2, 2 * yy), abs=0.25)


def test_labels_say_what_was_done():
    """Each image follows from the training image and its labels; for the stretch up to the sign of n."""
    x, ids = torch.randn(5, 2, 9, 9), torch.arange(5)
    near = {"rtol": 0, "atol": 2e-5}

    def one(k, **how):
        return moved(x[k : k + 1], **how)[0]

    scaled, told = augment(only(scale=0.3), x, 0, ids)
    for k, (n,) in enumerate(told.tolist()):
        torch.testing.assert_close(scaled[k], one(k, scale=0.3 * n), **near)
    turned, told = augment(only(rotate_frac=0.5), x, 0, ids)
    for k, (c, s) in enumerate(told.tolist()):
        assert c >= -1 - 1e-6
        torch.testing.assert_close(turned[k], one(k, angle=math.atan2(s, c + 1)), **near)
    shifted, told = augment(only(translate_frac=0.125), x, 0, ids)
    for k, n in enumerate(told.tolist()):
        torch.testing.assert_close(shifted[k], one(k, shift=[0.125 * 9 * v for v in n]), **near)
    stretched, told = augment(only(aniso=0.2), x, 0, ids)
    for k, (a, b) in enumerate(told.tolist()):
        size, v = 0.2 * math.hypot(a, b), math.atan2(b, a)
        errors = [float((stretched[k] - one(k, stretch=sign * size, direction=v)).abs().max()) for sign in (1, -1)]
        assert min(errors) < 2e-5 < max(errors)


def test_shrinking_does_not_alias():
    """Stripes too fine for an image half as large become their mean, where plain bilinear reading keeps them."""
    stripes = torch.ones(1, 1, 33, 33, dtype=torch.float64)
    stripes[..., ::2] = -1
    inner = moved(stripes, scale=-0.75)[..., 8:-8, 8:-8]
    assert float(inner.std()) < 0.25
    grid = torch.nn.functional.affine_grid(
        2**0.75 * torch.eye(2, 3, dtype=torch.float64)[None], (1, 1, 33, 33), align_corners=True
    )
    plain = torch.nn.functional.grid_sample(stripes, grid, padding_mode="reflection", align_corners=True)
    assert float(plain[..., 8:-8, 8:-8].std()) > 0.5


@pytest.mark.parametrize("config", [PUBLISHED, AugmentConfig(p=1.0), only(scale=0.2, yflip=True, p=0.3)])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 7)])
def test_a_batch_may_be_cut_anywhere(config, shape):
    x, ids = torch.randn(24, *shape), torch.arange(24) * 97 + 5
    whole, told = augment(config, x, 11, ids)
    for size in (1, 5, 16):
        parts = [augment(config, x[i : i + size], 11, ids[i : i + size]) for i in range(0, 24, size)]
        assert torch.equal(torch.cat([p[0] for p in parts]), whole)
        assert torch.equal(torch.cat([p[1] for p in parts]), told)
    assert torch.equal(augment(config, x.contiguous(memory_format=torch.channels_last), 11, ids)[0], whole)
    assert not torch.equal(augment(config, x, 12, ids)[1], told)
    assert not torch.equal(augment(config, x, 11, ids, purpose="reference")[1], told)


def test_law_given_zero_labels_is_the_law_of_the_data():
    """Two images, one three times as likely: those with zero labels are the same two, to the bit and in proportion."""
    n = 8000
    two = torch.randn(2, 1, 6, 6)
    kind = (torch.arange(n) % 4 == 0).long()
    out, told = augment(AugmentConfig(p=0.2), two[kind], 0, torch.arange(n))
    silent = (told == 0).all(1)
    expected = 0.5 * (1 - 0.1) * 0.8**4
    assert float(silent.float().mean()) == pytest.approx(expected, abs=4 * (expected * (1 - expected) / n) ** 0.5)
    assert torch.equal(out[silent], two[kind[silent]])
    share = float(kind[silent].float().mean())
    assert share == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / int(silent.sum())) ** 0.5)
    changed = (out != two[kind]).flatten(1).any(1)
    assert torch.equal(changed, ~silent)


def test_labels_have_their_published_laws():
    n = 20000
    x = torch.zeros(n, 1, 4, 4)
    _, told = augment(PUBLISHED, x, 5, torch.arange(n))
    t = told.double()

    def near(value, expected, spread):
        assert float(value) == pytest.approx(expected, abs=4.5 * spread / n**0.5)

    near(t[:, 0].mean(), 0.5, 0.5)
    near(t[:, 1].mean(), 0.06, 0.24)
    near((t[:, 2] != 0).double().mean(), 0.12, 0.33)
    near(t[:, 2].square().mean(), 0.12, 0.59)
    near(t[:, 3].mean(), -0.12, 0.41)  # E[cos w − 1] = −1 where a rotation is applied
    torch.testing.assert_close((t[:, 3] + 1).square() + t[:, 4].square(), torch.ones(n).double(), rtol=0, atol=1e-6)
    near((t[:, 5].square() + t[:, 6].square()).mean(), 0.12, 0.59)
    near(t[:, 7].square().mean(), 0.12, 0.59)
    near((t[:, 7] * t[:, 8]).mean(), 0.0, 0.35)
    assert torch.equal(t[:, 7] != 0, t[:, 8] != 0)


def test_one_transformation_off_leaves_the_others_as_they_were():
    x, ids = torch.randn(40, 1, 8, 8), torch.arange(40)
    whole = augment(AugmentConfig(p=0.5), x, 0, ids)[1]
    less = augment(dataclasses.replace(AugmentConfig(p=0.5), yflip=False, rotate_frac=0.0), x, 0, ids)[1]
    assert torch.equal(less, whole[:, [0, 2, 5, 6, 7, 8]])


@settings(max_examples=40, deadline=None)
@given(
    p=st.floats(0, 1),
    shape=st.tuples(st.integers(1, 4), st.integers(4, 12), st.integers(4, 12)),
    strong=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_images_stay_finite_and_keep_constants(p, shape, strong, seed):
    """Any size and strength: finite values, and a constant image stays what it is."""
    config = AugmentConfig(p=p, scale=1.0, aniso=1.0, translate_frac=1.0) if strong else AugmentConfig(p=p)
    x = torch.rand(4, *shape) * 2 - 1
    x[0] = 0.75
    out, told = augment(config, x, seed, torch.arange(4))
    assert out.shape == x.shape
    assert told.shape == (4, 9)
    assert bool(torch.isfinite(out).all())
    torch.testing.assert_close(out[0], x[0], rtol=0, atol=1e-5)
    assert float(out.abs().max()) < 3


def test_mean_is_roughly_kept():
    x = torch.randn(64, 1, 1, 1) + 0.3 * torch.nn.functional.interpolate(torch.randn(64, 1, 4, 4), size=16)
    out = augment(AugmentConfig(p=1.0), x, 0, torch.arange(64))[0]
    change = out.mean((1, 2, 3)) - x.mean((1, 2, 3))
    assert float(change.square().mean().sqrt()) < 0.15
    assert float(change.mean().abs()) < 0.05


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precision_is_kept(dtype):
    x = torch.randn(6, 1, 8, 8, dtype=dtype)
    out, told = augment(AugmentConfig(p=1.0), x, 0, torch.arange(6))
    assert (out.dtype, told.dtype) == (dtype, dtype)


def test_wrong_input_is_one_clear_line():
    ids = torch.arange(2)
    with pytest.raises(ArgumentError, match=r"augment\.p = 1\.5; expected a probability in \[0, 1\]"):
        AugmentConfig(p=1.5)
    with pytest.raises(ArgumentError, match=r"augment\.scale = nan; expected a number in \[0, 1\]"):
        AugmentConfig(scale=math.nan)
    with pytest.raises(ArgumentError, match=r"images have shape \(2, 1, 3, 8\); expected \(B, C, H, W\) with H, W ≥ 4"):
        augment(PUBLISHED, torch.zeros(2, 1, 3, 8), 0, ids)
    with pytest.raises(ArgumentError, match="images have shape"):
        augment(PUBLISHED, torch.zeros(2, 5), 0, ids)
    with pytest.raises(ArgumentError, match=r"ids have shape \(2,\); expected \(3,\)"):
        augment(PUBLISHED, torch.zeros(3, 1, 8, 8), 0, ids)
