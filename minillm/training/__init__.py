"""Training runs: settings, the loop, and the directory that a run leaves behind."""

from minillm.training.config import PRESETS, TrainConfig
from minillm.training.run import Run
from minillm.training.trainer import train

__all__ = ["PRESETS", "Run", "TrainConfig", "train"]
