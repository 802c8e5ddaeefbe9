"""Members that are computed at different times for a cutout, their logits used again.

A batch of cutouts comes in; of some of them logits are known, others need the first members or none
but the last. What needs the same is put together into full batches, and a batch is given back, in
order, when all of its cutouts have their scores.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple, Protocol

import numpy as np

from lensjax.data.on_device import Transform
from lensjax.data.pipeline import Batch, concatenated, taken, without_inputs
from lensjax.data.pixel_statistics import STATISTICS
from lensjax.ensemble.plan import CompiledStep
from lensjax.ensemble.step import Weights
from lensjax.predictions import Scores

FIRST, REST, FUSED = range(3)
"""What a cutout needs: the members of the first step, those of the last one, or nothing but to be
fused."""

MOST_WAITING = 1000
"""Batches that wait for the last members, which are then computed though theirs is not full: what
is waiting is lost when a run is killed."""


class Stage(NamedTuple):
    """A compiled `stage_step`, its weights, and the members that it fuses."""

    step: CompiledStep
    weights: Weights
    names: tuple[str, ...]


class Knows(Protocol):
    """What is known of cutouts before they are computed, and after the first members."""

    def route(self, batch: Batch) -> Iterable[tuple[int, np.ndarray, np.ndarray | None]]:
        """Yields a stage, the places in a batch of the cutouts that need it, and the logits
        (member, sample, cutout) that the step takes, where it takes any."""

    def learn(self, stage: int, rows: list[int], logits: np.ndarray) -> np.ndarray:
        """Takes the logits (member, sample, cutout) of rows, as a stage returns them, and returns
        which of the cutouts have all that they will have, (cutout,) bool."""

    def end(self) -> None:
        """Is called when a run ends, or stops."""

    def counts(self) -> dict[str, int]:
        """Returns what run.json says of how much was computed."""


class Staged(NamedTuple):
    """How the members `names` are computed in stages. `alone` says of a cutout that it went no
    further than the first."""

    names: tuple[str, ...]
    stages: Mapping[int, Stage]
    knows: Knows
    alone: str = ""


class Cascaded:
    """What a cascade knows of cutouts: nothing before, and after the first member whether its
    calibrated logit, slope * logit + intercept, is at least the `cut`."""

    def __init__(self, slope: float, intercept: float, cut: float) -> None:
        self._slope, self._intercept, self._cut = slope, intercept, cut

    def route(self, batch: Batch) -> Iterator[tuple[int, np.ndarray, None]]:
        """Yields that all cutouts need the first stage."""
        yield FIRST, np.arange(len(batch.rows)), None

    def learn(self, stage: int, rows: list[int], logits: np.ndarray) -> np.ndarray:
        """Returns which cutouts go no further: all after the last stage."""
        mean = logits[0].astype(np.float64).mean(axis=0)
        goes_on = self._slope * mean + self._intercept >= self._cut
        return ~goes_on if stage == FIRST else np.ones(len(rows), bool)

    def end(self) -> None:
        """Does nothing: nothing is kept."""

    def counts(self) -> dict[str, int]:
        """Returns nothing: what went on is seen in the scores."""
        return {}


class Incomplete:
    """Batches of which some scores are still to be computed. They come in by `work`, and are
    complete, in order, by `completed`."""

    def __init__(self, staged: Staged) -> None:
        self._staged = staged
        # What is seen in another way, as cutouts from tiles with other pixels, is another batch.
        self._queues: dict[int, dict[tuple[Transform, ...], _Queue]]
        self._queues = {stage: {} for stage in staged.stages}
        self._waiting: deque[_Waiting] = deque()
        self._place: dict[int, tuple[_Waiting, int]] = {}
        self._first_under_way = 0

    def work(self, batches: Iterable[Batch]) -> Iterator[tuple[int, Batch] | None]:
        """Yields stages and batches for them, their rows from anywhere; and None each time that a
        batch has come in and none is full: what is complete need not wait."""
        for batch in batches:
            self._take(batch)
            yield self._next()
            while (ready := self._next()) is not None:
                yield ready
        while self._first_under_way or any(queue.count for _, queue in self._all_queues()):
            # What is under way in the first stage may bring more for the last.
            ready = self._next() or (None if self._first_under_way else self._next(padded=True))
            yield ready

    def _take(self, batch: Batch) -> None:
        waiting = _Waiting(without_inputs(batch), _no_scores(self._staged, batch), 0)
        self._waiting.append(waiting)
        for stage, places, logits in self._staged.knows.route(batch):
            computed = places[batch.readable[places]]
            waiting.lacking += len(computed)
            self._place |= {int(batch.rows[place]): (waiting, int(place)) for place in computed}
            # All in place: a batch that goes on as it came is not copied.
            part = batch if len(places) == len(batch.rows) else taken(batch, places)
            self._put(stage, _with_logits(part, logits))

    def _put(self, stage: int, part: Batch) -> None:
        empty = _Queue(self._staged.stages[stage].step.cutouts)
        self._queues[stage].setdefault(part.inputs.transforms, empty).put(part)

    def _all_queues(self) -> Iterator[tuple[int, "_Queue"]]:
        for stage, queues in self._queues.items():
            for queue in queues.values():
                yield stage, queue

    def _next(self, padded: bool = False) -> tuple[int, Batch] | None:
        """Returns the next batch that is full, or, `padded`, one that is not."""
        late = len(self._waiting) > MOST_WAITING
        for stage, queue in self._all_queues():
            batch = queue.full() or (queue.padded() if padded or late else None)
            if batch is not None:
                self._first_under_way += stage == FIRST
                return stage, batch
        return None

    def completed(
        self, stage: int, batch: Batch, scores: Scores, logits: np.ndarray
    ) -> Iterator[tuple[Batch, Scores]]:
        """Takes the scores and logits of a batch of `work`, and yields the batches, without images,
        that have all of theirs."""
        self._first_under_way -= stage == FIRST
        rows = batch.rows[: batch.count].tolist()
        # The others could not be read.
        numbers = np.array([n for n, row in enumerate(rows) if row in self._place], int)
        of_rows = [rows[number] for number in numbers]
        ended = self._staged.knows.learn(stage, of_rows, logits[..., numbers])
        going_on = numbers[~ended]
        if going_on.size:
            self._put(REST, _with_logits(taken(batch, going_on), logits[..., going_on]))
        self._give(stage, batch, numbers[ended], scores)
        yield from self.ready()

    def ready(self) -> Iterator[tuple[Batch, Scores]]:
        """Yields the batches, without images, that are complete."""
        while self._waiting and not self._waiting[0].lacking:
            done = self._waiting.popleft()
            yield done.batch, done.scores

    def _give(self, stage: int, batch: Batch, numbers: np.ndarray, scores: Scores) -> None:
        """Gives the scores of some cutouts of a batch to the batches that wait for them."""
        fused = self._staged.stages[stage].names
        members = [self._staged.names.index(name) for name in fused]
        there = [(int(n), *self._place.pop(int(batch.rows[n]))) for n in numbers]
        for _, same in groupby(there, key=lambda each: id(each[1])):
            found = list(same)
            waiting, places = found[0][1], [place for _, _, place in found]
            own = [number for number, _, _ in found]
            for name, values in waiting.scores._asdict().items():
                part = getattr(scores, name)[..., own]
                of_members = name.startswith("member")
                values[np.ix_(members, places) if of_members else (..., places)] = part
            waiting.lacking -= len(places)
            if stage == FIRST:
                flags = [filter(None, (f, self._staged.alone)) for f in waiting.batch.flags[places]]
                waiting.batch.flags[places] = list(map("; ".join, flags))


@dataclass
class _Waiting:
    """A batch, without its images, and so many of its scores are still to come."""

    batch: Batch
    scores: Scores
    lacking: int


class _Queue:
    """Cutouts that wait until there are enough of them for a batch."""

    def __init__(self, size: int) -> None:
        self.size, self.count = size, 0
        self._parts: list[Batch] = []

    def put(self, part: Batch) -> None:
        """Takes some cutouts."""
        if len(part.rows):
            self._parts.append(part)
            self.count += len(part.rows)

    def full(self) -> Batch | None:
        """Returns a batch of the first cutouts, None where they are too few."""
        return self._taken(self.size) if self.count >= self.size else None

    def padded(self) -> Batch | None:
        """Returns a batch of all cutouts, filled up with the last one; None where there are
        none."""
        count = self.count
        if not count:
            return None
        padded = taken(self._taken(count), np.minimum(np.arange(self.size), count - 1))
        return replace(padded, rows=np.where(np.arange(self.size) < count, padded.rows, -1))

    def _taken(self, count: int) -> Batch:
        together = concatenated(self._parts)
        left = self.count - count
        self._parts = [taken(together, slice(count, None))] if left else []
        self.count = left
        return taken(together, slice(0, count)) if left else together


def _with_logits(batch: Batch, logits: np.ndarray | None) -> Batch:
    """Returns a batch with the logits (member, sample, batch) that come along."""
    along = None if logits is None else np.ascontiguousarray(np.moveaxis(logits, -1, 0))
    return replace(batch, inputs=replace(batch.inputs, logits=along))


def _no_scores(staged: Staged, batch: Batch) -> Scores:
    count, members = len(batch.rows), len(staged.names)
    scores = Scores(
        *np.full((6, count), np.nan, np.float32),
        *np.full((2, members, count), np.nan, np.float32),
    )
    return scores._replace(pixels=np.full((len(STATISTICS), count), np.nan, np.float32))
