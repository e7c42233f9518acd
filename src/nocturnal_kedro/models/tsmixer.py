"""TSMixer (neuralforecast): Chen et al. 2023, arXiv:2303.06053; 21 native quantiles."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, Field
from torch import nn

from nocturnal_kedro.models import Forecast, ModelOptions
from nocturnal_kedro.models._neuralforecast import Inputs, build_network
from nocturnal_kedro.series.origins import Task
from nocturnal_kedro.series.windows import Batch, Channels


class Network(BaseModel, extra="forbid", frozen=True):
    """Size of fresh weights; the defaults train on a laptop's CPU in minutes."""

    blocks: int = Field(default=2, ge=1)
    ff_dim: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)


class Options(ModelOptions, frozen=True):
    """TSMixer; no checkpoint is published."""

    network: Network | None = None
    head: ClassVar = ("network.out.",)
    presets: ClassVar = {
        "tiny": Network(blocks=1, ff_dim=8, dropout=0.0),
        "small": Network(),
        # of the paper's weather data, every 10 minutes
        "released": Network(blocks=4, dropout=0.3),
    }
    extra: ClassVar = "neuralforecast"
    packages: ClassVar = ("neuralforecast",)


def configure(network: Network, task: Task, channels: Channels) -> dict[str, Any]:
    """The library's sizes of fresh weights."""
    return {
        "h": task.horizon_steps,
        "input_size": task.context_steps,
        "n_block": network.blocks,
        "ff_dim": network.ff_dim,
        "dropout": network.dropout,
        # Scaling by the window's own mean and deviation hides how high glucose is: on validation
        # it was 1 mg/dL worse.
        "revin": False,
    }


def build(architecture: dict[str, Any], task: Task, channels: Channels) -> nn.Module:
    """A TSMixer with fresh weights."""
    return TSMixer(architecture, channels)


class TSMixer(nn.Module):
    """All channels mixed step by step and over time, with what is known ahead; glucose out."""

    def __init__(self, architecture: dict[str, Any], channels: Channels) -> None:
        super().__init__()
        from neuralforecast.models import TSMixerx as Library

        self.inputs = Inputs(channels)
        # Glucose alone is forecast; covariates are features of it, and mixed with it.
        self.network = build_network(Library, self.inputs, architecture | {"n_series": 1})

    def forward(self, batch: Batch) -> Forecast:
        """Quantiles of glucose, (B, H, Q), and their median as the point forecast."""
        # Glucose as it is: its change from the newest reading was 0.8 mg/dL worse on validation.
        levels_BHQ = self.network(
            {
                "insample_y": batch.context_BLC[..., :1],
                "hist_exog": self.inputs.past(batch).transpose(1, 2)[..., None],
                "futr_exog": self.inputs.ahead(batch).transpose(1, 2)[..., None],
                "stat_exog": None,
            }
        )
        return Forecast.of_quantiles(levels_BHQ)
