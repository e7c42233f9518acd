"""Chronos-Bolt (chronos-forecasting): Ansari et al. 2024, arXiv:2403.07815; glucose alone.

The T5 of Chronos on patches of readings, with quantiles of the whole horizon in one pass.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.models import Forecast, ModelOptions, Rates, read_config
from nocturnal_kedro.models._chronos import Size, fall_with_distance
from nocturnal_kedro.series.origins import Task
from nocturnal_kedro.series.schema import QUANTILE_LEVELS
from nocturnal_kedro.series.windows import Batch, Channels


class Network(Size, frozen=True):
    """Size of fresh weights, in patches of readings.

    A dropout of 0.1 hides the newest readings from so small a decoder: on validation it was
    1.3 mg/dL worse.
    """

    patch_length: int = Field(default=16, ge=4)


class Options(ModelOptions, frozen=True):
    """Chronos-Bolt; it has no place for covariates."""

    network: Network | None = None
    rates: ClassVar = Rates(fine_tune=1e-5, lora=1e-4)
    presets: ClassVar = {
        "tiny": Network(
            patch_length=32,
            d_model=16,
            heads=2,
            d_ff=32,
            layers=1,
            initializer_factor=2.0,
        ),
        "small": Network(),
        # of amazon/chronos-bolt-small, 48 M
        "released": Network(d_model=512, heads=8, d_ff=2048, layers=6),
    }
    released: ClassVar = "amazon/chronos-bolt-small"
    can_use: ClassVar = ()
    usual: ClassVar = ()
    lora_targets: ClassVar = ("q", "k", "v", "o")
    head: ClassVar = ("network.output_patch_embedding.",)


def configure(network: Network, task: Task, channels: Channels) -> dict[str, Any]:
    """The library's configuration of fresh weights: the whole horizon in one pass."""
    return {
        **network.of_t5(),
        "num_decoder_layers": network.layers,
        "decoder_start_token_id": 0,
        "chronos_config": {
            "context_length": task.context_steps,
            "prediction_length": task.horizon_steps,
            "input_patch_size": network.patch_length,
            "input_patch_stride": network.patch_length,
            "quantiles": list(QUANTILE_LEVELS),
            "use_reg_token": True,
        },
    }


def adapt(checkpoint: Path, task: Task, channels: Channels) -> dict[str, Any]:
    """A checkpoint's configuration, as it is: up to its own context, and any horizon."""
    config = read_config(checkpoint)
    own = config["chronos_config"]
    reads, levels = own["context_length"], own["quantiles"]
    if not own["prediction_length"] or not own["input_patch_size"] or reads < task.context_steps:
        raise InputError(
            f"the checkpoint reads up to {reads} steps, and the task has {task.context_steps}. "
            f"Shorten task.context_steps."
        )
    if len(levels) < 2 or sorted(set(levels)) != levels:
        raise InputError(
            f"the checkpoint forecasts the levels {levels}: two or more, ascending, are needed to "
            f"tell those of every table. It cannot be used."
        )
    return config


def build(architecture: dict[str, Any], task: Task, channels: Channels) -> nn.Module:
    """A Chronos-Bolt with fresh weights."""
    return ChronosBolt(architecture, task.horizon_steps)


class ChronosBolt(nn.Module):
    """What is unobserved is NaN; a horizon beyond one pass is read on from the pass before.

    Then each quantile of a pass is appended to the context as a path of its own, and of the K x K
    values that the K paths give for a step, K quantiles are taken: as the library does.

    Shapes: K levels that the network knows, P steps of one pass.
    """

    def __init__(self, architecture: dict[str, Any], horizon: int) -> None:
        super().__init__()
        from chronos.chronos_bolt import ChronosBoltModelForForecasting
        from transformers import T5Config

        self.horizon = horizon
        own = architecture["chronos_config"]
        self.passes = math.ceil(horizon / own["prediction_length"])
        self.network = ChronosBoltModelForForecasting(T5Config(**architecture))
        # Without, it forecast the context's mean on validation, after thousands of steps.
        fall_with_distance(self.network.encoder, sides=2)
        levels_K = torch.tensor(own["quantiles"], dtype=torch.float64)
        lower_Q, share_Q = _between(levels_K)
        self.levels_K: Tensor
        self.lower_Q: Tensor
        self.share_Q: Tensor
        self.register_buffer("levels_K", levels_K.float(), persistent=False)
        self.register_buffer("lower_Q", lower_Q, persistent=False)
        self.register_buffer("share_Q", share_Q.float(), persistent=False)

    def forward(self, batch: Batch) -> Forecast:
        """Quantiles of glucose, (B, H, Q), and their median as the point forecast."""
        context_BL = batch.context_BLC[..., 0]
        context_BL = context_BL.masked_fill(~batch.context_observed_BLC[..., 0], torch.nan)
        known_BKH = self._ahead(context_BL)[..., : self.horizon]
        # Levels are learnt one by one and may cross before they have converged.
        known_BHK = known_BKH.transpose(1, 2).sort(dim=-1).values
        low, high = known_BHK[..., self.lower_Q], known_BHK[..., self.lower_Q + 1]
        return Forecast.of_quantiles(low + self.share_Q * (high - low))

    def _ahead(self, context_BL: Tensor) -> Tensor:
        """Quantiles at the network's own levels, for at least the horizon, (B, K, passes x P)."""
        levels = len(self.levels_K)
        ahead = [self.network(context=context_BL).quantile_preds]
        paths_BKT = context_BL[:, None].expand(-1, levels, -1)
        for _ in range(1, self.passes):
            # What a pass reads is given: through the NaN beside it no gradient would be finite.
            paths_BKT = torch.cat([paths_BKT, ahead[-1].detach()], dim=-1)
            of_paths = self.network(context=paths_BKT.flatten(0, 1)).quantile_preds
            spread_BNP = of_paths.unflatten(0, (-1, levels)).flatten(1, 2)
            ahead.append(torch.quantile(spread_BNP, self.levels_K, dim=1).transpose(0, 1))
        return torch.cat(ahead, dim=-1)


def _between(levels_K: Tensor) -> tuple[Tensor, Tensor]:
    """For each of QUANTILE_LEVELS the known level below it, and its share of the way to the next.

    In normal scores: a normal distribution is told exactly, and beyond the outer levels its tails
    go on in the line of the last two.
    """
    known_K = torch.special.ndtri(levels_K)
    wanted_Q = torch.special.ndtri(torch.tensor(QUANTILE_LEVELS, dtype=torch.float64))
    lower_Q = (torch.searchsorted(known_K, wanted_Q, right=True) - 1).clamp(0, len(known_K) - 2)
    return lower_Q, (wanted_Q - known_K[lower_Q]) / (known_K[lower_Q + 1] - known_K[lower_Q])
