"""Seeds, threads and globals: every test starts from the same state and has to leave it as it was."""

from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture
def points(tmp_path: Path) -> str:
    """A file with 400 points on a ring."""
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    path = tmp_path / "ring.npz"
    np.savez(path, images=np.stack((np.cos(angle), np.sin(angle)), 1).astype(np.float32))
    return str(path)


@pytest.fixture(autouse=True)
def _steady_globals():
    torch.manual_seed(0)
    before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()
    yield
    after = torch.get_default_dtype(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()
    assert after == before, "a test changed a global setting of torch"


def pytest_configure():
    # Two workers on two cores: more threads would only fight each other.
    torch.set_num_threads(1)
