"""Running sums of moments: merged, kept in files, moved to another scale, decomposed once."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farfield.distributions import Gaussian
from farfield.errors import ArgumentError, DataError
from farfield.numerics import covariance
from farfield.numerics.covariance_sums import MomentSums
from tests.test_moments import exact, image_like

F64 = torch.float64


def same(a, b, tolerance=1e-12):
    first, second = a.moments(), b.moments()
    assert first.count == second.count
    torch.testing.assert_close(first.mean, second.mean, rtol=tolerance, atol=tolerance)
    scale = float(first.covariance.abs().max())
    torch.testing.assert_close(first.covariance, second.covariance, rtol=0, atol=tolerance * scale)
    assert a.fourth == pytest.approx(b.fourth, rel=1e-10)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(1, 20), min_size=2, max_size=5), st.floats(-100, 100))
def test_parts_merge_to_the_whole(seed, sizes, offset):
    """Any division of the data, each part about a shift of its own, gives the numbers of one pass."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes), 2, 3, generator=generator, dtype=F64) + offset
    merged = MomentSums()
    for part in x.split(sizes):
        merged.merge(MomentSums().update(part))
    whole = MomentSums().update(x)
    same(merged, whole)
    y = x.flatten(1) - x.flatten(1).mean(0)
    assert whole.fourth == pytest.approx(float(y.square().sum(1).square().mean()), rel=1e-9)
    same(MomentSums().update(list(x.split(sizes))).merge(MomentSums()), whole)


def test_what_does_not_belong_together_is_not_merged():
    x = torch.randn(9, 4)
    sums = MomentSums((-1, 1), "abc").update(x)
    with pytest.raises(DataError, match="shape"):
        sums.merge(MomentSums((-1, 1)).update(x[:, :2]))
    with pytest.raises(DataError, match="pixel range"):
        sums.merge(MomentSums((0, 1)).update(x))
    with pytest.raises(DataError, match="shape"):
        sums.update(x[:, :2])
    assert sums.merge(MomentSums((-1, 1), "other").update(x)).digest is None
    for wrong in ((1, -1), (0, 0), (0, math.inf)):
        with pytest.raises(ArgumentError, match="pixel_range"):
            MomentSums(wrong)
    with pytest.raises(DataError, match="empty"):
        MomentSums().moments()


def test_saved_sums_go_on_to_the_last_bit(tmp_path):
    x, path = torch.randn(80, 2, 3) + 5, tmp_path / "sums.safetensors"
    MomentSums((-1, 1), "digest").update(x[:50]).save(path)
    resumed = MomentSums.load(path, pixel_range=(-1, 1), digest="digest").update(x[50:])
    straight = MomentSums((-1, 1), "digest").update(x[:50]).update(x[50:])
    for first, second in zip(vars(resumed.moments()).values(), vars(straight.moments()).values(), strict=True):
        assert torch.equal(torch.as_tensor(first), torch.as_tensor(second))
    assert resumed.fourth == straight.fourth
    assert (resumed.pixel_range, resumed.digest, resumed.event) == ((-1.0, 1.0), "digest", (2, 3))
    assert [p.name for p in tmp_path.iterdir()] == ["sums.safetensors"]
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["farfield"])
        torch.testing.assert_close(file.get_tensor("mean"), x[:50].double().mean(0).flatten())
    expected = {"count": 50, "divisor": "N", "shape": [2, 3], "dtype": "float32", "digest": "digest"}
    assert expected.items() <= header.items()


def test_files_are_checked(tmp_path):
    path = tmp_path / "sums.safetensors"
    MomentSums().update(torch.randn(9, 4)).save(path)
    for options in ({"pixel_range": (-1, 1)}, {"digest": "abc"}):
        with pytest.raises(DataError, match=next(iter(options))):
            MomentSums.load(path, **options)
    MomentSums((0, 1)).update(torch.randn(9, 4)).save(path)
    with pytest.raises(DataError, match=r"expected \(-1.0, 1.0\)"):
        MomentSums.load(path, pixel_range=(-1, 1))
    with pytest.raises(DataError, match="read"):
        MomentSums.load(tmp_path / "none.safetensors")
    whole = path.read_bytes()
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    header = {"format": "farfield moments 1", "count": 9, "divisor": "N", "shape": [4], "dtype": "float32"}
    header |= {"pixel_range": None, "digest": None}
    for change in ({"count": 0}, {"shape": [5]}, {"shape": "x"}, {"pixel_range": [1, 0]}, {"format": "other"}):
        save_file(tensors, path, {"farfield": json.dumps(header | change)})
        with pytest.raises(DataError, match=r"sums\.safetensors"):
            MomentSums.load(path)
    for bad in (whole[: len(whole) // 2], b"\x80\x04pickle", b""):
        path.write_bytes(bad)
        with pytest.raises(DataError, match=r"sums\.safetensors"):
            MomentSums.load(path)
    save_file({**tensors, "shift": torch.full((4,), math.nan, dtype=F64)}, path, {"farfield": json.dumps(header)})
    with pytest.raises(DataError, match="shift"):
        MomentSums.load(path)


def test_statistics_move_to_another_pixel_range():
    """gaussian_score 1.5: from [0, 1] to [−1, 1] the mean is 2m − 1 and the eigenvalues are 4 λ."""
    x = torch.rand(200, 3, 2, 2, dtype=F64)
    sums = MomentSums((0, 1)).update(x)
    sums.spectrum()
    moved = sums.rescaled((-1, 1))
    same(moved, MomentSums((-1, 1)).update(2 * x - 1))
    torch.testing.assert_close(moved.spectrum().values, 4 * sums.spectrum().values)
    same(moved.rescaled((0, 255)), MomentSums((0, 255)).update(255 * x))
    with pytest.raises(ArgumentError, match="pixel_range"):
        MomentSums().update(x).rescaled((0, 1))


def test_one_decomposition_serves_until_the_next_update(tmp_path, monkeypatch):
    from farfield.numerics import covariance_sums

    calls = []

    def counted(matrix, rank=None):
        calls.append(matrix.shape)
        return covariance.eigenpairs(matrix, rank)

    monkeypatch.setattr(covariance_sums, "eigenpairs", counted)
    x = image_like(300, 12)
    sums = MomentSums().update(x)
    laws = [Gaussian.fit(sums, rank=r) for r in (3, None, 0.9)]
    assert len(calls) == 1
    torch.testing.assert_close(laws[0].spectrum.dense(), Gaussian.fit(x, rank=3).spectrum.dense())
    torch.testing.assert_close(laws[1].spectrum.dense(), exact(x))
    assert laws[0].mean.dtype == F64
    sums.save(tmp_path / "sums.safetensors", spectrum=True)
    again = Gaussian.fit(MomentSums.load(tmp_path / "sums.safetensors"))
    assert len(calls) == 1
    torch.testing.assert_close(again.spectrum.dense(), exact(x))
    Gaussian.fit(sums.update(x[:5]))
    assert len(calls) == 2
    assert Gaussian.fit(MomentSums().update(x.float())).mean.dtype == torch.float32
    with pytest.raises(ArgumentError, match="dct"):
        Gaussian.fit(sums, basis="dct")


def test_an_empty_accumulator_holds_to_its_scale():
    """Sums of [0, 1] images must not slip into those of [-1, 1] because these have seen nothing yet."""
    unit = MomentSums(pixel_range=(0, 1)).update(torch.rand(9, 4))
    with pytest.raises(DataError, match="pixel range"):
        MomentSums(pixel_range=(-1, 1)).merge(unit)
    assert MomentSums().merge(unit).pixel_range == (0, 1)


@pytest.mark.parametrize("change", [{"count": math.inf}, {"shape": [math.inf]}, {"shape": [-2, -2]}, {"count": -1}])
def test_headers_with_impossible_numbers_are_data_errors(tmp_path, change):
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "sums.safetensors"
    MomentSums().update(torch.rand(9, 4)).save(path)
    with safe_open(path, "pt") as file:
        header, tensors = json.loads(file.metadata()["farfield"]), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    save_file(tensors, path, {"farfield": json.dumps(header | change)})
    with pytest.raises(DataError):
        MomentSums.load(path)
