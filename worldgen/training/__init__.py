"""Parts of a training that all scripts share; the loops themselves stand in `train/`."""

from worldgen.training.averaging import WeightAverage
from worldgen.training.data_order import DataOrder
from worldgen.training.interruption import DivergedError, Interruption, refuse_non_finite
from worldgen.training.optimiser import (
    OptimiserConfig,
    build_optimiser,
    learning_rate,
    set_learning_rate,
)
from worldgen.training.progress import Clock, LengthConfig, ProgressBar
from worldgen.training.run_folder import RunFolder
from worldgen.training.state import Position, load_training_state, save_training_state

__all__ = [
    "Clock",
    "DataOrder",
    "DivergedError",
    "Interruption",
    "LengthConfig",
    "OptimiserConfig",
    "Position",
    "ProgressBar",
    "RunFolder",
    "WeightAverage",
    "build_optimiser",
    "learning_rate",
    "load_training_state",
    "refuse_non_finite",
    "save_training_state",
    "set_learning_rate",
]
