"""Training: configuration, the loop, averaged weights and checkpoints."""

from farfield.training.config import TrainConfig, from_dict, load_config, to_dict
from farfield.training.distillation import consistency_target, distillation_loss, distillation_pairs, progressive_target
from farfield.training.loop import TrainResult, train
from farfield.training.step import TrainStep

__all__ = [
    "TrainConfig",
    "TrainResult",
    "TrainStep",
    "consistency_target",
    "distillation_loss",
    "distillation_pairs",
    "from_dict",
    "load_config",
    "progressive_target",
    "to_dict",
    "train",
]
