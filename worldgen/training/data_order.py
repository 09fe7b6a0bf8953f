"""Which samples make up a batch: a pure function of seed and step, so that training resumes."""

import numpy as np
from jaxtyping import Float, Int

__all__ = ["DataOrder"]


class DataOrder:
    """Draws samples with replacement, in proportion to their weights.

    Nothing is remembered between batches: the batch of a step is the same in a run that was
    resumed and in one that was not.
    """

    def __init__(
        self, weights: Float[np.ndarray, " sample"], *, batch_size: int, seed: int
    ) -> None:
        """Prepare the draws.

        Args:
            weights: Not negative, at least one positive; any scale.
            batch_size: Samples of a batch.
            seed: Two orders of the same seed are the same.
        """
        self._cumulative = np.cumsum(weights, dtype=np.float64)
        self._cumulative /= self._cumulative[-1]
        self._batch_size = batch_size
        self._seed = seed

    def indices(self, step: int) -> Int[np.ndarray, " batch"]:
        """Return the int64 sample indices of the batch of a step."""
        draws = np.random.default_rng((self._seed, step)).random(self._batch_size)
        return np.searchsorted(self._cumulative, draws, side="right").astype(np.int64)
