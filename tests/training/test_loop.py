import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.models import QUANTILE_LEVELS, Forecast
from nocturnal_kedro.series.corpus import Corpus
from nocturnal_kedro.series.origins import Task, eligible_rows
from nocturnal_kedro.series.windows import Batch, WindowGatherer
from nocturnal_kedro.training.loop import (
    pointwise_loss,
    train,
    validate,
    warmup_cosine,
)
from nocturnal_kedro.training.options import Training
from nocturnal_kedro.training.sampler import Sampler
from tests.conftest import SCALER, USUAL


class Line(nn.Module):
    """The last value times a weight plus a bias per step: the smallest real model."""

    def __init__(self, horizon: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(horizon))
        self.bias = nn.Parameter(torch.zeros(horizon))

    def forward(self, batch: Batch) -> Forecast:
        return Forecast(batch.context_BLC[:, -1:, 0] * self.weight + self.bias, None)


@pytest.fixture(scope="module")
def gatherer(corpus: Corpus, splits: pd.DataFrame, task: Task) -> WindowGatherer:
    return WindowGatherer(corpus, splits, SCALER, task, USUAL)


@pytest.fixture(scope="module")
def rows(corpus: Corpus, splits: pd.DataFrame, task: Task) -> tuple[np.ndarray, np.ndarray]:
    return tuple(eligible_rows(corpus, splits, task, s) for s in ("train", "validation"))


def teach(module: nn.Module, gatherer, rows, options: Training, learning_rate: float, **more):
    sampler = Sampler(rows[0], options)
    return train(module, gatherer, sampler, rows[1], options, learning_rate, "line", **more)


def run(gatherer: WindowGatherer, rows: tuple[np.ndarray, np.ndarray], **changes: object):
    options = Training(**({"epochs": 4, "steps_per_epoch": 20} | changes))
    return teach(Line(96), gatherer, rows, options, learning_rate=0.05)


def test_training_improves_validation_and_keeps_the_best(gatherer, rows) -> None:
    trained = run(gatherer, rows)
    module = Line(96)
    before = validate(module, gatherer, rows[1], 64)[1]
    module.load_state_dict(trained.state)
    after = validate(module, gatherer, rows[1], 64)[1]
    assert after < 0.9 * before
    assert after == pytest.approx(trained.log["validation_rmse"].min(), rel=1e-5)
    assert trained.log["validation_rmse"].idxmin() + 1 == trained.best_epoch


def test_selection_counts_each_person_once(gatherer, rows) -> None:
    """The RMSE that selects is the leaderboard's: the mean over people of each one's RMSE."""
    module = Line(96)
    everybody = gatherer.person_of(rows[0])
    uneven = np.concatenate([rows[0][everybody == everybody[0]][::5], rows[0][::100]])
    batch = gatherer.gather(torch.from_numpy(uneven))
    square = ((module(batch).point_BH - batch.target_BH) ** 2 * batch.target_observed_BH).detach()
    person = gatherer.person_of(uneven)
    own = [
        float(square[person == p].sum() / batch.target_observed_BH[person == p].sum()) ** 0.5
        for p in np.unique(person)
    ]
    assert len(own) > 1
    loss, rmse = validate(module, gatherer, uneven, batch_size=7)
    assert rmse == pytest.approx(np.mean(own), rel=1e-5)
    assert loss == pytest.approx(float(square.sum() / batch.target_observed_BH.sum()), rel=1e-5)


def test_the_same_seed_gives_the_same_weights_and_another_others(gatherer, rows) -> None:
    first, second = run(gatherer, rows), run(gatherer, rows)
    assert all(torch.equal(first.state[key], second.state[key]) for key in first.state)
    other = run(gatherer, rows, seed=8)
    assert not torch.equal(first.state["weight"], other.state["weight"])


def test_early_stopping_ends_a_run_that_does_not_improve(gatherer, rows) -> None:
    options = Training(epochs=50, steps_per_epoch=1, patience=2, warmup_share=0)
    trained = teach(Line(96), gatherer, rows, options, learning_rate=1e-12)
    assert len(trained.log) < 50
    assert len(trained.log) - trained.best_epoch == 2


def test_a_diverging_loss_stops_with_the_remedy(gatherer, rows) -> None:
    options = Training(epochs=1, steps_per_epoch=5, warmup_share=0)
    module = Line(96)
    module.bias.data[:] = torch.inf
    with pytest.raises(
        InputError, match=r"model 'line': the loss is inf before step 5.*learning_rate"
    ):
        teach(module, gatherer, rows, options, learning_rate=0.1)


def test_warm_up_then_cosine() -> None:
    rates = [warmup_cosine(step, 100, 0.1) for step in range(101)]
    assert (np.diff(rates[:11]) > 0).all()
    assert (np.diff(rates[11:]) < 0).all()
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.0)


def test_pinball_by_hand() -> None:
    target = torch.tensor([[1.0]])
    quantiles = torch.full((1, 1, 21), 3.0)
    batch = Batch(*[torch.empty(0)] * 4, target, torch.ones(1, 1, dtype=torch.bool))
    got = pointwise_loss(Forecast(quantiles[..., 10], quantiles), batch)
    expected = np.mean([2 * (1 - level) * 2.0 for level in QUANTILE_LEVELS])
    assert got.item() == pytest.approx(expected)
