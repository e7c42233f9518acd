"""Which windows a step is taught by: the same at the same seed, wherever a training goes on."""

from __future__ import annotations

import numpy as np

from nocturnal_kedro.training.options import Training


class Sampler:
    """Passes over the training windows, each in an order of its own, cut into steps.

    In a pass nobody's windows come more often than the cap allows, every source's equally often
    (those of a smaller one several times), and those that end low as often as asked.
    """

    def __init__(
        self,
        rows_N: np.ndarray,
        training: Training,
        person_N: np.ndarray | None = None,
        source_N: np.ndarray | None = None,
        ends_low_N: np.ndarray | None = None,
    ) -> None:
        """Of N windows: rows of the corpus, whose they are, of which source, and which end low."""
        nobody = np.zeros(len(rows_N), np.int64)
        low = nobody if ends_low_N is None else ends_low_N
        repeats_N = np.where(low, training.low_repeats, 1)
        self._rows = np.repeat(rows_N, repeats_N)
        self._person = np.repeat(nobody if person_N is None else person_N, repeats_N)
        self._source = np.repeat(nobody if source_N is None else source_N, repeats_N)
        self._batch_size, self._seed = training.batch_size, training.seed

        windows = np.bincount(self._person)
        median = np.median(windows[windows > 0])
        allowed = training.subject_cap or np.inf
        self._cap = int(min(np.ceil(allowed * median), len(self._rows)))
        self._capped = (windows > self._cap).any()
        self._sources = np.unique(self._source) if training.balance_sources else np.empty(0)
        self._restart()
        self._length = len(self._of_pass(0))

    def rows_of_step(self, step: int) -> np.ndarray:
        """The windows of a step, counted from 0: rows of the corpus, (batch_size,) int64."""
        number, place = divmod(step * self._batch_size, self._length)
        rows = self._of_pass(number)[place : place + self._batch_size]
        while len(rows) < self._batch_size:
            number += 1
            left = self._batch_size - len(rows)
            rows = np.concatenate([rows, self._of_pass(number)[:left]])
        return rows

    def _restart(self) -> None:
        self._generator = np.random.default_rng(self._seed)
        self._passes: dict[int, np.ndarray] = {}
        self._drawn = 0

    def _of_pass(self, number: int) -> np.ndarray:
        if number < self._drawn and number not in self._passes:
            self._restart()
        while number not in self._passes:  # each draws from where the one before it stopped
            self._passes[self._drawn] = self._draw()
            self._passes.pop(self._drawn - 2, None)
            self._drawn += 1
        return self._passes[number]

    def _draw(self) -> np.ndarray:
        order = self._generator.permutation(len(self._rows))
        if self._capped:
            order = order[_place_in_group(self._person[order]) < self._cap]
        if len(self._sources) > 1:
            own = [order[self._source[order] == source] for source in self._sources]
            share = -(-len(order) // len(own))
            order = self._generator.permutation(np.concatenate([np.resize(o, share) for o in own]))
        return self._rows[order]


def _place_in_group(group_N: np.ndarray) -> np.ndarray:
    """How many before it are of the same group."""
    by_group = np.argsort(group_N, kind="stable")
    size = np.bincount(group_N)
    first = np.cumsum(size) - size
    place = np.empty(len(group_N), np.int64)
    place[by_group] = np.arange(len(group_N)) - first[group_N[by_group]]
    return place
