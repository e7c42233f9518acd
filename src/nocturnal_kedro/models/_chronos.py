"""What the models of chronos-forecasting have in common: the sizes of a T5, and how it starts."""

from __future__ import annotations

from typing import Any, Self

import torch
from pydantic import BaseModel, Field, model_validator


class Size(BaseModel, extra="forbid", frozen=True):
    """Size of fresh weights; the defaults train on a laptop's CPU in minutes."""

    d_model: int = Field(default=64, ge=8)
    heads: int = Field(default=4, ge=1)
    d_ff: int = Field(default=128, ge=8)
    layers: int = Field(default=2, ge=1)  # of the encoder, and of the decoder where there is one
    # The library's 0.05 starts every layer norm near 0: minutes of training never leave it.
    initializer_factor: float = Field(default=1.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.d_model % self.heads:
            raise ValueError(f"d_model {self.d_model} must be a multiple of heads {self.heads}")
        return self

    def of_t5(self) -> dict[str, Any]:
        """The same under the library's names."""
        return {
            "d_model": self.d_model,
            "d_kv": self.d_model // self.heads,
            "d_ff": self.d_ff,
            "num_layers": self.layers,
            "num_heads": self.heads,
            "dropout_rate": self.dropout,
            "initializer_factor": self.initializer_factor,
        }


@torch.no_grad()
def fall_with_distance(stack: Any, sides: int) -> None:
    """Let fresh attention of an encoder (2 sides) or decoder (1) to itself fall with distance.

    Each head by a slope of its own, 4 to 1/16 a position: Press et al. 2022, arXiv:2108.12409. Of
    where it stands a T5 knows its distance from others alone, and biases left at random tell too
    little of it to learn from.
    """
    attention = stack.block[0].layer[0].SelfAttention
    weight_RN = attention.relative_attention_bias.weight  # R ranges of distance, on each side
    near = len(weight_RN) // sides // 2
    range_R = torch.arange(2 * near)
    farthest = attention.relative_attention_max_distance / near
    distance_R = torch.where(range_R < near, range_R, near * farthest ** (range_R / near - 1))
    slope_N = 4.0 ** torch.linspace(1, -2, weight_RN.shape[1])
    weight_RN.copy_(-distance_R.repeat(sides)[:, None] * slope_N)
