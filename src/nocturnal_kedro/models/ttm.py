"""Tiny Time Mixers (granite-tsfm): Ekambaram et al. 2024, arXiv:2401.03955; point forecasts."""

from __future__ import annotations

from pydantic import BaseModel, Field
from torch import nn
from tsfm_public.models.tinytimemixer import (
    TinyTimeMixerConfig,
    TinyTimeMixerForPrediction,
)

from nocturnal_kedro.models import Forecast
from nocturnal_kedro.series.origins import Task
from nocturnal_kedro.series.windows import CONTEXT_CHANNELS, FUTURE_CHANNELS, Batch


class Options(BaseModel, extra="forbid", frozen=True):
    """Architecture; the defaults train on a laptop's CPU in minutes."""

    patch_length: int = Field(default=64, ge=4)
    d_model: int = Field(default=64, ge=8)
    layers: int = Field(default=2, ge=1)
    decoder_d_model: int = Field(default=32, ge=8)
    decoder_layers: int = Field(default=1, ge=1)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    learning_rate: float = Field(default=1e-3, gt=0)


def build(options: Options, task: Task) -> nn.Module:
    """A TTM with fresh weights for the task's context and horizon."""
    return TTM(options, task)


class TTM(nn.Module):
    """Five channels in, glucose out; insulin, carbs and the clock are known ahead."""

    def __init__(self, options: Options, task: Task) -> None:
        super().__init__()
        known_ahead = [CONTEXT_CHANNELS.index(name) for name in FUTURE_CHANNELS]
        self.network = TinyTimeMixerForPrediction(
            TinyTimeMixerConfig(
                context_length=task.context_steps,
                prediction_length=task.horizon_steps,
                patch_length=options.patch_length,
                patch_stride=options.patch_length,
                num_input_channels=len(CONTEXT_CHANNELS),
                prediction_channel_indices=[0],
                exogenous_channel_indices=known_ahead,
                d_model=options.d_model,
                num_layers=options.layers,
                decoder_d_model=options.decoder_d_model,
                decoder_num_layers=options.decoder_layers,
                dropout=options.dropout,
                head_dropout=options.dropout,
                # "common_channel" would leave insulin and carbs without any effect, silently.
                decoder_mode="mix_channel",
                enable_forecast_channel_mixing=True,
                # Channels are scaled by the training rows already. The library's scaling by the
                # window's own mean and deviation would hide how much insulin is on board, and how
                # high glucose is: on validation it was 2 mg/dL worse.
                scaling=None,
                loss=None,  # the training loop owns the masked loss
            )
        )

    def forward(self, batch: Batch) -> Forecast:
        """Point forecasts of glucose, (B, H), as the change from the last reading."""
        future_BHC = nn.functional.pad(batch.future_BHF, (1, 0))  # glucose ahead is not known
        output = self.network(
            past_values=batch.context_BLC,
            past_observed_mask=batch.context_observed_BLC,
            future_values=future_BHC,
            return_loss=False,
        )
        last_B1 = batch.context_BLC[:, -1:, 0]
        return Forecast(last_B1 + output.prediction_outputs[..., 0], None)
