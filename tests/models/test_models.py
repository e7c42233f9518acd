"""One contract for every model in the folder."""

import numpy as np
import pandas as pd
import pytest
import torch

from nocturnal_kedro import plugins
from nocturnal_kedro.models import QUANTILE_LEVELS
from nocturnal_kedro.series.corpus import Corpus
from nocturnal_kedro.series.origins import Task
from nocturnal_kedro.series.windows import Batch, Scaler, WindowGatherer
from nocturnal_kedro.training.loop import pointwise_loss

MODELS = plugins.names("model")
SMALL = {
    "ttm": {"d_model": 16, "decoder_d_model": 16, "dropout": 0.0},
    "chronos2": {"d_model": 16, "heads": 2, "d_ff": 32, "layers": 1, "dropout": 0.0},
}


@pytest.fixture(scope="module")
def batch(corpus: Corpus, splits: pd.DataFrame, task: Task) -> Batch:
    scaler = Scaler((140.0, 2.0, 10.0), (40.0, 2.0, 15.0))
    gatherer = WindowGatherer(corpus, splits, scaler, task)
    first = int(corpus.people["first"].iloc[1])
    return gatherer.gather(torch.arange(first + 700, first + 2300, 400))


def build(name: str, task: Task) -> torch.nn.Module:
    torch.manual_seed(0)
    return plugins.load("model", name).build(plugins.options("model", name, SMALL[name]), task)


def test_every_model_is_under_contract() -> None:
    assert set(SMALL) == set(MODELS)


def test_quantile_levels_are_those_of_the_protocol() -> None:
    assert len(QUANTILE_LEVELS) == 21
    assert QUANTILE_LEVELS[:3] == (0.01, 0.05, 0.1)
    assert QUANTILE_LEVELS[-2:] == (0.95, 0.99)


@pytest.mark.parametrize("name", MODELS)
def test_shapes_and_sorted_quantiles(name: str, batch: Batch, task: Task) -> None:
    forecast = build(name, task).eval()(batch)
    assert forecast.point_BH.shape == batch.target_BH.shape
    assert torch.isfinite(forecast.point_BH).all()
    if forecast.quantiles_BHQ is not None:
        assert forecast.quantiles_BHQ.shape == (*batch.target_BH.shape, len(QUANTILE_LEVELS))
        assert (forecast.quantiles_BHQ.diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("name", MODELS)
def test_target_does_not_reach_the_forecast(name: str, batch: Batch, task: Task) -> None:
    module = build(name, task).eval()
    other = batch._replace(target_BH=torch.randn_like(batch.target_BH))
    assert torch.equal(module(batch).point_BH, module(other).point_BH)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("channel", range(5))
def test_every_context_channel_moves_the_forecast(
    name: str, channel: int, batch: Batch, task: Task
) -> None:
    module = build(name, task).eval()
    context = batch.context_BLC.clone()
    shuffled = torch.randperm(context.shape[1], generator=torch.Generator().manual_seed(1))
    context[..., channel] = context[:, shuffled, channel]
    moved = module(batch._replace(context_BLC=context)).point_BH
    assert (moved - module(batch).point_BH).abs().max() > 1e-6


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("channel", range(4))
def test_every_known_future_channel_moves_the_forecast(
    name: str, channel: int, batch: Batch, task: Task
) -> None:
    module = build(name, task).eval()
    future = batch.future_BHF.clone()
    future[..., channel] += torch.linspace(-2, 2, future.shape[1])
    moved = module(batch._replace(future_BHF=future)).point_BH
    assert (moved - module(batch).point_BH).abs().max() > 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_missing_covariates_are_legal(name: str, batch: Batch, task: Task) -> None:
    context, future = batch.context_BLC.clone(), batch.future_BHF.clone()
    context[..., 1:3] = 0
    future[..., :2] = 0
    seen, known = batch.context_observed_BLC.clone(), batch.future_observed_BHF.clone()
    seen[..., 1:3] = False
    known[..., :2] = False
    blind = batch._replace(
        context_BLC=context, context_observed_BLC=seen, future_BHF=future, future_observed_BHF=known
    )
    module = build(name, task)
    loss = pointwise_loss(module(blind), blind).mean()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", MODELS)
def test_a_window_is_forecast_alike_alone_and_in_company(
    name: str, batch: Batch, task: Task
) -> None:
    module = build(name, task).eval()
    alone = module(Batch(*(part[1:2] for part in batch))).point_BH
    np.testing.assert_allclose(alone.detach(), module(batch).point_BH[1:2].detach(), atol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_falls_on_one_batch(name: str, batch: Batch, task: Task) -> None:
    module = build(name, task)
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        loss = (pointwise_loss(module(batch), batch) * batch.target_observed_BH).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="d_model 64 must be a multiple of heads 5"):
        plugins.options("model", "chronos2", {"heads": 5})
