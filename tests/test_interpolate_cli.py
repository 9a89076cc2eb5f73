"""``farfield interpolate``: what it writes, that its ends are those of ``farfield sample``, resumption and refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from farfield.cli.common import trained_on
from farfield.cli.main import main
from farfield.data import load as load_data
from farfield.distributions import Gaussian
from farfield.interop import load
from farfield.networks.mlp import MLPConfig
from farfield.networks.model_file import ModelSpec, Preconditioning, build_model, save_model
from farfield.networks.unet import SongUNetConfig
from farfield.report.context import ReportContext
from farfield.report.sections.interpolation import interpolation
from farfield.sampling import Churn, LateStart, Sampler, Teleport, karras


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained network with ten classes on 8x8 images."""
    folder = tmp_path_factory.mktemp("model")
    config = SongUNetConfig(model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=(), label_dim=10)
    spec = ModelSpec(config, (1, 8, 8), Preconditioning(sigma_data=0.75))
    torch.manual_seed(0)
    save_model(folder, build_model(spec), spec, {"config": {"data": {"source": "digits"}}})
    return folder


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    spec = ModelSpec(MLPConfig(width=16, depth=1), (2,), Preconditioning(sigma_data=0.7))
    torch.manual_seed(0)
    save_model(folder, build_model(spec), spec, {})
    return folder


def run(capsys, *options):
    assert main(["interpolate", *map(str, options), "--json", "--quiet"]) == 0
    shown = capsys.readouterr()
    return json.loads(shown.out), shown.err


def arrays(folder):
    with np.load(folder / "frames.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive}


def test_between_samples(model, tmp_path, capsys):
    """All modes in rows; the ends are the samples of `farfield sample`, to the rounding of their batches."""
    out = tmp_path / "a"
    record, _ = run(
        capsys, model, "--samples", 3, 5, "--seed", 7, "--modes", "all", "--frames", 5, "--steps", 4, "--out", out
    )
    assert sorted(p.name for p in out.iterdir()) == ["frames.npz", "frames.png", "result.json", "run.json"]
    found = arrays(out)
    assert found["images"].shape == found["latents"].shape == (5, 5, 1, 8, 8)
    assert record["modes"] == ["linear", "slerp", "in-distribution", "n-linear", "sine"]
    assert record["nfe"] == 4  # whitened by default, as for `farfield sample`
    assert [d["mode"] for d in record["diagnostics"]] == record["modes"]
    middle = [d["ratio"][2][0] for d in record["diagnostics"]]
    assert middle[0] < 0.85 < min(middle[1:])
    assert main(["sample", str(model), "--n", "6", "--seed", "7", "--steps", "4", "--out", str(tmp_path / "s")]) == 0
    with np.load(tmp_path / "s" / "samples.npz", allow_pickle=False) as archive:
        samples = archive["images"]
    for row in found["images"]:
        np.testing.assert_allclose(row[[0, -1]], samples[[3, 5]], atol=1e-5)


def test_between_images(model, tmp_path, capsys):
    """Encoded ends come back; the nearest data of the first frame is the image itself; cost and loss are said."""
    options = ("digits", "--from-data", 3, 12, "--frames", 3, "--neighbours", 2, "--solver", "whitened", "--steps", 10)
    record, _ = run(capsys, *options, "--out", tmp_path / "a")
    found = arrays(tmp_path / "a")
    train = trained_on(load("digits"), load_data("digits"))[0].images
    assert found["neighbours"].shape == (1, 3, 2)
    assert np.abs(found["images"][0, 0] - train[3].numpy()).mean() < 0.1
    assert found["neighbours"][0, [0, 2], 0].tolist() == [3, 12]
    assert record["encoding"]["nfe"] == 9
    assert max(record["encoding"]["round_trip_error"]) < 0.2
    assert max(record["encoding"]["estimated_error"]) < 0.5
    assert len(record["nearest_distance"][0]) == 3
    noised, _ = run(capsys, *options[:4], "--frames", 2, *options[8:], "--lift", "noised", "--out", tmp_path / "b")
    assert noised["diagnostics"][0]["ratio"][0] > record["diagnostics"][0]["ratio"][0]


def test_a_sheet(model, tmp_path, capsys):
    """Four ends: as many frames each way, one picture, corners in the corners."""
    out = tmp_path / "a"
    record, _ = run(
        capsys, model, "--samples", 0, 1, 2, 3, "--frames", 3, "--modes", "linear", "n-linear", "--steps", 3, "--neighbours",
        1, "--out", out,
    )  # fmt: skip
    found = arrays(out)
    assert found["images"].shape == (2, 3, 3, 1, 8, 8)
    assert found["neighbours"].shape == (2, 3, 3, 1)
    assert (out / "frames.png").stat().st_size > 500
    line, _ = run(capsys, model, "--samples", 0, 1, "--frames", 3, "--steps", 3, "--out", tmp_path / "b")
    np.testing.assert_allclose(found["images"][1, 0], arrays(tmp_path / "b")["images"][0], atol=1e-5)
    assert len(record["diagnostics"][0]["ratio"]) == 9
    assert line["diagnostics"][0]["alphas"] == [0, 0.5, 1]


def test_vectors(vectors, points, tmp_path, capsys):
    """Points in the plane: a path over the data, and a sheet without a picture."""
    run(capsys, vectors, "--data", points, "--from-data", 0, 100, "--frames", 4, "--steps", 4, "--out", tmp_path / "a")
    assert arrays(tmp_path / "a")["images"].shape == (1, 4, 2)
    assert (tmp_path / "a" / "frames.png").exists()
    run(capsys, vectors, "--samples", 0, 1, 2, 3, "--frames", 2, "--steps", 3, "--out", tmp_path / "b")
    assert not (tmp_path / "b" / "frames.png").exists()


def test_an_interrupted_run_goes_on(model, tmp_path, monkeypatch, capsys):
    """Finished batches are not decoded again, in batches of another size either; a finished run only prints."""
    arguments = ["interpolate", str(model), "--frames", "9", "--steps", "3", "--label", "2", "--quiet"]
    out = [*arguments, "--out", str(tmp_path / "a")]
    import farfield.sampling.encoding as encoding

    original, calls = encoding.decode_noise, []

    def stop_at_third(*args, **kwargs):
        calls.append((kwargs["first"], len(args[1])))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(encoding, "decode_noise", stop_at_third)
    assert main([*out, "--batch-size", "3"]) == 130
    assert "goes on where it stopped" in capsys.readouterr().err
    assert not (tmp_path / "a" / "frames.npz").exists()
    assert main([*out, "--batch-size", "2"]) == 0
    assert calls == [(0, 3), (3, 3), (6, 3), (6, 2), (8, 1)]
    assert main(out) == 0
    assert len(calls) == 5
    assert main([*arguments, "--out", str(tmp_path / "b")]) == 0
    np.testing.assert_allclose(arrays(tmp_path / "a")["images"], arrays(tmp_path / "b")["images"], atol=1e-5)
    capsys.readouterr()
    assert main([*arguments, "--seed", "1", "--out", str(tmp_path / "a")]) == 2
    assert "another run (seed differ)" in capsys.readouterr().err
    assert main([*arguments, "--seed", "1", "--out", str(tmp_path / "a"), "--overwrite"]) == 0
    assert not np.allclose(arrays(tmp_path / "a")["images"], arrays(tmp_path / "b")["images"])


def test_stored_samplers(model, tmp_path, capsys):
    """A teleport's noise is that of the top; its images are encoded to its level and carried up. Others are refused."""
    law = Gaussian(torch.zeros(1, 8, 8), torch.eye(64))
    paths = {}
    for name, sampler in {
        "teleport": Sampler("heun", karras(6), start=Teleport(law, 5.0)),
        "late": Sampler("heun", karras(6), start=LateStart(law, 5.0)),
        "noisy": Sampler("euler", karras(4), noise=Churn(1.0)),
        "multistep": Sampler("dpmpp_2m", karras(6)),
    }.items():
        paths[name] = tmp_path / f"{name}.json"
        paths[name].write_text(sampler.to_json())
    common = ("--frames", 2, "--from-data", 0, 1)
    found, _ = run(capsys, model, "--sampler", paths["teleport"], *common, "--out", tmp_path / "a")
    assert found["encoding"]["nfe"] == 10
    latents = torch.from_numpy(arrays(tmp_path / "a")["latents"][0])
    at_level = law.flow(80 * latents, 80.0, 5.0)
    assert float(at_level.std()) < 8  # the state at σ = 5, carried up to 80 and down again
    _, said = run(capsys, model, "--sampler", paths["multistep"], *common, "--out", tmp_path / "b")
    assert "dpmpp_2m cannot go up: the images are encoded with whitened" in said
    run(capsys, model, "--sampler", paths["late"], "--frames", 2, "--out", tmp_path / "c")
    for name, said in (("late", "cannot undo the start 'late_start'"), ("noisy", "adds noise on the way")):
        arguments = ["interpolate", str(model), "--sampler", str(paths[name]), *map(str, common)]
        assert main([*arguments, "--out", str(tmp_path / "x")]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--samples", "1"), "expected two numbers, or four"),
        (("--samples", "0", "1", "--from-data", "0", "1"), "two kinds of ends"),
        (("--from-data", "0", "99999"), "the data have images 0 to"),
        (("--frames", "1"), "at least 2"),
        (("--neighbours", "-1"), "0 or more"),
        (("--neighbours", "99999"), "the data have"),
        (("--mode", "sine", "--modes", "all"), "say the same"),
        (("--mode", "spherical"), "spherical"),
        (("--lift", "noised"), "no effect without --from-data"),
        (("--label", "10"), "the model has 10 classes"),
        (("--guidance-interval", "1", "2"), "no effect without --guidance"),
        (("--batch-size", "0"), "expected at least 1"),
        (("--steps", "0"), "expected at least 1"),
        (("--sampler", "x.json", "--steps", "3"), "--steps cannot be given with it"),
        (("--sampler", "missing.json"), "cannot be read"),
        (("--data", "toy:ring", "--neighbours", "1"), "shape"),
    ],
)
def test_refusals(model, tmp_path, capsys, options, said):
    assert main(["interpolate", str(model), *options, "--out", str(tmp_path / "x")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_foreign_folders_are_left_alone(model, vectors, tmp_path, capsys):
    """A folder that holds something else is refused, with --overwrite too; a model without data has no neighbours."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    arguments = ["interpolate", str(model), "--frames", "2", "--steps", "2"]
    assert main([*arguments, "--out", str(other), "--overwrite"]) == 2
    assert "something else than frames" in capsys.readouterr().err
    (other / "notes.txt").rename(other / "run.json")
    (other / "run.json").write_text('{"format": "farfield samples 1"}')
    assert main([*arguments, "--out", str(other), "--overwrite"]) == 2
    assert main([*arguments, "--out", str(other / "run.json")]) == 2
    assert main(["interpolate", str(vectors), "--neighbours", "1", "--out", str(tmp_path / "v")]) == 2
    assert "name them with --data" in capsys.readouterr().err


def test_help_teaches(capsys):
    assert main(["interpolate", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("n-linear", "--from-data", "example:", "sheet"):
        assert words in text


def test_report_section():
    """The section of the report on an exact law: three modes, linear off the shell, JSON-safe."""
    data = load_data("digits")
    law = Gaussian.fit(data.train.images)
    context = ReportContext(law, data, "gaussian", quick=True)
    context._kept["solvers"] = RuntimeError("not compared")
    found = interpolation(context)
    names = [row["mode"] for row in found.data["middles"]]
    assert names == ["linear", "slerp", "n-linear", "samples (the ends)"]
    linear, _, n_linear, _ = found.data["middles"]
    assert linear["norm"] < 0.8 < n_linear["norm"]
    assert linear["detail"] < n_linear["detail"]
    json.dumps(found.data, allow_nan=False)
    assert "<svg" in "".join(found.blocks)


def test_classes_and_guidance(model, tmp_path, capsys):
    """The class reaches encoding and decoding; guidance doubles the evaluations of both."""
    common = (model, "--from-data", 0, 1, "--frames", 2, "--solver", "euler", "--steps", 4)
    found = {
        name: run(capsys, *common, *options, "--out", tmp_path / name)[0]
        for name, options in {
            "none": (), "class": ("--label", 3), "guided": ("--label", 3, "--guidance", 2)
        }.items()
    }  # fmt: skip
    assert [found[k]["nfe"] for k in found] == [4, 4, 8]
    assert [found[k]["encoding"]["nfe"] for k in found] == [3, 3, 6]
    images = {name: arrays(tmp_path / name)["latents"] for name in found}
    assert not np.array_equal(images["none"], images["class"])  # the untrained network has small outputs
    assert not np.array_equal(images["class"], images["guided"])
