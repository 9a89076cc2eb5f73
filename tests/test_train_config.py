"""The configuration of a run: files, overrides, and one clear line for each mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from farfield.errors import ArgumentError
from farfield.training import from_dict, load_config, to_dict
from farfield.training.config import OptimizerConfig


def test_config_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data: {source: digits}\nnetwork: {kind: mlp, width: 64}\noptimizer: {lr: 1e-3}\nsteps: 1e5\n")
    config = load_config(path, ["network.depth=7", "ema.ramp=null", "augment.p=0.5", "optimizer.betas=[0.9, 0.99]"])
    assert (config.network.kind, config.steps, config.ema.ramp) == ("mlp", 100_000, None)
    assert to_dict(config)["network"]["depth"] == 7
    assert config.optimizer == OptimizerConfig(lr=1e-3, betas=(0.9, 0.99))
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("name", ["digits", "toy"])
def test_shipped_configs(name: str) -> None:
    config = load_config(Path(__file__).parents[1] / "configs" / f"{name}.yaml")
    assert config.data.source in ("digits", "toy:ring")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=1", "unknown key 'optimizer.lrr'"),
        ("optimiser.lr=1", "Did you mean 'optimizer'"),
        ("optimizer.lr=fast", "optimizer.lr = 'fast'; expected a finite number"),
        ("optimizer.lr=-1", "optimizer.lr = -1.0; expected a positive number"),
        ("optimizer.lr=.nan", "expected a finite number"),
        ("optimizer.betas=[0.9]", "a list of 2 entries"),
        ("optimizer.decay=cosin", "Did you mean 'cosine'"),
        ("steps=0", "steps = 0; expected a positive number"),
        ("steps=1.5", "steps = 1.5; expected a whole number"),
        ("steps=true", "steps = True; expected a whole number"),
        ("steps=1e400", "expected a whole number"),
        ("labels.use=1", "labels.use = 1; expected true or false"),
        ("network.kind=unet", "unknown network.kind 'unet'; known: dhariwal_unet, mlp, song_unet"),
        ("network.kind=[mlp]", "unknown network.kind ['mlp']; known: dhariwal_unet, mlp, song_unet"),
        ("network.kind={a: 1}", "unknown network.kind {'a': 1}"),
        ("network.kind=null", "unknown network.kind None"),
        ("network=[1]", "network = [1]"),
        ("network.width=big", "network.width = 'big'"),
        ("data=digits", "data = 'digits'; expected a mapping"),
        ("seed", "expected key=value"),
        ("seed=[1", "not valid YAML"),
        ("seed.x=1", "seed is not a group"),
        ("augment.p=-1", "augment.p = -1"),
        ("preconditioning.sigma_min=100", "expected 0 < min < max"),
    ],
)
def test_wrong_settings_are_one_clear_line(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data: {source: digits}\nnetwork: {kind: mlp}\nseed: 3\n")
    with pytest.raises(ArgumentError) as caught:
        load_config(path, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not valid YAML"), ("- 1", "no mapping"), ("", "no mapping"), ("seed: 1", "data is missing"),
     ("data: {size: 8}", "data.source is missing"), ("!!python/object/apply:os.getcwd []", "not valid YAML")],
)  # fmt: skip
def test_wrong_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ArgumentError, match=message):
        load_config(path)
    with pytest.raises(ArgumentError, match="cannot be read"):
        load_config(tmp_path / "absent.yaml")
