"""Training: configuration, the loop, averaged weights and checkpoints."""

from farfield.training.config import TrainConfig, from_dict, load_config, to_dict
from farfield.training.loop import TrainResult, train
from farfield.training.step import TrainStep

__all__ = ["TrainConfig", "TrainResult", "TrainStep", "from_dict", "load_config", "to_dict", "train"]
