"""What the loop is told; apart from it so that the command line need not import torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class Training(BaseModel, extra="forbid", frozen=True):
    """How every model is trained; a model's own `Options` hold its learning rate."""

    seed: int = 7
    device: Literal["cpu", "gpu"] = "cpu"
    epochs: int = Field(default=10, ge=1)  # upper bound: early stopping ends it sooner
    steps_per_epoch: int = Field(default=100, ge=1)
    batch_size: int = Field(default=32, ge=1)
    anchor_hours: float = Field(default=3.0, gt=0, le=12)  # origins this near to the anchor
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    clip_norm: float = Field(default=1.0, gt=0)
    patience: int = Field(default=4, ge=1)  # epochs without a better validation
