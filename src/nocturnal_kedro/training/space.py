"""What a search of hyper-parameters tries, as data: a model's own space, or one that is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from itertools import islice, product
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError, require_known, validated
from nocturnal_kedro.models import ModelOptions
from nocturnal_kedro.training.options import Hardware, Training

Value = bool | int | float | str

# Of each model's network, what is tried at half, once and twice the size that its options give it.
SIZES = {
    "chronos2": ("d_model", "d_ff", "layers"),
    "chronos_bolt": ("d_model", "d_ff", "layers"),
    "chronos_t5": ("d_model", "d_ff", "layers"),
    "tide": ("hidden_size", "decoder_output_dim", "temporal_decoder_dim"),
    "timellm": ("d_model", "prototypes", "head_rank"),
    "ts2vec": ("hidden", "representation", "head"),
    "tsmixer": ("blocks", "ff_dim"),
    "ttm": ("d_model", "layers", "decoder_d_model"),
}
RANK = "lora.rank"  # of any model: as the sizes
RATE, RATE_TIMES = "learning_rate", 10  # of any model: from a tenth to ten times its options'
DROPOUT, MOST_DROPOUT = "network.dropout", 0.5  # of any network that has it
TRAINING = "training"
# Trials are told apart epoch by epoch, at one seed.
SAME_IN_ALL = ("seed", "epochs", "steps_per_epoch", "patience")
OF_LORA = ("lora.rank", "lora.alpha", "lora.dropout")
MOST_COMBINATIONS = 10_000  # that are looked at before the first trial
INSTALL = "pip install 'nocturnal-kedro[tuning]'"


class Range(BaseModel, extra="forbid", frozen=True):
    """Every number from low to high; whole ones alone where both are whole."""

    low: int | float
    high: int | float
    log: bool = False  # as likely from 1 to 10 as from 10 to 100

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low} must be above 0 with log")
        return self

    @property
    def ends(self) -> tuple[Value, ...]:
        """The first value and the last."""
        return self.low, self.high

    def holds(self, value: object) -> bool:
        """Whether it would try the value."""
        return isinstance(value, int | float) and self.low <= value <= self.high


Choice = Annotated[tuple[Value, ...], Field(min_length=1)]
Space = dict[str, Range | Choice]


class Tuning(BaseModel, extra="forbid", frozen=True):
    """What a search tries, and when it gives a trial up.

    `space` is nested as the model's options are, with `training` beside them: a list holds values
    to choose from, {low, high, log} a range. It takes the place of the model's own.
    """

    space: Space = {}
    prune_after: int = Field(default=5, ge=1)  # whole trials: the median of fewer tells little
    prune_from_epoch: int = Field(default=2, ge=1)

    @field_validator("space", mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return dict(_leaves(given)) if isinstance(given, dict) else given


def _leaves(nested: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in nested.items():
        if isinstance(value, dict) and not set(value) <= set(Range.model_fields):
            yield from _leaves(value, f"{above}{name}.")
        else:  # on the command line a list is words
            yield above + name, _numbers(value) if isinstance(value, str) else value


def _numbers(words: str) -> list[Value]:
    return [_number(word) for word in words.split()]


def _number(word: str) -> Value:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def require_tunable(model: str, options: Any, trials: object, hardware: Hardware) -> None:
    """Raise `InputError` where there is nothing to search by, or to search, or no way to."""
    if find_spec("optuna") is None:
        raise InputError(
            f"the pipeline tuning needs optuna, which is not installed: {INSTALL}, in a checkout "
            f"pip install -c constraints.txt -e '.[tuning]'."
        )
    if plugins.is_service(model):
        raise InputError(
            f"model '{model}' is a service: it is asked, not trained, and there is nothing to "
            f"search. Give another model."
        )
    if options.strategy == "zero_shot":
        raise InputError(
            f"model '{model}': strategy zero_shot trains nothing, and there is nothing to search. "
            f"Choose from_scratch or fine_tune."
        )
    if type(trials) is not int or trials < 1:
        raise InputError(f"'trials' is {trials!r}; it is a whole number from 1.")
    if (hardware.machines, hardware.processes) != (1, 1):
        raise InputError(
            f"hardware asks for {hardware.machines} x {hardware.processes} processes, and each "
            f"trial is trained by one. Set hardware.machines and hardware.processes to 1, or take "
            f"--env=single_gpu."
        )


def space_of(model: str, given: dict[str, Any], training: Training, tuning: Tuning) -> Space:
    """What is tried: the space that is given, or else the model's own, around its options.

    Raises `InputError` on a name that cannot be searched, and on values that the model or the
    training does not allow, in all their combinations (the first 10 000).
    """
    space = tuning.space or _own_space(model, given, training)
    known = values_now(model, given, training)
    for name in space:
        require_known("name in tuning.space", name, known)
    ends = [tried.ends if isinstance(tried, Range) else tried for tried in space.values()]
    for values in islice(product(*ends), MOST_COMBINATIONS):
        combination = dict(zip(space, values, strict=True))
        try:
            with_values(model, given, training, combination)
        except InputError as error:
            raise InputError(f"tuning.space holds {told(combination)}: {error}") from error
    return space


def values_now(model: str, given: dict[str, Any], training: Training) -> dict[str, Any]:
    """Everything that can be searched, by name, with its value without a search."""
    options: Any = plugins.options("model", model, given)
    found = {RATE: options.learning_rate}
    if options.network is not None:
        found |= {f"network.{name}": value for name, value in options.network}
    if options.lora is not None:
        found |= {name: getattr(options.lora, name.removeprefix("lora.")) for name in OF_LORA}
    of_training = {f"{TRAINING}.{name}": value for name, value in training}
    return found | {n: v for n, v in of_training.items() if n.split(".")[1] not in SAME_IN_ALL}


def with_values(
    model: str, given: dict[str, Any], training: Training, values: Mapping[str, Value]
) -> tuple[dict[str, Any], ModelOptions, Training]:
    """The parameters that give the model these values, and what they make of its options.

    Raises `InputError` on values that are not allowed.
    """
    parameters: dict[str, Any] = {"model_options": {model: given}}
    for name, value in values.items():
        path = name.split(".")
        within = () if path[0] == TRAINING else ("model_options", model)
        parameters = _put(parameters, (*within, *path), value)
    options: Any = plugins.options("model", model, parameters["model_options"][model])
    changed = training.model_dump() | parameters.get(TRAINING, {})
    return parameters, options, validated(Training, changed, "parameter 'training'")


def _put(nested: Mapping[str, Any], path: tuple[str, ...], value: Value) -> dict[str, Any]:
    """A copy that has the value there."""
    first, *rest = path
    return {
        **nested,
        first: _put(nested.get(first) or {}, tuple(rest), value) if rest else value,
    }


def _own_space(model: str, given: dict[str, Any], training: Training) -> Space:
    now = values_now(model, given, training)
    rate = now[RATE]
    space: Space = {RATE: Range(low=rate / RATE_TIMES, high=rate * RATE_TIMES, log=True)}
    for name in (*(f"network.{name}" for name in SIZES.get(model, ())), RANK):
        if name in now:
            sizes = sorted({max(now[name] // 2, 1), now[name], now[name] * 2})
            space[name] = tuple(
                size for size in sizes if _is_allowed(model, given, training, name, size)
            )
    if DROPOUT in now:
        space[DROPOUT] = Range(low=0.0, high=MOST_DROPOUT)
    return space


def _is_allowed(
    model: str, given: dict[str, Any], training: Training, name: str, value: Value
) -> bool:
    try:
        with_values(model, given, training, {name: value})
    except InputError:
        return False
    return True


def told(values: Mapping[str, Value]) -> str:
    """The values in words, real numbers to four digits."""
    return ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in values.items()
    )
