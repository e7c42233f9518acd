"""Chronos-2 (chronos-forecasting): Ansari et al. 2025, arXiv:2510.15821; 21 native quantiles."""

from __future__ import annotations

import math
from typing import Self

import torch
from chronos.chronos2.config import Chronos2CoreConfig
from chronos.chronos2.model import Chronos2Model
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from nocturnal_kedro.models import QUANTILE_LEVELS, Forecast
from nocturnal_kedro.series.origins import Task
from nocturnal_kedro.series.windows import CONTEXT_CHANNELS, Batch

MEDIAN = QUANTILE_LEVELS.index(0.5)


class Options(BaseModel, extra="forbid", frozen=True):
    """Architecture; the defaults train on a laptop's CPU in minutes."""

    patch_length: int = Field(default=32, ge=4)
    d_model: int = Field(default=64, ge=8)
    heads: int = Field(default=4, ge=1)
    d_ff: int = Field(default=128, ge=8)
    layers: int = Field(default=2, ge=1)
    # The library's 0.05 starts every layer norm near 0: minutes of training never leave it.
    initializer_factor: float = Field(default=1.0, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    learning_rate: float = Field(default=3e-3, gt=0)

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.d_model % self.heads:
            raise ValueError(f"d_model {self.d_model} must be a multiple of heads {self.heads}")
        return self


def build(options: Options, task: Task) -> nn.Module:
    """A Chronos-2 with fresh weights for the task's context and horizon."""
    return Chronos2(options, task)


class Chronos2(nn.Module):
    """One row per channel, joined by group attention; an unknown future is NaN."""

    def __init__(self, options: Options, task: Task) -> None:
        super().__init__()
        self.horizon = task.horizon_steps
        self.output_patches = math.ceil(task.horizon_steps / options.patch_length)
        self.network = Chronos2Model(
            Chronos2CoreConfig(
                d_model=options.d_model,
                d_kv=options.d_model // options.heads,
                d_ff=options.d_ff,
                num_layers=options.layers,
                num_heads=options.heads,
                dropout_rate=options.dropout,
                initializer_factor=options.initializer_factor,
                chronos_config={
                    "context_length": task.context_steps,
                    "input_patch_size": options.patch_length,
                    "input_patch_stride": options.patch_length,
                    "output_patch_size": options.patch_length,
                    "max_output_patches": self.output_patches,
                    "quantiles": list(QUANTILE_LEVELS),
                    "use_reg_token": True,
                    "use_arcsinh": True,
                },
            )
        )

    def forward(self, batch: Batch) -> Forecast:
        """Quantiles of glucose, (B, H, Q), and their median as the point forecast."""
        windows, _, channels = batch.context_BLC.shape
        past = _nan_where_unobserved(batch.context_BLC, batch.context_observed_BLC)
        glucose_ahead = torch.full_like(batch.future_BHF[..., :1], torch.nan)
        ahead = torch.cat(
            [glucose_ahead, _nan_where_unobserved(batch.future_BHF, batch.future_observed_BHF)], -1
        )
        output = self.network(
            context=past.transpose(1, 2).flatten(0, 1),
            future_covariates=ahead.transpose(1, 2).flatten(0, 1),
            group_ids=torch.arange(windows, device=past.device).repeat_interleave(channels),
            num_output_patches=self.output_patches,
        )
        of_glucose = slice(None, None, len(CONTEXT_CHANNELS))
        quantiles_BQH = output.quantile_preds[of_glucose, :, : self.horizon]
        # Levels are learnt one by one and may cross before they have converged.
        quantiles_BHQ = quantiles_BQH.transpose(1, 2).sort(dim=-1).values
        return Forecast(quantiles_BHQ[..., MEDIAN], quantiles_BHQ)


def _nan_where_unobserved(values: Tensor, observed: Tensor) -> Tensor:
    return values.masked_fill(~observed, torch.nan)
