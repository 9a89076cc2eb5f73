"""Averages chosen after training: profiles, their combinations, snapshots on the disk and the command."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import nn

from farfield.cli.main import main
from farfield.errors import ArgumentError, ModelFileError
from farfield.interop import load
from farfield.networks.files import read_json, write_json
from farfield.networks.mlp import MLPConfig
from farfield.networks.model_file import ModelSpec, Preconditioning, build_model
from farfield.training.posthoc import (
    PostHocConfig,
    PowerEMA,
    averaged_model,
    plan,
    read_snapshots,
    reconstruct,
    write_snapshot,
)
from farfield.training.profiles import gamma_of, inner_products, power_share, sigma_rel_of, solve_weights

SPEC = ModelSpec(MLPConfig(width=16, depth=1), (2,), Preconditioning(sigma_data=0.7))


def profile(t, gamma):
    return lambda tau: (gamma + 1) * tau**gamma / t ** (gamma + 1) if tau <= t else 0.0


class Walk(nn.Module):
    """Weights that start at random values and make ``steps`` random steps of total length about ``size``."""

    def __init__(self, dim=200, steps=2000, size=0.5):
        super().__init__()
        g = torch.Generator().manual_seed(1)
        steps_of = torch.randn(steps, dim, generator=g, dtype=torch.float64) * (size / steps**0.5)
        self.path = torch.randn(dim, generator=g, dtype=torch.float64) + steps_of.cumsum(0)
        self.w = nn.Parameter(self.path[0].float())
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def go(self, step):
        with torch.no_grad():
            self.w.copy_(self.path[step - 1])
            self.count += 1

    def direct(self, sigma_rel, step):
        """The average by its definition, in float64."""
        power = gamma_of(sigma_rel) + 1
        i = torch.arange(step + 1, dtype=torch.float64) / step
        return (i**power).diff() @ self.path[:step]


def walked(folder, snapshots, dtype="fp32", widths=(0.05, 0.10), steps=2000):
    model = Walk(steps=steps)
    average = PowerEMA(model, widths)
    for step in range(1, steps + 1):
        model.go(step)
        average.update(step)
        if step % (steps // snapshots) == 0:
            write_snapshot(folder, step, 64 * step, average, SPEC, {"seed": 0}, dtype)
    return model, average


def off(state, reference):
    return float((state["w"].double() - reference).norm() / reference.norm())


# profiles


@given(st.floats(0.001, 12**-0.5))
def test_width_and_exponent_are_inverses(sigma_rel):
    gamma = gamma_of(sigma_rel)
    assert gamma >= 0
    assert sigma_rel_of(gamma) == pytest.approx(sigma_rel, rel=1e-10)


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_published_exponents(sigma_rel, gamma):
    assert gamma_of(sigma_rel) == pytest.approx(gamma, abs=0.006)


@pytest.mark.parametrize("width", [0.0, -0.1, 0.2888, math.nan])
def test_widths_out_of_range(width):
    with pytest.raises(ArgumentError, match=r"expected a width in \(0, 0\.2886\]"):
        gamma_of(width)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.1, 0.25, 12**-0.5])
def test_relative_width_is_the_spread_of_the_profile(sigma_rel):
    t = 3.0
    p = profile(t, gamma_of(sigma_rel))
    total, mean, square = (quad(lambda x, k=k: p(x) * x**k, 0, t, epsabs=1e-12)[0] for k in range(3))
    assert total == pytest.approx(1, rel=1e-9)
    assert math.sqrt(square - mean**2) / t == pytest.approx(sigma_rel, rel=1e-6)


@pytest.mark.parametrize(
    ("ta", "sa", "tb", "sb"),
    [(1.0, 0.1, 1.0, 0.1), (0.5, 0.05, 2.0, 0.1), (2.0, 0.2, 0.7, 0.03), (1.0, 0.28, 3.0, 0.25)],
)
def test_inner_products_by_quadrature(ta, sa, tb, sb):
    ga, gb = gamma_of(sa), gamma_of(sb)
    a, b = profile(ta, ga), profile(tb, gb)
    expected = quad(lambda x: a(x) * b(x), 0, min(ta, tb), epsabs=1e-13, epsrel=1e-11)[0]
    assert float(inner_products(ta, ga, tb, gb)) == pytest.approx(expected, rel=1e-8)


@given(st.floats(0, 40), st.integers(1, 400))
def test_update_follows_the_profile_exactly(gamma, steps):
    """The weight of step i after t updates is the integral of the profile over (i − 1, i]."""
    weights = np.zeros(steps)
    for t in range(1, steps + 1):
        share = power_share(t, gamma)
        weights *= 1 - share
        weights[t - 1] = share
    edges = (np.arange(steps + 1) / steps) ** (gamma + 1)
    np.testing.assert_allclose(weights, np.diff(edges), rtol=0, atol=1e-12)


# combinations


@given(st.integers(1, 12), st.floats(0.02, 0.28))
def test_weights_sum_to_one_and_more_profiles_are_never_worse(count, sigma_rel):
    """What does not move comes back exactly; the nearest combination of more profiles is at least as near."""
    gamma, former = gamma_of(sigma_rel), math.inf
    for n in (count, 2 * count, 4 * count):
        times = [t for k in range(n) for t in (k + 1, k + 1)]
        weights, mismatch = solve_weights([t / n for t in times], [gamma_of(0.05), gamma_of(0.1)] * n, 1.0, gamma)
        assert weights.sum() == pytest.approx(1, abs=1e-9)
        assert mismatch <= former + 1e-6
        former = mismatch


def test_mismatch_is_the_distance_of_the_profiles():
    times, gammas, gamma = [0.4, 0.4, 1.0], [gamma_of(0.05), gamma_of(0.2), gamma_of(0.1)], gamma_of(0.15)
    weights, mismatch = solve_weights(times, gammas, 1.0, gamma)
    parts = [profile(t, g) for t, g in zip(times, gammas, strict=True)]
    wanted = profile(1.0, gamma)

    def difference(x, weights=weights):
        return (sum(w * p(x) for w, p in zip(weights, parts, strict=True)) - wanted(x)) ** 2

    squared = quad(difference, 0, 1, points=[0.4], epsabs=1e-12)[0]
    size = quad(lambda x: wanted(x) ** 2, 0, 1)[0]
    assert mismatch == pytest.approx(math.sqrt(squared / size), rel=1e-6)
    for change in ([0.01, -0.01, 0], [0, 0.01, -0.01]):  # other weights that sum to one are further away
        assert quad(lambda x, w=weights + change: difference(x, w), 0, 1, points=[0.4])[0] > squared


# averages


def test_tracked_average_is_the_definition():
    model = Walk(steps=300)
    average = PowerEMA(model, (0.05, 0.25))
    for step in range(1, 301):
        model.go(step)
        average.update(step)
    for k, width in enumerate((0.05, 0.25)):
        tracked = {"w": average.tensors()[f"posthoc.{k}.w"]}
        assert off(tracked, model.direct(width, 300)) < 1e-6


def test_state_goes_through_a_checkpoint():
    torch.manual_seed(3)
    first, second = PowerEMA(nn.Linear(3, 2)), PowerEMA(nn.Linear(3, 2))
    first.update(1)
    assert list(first.tensors()) == [f"posthoc.{k}.{name}" for k in (0, 1) for name in ("weight", "bias")]
    state = {name: t.clone() for name, t in first.tensors().items()} | {"model.weight": torch.zeros(1)}
    second.load(state)
    assert all(torch.equal(second.tensors()[name], t) for name, t in first.tensors().items())
    with pytest.raises(ModelFileError, match=r"lacks tensor 'posthoc\.1\.bias'"):
        second.load({k: v for k, v in state.items() if k != "posthoc.1.bias"})
    with pytest.raises(ModelFileError, match=r"'posthoc\.0\.bias' is \(3,\); the model has \(2,\)"):
        second.load({**state, "posthoc.0.bias": torch.zeros(3)})


# snapshots


def test_a_stored_average_comes_back(tmp_path):
    model, average = walked(tmp_path, 8)
    for k, width in enumerate((0.05, 0.10)):
        state = reconstruct(tmp_path, width)
        torch.testing.assert_close(state["w"], average.tensors()[f"posthoc.{k}.w"], rtol=0, atol=1e-6)
        assert plan(tmp_path, width).mismatch < 1e-6
        assert off(reconstruct(tmp_path, width, step=1000), model.direct(width, 1000)) < 1e-6
    assert int(state["count"]) == 2000
    assert state["w"].dtype == torch.float32


def test_any_width_comes_from_snapshots_of_two(tmp_path):
    """More snapshots, smaller error, for each width; with 40 it is small beside what averaging changes."""
    errors = {}
    for snapshots in (5, 10, 20, 40):
        folder = tmp_path / str(snapshots)
        model, _ = walked(folder, snapshots)
        for width in (0.03, 0.07, 0.15, 0.25):
            made = plan(folder, width)
            error = off(reconstruct(folder, width), model.direct(width, 2000))
            errors.setdefault(width, []).append((error, made.mismatch))
    for width, found in errors.items():
        assert [e for e, _ in found] == sorted((e for e, _ in found), reverse=True)
        assert [m for _, m in found] == sorted((m for _, m in found), reverse=True)
        change = off({"w": model.path[-1]}, model.direct(width, 2000))
        assert found[-1][0] < 0.005 * change
    assert errors[0.07][1][0] < 5e-4


def test_half_precision_is_enough(tmp_path):
    model, _ = walked(tmp_path, 20, "fp16")
    change = off({"w": model.path[-1]}, model.direct(0.07, 2000))
    assert off(reconstruct(tmp_path, 0.07), model.direct(0.07, 2000)) < min(3e-4, 0.01 * change)
    assert off(reconstruct(tmp_path, 0.15), model.direct(0.15, 2000)) < 3e-4


def test_values_beyond_half_precision_are_kept(tmp_path):
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.fill_(1e6)
    average = PowerEMA(model)
    write_snapshot(tmp_path, 1, 1, average, SPEC, {})
    assert torch.equal(reconstruct(tmp_path, 0.1)["weight"], model.weight)


def test_damaged_and_foreign_snapshots(tmp_path):
    with pytest.raises(ModelFileError, match=r"holds no snapshots of averages; train with ema\.posthoc\.every above 0"):
        reconstruct(tmp_path / "none", 0.1)
    walked(tmp_path, 4, steps=40)
    assert [s.step for s in read_snapshots(tmp_path)] == [10, 20, 30, 40]
    with pytest.raises(ArgumentError, match=r"step = 15; expected one that has a snapshot: 10, 20, 30, 40"):
        reconstruct(tmp_path, 0.1, 15)
    record = tmp_path / "step-00000020.json"
    good = read_json(record)
    for change, message in (
        ({"format": "else"}, "not a snapshot that this version reads"),
        ({"sigma_rel": [0.5]}, "expected a width"),
        ({"sigma_rel": "wide"}, "sigma_rel = 'wide'"),
        ({"step": 0}, "not a whole record"),
        ({"model": 3}, "model = 3"),
    ):
        write_json(record, {**good, **change})
        with pytest.raises(ModelFileError, match=message) as caught:
            reconstruct(tmp_path, 0.1)
        assert "\n" not in str(caught.value)
    write_json(record, good)
    with pytest.raises(ModelFileError, match="does not fit the model in its record"):
        averaged_model(plan(tmp_path, 0.1))
    tensors = record.with_suffix(".safetensors")
    kept = tensors.read_bytes()
    tensors.write_bytes(kept[:-4])
    with pytest.raises(ModelFileError, match="is damaged"):
        reconstruct(tmp_path, 0.1)
    tensors.write_bytes(kept)
    write_snapshot(tmp_path, 20, 1, PowerEMA(nn.Linear(1, 1)), SPEC, {})
    with pytest.raises(ModelFileError, match="which earlier snapshots lack"):
        reconstruct(tmp_path, 0.1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sigma_rel": ()}, "expected 1 to 16 different widths"),
        ({"sigma_rel": (0.1, 0.1)}, "expected 1 to 16 different widths"),
        ({"sigma_rel": (0.5,)}, r"ema\.posthoc\.sigma_rel = 0\.5; expected a width"),
        ({"every": -1}, r"ema\.posthoc\.every = -1"),
        ({"dtype": "bf16"}, r"ema\.posthoc\.dtype = 'bf16'"),
    ],
)
def test_wrong_settings_are_one_clear_line(values, message):
    with pytest.raises(ArgumentError, match=message):
        PostHocConfig(**values)


# the command


@pytest.fixture
def run(tmp_path):
    """A run whose weights move in a straight line."""
    torch.manual_seed(0)
    model = build_model(SPEC)
    average, folder = PowerEMA(model), tmp_path / "run"
    about = {"config": {"data": {"source": "toy:ring"}}, "seed": 4}
    for step in range(1, 101):
        with torch.no_grad():
            for p in model.parameters():
                p += 0.001
        average.update(step)
        if step % 10 == 0:
            write_snapshot(folder / "posthoc", step, 8 * step, average, SPEC, about)
    return folder, model


def test_command_writes_a_model_that_samples(run, tmp_path, capsys):
    folder, last = run
    out = tmp_path / "model"
    assert main(["ema", str(folder), "--sigma-rel", "0.07", "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["steps"], printed["snapshots"]) == (100, 10)
    assert printed["profile_mismatch"] < 0.05
    model = load(str(out))
    training = model.card["training"]
    assert (training["seed"], training["steps"], training["images"]) == (4, 100, 800)
    assert training["average"]["sigma_rel"] == 0.07
    # the mean of the profile is (γ + 1)/(γ + 2) of the way, half a step before which each weight holds
    gamma = gamma_of(0.07)
    expected = 0.001 * (100 - (100 * (gamma + 1) / (gamma + 2) + 0.5))
    for a, b in zip(model.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(b - a, torch.full_like(a, expected), rtol=0, atol=1e-3)
    assert main(["sample", str(out), "--n", "4", "--steps", "3", "--out", str(tmp_path / "samples"), "--quiet"]) == 0
    assert main(["ema", str(folder), "--sigma-rel", "0.07", "--step", "50", "--out", str(tmp_path / "early")]) == 0
    assert "at step 50 from 5 snapshots" in capsys.readouterr().out


def test_command_refuses(run, tmp_path, capsys):
    folder, _ = run
    for arguments, code, message in (
        ([str(tmp_path / "none"), "--sigma-rel", "0.1"], 2, "is not a folder"),
        ([str(folder), "--sigma-rel", "0.4"], 2, "expected a width in (0, 0.2886]"),
        ([str(folder), "--sigma-rel", "0.1", "--step", "7"], 2, "expected one that has a snapshot: 10, 20, 30, …"),
        ([str(folder), "--sigma-rel", "0.1", "--out", str(folder)], 2, "expected a new or empty folder"),
        ([str(tmp_path), "--sigma-rel", "0.1"], 1, "holds no snapshots"),
    ):
        assert main(["ema", *arguments]) == code
        assert message in capsys.readouterr().err
