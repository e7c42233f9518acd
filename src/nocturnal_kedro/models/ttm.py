"""Tiny Time Mixers (granite-tsfm): Ekambaram et al. 2024, arXiv:2401.03955; point forecasts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import nn

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.models import Forecast, ModelOptions, read_config
from nocturnal_kedro.series.origins import Task
from nocturnal_kedro.series.windows import Batch, Channels


class Network(BaseModel, extra="forbid", frozen=True):
    """Size of fresh weights; the defaults train on a laptop's CPU in minutes."""

    patch_length: int = Field(default=64, ge=4)
    d_model: int = Field(default=64, ge=8)
    layers: int = Field(default=2, ge=1)
    decoder_d_model: int = Field(default=32, ge=8)
    decoder_layers: int = Field(default=1, ge=1)
    adaptive_patching_levels: int = Field(default=0, ge=0)
    dropout: float = Field(default=0.2, ge=0, lt=1)


class Options(ModelOptions, frozen=True):
    """Tiny Time Mixers; a published checkpoint knows no covariates until it is fine-tuned."""

    network: Network | None = None
    presets: ClassVar = {
        "tiny": Network(d_model=16, decoder_d_model=16, dropout=0.0),
        "small": Network(),
        # of granite-timeseries-ttm-r2, 512 to 96 steps, 0.8 M
        "released": Network(
            d_model=192,
            layers=2,
            decoder_d_model=128,
            decoder_layers=2,
            adaptive_patching_levels=3,
        ),
    }
    released: ClassVar = "ibm-granite/granite-timeseries-ttm-r2"
    lora_targets: ClassVar = ("fc1", "fc2", "attn_layer")
    head: ClassVar = ("network.head.",)


def configure(network: Network, task: Task, channels: Channels) -> dict[str, Any]:
    """The library's configuration of fresh weights; they forecast the change of glucose."""
    return {
        "context_length": task.context_steps,
        "prediction_length": task.horizon_steps,
        "patch_length": network.patch_length,
        "patch_stride": network.patch_length,
        "d_model": network.d_model,
        "num_layers": network.layers,
        "decoder_d_model": network.decoder_d_model,
        "decoder_num_layers": network.decoder_layers,
        "adaptive_patching_levels": network.adaptive_patching_levels,
        "dropout": network.dropout,
        "head_dropout": network.dropout,
        # Channels are scaled by the training rows already. The library's scaling by the window's
        # own mean and deviation would hide how much insulin is on board, and how high glucose is:
        # on validation it was 2 mg/dL worse.
        "scaling": None,
        # From the newest reading: what the library's scaling would otherwise give back.
        "forecasts_change": True,
        **_of_channels(channels),
    }


def adapt(checkpoint: Path, task: Task, channels: Channels) -> dict[str, Any]:
    """A checkpoint's configuration for this task; covariates get weights beside those it has.

    It forecasts glucose itself, however its library scales, or does not scale, a window.
    """
    config = read_config(checkpoint)
    known, needed = config["context_length"], task.context_steps
    if known != needed or config["prediction_length"] < task.horizon_steps:
        raise InputError(
            f"the checkpoint reads {known} steps and forecasts {config['prediction_length']}; the "
            f"task has {needed} and {task.horizon_steps}. Set task.context_steps={known} or take "
            f"a `revision` of the checkpoint that fits: the published ones are branches of it."
        )
    if config["prediction_length"] > task.horizon_steps:
        config["prediction_filter_length"] = task.horizon_steps
    return config | {"forecasts_change": False} | _of_channels(channels)


def _of_channels(channels: Channels) -> dict[str, Any]:
    return {
        "num_input_channels": len(channels.context),
        "prediction_channel_indices": [0],
        "exogenous_channel_indices": channels.known_ahead,
        # "common_channel" would leave insulin and carbs without any effect, silently.
        "decoder_mode": "mix_channel" if channels.covariates else "common_channel",
        "enable_forecast_channel_mixing": bool(channels.future),
        "loss": None,  # the training loop owns the masked loss
    }


def build(architecture: dict[str, Any], task: Task, channels: Channels) -> nn.Module:
    """A TTM with fresh weights."""
    return TTM(architecture)


class TTM(nn.Module):
    """All channels in, glucose out; what is known ahead is mixed in step by step."""

    def __init__(self, architecture: dict[str, Any]) -> None:
        super().__init__()
        from tsfm_public.models.tinytimemixer import (
            TinyTimeMixerConfig,
            TinyTimeMixerForPrediction,
        )
        from tsfm_public.toolkit.time_series_preprocessor import DEFAULT_FREQUENCY_MAPPING

        # Our own: the library's output is the change from the newest reading, not glucose itself.
        self.forecasts_change = architecture["forecasts_change"]
        of_library = {n: value for n, value in architecture.items() if n != "forecasts_change"}
        self.network = TinyTimeMixerForPrediction(TinyTimeMixerConfig(**of_library))
        # Some checkpoints are told how far apart their steps are.
        self.frequency = (
            DEFAULT_FREQUENCY_MAPPING["5min"]
            if architecture.get("resolution_prefix_tuning")
            else None
        )
        self.known_ahead = architecture["exogenous_channel_indices"]

    def forward(self, batch: Batch) -> Forecast:
        """Point forecasts of glucose, (B, H)."""
        windows, horizon = batch.target_BH.shape
        future_BHC = batch.context_BLC.new_zeros(windows, horizon, batch.context_BLC.shape[-1])
        future_BHC[..., self.known_ahead] = batch.future_BHF
        output = self.network(
            past_values=batch.context_BLC,
            past_observed_mask=batch.context_observed_BLC,
            future_values=future_BHC if self.known_ahead else None,
            freq_token=None
            if self.frequency is None
            else torch.full((windows,), self.frequency, device=future_BHC.device),
            return_loss=False,
        )
        forecast_BH = output.prediction_outputs[..., 0]
        if self.forecasts_change:
            forecast_BH = batch.context_BLC[:, -1, :1] + forecast_BH
        return Forecast(forecast_BH, None)
