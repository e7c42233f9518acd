"""`tide` and `tsmixer` against neuralforecast's own way from a frame to a forecast."""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.models import MEDIAN
from nocturnal_kedro.series.covariates import COVARIATES
from nocturnal_kedro.series.origins import Task
from nocturnal_kedro.series.schema import QUANTILE_LEVELS
from nocturnal_kedro.series.windows import Batch, Channels
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.start import start_model
from tests.conftest import SCALER

LIBRARY = {"tide": "TiDE", "tsmixer": "TSMixerx"}
TASK = Task(context_steps=288, horizon_steps=24)
EVERYTHING = Channels(COVARIATES)

both = pytest.mark.parametrize("name", LIBRARY)


def build(name: str, task: Task = TASK, **given: Any) -> torch.nn.Module:
    options: Any = plugins.options("model", name, {"preset": "tiny"} | given)
    return start_model(name, options, task).module.eval()


def windows(channels: Channels, count: int = 2) -> Batch:
    """Noise everywhere, with holes in glucose and no insulin at all in the last window."""
    draw = torch.Generator().manual_seed(0)
    shape = (count, TASK.context_steps, len(channels.context))
    ahead = (count, TASK.horizon_steps, len(channels.future))
    seen, known = torch.ones(shape, dtype=torch.bool), torch.ones(ahead, dtype=torch.bool)
    context, future = torch.randn(shape, generator=draw), torch.randn(ahead, generator=draw)
    seen[:, 10:20, 0] = False
    context[:, 10:20, 0] = context[:, 9:10, 0]
    for names, values, mask in (
        (channels.context, context, seen),
        (channels.future, future, known),
    ):
        if "iob_u" in names:
            values[-1, :, names.index("iob_u")] = 0
            mask[-1, :, names.index("iob_u")] = False
    nothing = torch.zeros(count, TASK.horizon_steps)
    return Batch(context, seen, future, known, nothing, nothing.bool())


def frame(batch: Batch, window: int, channels: Channels) -> pd.DataFrame:
    """One window as the library takes it: a row per step, the future's among them."""
    past = pd.DataFrame(batch.context_BLC[window].numpy(), columns=list(channels.context))
    missing = pd.DataFrame(
        (~batch.context_observed_BLC[window]).float().numpy(),
        columns=[f"{name}_missing" for name in channels.context],
    )
    ahead = pd.DataFrame(batch.future_BHF[window].numpy(), columns=list(channels.future))
    rows = pd.concat([past.join(missing), ahead], ignore_index=True)
    rows.insert(0, "unique_id", "night")
    rows.insert(1, "ds", pd.date_range("2026-01-05", periods=len(rows), freq="5min"))
    return rows.rename(columns={"glucose_mg_dl": "y"})


@both
@pytest.mark.parametrize("covariates", [COVARIATES, ("insulin_u", "steps"), ("clock",), ()])
def test_what_the_library_fits_forecasts_here_as_there(
    name: str, covariates: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its frames, its windows, its training, its `predict`; its weights by their own names."""
    import neuralforecast
    from neuralforecast.losses.pytorch import MQLoss

    monkeypatch.chdir(tmp_path)  # its trainer leaves logs where it stands
    channels = Channels(covariates)
    batch = windows(channels)
    ours = build(name, covariates=covariates)
    options: Any = plugins.options("model", name, {"preset": "tiny"})
    code = plugins.load("model", name)
    network = getattr(neuralforecast.models, LIBRARY[name])(
        **code.configure(options.network, TASK, channels),
        **({"n_series": 1} if name == "tsmixer" else {}),
        hist_exog_list=ours.network.hist_exog_list,
        futr_exog_list=ours.network.futr_exog_list,
        loss=MQLoss(quantiles=list(QUANTILE_LEVELS)),
        max_steps=3,
        batch_size=1,
        random_seed=4,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    library = neuralforecast.NeuralForecast(models=[network], freq="5min")
    past = [frame(batch, n, channels).iloc[: TASK.context_steps] for n in range(2)]
    ahead = [frame(batch, n, channels).iloc[TASK.context_steps :] for n in range(2)]
    longer = pd.concat([past[0], past[1]], ignore_index=True)
    longer["ds"] = pd.date_range("2026-01-01", periods=len(longer), freq="5min")
    library.fit(longer)
    learnt = {
        key: weight
        for key, weight in library.models[0].state_dict().items()
        if "quantiles" not in key
    }
    ours.network.load_state_dict(learnt)
    with torch.no_grad():
        quantiles_BHQ = ours(batch).quantiles_BHQ
    for number in range(2):
        keep = ["unique_id", "ds", *channels.future]
        theirs = library.predict(past[number], futr_df=ahead[number][keep])
        expected_HQ = np.sort(theirs.drop(columns=["unique_id", "ds"]).to_numpy(), axis=1)
        assert expected_HQ.shape == (TASK.horizon_steps, len(QUANTILE_LEVELS))
        np.testing.assert_allclose(quantiles_BHQ[number], expected_HQ, atol=1e-4)


@both
def test_the_point_is_the_median_of_sorted_quantiles(name: str) -> None:
    said = build(name)(windows(Channels(("iob_u", "cob_g", "clock"))))
    assert torch.equal(said.point_BH, said.quantiles_BHQ[..., MEDIAN])
    assert (said.quantiles_BHQ.diff(dim=-1) >= 0).all()


@both
def test_every_value_and_every_gap_moves_the_forecast(name: str) -> None:
    torch.manual_seed(0)
    module, batch = build(name, covariates=COVARIATES), windows(EVERYTHING)

    def moves(changed: Batch) -> bool:
        with torch.no_grad():
            difference = module(changed).point_BH[0] - module(batch).point_BH[0]
        return bool(difference.abs().max() > 1e-5)

    for number, channel in enumerate(EVERYTHING.context):
        context, seen = batch.context_BLC.clone(), batch.context_observed_BLC.clone()
        context[0, :, number] = context[0, :, number].flip(0)
        assert moves(batch._replace(context_BLC=context)), channel
        seen[0, 40:60, number] = False
        told = not channel.startswith("clock_")  # which is never missing
        assert moves(batch._replace(context_observed_BLC=seen)) == told, channel
    for number, channel in enumerate(EVERYTHING.future):
        future = batch.future_BHF.clone()
        future[0, -1, number] += 2
        assert moves(batch._replace(future_BHF=future)), f"future of {channel}"


@both
def test_a_covariate_acts_together_with_glucose_and_not_beside_it(name: str) -> None:
    """What insulin changes depends on glucose: it is mixed in, not added."""
    torch.manual_seed(0)
    channels = Channels(("iob_u", "insulin_u"))
    module, batch = build(name, covariates=channels.covariates), windows(channels)
    higher = batch.context_BLC.clone()
    higher[..., 0] += 2
    for covariate in (1, 2):
        effects = []
        for context in (batch.context_BLC, higher):
            more = context.clone()
            more[..., covariate] += 2
            with torch.no_grad():
                effects.append(
                    module(batch._replace(context_BLC=more)).point_BH
                    - module(batch._replace(context_BLC=context)).point_BH
                )
        assert (effects[0] - effects[1]).abs().max() > 1e-3


@both
def test_how_high_glucose_is_reaches_the_forecast(name: str) -> None:
    """A forecast that only moved along with glucose could not revert to the mean."""
    torch.manual_seed(0)
    module, batch = build(name), windows(Channels(("iob_u", "cob_g", "clock")))
    higher = batch.context_BLC.clone()
    higher[..., 0] += 3
    with torch.no_grad():
        rise = module(batch._replace(context_BLC=higher)).point_BH - module(batch).point_BH
    assert (rise - 3).abs().max() > 0.1


@both
def test_building_leaves_the_process_as_it_was(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The library seeds every generator when it builds a network; ours goes on from its seed."""
    build(name)  # imports the library
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "12")
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)
    capfd.readouterr()
    caplog.clear()
    environment = dict(os.environ)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - the library resets this generator
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    drawn, weights = [], []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(torch.cat([w.flatten() for w in build(name).parameters()]))
        drawn.append(torch.rand(4))
    torch.manual_seed(1)
    weights += [torch.cat([w.flatten() for w in build(name).parameters()]) for _ in range(2)]

    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[3])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[3], weights[4])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002
    assert dict(os.environ) == environment
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@both
def test_the_state_holds_weights_and_no_more(name: str) -> None:
    module = build(name)
    assert set(module.state_dict()) == {key for key, _ in module.named_parameters()}
    assert all(key.startswith("network.") for key in module.state_dict())
    assert all(weight.requires_grad for weight in module.parameters())


@both
def test_no_checkpoint_is_published(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs weights.*none is published"):
        plugins.options("model", name, {"strategy": "fine_tune", "preset": "released"})
    options: Any = plugins.options(
        "model", name, {"strategy": "zero_shot", "weights": str(tmp_path)}
    )
    with pytest.raises(InputError, match=f"no published checkpoints of '{name}'"):
        start_model(name, options, TASK)


@both
def test_it_is_built_at_the_size_of_the_paper(name: str, data: Data) -> None:
    module = build(name, data.task, preset="released")
    batch = data.gatherer(SCALER, Channels(("iob_u", "cob_g", "clock"))).gather(
        torch.tensor([int(data.corpus.people["first"].iloc[1]) + 700])
    )
    with torch.no_grad():
        assert module(batch).quantiles_BHQ.shape == (1, 96, 21)
