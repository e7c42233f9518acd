"""TiDE (neuralforecast): Das et al. 2023, arXiv:2304.08424; 21 native quantiles."""

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

    hidden_size: int = Field(default=64, ge=1)
    encoder_layers: int = Field(default=1, ge=1)
    decoder_layers: int = Field(default=1, ge=1)
    decoder_output_dim: int = Field(default=8, ge=1)
    temporal_decoder_dim: int = Field(default=32, ge=1)
    temporal_width: int = Field(default=4, ge=1)  # what a step's covariates are pressed into
    layer_norm: bool = False
    dropout: float = Field(default=0.3, ge=0, lt=1)


class Options(ModelOptions, frozen=True):
    """TiDE; no checkpoint is published."""

    network: Network | None = None
    head: ClassVar = ("network.temporal_decoder.", "network.global_skip.")
    presets: ClassVar = {
        "tiny": Network(hidden_size=16, decoder_output_dim=4, temporal_decoder_dim=16, dropout=0.0),
        "small": Network(),
        # of the paper's weather data, every 10 minutes
        "released": Network(hidden_size=512, temporal_decoder_dim=16, layer_norm=True, dropout=0.0),
    }
    extra: ClassVar = "neuralforecast"
    packages: ClassVar = ("neuralforecast",)


def configure(network: Network, task: Task, channels: Channels) -> dict[str, Any]:
    """The library's sizes of fresh weights."""
    return {
        "h": task.horizon_steps,
        "input_size": task.context_steps,
        "hidden_size": network.hidden_size,
        "num_encoder_layers": network.encoder_layers,
        "num_decoder_layers": network.decoder_layers,
        "decoder_output_dim": network.decoder_output_dim,
        "temporal_decoder_dim": network.temporal_decoder_dim,
        "temporal_width": network.temporal_width,
        "layernorm": network.layer_norm,
        "dropout": network.dropout,
    }


def build(architecture: dict[str, Any], task: Task, channels: Channels) -> nn.Module:
    """A TiDE with fresh weights."""
    return TiDE(architecture, channels)


class TiDE(nn.Module):
    """Glucose, what is known of its past and what is known ahead, flattened to one vector."""

    def __init__(self, architecture: dict[str, Any], channels: Channels) -> None:
        super().__init__()
        from neuralforecast.models import TiDE as Library

        self.inputs = Inputs(channels)
        self.network = build_network(Library, self.inputs, architecture)

    def forward(self, batch: Batch) -> Forecast:
        """Quantiles of glucose, (B, H, Q), and their median as the point forecast."""
        # Glucose as it is: its change from the newest reading was 0.5 mg/dL worse on validation.
        levels_BHQ = self.network(
            {
                "insample_y": batch.context_BLC[..., :1],
                "hist_exog": self.inputs.past(batch),
                "futr_exog": self.inputs.ahead(batch),
                "stat_exog": None,
            }
        )
        return Forecast.of_quantiles(levels_BHQ)
