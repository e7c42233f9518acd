"""Chronos-2 (chronos-forecasting): Ansari et al. 2025, arXiv:2510.15821; 21 native quantiles."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.models import Forecast, ModelOptions, Rates, read_config
from nocturnal_kedro.models._chronos import Size
from nocturnal_kedro.series.covariates import COVARIATES
from nocturnal_kedro.series.origins import Task
from nocturnal_kedro.series.schema import QUANTILE_LEVELS
from nocturnal_kedro.series.windows import Batch, Channels


class Network(Size, frozen=True):
    """Size of fresh weights, in patches of readings."""

    patch_length: int = Field(default=32, ge=4)
    dropout: float = Field(default=0.1, ge=0, lt=1)


class Options(ModelOptions, frozen=True):
    """Chronos-2; covariates are given to the published checkpoint as they are."""

    network: Network | None = None
    rates: ClassVar = Rates(fresh=3e-3, fine_tune=1e-6, lora=1e-5)  # the last two the library's own
    presets: ClassVar = {
        "tiny": Network(d_model=16, heads=2, d_ff=32, layers=1, dropout=0.0),
        "small": Network(),
        # of amazon/chronos-2, 120 M
        "released": Network(patch_length=16, d_model=768, heads=12, d_ff=3072, layers=12),
    }
    released: ClassVar = "amazon/chronos-2"
    can_use_untrained: ClassVar = COVARIATES
    lora_targets: ClassVar = (
        *(f"self_attention.{part}" for part in "qkvo"),
        "output_patch_embedding.output_layer",
    )
    head: ClassVar = ("network.output_patch_embedding.",)


def configure(network: Network, task: Task, channels: Channels) -> dict[str, Any]:
    """The library's configuration of fresh weights."""
    return {
        **network.of_t5(),
        "chronos_config": {
            "context_length": task.context_steps,
            "input_patch_size": network.patch_length,
            "input_patch_stride": network.patch_length,
            "output_patch_size": network.patch_length,
            "max_output_patches": math.ceil(task.horizon_steps / network.patch_length),
            "quantiles": list(QUANTILE_LEVELS),
            "use_reg_token": True,
            "use_arcsinh": True,
        },
    }


def adapt(checkpoint: Path, task: Task, channels: Channels) -> dict[str, Any]:
    """A checkpoint's configuration, as it is: any channels, up to its own context and horizon."""
    config = read_config(checkpoint)
    own = config["chronos_config"]
    longest = own["max_output_patches"] * own["output_patch_size"]
    if own["context_length"] < task.context_steps or longest < task.horizon_steps:
        raise InputError(
            f"the checkpoint reads up to {own['context_length']} steps and forecasts up to "
            f"{longest}; the task has {task.context_steps} and {task.horizon_steps}. Shorten it."
        )
    if tuple(own["quantiles"]) != QUANTILE_LEVELS:
        raise InputError(
            f"the checkpoint forecasts the levels {own['quantiles']}, and every table has "
            f"{list(QUANTILE_LEVELS)}: it cannot be used."
        )
    return config


def build(architecture: dict[str, Any], task: Task, channels: Channels) -> nn.Module:
    """A Chronos-2 with fresh weights."""
    return Chronos2(architecture, task.horizon_steps, channels.known_ahead)


class Chronos2(nn.Module):
    """One row per channel, joined by group attention; an unknown future is NaN."""

    def __init__(self, architecture: dict[str, Any], horizon: int, known_ahead: list[int]) -> None:
        super().__init__()
        from chronos.chronos2.config import Chronos2CoreConfig
        from chronos.chronos2.model import Chronos2Model

        self.horizon = horizon
        self.known_ahead = known_ahead
        own = architecture["chronos_config"]
        self.output_patches = math.ceil(horizon / own["output_patch_size"])
        # The library writes into the dictionary that it is given.
        self.network = Chronos2Model(
            Chronos2CoreConfig(**(architecture | {"chronos_config": dict(own)}))
        )

    def forward(self, batch: Batch) -> Forecast:
        """Quantiles of glucose, (B, H, Q), and their median as the point forecast."""
        windows, _, channels = batch.context_BLC.shape
        past = _nan_where_unobserved(batch.context_BLC, batch.context_observed_BLC)
        ahead = past.new_full((windows, self.horizon, channels), torch.nan)
        ahead[..., self.known_ahead] = _nan_where_unobserved(
            batch.future_BHF, batch.future_observed_BHF
        )
        output = self.network(
            context=past.transpose(1, 2).flatten(0, 1),
            future_covariates=ahead.transpose(1, 2).flatten(0, 1),
            group_ids=torch.arange(windows, device=past.device).repeat_interleave(channels),
            num_output_patches=self.output_patches,
        )
        of_glucose = slice(None, None, channels)
        quantiles_BQH = output.quantile_preds[of_glucose, :, : self.horizon]
        return Forecast.of_quantiles(quantiles_BQH.transpose(1, 2))


def _nan_where_unobserved(values: Tensor, observed: Tensor) -> Tensor:
    return values.masked_fill(~observed, torch.nan)
