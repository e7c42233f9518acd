"""What an experiment is to the pipelines: whose parameters and tables it takes, and its lanes."""

from __future__ import annotations

from dataclasses import dataclass

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
