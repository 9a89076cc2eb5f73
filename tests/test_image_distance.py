"""Distances of paired images, and the statistics of pairs."""

from __future__ import annotations

import math
import sys
import types

import pytest
import torch
from torch import nn

from farfield.errors import ArgumentError
from farfield.metrics.image_distance import (
    PerceptualDistance,
    PixelDistance,
    pair_distance,
    pair_statistics,
    paired_comparison,
    pixel_mse,
)


def test_pixel_distance():
    a = torch.zeros(3, 1, 2, 2)
    b = torch.arange(12.0).view(3, 1, 2, 2)
    assert pixel_mse(a, b).tolist() == [(0 + 1 + 4 + 9) / 4, (16 + 25 + 36 + 49) / 4, (64 + 81 + 100 + 121) / 4]
    assert PixelDistance()(b, b).tolist() == [0.0, 0.0, 0.0]
    assert pair_distance("mse").name == "mse"
    for x, y in ((a, b[:2]), (a[:0], a[:0]), (torch.zeros(3), torch.zeros(3))):
        with pytest.raises(ArgumentError, match="pairs have shapes"):
            pixel_mse(x, y)


class StandIn(nn.Module):
    """Takes and gives what the package's network does: two batches (N, 3, H, W) in [−1, 1] to (N, 1, 1, 1)."""

    seen: list[tuple[tuple[int, ...], float, float]]

    def __init__(self, net, version, verbose):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([{"alex": 1.0, "vgg": 2.0, "squeeze": 3.0}[net]]))
        assert version == "0.1"
        assert verbose is False
        self.calls = []

    def forward(self, first, second):
        assert first.shape == second.shape
        self.calls.append((tuple(first.shape), float(first.min()), float(first.max())))
        return self.weight * (first - second).square().mean((1, 2, 3), keepdim=True)


@pytest.fixture
def lpips(monkeypatch, tmp_path):
    """The package ``lpips`` needs torchvision; a module of the same face stands in for it."""
    module = types.ModuleType("lpips")
    module.LPIPS = StandIn
    monkeypatch.setitem(sys.modules, "lpips", module)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("alexnet-owt-7be5be79.pth", "vgg16-397923af.pth", "squeezenet1_1-b8a52dc0.pth"):
        (folder / name).write_bytes(b"")
    return folder


def test_lpips_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ArgumentError, match=r"'lpips-alex' needs .*pip install 'farfield\[lpips\]'"):
        PerceptualDistance()
    for name in ("lpips", "lpips-resnet", "fid"):
        with pytest.raises(ArgumentError, match="expected one of mse, lpips-alex, lpips-vgg, lpips-squeeze"):
            pair_distance(name)


def test_lpips_downloads_nothing(lpips):
    for file in lpips.glob("vgg16-*"):
        file.unlink()
    assert pair_distance("lpips-alex").name == "lpips-alex"
    with pytest.raises(ArgumentError, match=r"no weights vgg16-\*\.pth in .*nothing is downloaded"):
        PerceptualDistance("vgg")


def test_lpips_sees_images_of_224_pixels(lpips):
    """Any size is brought to 224 first, one channel becomes three, and values stay in [−1, 1]."""
    distance = PerceptualDistance("vgg", batch=4)
    a = torch.linspace(-1.4, 1.4, 6 * 64).view(6, 1, 8, 8)
    b = torch.zeros_like(a)
    found = distance(a, b)
    assert found.shape == (6,)
    assert found.dtype == torch.float64
    assert {call[0] for call in distance.model.calls} == {(4, 3, 224, 224)}
    assert min(call[1] for call in distance.model.calls) >= -1
    assert max(call[2] for call in distance.model.calls) <= 1
    assert float(distance(a, a).max()) == 0
    assert torch.equal(torch.cat([distance(a[:1], b[:1]), distance(a[1:], b[1:])]), found)
    large = torch.rand(2, 3, 300, 260) * 2 - 1
    assert distance(large, -large).shape == (2,)
    # A constant image stays what it is at any size, so the stand-in's answer is known.
    flat = torch.full((1, 3, 5, 5), 0.5)
    for mode in ("bilinear", "bicubic", "nearest"):
        squeeze = PerceptualDistance("squeeze", interpolation=mode)
        assert float(squeeze(flat, -flat)) == pytest.approx(3.0)
    assert squeeze.digest != distance.digest
    for bad in ({"net": "resnet"}, {"interpolation": "area"}, {"batch": 0}):
        with pytest.raises(ArgumentError, match=next(iter(bad))):
            PerceptualDistance(**bad)
    with pytest.raises(ArgumentError, match="the images have shape"):
        distance(torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 8, 8))
    with pytest.raises(ArgumentError, match="the images have shape"):
        distance(torch.zeros(2, 64), torch.zeros(2, 64))


def test_statistics_of_pairs():
    """The interval is Student's: for 1, 2, 3 it is 2 ± 4.303 · 1/√3."""
    found = pair_statistics(torch.tensor([1.0, 2.0, 3.0]))
    assert (found.mean, found.median, found.n) == (2.0, 2.0, 3)
    assert found.high - 2 == pytest.approx(4.302652729911275 / math.sqrt(3), rel=1e-9)
    assert found.low == pytest.approx(4 - found.high)
    one = pair_statistics(torch.tensor([5.0]))
    assert one.low == one.mean == one.high == 5
    for bad in (torch.zeros(0), torch.zeros(2, 2), torch.tensor([1.0, math.nan])):
        with pytest.raises(ArgumentError, match="expected"):
            pair_statistics(bad)


def test_the_interval_holds_the_mean_as_often_as_it_says():
    generator = torch.Generator().manual_seed(3)
    draws = torch.randn(400, 12, generator=generator, dtype=torch.float64) + 1.5
    inside = sum(s.low < 1.5 < s.high for s in map(pair_statistics, draws))
    assert 0.915 < inside / 400 < 0.985  # 0.95 within three standard errors


def test_comparison_of_pairs():
    """Which set is closer; p-values of 12 of 12 in one direction are 2^-11."""
    far = torch.linspace(1, 2, 12, dtype=torch.float64)
    found = paired_comparison(far - 0.5 - 0.01 * torch.arange(12), far)
    assert found.sign == pytest.approx(2**-11)
    assert found.wilcoxon == pytest.approx(2**-11)
    assert found.closer == 1
    assert found.difference == pytest.approx(-0.555)
    assert found.low < found.difference < found.high < 0
    assert found.significant
    assert found.verdict("A", "B").startswith("A is closer than B in 100 % of pairs")
    turned = paired_comparison(far, far - 0.5 - 0.01 * torch.arange(12))
    assert turned.verdict("B", "A") == found.verdict("A", "B")
    same = paired_comparison(far, far)
    assert (same.difference, same.closer, same.wilcoxon, same.sign) == (0, 0.5, 1, 1)
    assert "cannot be told apart" in same.verdict("A", "B")
    assert not same.to_dict()["significant"]
    with pytest.raises(ArgumentError, match="first has 12 distances and second 11"):
        paired_comparison(far, far[1:])


def test_one_outlier_does_not_decide():
    """19 of 20 are closer, one is very far: the mean says one thing and the signed ranks the other."""
    a = torch.full((20,), 1.0, dtype=torch.float64) - 0.01 * torch.arange(20)
    a[0] = 500.0
    b = torch.full((20,), 1.5, dtype=torch.float64)
    found = paired_comparison(a, b)
    assert found.difference > 0
    assert found.significant
    assert found.verdict("A", "B").startswith("A is closer than B in 95 %")
