"""Small training runs that several test files start."""

from __future__ import annotations

from pathlib import Path

from farfield.training import TrainConfig, from_dict


def tiny(source: str, **changes: object) -> TrainConfig:
    return from_dict(
        {
            "data": {"source": source},
            "network": {"kind": "mlp", "width": 32, "depth": 2},
            "optimizer": {"lr": 3e-3, "warmup_steps": 10},
            "ema": {"half_life": 2000},
            "batch_size": 64,
            "steps": 12,
            "threads": 1,
            "device": "cpu",
            "checkpoint_every": 5,
            "log_every": 4,
            **changes,
        }
    )


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()
