"""``farfield sample --solver …`` for every solver, with options and jumps, what the default is, and what is refused."""

import json
import re

import numpy as np
import pytest
import torch

from farfield.cli.main import main
from farfield.cli.solver_options import number_in, solver_of
from farfield.networks.mlp import MLPConfig
from farfield.networks.model_file import ModelSpec, Preconditioning, build_model, save_model
from farfield.networks.unet import SongUNetConfig
from farfield.sampling import Sampler, karras
from farfield.sampling.solvers import RK45, SOLVERS, UniPC, make_solver


def saved(path, config, shape, card):
    spec = ModelSpec(config, shape, Preconditioning(sigma_data=0.75))
    torch.manual_seed(0)
    save_model(path, build_model(spec), spec, card)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained network on 8×8 images whose card names the digits."""
    config = SongUNetConfig(model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=())
    return saved(tmp_path_factory.mktemp("model"), config, (1, 8, 8), {"config": {"data": {"source": "digits"}}})


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """An untrained network on the plane whose card names photographs."""
    card = {"config": {"data": {"source": "cifar10"}}}
    return saved(tmp_path_factory.mktemp("vectors"), MLPConfig(width=16, depth=1), (2,), card)


def sample(capsys, model, *options):
    arguments = ["sample", str(model), "--n", "3", *map(str, options), "--json", "--quiet"]
    assert main(arguments) == 0, capsys.readouterr().err
    shown = capsys.readouterr()
    return json.loads(shown.out), shown.err


def images(folder):
    with np.load(folder / "samples.npz", allow_pickle=False) as archive:
        return archive["images"]


# -- solvers and their options ------------------------------------------------------------------------------------------

#: For every solver, options that are not its defaults.
OPTIONS = {
    "euler": {},
    "heun": {"form": "finite_difference"},
    "dpm2": {"midpoint": 0.3},
    "dpm3": {"final": "reduce"},
    "dpmpp_2s": {"midpoint": 1 / 3},
    "dpmpp_2m": {"form": "finite_difference"},
    "taylor2": {"derivative": "difference"},
    "dpmpp_3m": {"start": "corrected", "curvature": "exact"},
    "unipc": {"points": 3, "variant": "bh1", "corrector": "never"},
    "deis": {"variant": "rhoab", "points": 2, "form": "finite_difference"},
    "lms": {"points": 3, "start": "corrected"},
    "ipndm_v": {"points": 2},
    "ipndm": {"points": 3},
    "spndm": {"form": "finite_difference"},
    "plms": {},
    "pndm": {"timesteps": 500, "schedule": "cosine", "final": "clamp"},
    "rk45": {"rtol": 1e-2, "atol": 1e-2, "stops_at": "grid"},
    "whitened": {"order": 2, "unit": "data", "corrector": "never", "exponent": 0.5},
}


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_every_solver_with_its_options(name, model, tmp_path, capsys):
    """What was asked for is what run.json says, and the samples are those of the library."""
    given = [f"{key}={value}" for key, value in OPTIONS[name].items()]
    options = ("--solver", name, "--steps", 5, *(("--solver-option", *given) if given else ()))
    record, said = sample(capsys, model, *options, "--out", tmp_path / "a")
    rule = make_solver(name, **OPTIONS[name])
    assert record["sampler"]["solver"] == json.loads(json.dumps(rule.to_dict()))
    assert record["sampler"]["sigmas"]["name"] == "karras"
    assert said == ""
    assert images(tmp_path / "a").shape == (3, 1, 8, 8)
    if not rule.adaptive:
        assert record["nfe"] == record["sampler"]["nfe"] == Sampler(rule, karras(5)).nfe


def test_order_is_the_name_of_points(model, tmp_path, capsys):
    record, _ = sample(capsys, model, "--solver", "lms", "--order", 3, "--steps", 3, "--out", tmp_path / "a")
    assert record["sampler"]["solver"]["points"] == 3


def test_values_of_options():
    """Numbers as people write them; words stay words."""
    assert [number_in(v) for v in ("1e-5", "1/7", "bh1", "1/0", 3, True)] == [1e-5, 1 / 7, "bh1", "1/0", 3, True]
    assert solver_of("rk45", None, ("rtol=1e-5", "atol=2e-6")) == RK45(1e-5, 2e-6)
    assert solver_of("unipc", 3, ("variant=bh1",)) == UniPC(3, "bh1")


def test_help_lists_every_solver(capsys):
    assert main(["sample", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name in SOLVERS:
        row = make_solver(name).describe()
        assert f"{name}: order {row.order}; {row.evaluations.replace(': ', ', ')}" in text
        for option in row.options:
            assert re.search(rf"{name}: [^:]*\b{option}=", text), (name, option)


# -- steps of its own ---------------------------------------------------------------------------------------------------


def test_an_adaptive_solver(model, tmp_path, capsys):
    """The evaluations are known when all is drawn: the most that a batch took, which the record then keeps."""
    options = [
        "sample",
        str(model),
        "--n",
        "20",
        "--solver",
        "rk45",
        "--solver-option",
        "rtol=1e-2",
        "atol=1e-2",
        "--quiet",
    ]
    out = tmp_path / "a"
    assert main([*options, "--batch-size", "16", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    record = json.loads((out / "run.json").read_text())
    assert record["sampler"]["nfe"] is None
    assert record["nfe"] > 10
    assert f"20 samples, at most {record['nfe']} evaluations each" in said
    assert main([*options, "--out", str(out)]) == 0  # nothing to do, and the same is said
    assert capsys.readouterr().out == said
    assert sorted(p.name for p in out.iterdir()) == ["run.json", "samples.npz", "samples.png"]
    text = Sampler(RK45(1e-2, 1e-2), karras(18)).to_json()
    (tmp_path / "sampler.json").write_text(text)
    again, _ = sample(capsys, model, "--sampler", tmp_path / "sampler.json", "--out", tmp_path / "b")
    np.testing.assert_allclose(images(tmp_path / "b"), images(out)[:3], rtol=0, atol=1e-5)
    assert again["nfe"] <= record["nfe"]


def test_an_interrupted_adaptive_run_remembers_its_counts(model, tmp_path, monkeypatch, capsys):
    options = [
        "sample",
        str(model),
        "--n",
        "8",
        "--solver",
        "rk45",
        "--solver-option",
        "rtol=0.05",
        "atol=0.05",
        "--quiet",
    ]
    original, counts = Sampler.__call__, []

    def counting(self, *args, **kwargs):
        if len(counts) == 1 and kwargs["first"]:
            counts.append(0)
            raise KeyboardInterrupt
        out = original(self, *args, **kwargs)
        counts.append(out.nfe)
        return out

    monkeypatch.setattr(Sampler, "__call__", counting)
    arguments = [*options, "--batch-size", "4", "--out", str(tmp_path / "a")]
    assert main(arguments) == 130
    assert json.loads((tmp_path / "a" / "run.json").read_text())["nfe"] is None
    assert main(arguments) == 0
    assert json.loads((tmp_path / "a" / "run.json").read_text())["nfe"] == max(counts)
    assert len(counts) == 3


def test_batches_of_an_adaptive_run_side_by_side():
    """Each batch takes its own number of steps; the trajectory says the most for each state."""
    spread = torch.tensor([[1e-3, 1e-3], [1.0, 2.0], [-0.5, 0.7]])

    class Bent(torch.nn.Module):
        def forward(self, x, sigma):
            return torch.tanh(4 * x / (1 + sigma.view(-1, 1) if isinstance(sigma, torch.Tensor) else x / (1 + sigma)))

    from farfield.denoiser import FunctionDenoiser
    from farfield.sampling import Given

    model = FunctionDenoiser(Bent(), (2,))
    sampler = Sampler(RK45(1e-4, 1e-4, "grid"), karras(4, 0.1, 5.0), start=Given(spread))
    alone = [Sampler(sampler.rule, sampler.grid, start=Given(row[None])) for row in spread]
    parts = [one(model, trajectory=True).trajectory.nfe for one in alone]
    joint = sampler(model, batch_size=1, trajectory=True)
    assert len(set(parts)) > 1
    assert joint.trajectory.nfe == tuple(map(max, zip(*parts, strict=True)))
    assert joint.nfe == joint.trajectory.nfe[-1]
    statistics = sampler(model, batch_size=1, trajectory="statistics").statistics
    assert statistics.nfe == joint.trajectory.nfe


# -- jumps --------------------------------------------------------------------------------------------------------------


def test_jumps(model, tmp_path, capsys):
    options = ("--solver", "dpmpp_2m", "--steps", 9)
    at, _ = sample(capsys, model, *options, "--jump-at", 0.5, "--out", tmp_path / "a")
    assert at["sampler"]["finish"] == {"name": "jump", "at": 0.5}
    spent, _ = sample(capsys, model, *options, "--jump-nfe", 4, "--out", tmp_path / "b")
    assert (spent["nfe"], spent["sampler"]["finish"]["at"]) == (4, {"name": "budget", "nfe": 4})
    tol, _ = sample(capsys, model, *options, "--jump-tol", 0.5, "--out", tmp_path / "c")
    assert tol["sampler"]["finish"]["at"]["name"] == "change"
    assert 2 <= tol["nfe"] <= tol["sampler"]["nfe"] == 9
    assert (
        main(["sample", str(model), "--n", "3", *map(str, options), "--jump-tol", "0.5", "--out", str(tmp_path / "c")])
        == 0
    )
    assert f"at most {tol['nfe']} evaluations" in capsys.readouterr().out


# -- the default --------------------------------------------------------------------------------------------------------


def test_the_default_is_whitened_on_the_spectral_grid(model, tmp_path, capsys):
    record, said = sample(capsys, model, "--steps", 6, "--out", tmp_path / "a")
    sampler = record["sampler"]
    assert (sampler["solver"]["name"], sampler["sigmas"]["name"], record["nfe"]) == ("whitened", "spectral", 6)
    assert sampler["covariance"] is not None
    assert said == ""
    named, _ = sample(
        capsys, model, "--steps", 6, "--solver", "whitened", "--grid", "spectral", "--out", tmp_path / "b"
    )
    assert named["sampler_digest"] == record["sampler_digest"]
    other, _ = sample(capsys, model, "--steps", 6, "--rho", 5, "--out", tmp_path / "c")
    assert (other["sampler"]["solver"]["name"], other["sampler"]["sigmas"]["name"]) == ("whitened", "karras")


@pytest.mark.parametrize("options", [("--churn", "2"), ("--teleport", "9")], ids=["churn", "teleport"])
def test_it_is_heun_where_that_is_meant(model, tmp_path, capsys, options):
    record, _ = sample(capsys, model, "--steps", 5, *options, "--out", tmp_path / "a")
    assert (record["sampler"]["solver"]["name"], record["sampler"]["sigmas"]["name"]) == ("heun", "karras")


def test_it_is_heun_where_the_data_are_not_there(vectors, tmp_path, capsys, monkeypatch):
    """And that is said, because the same command gives other samples where they are."""
    monkeypatch.setenv("FARFIELD_CIFAR10", str(tmp_path / "none.parquet"))
    record, said = sample(capsys, vectors, "--steps", 3, "--out", tmp_path / "a")
    assert (record["sampler"]["solver"]["name"], record["nfe"]) == ("heun", 5)
    assert said.startswith("farfield: Heun's method, because the model's data cifar10 cannot be used")
    assert len(said.splitlines()) == 1


# -- refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--solver", "dpm2", "--solver-option", "middle=0.3"), "no option 'middle'; it has: midpoint, form"),
        (("--solver", "dpm2", "--solver-option", "midpoint"), "expected name=value"),
        (("--solver", "dpm2", "--solver-option", "midpoint=high"), "midpoint = 'high'"),
        (("--solver", "deis", "--solver-option", "beta_min=low"), "--solver-option beta_min=low"),
        (("--solver", "unipc", "--order", "2", "--solver-option", "order=3"), "order is given twice"),
        (("--solver", "rk45", "--solver-option", "rtol=0"), "rtol = 0"),
        (("--solver", "rk45", "--jump-nfe", "9"), "chooses its own steps"),
        (("--jump-at", "1", "--jump-tol", "0.1"), "--jump-at and --jump-tol are rules for one jump"),
        (("--jump-at", "900"), "outside the grid"),
        (("--jump-nfe", "0"), "nfe = 0"),
        (("--solver-option", "order=2", "--sampler", "x.json"), "--solver-option cannot be given with it"),
        (("--jump-tol", "1", "--sampler", "x.json"), "--jump-tol cannot be given with it"),
    ],
)
def test_refusals(model, tmp_path, capsys, options, said):
    assert main(["sample", str(model), *options, "--out", str(tmp_path / "x")]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "x").exists()
