"""Trajectories in their principal components, beside numpy's singular values and closed forms."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from farfield.analysis import Subject, analyze
from farfield.analysis.trajectory_view import trajectory_view
from farfield.distributions import Empirical, Gaussian
from farfield.errors import ArgumentError
from farfield.sampling import Sampler, Trajectory, karras
from tests.test_shape import t5


@pytest.fixture(scope="module")
def run() -> Trajectory:
    data, start = t5()
    found = Sampler("heun", karras(18)).run(Empirical(data), start[:9], trajectory=True).trajectory
    assert found is not None
    return found


def shares_of(points: np.ndarray) -> np.ndarray:
    values = np.linalg.svd(points - points.mean(0), compute_uv=False) ** 2
    return np.cumsum(values) / values.sum()


def test_shares_are_those_of_singular_values(run):
    view = trajectory_view(run, components=4)
    x = run.states.numpy()
    each = np.stack([shares_of(x[:, i]) for i in range(9)])
    assert view.path_shares == pytest.approx(each.mean(0)[:10], rel=1e-9)
    assert view.path_low == pytest.approx(each.min(0)[:10], rel=1e-9)
    assert view.path_high == pytest.approx(each.max(0)[:10], rel=1e-9)
    assert view.needed == tuple(int(np.argmax(row >= 0.999)) + 1 for row in each)
    assert view.batch_shares == pytest.approx(shares_of(x.reshape(-1, 16))[:10], rel=1e-9)
    r = run.denoised.numpy()
    assert view.denoised_needed == tuple(int(np.argmax(shares_of(r[:, i]) >= 0.999)) + 1 for i in range(9))


@pytest.mark.parametrize("basis", ["each", "batch"])
@pytest.mark.parametrize("wide", [False, True])
def test_coordinates_are_projections_on_orthonormal_directions(run, basis, wide):
    """In few and in many dimensions, which takes the other Gram matrix."""
    if wide:
        basis_vectors, _ = torch.linalg.qr(torch.randn(300, 16, dtype=torch.float64))
        run = Trajectory(run.sigmas, run.states @ basis_vectors.T, run.denoised @ basis_vectors.T, run.nfe)
    view = trajectory_view(run, basis=basis, components=3)
    directions = view.directions if basis == "each" else view.directions.expand(9, -1, -1)
    gram = directions @ directions.mT
    assert torch.allclose(gram, torch.eye(3, dtype=torch.float64).expand(9, 3, 3), atol=1e-6)
    centre = run.states.mean(0) if basis == "each" else run.states.mean((0, 1)).expand(9, -1)
    for curve, points in ((view.states, run.states), (view.denoised, run.denoised)):
        expected = torch.einsum("lbd,bkd->lbk", points - centre, directions)
        assert torch.allclose(curve, expected, atol=1e-8)
    # The farthest point along each component is on its positive side.
    flat = view.states.transpose(0, 1) if basis == "each" else view.states.reshape(1, -1, 3)
    assert bool((flat.amax(1) >= -flat.amin(1)).all())


def test_a_path_of_an_isotropic_gaussian_is_one_dimensional():
    """Geometry fact 21: it is straight, so one component holds it, and its outputs too."""
    law = Gaussian(torch.zeros(5, dtype=torch.float64), 0.7 * torch.eye(5, dtype=torch.float64))
    view = trajectory_view(Sampler("heun", karras(12))(law, 4, trajectory=True, dtype=torch.float64).trajectory)
    assert view.needed == view.denoised_needed == (1, 1, 1, 1)
    assert view.path_shares[0] == pytest.approx(1, abs=1e-12)
    assert float(view.states[..., 1:].abs().max()) < 1e-4
    assert view.dimension == view.denoised_dimension == 1


def test_a_path_of_two_eigenvalues_lies_in_a_plane():
    variances = torch.tensor([4.0, 4.0, 0.1, 0.1, 0.1], dtype=torch.float64)
    law = Gaussian(torch.zeros(5, dtype=torch.float64), torch.diag(variances))
    run = Sampler("euler", karras(20))(law, 6, trajectory=True, dtype=torch.float64).trajectory
    view = trajectory_view(run, components=3, share=1 - 1e-10)
    assert view.path_low[1] == pytest.approx(1, abs=1e-12)
    assert set(view.needed) == {2}


def test_outputs_need_more_components_than_states(run):
    view = trajectory_view(run)
    assert view.dimension < view.denoised_dimension <= 16
    assert "leaves" in view.summary()


def test_plain_values_tables_and_plots(run):
    view = trajectory_view(run)
    record = json.loads(json.dumps(view.to_dict(), allow_nan=False))
    assert np.shape(record["states"]) == (19, 9, 3)
    assert np.shape(record["denoised"]) == (18, 9, 3)
    assert all(len(row) == len(table.columns) for table in view.tables() for row in table.rows)
    assert len(view.plot().axes) == 2
    figure = view.plot(dimensions=3)
    assert figure.axes[0].name == "3d"
    assert figure.axes[0].get_zlabel() == "component 3"


def test_the_table_tells_what_is_left(run):
    """Shares of 0.9999 and more would all read 1; what is left falls, and the mean lies between least and largest."""
    view = trajectory_view(run)
    rows = view.tables()[0].rows
    left = [row[1] for row in rows]
    assert left[0] == pytest.approx(1 - view.path_shares[0], abs=1e-12)
    assert 0 < left[1] < left[0] < 1e-2
    assert all(low <= mean <= high for _, mean, low, high, *_ in rows)


def test_the_plane_of_two_coordinates_is_kept_by_default():
    view = analyze("trajectory-view", Subject(Gaussian(torch.zeros(2), torch.eye(2)), torch.zeros(4, 2)), {"n": 3})
    assert view.states.shape[2] == 2


def test_images_keep_their_shape():
    law = Gaussian(torch.zeros(1, 4, 4), torch.eye(16))
    view = analyze("trajectory-view", Subject(law, torch.zeros(4, 1, 4, 4)), {"n": 3, "levels": 5, "basis": "batch"})
    assert view.directions.shape == (3, 1, 4, 4)
    assert view.basis == "batch"


def test_bad_arguments(run):
    with pytest.raises(ArgumentError, match="basis = 'all'"):
        trajectory_view(run, basis="all")
    with pytest.raises(ArgumentError, match="components = 1"):
        trajectory_view(run, components=1)
    with pytest.raises(ArgumentError, match=r"share = 1\.0"):
        trajectory_view(run, share=1.0)
    with pytest.raises(ArgumentError, match="two recorded steps"):
        trajectory_view(Trajectory((1.0, 0.0), run.states[:2], run.denoised[:1], (0, 1)))
    with pytest.raises(ArgumentError, match="dimensions = 3"):
        trajectory_view(run, components=2).plot(dimensions=3)
