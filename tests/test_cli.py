"""The command line in process: what it writes, prints, refuses, and that an interrupted run goes on."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from farfield.cli.main import main
from farfield.data import load as load_data
from farfield.distributions import Gaussian
from farfield.networks.mlp import MLPConfig
from farfield.networks.model_file import ModelSpec, Preconditioning, build_model, save_model
from farfield.networks.unet import SongUNetConfig
from farfield.sampling import Sampler, karras


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained network on 8x8 images, as a folder that `farfield train` could have written."""
    folder = tmp_path_factory.mktemp("model")
    config = SongUNetConfig(model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=())
    spec = ModelSpec(config, (1, 8, 8), Preconditioning(sigma_data=0.75))
    torch.manual_seed(0)
    save_model(folder, build_model(spec), spec, {"config": {"data": {"source": "digits"}}})
    return folder


@pytest.fixture(scope="module")
def vector_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    spec = ModelSpec(MLPConfig(width=16, depth=1), (2,), Preconditioning(sigma_data=0.7))
    torch.manual_seed(0)
    save_model(folder, build_model(spec), spec, {})
    return folder


def images(folder):
    with np.load(folder / "samples.npz", allow_pickle=False) as archive:
        return archive["images"]


def test_sample_writes_a_set_that_does_not_depend_on_the_batch(model, tmp_path, capsys):
    sets = []
    for size in (256, 7, 1):
        out = tmp_path / f"b{size}"
        options = [
            "--n",
            "20",
            "--seed",
            "7",
            "--steps",
            "4",
            "--batch-size",
            str(size),
            "--out",
            str(out),
            "--solver",
            "heun",
        ]
        assert main(["sample", str(model), *options]) == 0
        assert "20 samples, 7 evaluations each" in capsys.readouterr().out
        assert sorted(p.name for p in out.iterdir()) == ["run.json", "samples.npz", "samples.png"]
        sets.append(images(out))
    assert sets[0].shape == (20, 1, 8, 8)
    np.testing.assert_allclose(sets[1], sets[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(sets[2], sets[0], rtol=0, atol=1e-5)
    assert load_data(str(tmp_path / "b7" / "samples.npz")).event_shape == (1, 8, 8)


def test_an_interrupted_set_goes_on(model, tmp_path, monkeypatch, capsys):
    arguments = ["sample", str(model), "--n", "12", "--steps", "3", "--out", str(tmp_path / "a"), "--quiet"]
    calls = []
    original = Sampler.__call__

    def stop_at_third(self, *args, **kwargs):
        calls.append(kwargs["first"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Sampler, "__call__", stop_at_third)
    assert main([*arguments, "--batch-size", "4"]) == 130
    assert "goes on where it stopped" in capsys.readouterr().err
    assert not (tmp_path / "a" / "samples.npz").exists()
    monkeypatch.setattr(
        Sampler, "__call__", lambda self, *a, **k: (calls.append(k["first"]), original(self, *a, **k))[1]
    )
    assert main([*arguments, "--batch-size", "3"]) == 0
    assert calls == [0, 4, 8, 8, 11]  # the two finished batches were not drawn again
    monkeypatch.undo()
    assert main(["sample", str(model), "--n", "12", "--steps", "3", "--out", str(tmp_path / "b")]) == 0
    np.testing.assert_allclose(images(tmp_path / "a"), images(tmp_path / "b"), rtol=0, atol=1e-5)
    assert main([*arguments]) == 0  # finished already: nothing to do


def test_sample_with_a_stored_sampler_and_whitened_options(model, tmp_path, capsys):
    path = tmp_path / "sampler.json"
    path.write_text(Sampler("euler", karras(3)).to_json())
    assert main(["sample", str(model), "--n", "3", "--sampler", str(path), "--out", str(tmp_path / "a"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["nfe"], record["sampler"]["solver"]["name"]) == (3, "euler")
    options = ["--solver", "whitened", "--order", "3", "--grid", "spectral", "--steps", "5", "--teleport", "20"]
    assert main(["sample", str(model), "--n", "3", *options, "--out", str(tmp_path / "b"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["sampler"]["solver"]["order"] == 3
    assert record["sampler"]["start"]["name"] == "teleport"
    assert record["sampler"]["sigmas"]["name"] == "spectral"


def test_vectors_are_not_clamped(vector_model, tmp_path, capsys):
    out = tmp_path / "v"
    assert (
        main(["sample", str(vector_model), "--n", "5", "--steps", "3", "--out", str(out), "--solver", "whitened"]) == 0
    )
    assert "without a covariance" in capsys.readouterr().err
    assert images(out).shape == (5, 2)
    assert sorted(p.name for p in out.iterdir()) == ["run.json", "samples.npz"]


def test_models_data_and_info(model, capsys):
    assert main(["models", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), list)
    assert main(["models", str(model)]) == 0
    assert json.loads(capsys.readouterr().out)["event_shape"] == [1, 8, 8]
    assert main(["data"]) == 0
    assert "toy:ring" in capsys.readouterr().out
    assert main(["data", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["count"] == 1797
    assert main(["info", "--json"]) == 0
    assert "whitened" in json.loads(capsys.readouterr().out)["solvers"]


@pytest.mark.parametrize("command", [[], ["report"], ["train"], ["sample"], ["models"], ["data"], ["info"]])
def test_help_teaches_by_example(command, capsys):
    assert main([*command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"farfield {' '.join(command)}".strip() in text
    assert "example: farfield" in text or "farfield report digits" in text


def test_refusals(model, tmp_path, capsys):
    (tmp_path / "pickle.pt").write_bytes(b"\x80\x02}q\x00.")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00")
    foreign = Gaussian(torch.zeros(2), torch.eye(2))
    (tmp_path / "other.json").write_text(Sampler("whitened", covariance=foreign).to_json())
    cases = [
        (["sample", "digitz"], 2, "unknown model 'digitz'"),
        (["sample", str(model), "--solver", "hein"], 2, "known: deis"),
        (["sample", str(model), "--n", "0"], 2, "--n 0"),
        (["sample", str(model), "--n", "-5", "--label", "1"], 2, "--n -5"),
        (["sample", str(model), "--rho", "0.001"], 2, "rho = 0.001"),
        (["sample", str(model), "--sampler", str(tmp_path / "other.json")], 2, "Gaussian of shape"),
        (["sample", str(model), "--steps", "0"], 2, "--steps 0"),
        (["sample", str(model), "--device", "toaster"], 2, "device = 'toaster'"),
        (["sample", str(model), "--solver", "heun", "--data", "nosuch"], 2, "would have no effect"),
        (
            ["sample", str(model), "--sampler", str(tmp_path / "other.json"), "--steps", "5"],
            2,
            "--steps cannot be given",
        ),
        (["sample", str(model), "--sigma-max", "500"], 2, "outside the model's range"),
        (["sample", str(model), "--teleport", "100"], 2, "outside the grid"),
        (["sample", str(model), "--solver", "heun", "--order", "2"], 2, "no option 'order'"),
        (["sample", str(model), "--order", "7"], 2, "order = 7"),
        (["sample", str(model), "--jump-at", "1", "--jump-nfe", "4"], 2, "--jump-at and --jump-nfe"),
        (["sample", str(model), "--jump-tol", "0"], 2, "tol = 0.0"),
        (["sample", str(model), "--churn", "1", "--data", "digits"], 2, "would have no effect"),
        (["sample", str(model), "--label", "3"], 2, "unconditional"),
        (["sample", str(model), "--out", str(tmp_path / "other")], 2, "something else"),
        (["sample", str(model), "--sampler", str(tmp_path / "bad.json")], 1, "invalid JSON"),
        (["sample", str(model), "--sampler", str(tmp_path / "none.json")], 2, "cannot be read"),
        (["sample", str(tmp_path / "pickle.pt")], 1, "never executed"),
        (["sample", str(tmp_path / "cut.safetensors")], 1, "card.json"),
        (["sample", str(tmp_path / "missing" / "x.safetensors")], 1, "does not exist"),
        (["data", "digitz"], 2, "digits"),
        (["data", str(tmp_path / "other")], 1, "no pictures"),
        (["train", str(tmp_path / "none.yaml")], 2, "cannot be read"),
        (["report", str(model), "--data", "toy:ring", "--out", str(tmp_path / "r")], 2, "shape"),
        (["report", str(model), "--out", str(tmp_path / "other"), "--quick"], 2, "other"),
        (["sample"], 2, ""),
        (["sampel"], 2, ""),
        (["sample", str(model), "--nn", "3"], 2, ""),
    ]
    for arguments, code, text in cases:
        if "--out" not in arguments and arguments[0] in ("sample", "train"):
            arguments = [*arguments, "--out", str(tmp_path / "never")]
        assert main(arguments) == code, arguments
        err = capsys.readouterr().err
        if text:
            assert err.startswith("farfield: "), (arguments, err)
            assert text in err, (arguments, err)
            assert len(err.splitlines()) == 1, (arguments, err)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"
    assert sorted(p.name for p in (tmp_path / "other").iterdir()) == ["thesis.txt"]
    assert not (tmp_path / "r").exists()
    assert not (tmp_path / "never").exists()


def test_a_finished_set_is_not_overwritten_by_another(model, tmp_path, capsys):
    out = str(tmp_path / "a")
    assert main(["sample", str(model), "--n", "2", "--steps", "2", "--out", out]) == 0
    assert main(["sample", str(model), "--n", "2", "--steps", "3", "--out", out]) == 2
    assert "nfe, sampler, sampler_digest differ" in capsys.readouterr().err
    assert main(["sample", str(model), "--n", "2", "--steps", "3", "--out", out, "--overwrite"]) == 0


def test_what_a_kill_leaves_behind_is_no_obstacle(model, tmp_path):
    """A half-written part, a finished set whose parts were not yet removed, an overwrite cut short."""
    arguments = ["sample", str(model), "--n", "4", "--steps", "2", "--quiet", "--out", str(tmp_path / "a")]
    assert main(arguments) == 0
    whole = images(tmp_path / "a")
    parts = tmp_path / "a" / "parts"
    parts.mkdir()
    np.save(parts / "000000000-000000004.npy", whole)
    assert main(arguments) == 0
    assert not parts.exists()
    (tmp_path / "a" / "samples.npz").unlink()
    parts.mkdir()
    np.save(parts / "000000000-000000002.npy", whole[:2])
    (parts / ".000000002-000000004.npy.1.partial").write_bytes(b"half")
    assert main(arguments) == 0
    assert not parts.exists()
    np.testing.assert_array_equal(images(tmp_path / "a"), whole)
    (tmp_path / "a" / "samples.npz").unlink()
    (tmp_path / "a" / "samples.png").unlink()
    assert main([*arguments[:3], "5", *arguments[4:], "--overwrite"]) == 0
    assert len(images(tmp_path / "a")) == 5


def test_a_folder_that_only_looks_like_ours_is_left_alone(model, tmp_path):
    (tmp_path / "mine" / "parts").mkdir(parents=True)
    np.save(tmp_path / "mine" / "parts" / "mine.npy", np.zeros(3))
    assert main(["sample", str(model), "--n", "2", "--steps", "2", "--out", str(tmp_path / "mine")]) == 2
    assert (tmp_path / "mine" / "parts" / "mine.npy").exists()


def test_the_installed_command_runs():
    done = subprocess.run(
        [sys.executable, "-m", "farfield.cli.main", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("farfield 0.")


def test_a_report_that_cannot_be_written_is_refused_before_the_work(model, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["report", str(model), "--quick", "--out", str(tmp_path / "file" / "report")]) == 2
    err = capsys.readouterr().err
    assert "cannot be written" in err
    assert len(err.splitlines()) == 1
