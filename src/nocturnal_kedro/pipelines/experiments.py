"""What an experiment is to the pipelines: whose parameters and tables it takes, and its lanes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nocturnal_kedro.series.splits import SplitOptions
    from nocturnal_kedro.training.cells import Cell, Grounds
    from nocturnal_kedro.training.data import Data
    from nocturnal_kedro.training.options import Training

# Tables that follow from the task: an experiment with a task of its own has its own of these.
OF_TASK = ("origins", "outcomes", "tally", "audit")


@dataclass(frozen=True)
class Experiment:
    """One question, asked of every model."""

    name: str
    own: tuple[str, ...] = ()  # parameters that stand in its own section, not in everybody's
    adds: tuple[str, ...] = ()  # to the report: "meals", "cards"

    def parameter(self, name: str) -> str:
        """As a node takes it."""
        return f"params:{self.name}.{name}" if name in self.own else f"params:{name}"

    def shared(self, name: str) -> str:
        """The dataset of everybody, or its own where it follows from a task of its own."""
        return f"{self.name}.{name}" if name in OF_TASK and "task" in self.own else name


@dataclass(frozen=True)
class Sweep:
    """One question, asked of many variants of every model; see `nocturnal_kedro.sweeps`."""

    name: str
    models: tuple[str, ...]
    baselines: tuple[str, ...]
    seeds: tuple[int, ...]

    def plan(
        self,
        data: Data,
        cut: SplitOptions,
        training: Training,
        options: dict[str, Any],
        model_options: dict[str, Any],
        baseline_options: dict[str, Any],
    ) -> tuple[Grounds, list[Cell]]:
        """What its cells start from, and every cell."""
        from nocturnal_kedro.sweeps import plan_cells
        from nocturnal_kedro.training.cells import Grounds

        grounds = Grounds(
            data=data,
            cut=cut,
            training=training,
            models={name: model_options[name] for name in self.models},
            baselines={name: baseline_options.get(name, {}) for name in self.baselines},
            seeds=self.seeds,
        )
        return grounds, plan_cells(self.name, grounds, options)


@dataclass(frozen=True)
class Lane:
    """What becomes of one model with one training seed; a namespace of the experiment."""

    model: str
    seed: int | None = None  # None: that of the parameters
    first: bool = True  # whether the report's figures and alarms are of it

    @property
    def name(self) -> str:
        """Of the first seed that of the model."""
        return self.model if self.first else f"{self.model}-{self.seed}"


def lanes_of(models: tuple[str, ...], seeds: tuple[int, ...]) -> tuple[Lane, ...]:
    """Every model with every seed, the first seed's before the others."""
    return tuple(
        Lane(model, seed, first=number == 0)
        for number, seed in enumerate(seeds or (None,))
        for model in models
    )
