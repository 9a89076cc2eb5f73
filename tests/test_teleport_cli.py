"""``farfield sample`` with teleports, noise and guidance: evaluations as planned, and refusals of what would be ignored."""

import json

import numpy as np
import pytest
import torch

from farfield.cli.main import main
from farfield.networks.model_file import ModelSpec, Preconditioning, build_model, save_model
from farfield.networks.unet import SongUNetConfig


def folder_of(path, **network):
    config = SongUNetConfig(model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=(), **network)
    spec = ModelSpec(config, (1, 8, 8), Preconditioning(sigma_data=0.75))
    torch.manual_seed(0)
    save_model(path, build_model(spec), spec, {"config": {"data": {"source": "digits"}}})
    return path


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """An untrained network with ten classes."""
    return folder_of(tmp_path_factory.mktemp("conditional"), label_dim=10)


def sample(capsys, *options):
    assert main(["sample", *map(str, options), "--json", "--quiet"]) == 0
    shown = capsys.readouterr()
    return json.loads(shown.out), shown.err


def test_teleport_by_itself(tmp_path, capsys):
    """The bundled model: the level is measured, said, and saves what was said; the same command finds its own set."""
    options = ("digits", "--n", 2, "--teleport", "auto", "--out", tmp_path / "a")
    record, said = sample(capsys, *options)
    assert record["nfe"] < 30
    assert record["sampler"]["start"]["name"] == "teleport"
    assert record["sampler"]["start"]["grid_policy"] == "truncate"
    assert f"{record['nfe']} of 35 evaluations" in said
    again, _ = sample(capsys, *options)
    assert again == record


def test_teleport_to_a_level(conditional, tmp_path, capsys):
    plain, said = sample(capsys, conditional, "--n", 2, "--steps", 6, "--teleport", 9, "--out", tmp_path / "a")
    assert (plain["nfe"], said) == (11, "")
    cut, said = sample(
        capsys, conditional, "--n", 2, "--steps", 6, "--teleport", 1, "--policy", "truncate", "--out", tmp_path / "b"
    )
    assert cut["nfe"] == 7
    assert "not Gaussian any more" in said


def test_noise_and_guidance(conditional, tmp_path, capsys):
    """Both reach the stored sampler, and guidance doubles the evaluations inside its interval."""
    options = ("--n", 3, "--steps", 4, "--label", 3)
    eta, _ = sample(capsys, conditional, *options, "--solver", "euler", "--eta", 0.5, "--out", tmp_path / "a")
    assert eta["sampler"]["noise"] == {"name": "ancestral", "eta": 0.5}
    assert eta["nfe"] == 4
    churned, _ = sample(capsys, conditional, *options, "--churn", 2, "--out", tmp_path / "b")
    assert churned["sampler"]["noise"]["s_churn"] == 2
    guided, _ = sample(
        capsys, conditional, *options, "--solver", "euler", "--guidance", 2, "--guidance-interval", 0.01, 20, "--out",
        tmp_path / "c",
    )  # fmt: skip
    assert guided["sampler"]["guidance"][0]["interval"] == [0.01, 20]
    assert 4 < guided["nfe"] < 8


def test_teleport_by_class(conditional, tmp_path, capsys):
    """With a label the start is the class's own Gaussian; under guidance both laws are in the stored sampler."""
    options = ("--n", 2, "--steps", 4, "--label", 3, "--teleport", 12)
    own, _ = sample(capsys, conditional, *options, "--out", tmp_path / "a")
    other, _ = sample(capsys, conditional, *options[:-3], "5", *options[-2:], "--out", tmp_path / "b")
    assert own["sampler"]["start"]["name"] == "teleport"
    assert own["sampler_digest"] != other["sampler_digest"]
    guided, _ = sample(capsys, conditional, *options, "--guidance", 3, "--out", tmp_path / "c")
    assert guided["sampler"]["start"]["name"] == "class_teleport"
    assert guided["sampler"]["start"]["gaussians"][:3] == [None] * 3
    with np.load(tmp_path / "c" / "samples.npz") as archive:
        assert np.isfinite(archive["images"]).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--policy", "truncate"), "no effect without --teleport"),
        (("--guidance-interval", "1", "2"), "no effect without --guidance"),
        (("--eta", "1", "--churn", "2"), "two kinds of noise"),
        (("--eta", "2"), "eta = 2.0"),
        (("--guidance", "2"), "labels are missing"),
        (("--churn", "2", "--sampler", "x.json"), "--churn cannot be given with it"),
        (("--teleport", "soon"), "soon"),
    ],
)
def test_refusals(conditional, tmp_path, capsys, options, said):
    assert main(["sample", str(conditional), *options, "--out", str(tmp_path / "x")]) == 2
    assert said in capsys.readouterr().err
