import resource
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from nocturnal_kedro.errors import InputError, StoppedError
from nocturnal_kedro.models import Forecast
from nocturnal_kedro.series.corpus import Corpus
from nocturnal_kedro.series.origins import Task, eligible_rows
from nocturnal_kedro.series.schema import QUANTILE_LEVELS
from nocturnal_kedro.series.windows import Batch, WindowGatherer
from nocturnal_kedro.training.loop import (
    FORECAST,
    Care,
    Lessons,
    Manner,
    pointwise_loss,
    train,
    validate,
    warmup_cosine,
)
from nocturnal_kedro.training.options import SettledHardware, Training
from nocturnal_kedro.training.resume import Checkpoints
from nocturnal_kedro.training.sampler import Sampler
from nocturnal_kedro.training.stop import StopRequest
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
    lessons = Lessons(gatherer, Sampler(rows[0], options), rows[1], FORECAST)
    manner = Manner(options, learning_rate, more.pop("hardware", SettledHardware()))
    return train(module, "line", lessons, manner, Care(**more))


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


def test_ema_is_the_running_mean_of_the_weights(gatherer, rows) -> None:
    """By hand: after each step the mean takes a tenth of the weights; the first step sets it."""
    options = Training(epochs=1, steps_per_epoch=5)
    seen: list[torch.Tensor] = []

    class Watched(Line):
        def forward(self, batch: Batch) -> Forecast:
            if self.training:
                seen.append(self.weight.detach().clone())
            return super().forward(batch)

    module = Watched(96)
    ema = options.model_copy(update={"ema": 0.9})
    trained = teach(module, gatherer, rows, ema, learning_rate=0.05)
    after_each_step = [*seen[1:], module.weight.detach()]
    mean = after_each_step[0]
    for weight in after_each_step[1:]:
        mean = 0.9 * mean + 0.1 * weight
    torch.testing.assert_close(trained.state["weight"], mean)
    assert not torch.allclose(trained.state["weight"], module.weight.detach())
    plain = teach(Line(96), gatherer, rows, options, learning_rate=0.05)
    torch.testing.assert_close(plain.state["weight"], module.weight.detach())


@pytest.mark.slow
def test_16_bits_learn_nearly_the_same_and_are_used(gatherer, rows) -> None:
    kinds = set()

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(16, 96)

        def forward(self, batch: Batch) -> Forecast:
            point_BH = self.head(batch.context_BLC[:, -16:, 0])
            if self.training:
                kinds.add(point_BH.dtype)
            return Forecast(point_BH.float(), None)

    options = Training(epochs=1, steps_per_epoch=30)
    learnt = []
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        hardware = SettledHardware(precision=precision)
        learnt.append(teach(Deep(), gatherer, rows, options, 0.01, hardware=hardware))
    assert kinds == {torch.float32, torch.bfloat16}
    full, half = (trained.log["validation_rmse"].iloc[0] for trained in learnt)
    assert half == pytest.approx(full, rel=0.05)
    assert half != full
    assert learnt[1].state["head.weight"].dtype == torch.float32


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_module_learns_the_same(gatherer, rows) -> None:
    options = Training(epochs=1, steps_per_epoch=5)
    plain = teach(Line(96), gatherer, rows, options, 0.05)
    compiled = teach(
        Line(96), gatherer, rows, options, 0.05, hardware=SettledHardware(compile=True)
    )
    assert plain.state.keys() == compiled.state.keys()
    for name, weight in plain.state.items():
        torch.testing.assert_close(compiled.state[name], weight)


def test_a_stopped_training_without_a_folder_says_so(gatherer, rows) -> None:
    stop = StopRequest()
    stop._hear(15, None)
    with pytest.raises(StoppedError, match="after step 10 of at most 80: nothing keeps it"):
        teach(Line(96), gatherer, rows, Training(epochs=4, steps_per_epoch=20), 0.05, stop=stop)


@pytest.mark.parametrize(("full", "last"), [(8, 5), (20, 15)], ids=["checkpoint", "best"])
def test_a_full_disk_leaves_the_last_checkpoint_whole(
    full: int, last: int, gatherer, rows, tmp_path: Path
) -> None:
    """A file that may not grow stands for a disk without room; the 20th step ends an epoch."""
    options = Training(epochs=1, steps_per_epoch=20)
    kept = Checkpoints(tmp_path, every_steps=5)
    written = 0

    class Filling(Line):
        def forward(self, batch: Batch) -> Forecast:
            nonlocal written
            written += self.training
            if written == full:
                resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
            return super().forward(batch)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(InputError, match=r"cannot be written.*Make room.*which is whole"):
            teach(Filling(96), gatherer, rows, options, 0.05, checkpoints=kept)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [step.name for step in tmp_path.glob("step-*")] == [f"step-{last:08d}"]
    assert not (tmp_path / "saving").exists()
    gone_on = teach(Line(96), gatherer, rows, options, 0.05, checkpoints=kept)
    whole = teach(Line(96), gatherer, rows, options, 0.05)
    assert all(torch.equal(gone_on.state[name], weight) for name, weight in whole.state.items())


def test_a_damaged_checkpoint_is_named(gatherer, rows, tmp_path: Path) -> None:
    options = Training(epochs=1, steps_per_epoch=20)
    kept = Checkpoints(tmp_path, every_steps=5)
    teach(Line(96), gatherer, rows, options, 0.05, checkpoints=kept)
    [last] = tmp_path.glob("step-*")
    for file in ("optimizer.bin", "model.safetensors", "random-0.pt", "progress.json"):
        whole = (last / file).read_bytes()
        (last / file).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(
            InputError, match=r"checkpoint '.*step-00000020' cannot be read.*Delete"
        ):
            teach(Line(96), gatherer, rows, options, 0.05, checkpoints=kept)
        (last / file).write_bytes(whole)


@pytest.mark.slow
def test_dropout_goes_on_with_the_numbers_that_it_would_have_drawn(
    gatherer, rows, tmp_path: Path
) -> None:
    """Accelerate says nothing where it could not bring the random numbers back."""

    class Dropping(Line):
        def forward(self, batch: Batch) -> Forecast:
            forecast = super().forward(batch)
            return forecast._replace(
                point_BH=nn.functional.dropout(forecast.point_BH, 0.5, self.training)
            )

    options = Training(epochs=1, steps_per_epoch=20)
    torch.manual_seed(0)
    whole = teach(Dropping(96), gatherer, rows, options, 0.05)
    torch.manual_seed(0)
    stop = StopRequest()
    stop._hear(15, None)
    kept = Checkpoints(tmp_path, every_steps=5)
    with pytest.raises(StoppedError, match="after step 5 of"):
        teach(Dropping(96), gatherer, rows, options, 0.05, checkpoints=kept, stop=stop)
    torch.manual_seed(99)
    gone_on = teach(Dropping(96), gatherer, rows, options, 0.05, checkpoints=kept)
    assert all(torch.equal(gone_on.state[name], weight) for name, weight in whole.state.items())
