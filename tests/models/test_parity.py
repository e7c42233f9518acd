"""Our adapters against the libraries' own way from a checkpoint to a forecast."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from nocturnal_kedro import plugins
from nocturnal_kedro.models import QUANTILE_LEVELS
from nocturnal_kedro.series.corpus import Corpus
from nocturnal_kedro.series.origins import Task
from nocturnal_kedro.series.windows import CONTEXT_CHANNELS, Batch, Scaler, WindowGatherer


@pytest.fixture(scope="module")
def batch(corpus: Corpus, splits: pd.DataFrame, task: Task) -> Batch:
    """Four windows with holes: in glucose, and no insulin at all in the last one."""
    scaler = Scaler((140.0, 2.0, 10.0), (40.0, 2.0, 15.0))
    gatherer = WindowGatherer(corpus, splits, scaler, task)
    first = int(corpus.people["first"].iloc[1])
    batch = gatherer.gather(torch.arange(first + 700, first + 2300, 400))
    seen, known = batch.context_observed_BLC.clone(), batch.future_observed_BHF.clone()
    seen[:, 100:130, 0] = False
    seen[-1, :, 1] = False
    known[-1, :, 0] = False
    return batch._replace(context_observed_BLC=seen, future_observed_BHF=known)


def test_chronos2_equals_its_library(batch: Batch, task: Task, tmp_path: Path) -> None:
    from chronos import Chronos2Pipeline

    options = plugins.options("model", "chronos2", {"d_model": 32, "heads": 2, "d_ff": 32})
    torch.manual_seed(0)
    ours = plugins.load("model", "chronos2").build(options, task).eval()
    ours.network.save_pretrained(tmp_path)
    pipeline = Chronos2Pipeline.from_pretrained(tmp_path, device_map="cpu")

    past = batch.context_BLC.masked_fill(~batch.context_observed_BLC, torch.nan)
    ahead = batch.future_BHF.masked_fill(~batch.future_observed_BHF, torch.nan)
    covariates = CONTEXT_CHANNELS[1:]
    inputs = [
        {
            "target": past[window, :, 0].numpy(),
            "past_covariates": {
                name: past[window, :, channel].numpy()
                for channel, name in enumerate(covariates, start=1)
            },
            "future_covariates": {
                name: ahead[window, :, channel].numpy() for channel, name in enumerate(covariates)
            },
        }
        for window in range(len(past))
    ]
    theirs = torch.stack(pipeline.predict(inputs, prediction_length=task.horizon_steps))
    assert theirs.shape == (len(past), 1, len(QUANTILE_LEVELS), task.horizon_steps)
    with torch.no_grad():
        quantiles_BHQ = ours(batch).quantiles_BHQ
    expected_BHQ = theirs[:, 0].transpose(1, 2).sort(dim=-1).values
    np.testing.assert_allclose(quantiles_BHQ, expected_BHQ, atol=1e-4)


def test_ttm_equals_its_library(batch: Batch, task: Task, tmp_path: Path) -> None:
    from tsfm_public.models.tinytimemixer import TinyTimeMixerForPrediction

    options = plugins.options("model", "ttm", {"d_model": 16, "decoder_d_model": 16})
    torch.manual_seed(0)
    ours = plugins.load("model", "ttm").build(options, task).eval()
    ours.network.save_pretrained(tmp_path)
    library = TinyTimeMixerForPrediction.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        change = library(
            past_values=batch.context_BLC,
            past_observed_mask=batch.context_observed_BLC,
            future_values=torch.nn.functional.pad(batch.future_BHF, (1, 0)),
            return_loss=False,
        ).prediction_outputs[..., 0]
        point_BH = ours(batch).point_BH
    np.testing.assert_allclose(point_BH, batch.context_BLC[:, -1:, 0] + change, atol=1e-6)
