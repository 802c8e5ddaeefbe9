"""All of a training that changes: what a step changes, and the best epoch of each member.

Every array has a leading member axis.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from lensjax.cluster import hosts

# Parameters, and the batch statistics of each scale.
Weights = tuple[Any, tuple[Any, ...]]


class Average(NamedTuple):
    """Moving averages of the parameters and of each scale's batch statistics, and the steps
    (scale,) that trained at each: before the first its statistics say nothing."""

    params: Any
    batch_stats: tuple[Any, ...]
    steps: Array


class TrainState(NamedTuple):
    """All that a step changes. `average` is an `Average`, or None.

    `batch_stats`: of batch normalisation, one tree per scale: a lens of 64 pixels has other channel
    means than the same lens of 224, and a mean of both is that of neither.
    """

    params: Any
    batch_stats: tuple[Any, ...]
    opt_state: Any
    average: Any
    step: Array

    @property
    def weights(self) -> Weights:
        """Returns what members take of a state: parameters and each scale's batch statistics,
        averaged where there are averages."""
        found = self if self.average is None else self.average
        return found.params, found.batch_stats

    def mixed(self, start: Weights, share: float) -> "TrainState":
        """Returns the state whose weights are the mean of these and of a `share` of those that it
        started from (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", eq. 1)."""
        params, batch_stats = jax.tree.map(
            lambda new, old: (1 - share) * new + share * old, self.weights, start
        )
        return self._replace(params=params, batch_stats=batch_stats, average=None)


class BestEpoch(NamedTuple):
    """The best epoch of each member by validation loss, on the host: `loss` and `stale_epochs`
    since then (member,), `logits` (member, n) of the validation data, and the `weights`."""

    loss: np.ndarray
    stale_epochs: np.ndarray
    logits: np.ndarray
    weights: Weights

    @staticmethod
    def none(state: TrainState, rows: int) -> "BestEpoch":
        """Returns what is there before the first epoch has ended."""
        members = len(state.step)
        weights, logits = jax.tree.map(np.array, state.weights), np.zeros((members, rows))
        return BestEpoch(np.full(members, np.inf), np.zeros(members, np.int64), logits, weights)

    def updated(
        self, loss: np.ndarray, logits: np.ndarray, state: TrainState, patience: float
    ) -> "BestEpoch":
        """Returns the best of this and of the epoch that has ended.

        A member out of patience stays as it is: it ends as it would when trained alone.
        """
        better = (loss < self.loss) & (self.stale_epochs < patience)

        def chosen(new: ArrayLike, old: np.ndarray) -> np.ndarray:
            new = np.asarray(new)
            return np.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return BestEpoch(
            chosen(loss, self.loss),
            np.where(better, 0, self.stale_epochs + 1),
            chosen(logits, self.logits),
            jax.tree.map(chosen, hosts.on_host(state.weights), self.weights)
            if better.any()
            else self.weights,
        )


class Run(NamedTuple):
    """A run after some steps."""

    state: TrainState
    best: BestEpoch
