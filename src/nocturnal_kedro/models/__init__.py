"""One module per model behind one small contract; the folder is the list of models.

A model module offers
- `Options`, a `ModelOptions` with the presets of its network and what the model can be given;
- `configure(network, task, channels) -> dict`, the architecture of fresh weights as plain JSON;
- `build(architecture, task, channels) -> Forecaster`, a module with fresh weights;
- where checkpoints are published, `adapt(checkpoint, task, channels) -> dict`, the architecture
  from the folder of one, or an `InputError` where it does not fit the task.
It forecasts; it neither loads weights, nor trains, nor scores itself. Heavy libraries are imported
inside these functions. A model that runs elsewhere, behind an API, offers `Options` and `answer`
alone: see `timegpt`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, Self

from pydantic import AfterValidator, BaseModel, Field, model_validator

from nocturnal_kedro.errors import InputError, require_known
from nocturnal_kedro.series.covariates import COVARIATES
from nocturnal_kedro.series.schema import QUANTILE_LEVELS

if TYPE_CHECKING:  # torch costs seconds: the command line lists the models without it
    import numpy as np
    from torch import Tensor

    from nocturnal_kedro.series.windows import Batch

MEDIAN = QUANTILE_LEVELS.index(0.5)
# The same levels for a library that is asked for central intervals, in percent, widest first: the
# quantiles are their lower ends, the median, and their upper ends.
INTERVALS = tuple(round(100 - 200 * level) for level in QUANTILE_LEVELS[:MEDIAN])
LOWER_ENDS = tuple(f"lo-{interval}" for interval in INTERVALS)
UPPER_ENDS = tuple(f"hi-{interval}" for interval in reversed(INTERVALS))


class Forecast(NamedTuple):
    """What a model says of B windows, in scaled units."""

    point_BH: Tensor
    quantiles_BHQ: Tensor | None  # ascending in Q at QUANTILE_LEVELS; None for a point model
    # In training mode alone: the model's own loss, where it does not learn by points or quantiles.
    loss_BH: Tensor | None = None

    @classmethod
    def of_quantiles(cls, levels_BHQ: Tensor) -> Self:
        """Quantiles at QUANTILE_LEVELS, sorted, and their median as the point forecast.

        A network learns its levels one by one: they may cross before they have converged.
        """
        quantiles_BHQ = levels_BHQ.sort(dim=-1).values
        return cls(quantiles_BHQ[..., MEDIAN], quantiles_BHQ)


class Answer(NamedTuple):
    """What a baseline or a service says of N windows, in mg/dL."""

    point_NH: np.ndarray
    quantiles_NHQ: np.ndarray | None = None  # ascending in Q at QUANTILE_LEVELS


class Forecaster(Protocol):
    """A `torch.nn.Module` whose forward pass answers one `Batch`.

    The library's own network stands at the attribute `network`, so that a checkpoint of the library
    is loaded by the names of its weights. `pretraining`, where there is one, is a module that holds
    weights in common with this one and answers a batch with a loss for each window, (B,): it is
    trained first. A module that reads mg/dL has `glucose_scale`, the mean and the deviation that
    glucose was scaled by: (0, 1) until fit, or the artifact that it is restored from, tells them.
    """

    def __call__(self, batch: Batch) -> Forecast:
        """The forecast of every window; the targets in `batch` must not touch it."""
        ...


class LoRA(BaseModel, extra="forbid", frozen=True):
    """Low-rank adapters beside frozen weights: Hu et al. 2021, arXiv:2106.09685."""

    rank: int = Field(default=8, ge=1)
    alpha: int = Field(default=16, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] | None = None  # ends of layers' names; the model's own where not given
    merge: bool = False  # save whole weights, with the adapters in them, instead of adapters alone


def _known_covariates(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        require_known("covariate", name, COVARIATES)
    if len(set(names)) < len(names):
        raise ValueError("a covariate is named twice")
    return names


Covariates = Annotated[tuple[str, ...], AfterValidator(_known_covariates)]


@dataclass(frozen=True)
class Rates:
    """A model's usual learning rates, by how it starts."""

    fresh: float = 1e-3
    fine_tune: float = 1e-4  # all weights of a start that is worth keeping
    lora: float = 1e-3  # adapters, which start at nothing

    def of(self, strategy: str, lora: bool) -> float:
        """That of a strategy, with adapters or without."""
        if strategy == "from_scratch":
            return self.fresh
        return self.lora if lora else self.fine_tune


class ModelOptions(BaseModel, extra="forbid", frozen=True):
    """What every model takes: how it starts, what it is given, how it learns.

    `network` is the size of fresh weights: that of the preset, with what is given over it. Weights
    that exist have their size already; of a model that puts fresh ones around them it is the size
    of those. Raises on a strategy, a size or a covariate that the model cannot use.
    """

    preset: Literal["tiny", "small", "released"] | None = None  # small, where weights are fresh
    strategy: Literal["from_scratch", "fine_tune", "zero_shot"] = "from_scratch"
    weights: str | None = None  # a folder, or the id of a repository on the hub
    revision: str | None = None  # of the repository: branch, tag or commit
    network: BaseModel | None = None  # each model's own `Network`
    covariates: Covariates | None = None  # the model's usual ones where not given
    lora: LoRA | None = None
    layers: Literal["all", "head"] = "all"  # what is trained of weights that exist
    learning_rate: float = Field(default=1e-3, gt=0)  # that of `rates`, where not given

    # of each model
    rates: ClassVar[Rates] = Rates()
    presets: ClassVar[dict[str, BaseModel]]
    released: ClassVar[str | None] = None  # the published checkpoint
    can_use: ClassVar[tuple[str, ...]] = COVARIATES
    can_use_untrained: ClassVar[tuple[str, ...]] = ()  # by a published checkpoint as it is
    fresh_around: ClassVar[bool] = False  # whether fresh weights stand around a checkpoint's
    usual: ClassVar[tuple[str, ...]] = ("iob_u", "cob_g", "clock")
    lora_targets: ClassVar[tuple[str, ...] | Literal["all-linear"]] = "all-linear"
    head: ClassVar[tuple[str, ...]] = ()  # what turns the network's state into a forecast
    extra: ClassVar[str | None] = None  # of pyproject.toml, with the packages that it needs
    packages: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        strategy = given.get("strategy", "from_scratch")
        filled = dict(given)
        if strategy == "from_scratch":
            filled["preset"] = given.get("preset") or "small"
        elif given.get("preset") == "released" and not given.get("weights"):
            filled["weights"] = cls.released
        sized = strategy == "from_scratch" or (cls.fresh_around and given.get("network"))
        sizes = cls.presets.get(filled.get("preset") or "released")
        network = given.get("network") or {}
        if sized and sizes is not None and isinstance(network, dict):
            filled["network"] = sizes.model_dump() | network
        if given.get("learning_rate") is None:
            filled["learning_rate"] = cls.rates.of(strategy, given.get("lora") is not None)
        return filled

    @model_validator(mode="after")
    def _possible(self) -> Self:
        fresh = self.strategy == "from_scratch"
        if fresh and self.weights:
            raise ValueError(
                "weights are given, and strategy from_scratch starts without: choose fine_tune or "
                "zero_shot, or leave weights out"
            )
        if not fresh and not self.weights:
            published = (
                f"preset=released loads {self.released}" if self.released else "none is published"
            )
            raise ValueError(
                f"strategy {self.strategy} needs weights: the folder of a checkpoint or of a "
                f"fitted model, or the id of one on the hub ({published})"
            )
        if not fresh and self.preset in ("tiny", "small"):
            raise ValueError(
                f"preset {self.preset} is a size of fresh weights, and strategy {self.strategy} "
                f"takes weights that exist: leave preset out"
            )
        if not fresh and self.network is not None and not self.fresh_around:
            raise ValueError(
                f"network is the size of fresh weights, and strategy {self.strategy} takes weights "
                f"that have theirs: leave network out"
            )
        if self.lora and self.strategy != "fine_tune":
            raise ValueError(
                f"lora adapts weights that exist: strategy fine_tune, not {self.strategy}"
            )
        if self.layers == "head" and (self.strategy != "fine_tune" or self.lora):
            raise ValueError(
                "layers head trains the head of weights that exist: strategy fine_tune, no lora"
            )
        if self.layers == "head" and not self.head:
            raise ValueError("this model has no head apart from its network: layers all")
        for name in self.covariates or ():
            if name not in self.can_use:
                raise ValueError(
                    f"covariate '{name}' cannot be used by this model; "
                    f"it can use: {', '.join(self.can_use) or 'none'}"
                )
        return self


def read_config(checkpoint: Path) -> dict[str, Any]:
    """`config.json` of a checkpoint, without what describes the file and not the network."""
    file = checkpoint / "config.json"
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"'{file}' cannot be read: {error}.") from error
    described = ("architectures", "model_type", "transformers_version", "torch_dtype", "dtype")
    return {name: value for name, value in config.items() if name not in described}
