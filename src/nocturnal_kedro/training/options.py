"""What the loop is told; apart from it so that the command line need not import torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

Count = Annotated[int, Field(ge=1)]


class Training(BaseModel, extra="forbid", frozen=True):
    """How every model is trained; a model's own `Options` hold its learning rate."""

    seed: int = 7
    epochs: int = Field(default=10, ge=1)  # upper bound: early stopping ends it sooner
    steps_per_epoch: int = Field(default=100, ge=1)
    batch_size: int = Field(default=32, ge=1)  # windows of a step, over all processes together
    # Origins this near to the anchor; None: 3 of midnight and bedtime, 0.5 of meal and sliding.
    anchor_hours: float | None = Field(default=None, gt=0, le=12)
    balance_sources: bool = True  # each source gives a pass over the windows equally many
    # Of anybody's windows a pass takes at most this many times the median person's; None: all.
    subject_cap: float | None = Field(default=3.0, ge=1)
    low_repeats: int = Field(default=1, ge=1)  # a window that ends below 70 mg/dL, in each pass
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    clip_norm: float = Field(default=1.0, gt=0)
    ema: float | None = Field(default=None, gt=0, lt=1)  # decay of a running mean of the weights
    patience: int = Field(default=4, ge=1)  # epochs without a better validation

    def with_seed(self, seed: int | None) -> Self:
        """The same with another seed, if one is given."""
        return self if seed is None else self.model_copy(update={"seed": seed})


class Hardware(BaseModel, extra="forbid", frozen=True):
    """Where models are trained and forecast, and how a training survives being cut off.

    What is learnt does not depend on it but for rounding and the draws of dropout: a step takes
    `training.batch_size` windows on any number of processes. `conf/<env>/parameters.yml` sets it.
    """

    device: Literal["cpu", "gpu"] = "cpu"
    processes: Count | Literal["auto"] = 1  # on each machine; auto: one for each of its GPUs
    machines: Count | Literal["auto"] = 1  # of a SLURM job; auto: all that it was given
    parallel: Literal["ddp", "fsdp", "zero2", "zero3"] = "ddp"  # what more processes share
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: int = Field(default=1, ge=1)  # parts of a step that a device takes in turn
    gradient_checkpointing: bool = False  # less memory for more time, where the model has it
    compile: bool = False  # by torch.compile
    checkpoint_steps: int = Field(default=100, ge=1)  # at most so many are lost when a run is cut
    restarts: int = Field(default=2, ge=0)  # from the last checkpoint, where a process is lost

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.parallel == "fsdp" and self.device == "cpu":
            raise ValueError("parallel fsdp shards over GPUs: device must be gpu")
        if self.precision == "fp16" and self.device == "cpu":
            raise ValueError("precision fp16 needs a GPU: choose bf16 or fp32 on the CPU")
        if self.device == "cpu" and self.processes == "auto":
            raise ValueError("processes auto counts GPUs: on the CPU give their number")
        return self


class SettledHardware(Hardware, frozen=True):
    """The same where it is known what `auto` stands for: see `device.settle`."""

    processes: Count = 1
    machines: Count = 1

    @property
    def world(self) -> int:
        """How many processes train together."""
        return self.machines * self.processes
