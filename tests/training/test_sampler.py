from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.options import Training
from nocturnal_kedro.training.sampler import Sampler


def drawn(sampler: Sampler, steps: range) -> np.ndarray:
    return np.concatenate([sampler.rows_of_step(step) for step in steps])


def test_rows_are_each_drawn_once_before_any_comes_twice() -> None:
    rows = drawn(Sampler(np.arange(100, 110), Training(batch_size=4)), range(5))
    assert sorted(rows) == sorted([*range(100, 110)] * 2)
    assert sorted(rows[:10]) == list(range(100, 110))
    assert list(rows[:10]) != list(rows[10:])


@given(
    windows=st.integers(1, 60),
    batch=st.integers(1, 40),
    steps=st.lists(st.integers(0, 30), min_size=1, max_size=6),
)
def test_a_step_has_its_windows_whatever_was_asked_before(
    windows: int, batch: int, steps: list[int]
) -> None:
    training = Training(batch_size=batch)
    in_order = [
        step_rows
        for sampler in [Sampler(np.arange(windows), training)]
        for step_rows in map(sampler.rows_of_step, range(31))
    ]
    asked = Sampler(np.arange(windows), training)
    for step in steps:
        np.testing.assert_array_equal(asked.rows_of_step(step), in_order[step])


def a_pass(sampler: Sampler, windows: int) -> np.ndarray:
    return sampler.rows_of_step(0)[:windows]


def test_sources_give_equally_many_and_nobody_more_than_the_cap() -> None:
    # Person 0 of source 0 has 100 windows, 1 and 2 have 10 each; person 3 of source 1 has 10.
    person = np.repeat([0, 1, 2, 3], [100, 10, 10, 10])
    source = (person == 3).astype(int)
    rows = np.arange(len(person))
    fair = Sampler(rows, Training(batch_size=60, subject_cap=2.0), person, source)
    chosen = fair.rows_of_step(0)  # 20 + 10 + 10 and 10: shares of 25
    assert np.bincount(source[chosen][:50]).tolist() == [25, 25]
    capped = Training(batch_size=50, subject_cap=2.0, balance_sources=False)
    counts = np.bincount(person[Sampler(rows, capped, person, source).rows_of_step(0)])
    assert counts.tolist() == [20, 10, 10, 10]
    uncapped = Training(batch_size=130, subject_cap=None, balance_sources=False)
    chosen = Sampler(rows, uncapped, person, source).rows_of_step(0)
    assert sorted(chosen) == list(rows)


def test_another_pass_takes_others_of_who_is_capped() -> None:
    person = np.repeat([0, 1, 2], [100, 10, 10])
    training = Training(batch_size=30, subject_cap=1.0)
    sampler = Sampler(np.arange(120), training, person)
    first, second = (set(sampler.rows_of_step(step)[:]) for step in (0, 1))
    assert len(first) == len(second) == 30
    assert first != second


def test_windows_that_end_low_come_as_often_as_asked(data: Data) -> None:
    values = data.corpus.values_TC.copy()
    values[:, 0] -= np.quantile(values[:, 0], 0.1) - 70  # a tenth of them low
    data = replace(data, corpus=replace(data.corpus, values_TC=values))
    rows = data.rows_around_anchor(3.0)
    horizon = rows[:, None] + np.arange(1, data.task.horizon_steps + 1)
    glucose = np.where(data.corpus.observed_TC[horizon, 0], data.corpus.values_TC[horizon, 0], 400)
    low = (glucose < 70).any(axis=1)
    assert 0 < low.mean() < 1
    many = len(rows) + 2 * low.sum()
    training = Training(batch_size=int(many), low_repeats=3, subject_cap=None)
    chosen = data.sampler(rows, training).rows_of_step(0)
    counts = np.bincount(np.searchsorted(rows, chosen), minlength=len(rows))
    np.testing.assert_array_equal(counts, np.where(low, 3, 1))


@pytest.mark.parametrize("seed", [7, 8])
def test_another_seed_draws_another_order(seed: int) -> None:
    rows = Sampler(np.arange(50), Training(batch_size=50, seed=seed)).rows_of_step(0)
    other = Sampler(np.arange(50), Training(batch_size=50, seed=9)).rows_of_step(0)
    assert list(rows) != list(other)
