"""How a model starts: fresh, from a checkpoint or from a model fitted before; and LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.models import LoRA, ModelOptions
from nocturnal_kedro.series.origins import Task
from nocturnal_kedro.series.scaler import GLUCOSE, Scaler
from nocturnal_kedro.series.windows import Channels
from nocturnal_kedro.training.artifact import Artifact, load_artifact, sha256
from nocturnal_kedro.training.published import find_checkpoint, is_artifact

State = dict[str, torch.Tensor]
BESIDE = ".base_layer."  # what peft puts into the name of a weight that has an adapter


@dataclass(frozen=True)
class Start:
    """A module that is ready to be trained or, as it is, to forecast."""

    module: nn.Module
    options: ModelOptions  # with the covariates that it is given
    architecture: dict[str, Any]
    base: dict[str, Any] | None
    fresh: frozenset[str]  # weights that no checkpoint had
    earlier: Artifact | None = None  # that its weights are of

    @property
    def channels(self) -> Channels:
        """What its windows hold."""
        return Channels(self.options.covariates or ())

    def trained_weights(self) -> set[str]:
        """Names in the state of what training changes, and of what no checkpoint has."""
        trained = {name for name, weight in self.module.named_parameters() if weight.requires_grad}
        everything = set(self.module.state_dict())
        if len(trained) == len(list(self.module.parameters())):
            return everything  # nothing is left to take from elsewhere
        return {n for n in everything if n in trained or n.replace(BESIDE, ".") in self.fresh}


def start_model(name: str, options: ModelOptions, task: Task) -> Start:
    """The model as its strategy starts it; draws from torch's generator.

    Raises `InputError` on weights that are absent, damaged, of another model or of another task,
    and where zero_shot would forecast with weights that no checkpoint has.
    """
    if options.strategy == "from_scratch":
        return _start_fresh(name, options, task)
    assert options.weights is not None  # ModelOptions has seen to it
    if is_artifact(options.weights):
        start = _start_from_artifact(name, options, task)
    else:
        start = _start_from_checkpoint(name, options, task)
    if options.strategy == "zero_shot" and start.fresh:
        raise InputError(
            f"model '{name}': strategy zero_shot takes weights as they are, and "
            f"'{options.weights}' lacks {_some(start.fresh)}. Choose fine_tune, which trains them."
        )
    if options.lora:
        targets = options.lora.targets or options.lora_targets
        attach(start.module, options.lora, targets, start.fresh)
    if options.layers == "head":
        for part, weight in start.module.named_parameters():
            weight.requires_grad = part.startswith(options.head) or part in start.fresh
    return start


def _start_fresh(name: str, options: ModelOptions, task: Task) -> Start:
    options = _with_covariates(options, options.can_use)
    channels = Channels(options.covariates or ())
    code = plugins.load("model", name)
    architecture = code.configure(options.network, task, channels)
    module = code.build(architecture, task, channels)
    return Start(module, options, architecture, None, frozenset(module.state_dict()))


def _start_from_checkpoint(name: str, options: ModelOptions, task: Task) -> Start:
    weights = options.weights
    assert weights is not None  # ModelOptions has seen to it
    usable = options.can_use_untrained if options.strategy == "zero_shot" else options.can_use
    for covariate in options.covariates or ():
        if covariate not in usable:
            raise InputError(
                f"model '{name}': the published checkpoint cannot be given '{covariate}' "
                f"untrained; it can be given: {', '.join(usable) or 'none'}. Choose strategy "
                f"fine_tune, or leave it out."
            )
    options = _with_covariates(options, usable)
    channels = Channels(options.covariates or ())
    code = plugins.load("model", name)
    if not hasattr(code, "adapt"):
        raise InputError(
            f"weights '{weights}': there are no published checkpoints of '{name}'. Give the folder "
            f"of a '{name}' fitted before, data/06_models/EXPERIMENT/{name}/VERSION/{name}."
        )
    checkpoint = find_checkpoint(weights, options.revision)
    try:
        around = (options.network,) if options.network else ()
        architecture = code.adapt(checkpoint.folder, task, channels, *around)
        module = code.build(architecture, task, channels)
    except KeyError as error:
        raise InputError(
            f"weights '{options.weights}' are not of '{name}': config.json has no {error}."
        ) from error
    fresh = _take(module, _network_state(checkpoint.state(), code), weights)
    plain = module
    if channels.covariates:  # whose weights no checkpoint has
        alone = Channels(())
        plain = code.build(code.adapt(checkpoint.folder, task, alone), task, alone)
    lost = {name for name in fresh & set(plain.state_dict()) if name.startswith("network.")}
    if lost:
        raise InputError(
            f"weights '{weights}' lack {len(lost)} of the network's own weights, "
            f"{_some(lost)}: they would start at random. Save the model whole, by save_pretrained."
        )
    return Start(module, options, architecture, checkpoint.identity(), fresh)


def _start_from_artifact(name: str, options: ModelOptions, task: Task) -> Start:
    assert options.weights is not None
    folder = Path(options.weights).expanduser().resolve()
    artifact = load_artifact(folder)
    learnt = Task.model_validate(artifact.record["task"])
    asked = (task.context_steps, task.horizon_steps)
    if artifact.name != name or (learnt.context_steps, learnt.horizon_steps) != asked:
        raise InputError(
            f"weights '{options.weights}' are of '{artifact.name}' with {learnt.context_steps} "
            f"steps of context and {learnt.horizon_steps} of horizon; '{name}' with {asked[0]} and "
            f"{asked[1]} was asked for."
        )
    covariates = tuple(artifact.options["covariates"])
    if options.covariates is not None and options.covariates != covariates:
        given = ", ".join(covariates) or "glucose alone"
        raise InputError(
            f"weights '{options.weights}' have learnt from {given}: leave covariates out, or give "
            f"these."
        )
    if options.network:
        raise InputError(
            f"weights '{options.weights}' are of a fitted '{name}', all of whose sizes stand: "
            f"leave network out."
        )
    earlier = restore_model(artifact, task)
    merge(earlier)
    # Built anew, since adapters have frozen what was beside them.
    module: nn.Module = plugins.load("model", name).build(
        artifact.architecture, task, Channels(covariates)
    )
    module.load_state_dict(earlier.state_dict())
    base = {"weights": str(folder), "revision": None, "sha256": _hash_of_artifact(folder)}
    options = options.model_copy(update={"covariates": covariates})
    return Start(module, options, artifact.architecture, base, frozenset(), artifact)


def _with_covariates(options: ModelOptions, usable: tuple[str, ...]) -> ModelOptions:
    if options.covariates is not None:
        return options
    return options.model_copy(
        update={"covariates": tuple(name for name in options.usual if name in usable)}
    )


def restore_model(artifact: Artifact, task: Task) -> nn.Module:
    """The module of a fitted model, with the weights that it was saved with.

    Raises `InputError` where the checkpoint that it stands on is gone or is another.
    """
    options: Any = plugins.options("model", artifact.name, artifact.options)
    code = plugins.load("model", artifact.name)
    channels = Channels(tuple(artifact.options["covariates"]))
    try:
        module: nn.Module = code.build(artifact.architecture, task, channels)
    except KeyError as error:
        raise InputError(
            f"the artifact of '{artifact.name}' was written by another version of the project: its "
            f"architecture has no {error}. Run the training pipeline again."
        ) from error
    state = {key: torch.from_numpy(value) for key, value in artifact.state.items()}
    adapted = options.lora is not None and not options.lora.merge
    lacking = set(module.state_dict()) - set(state)
    if adapted or lacking:
        if artifact.base is None:
            raise InputError(
                f"the artifact of '{artifact.name}' lacks {_some(lacking)}: it was written by "
                f"another version. Run the training pipeline again."
            )
        base = _base_state(artifact, task)
        _take(module, base, artifact.base["weights"])
        if adapted:
            attach(module, options.lora, options.lora.targets or options.lora_targets, frozenset())
    wrong = _misfits(module, state)
    if wrong or set(state) - set(module.state_dict()):
        raise InputError(
            f"the weights of '{artifact.name}' do not fit its architecture "
            f"({_some(wrong or set(state) - set(module.state_dict()))}): it was written by another "
            f"version. Run the training pipeline again."
        )
    module.load_state_dict(state, strict=False)
    tell_scale(module, artifact.scaler)
    return module


def tell_scale(module: Any, scaler: Scaler) -> None:
    """Tell a module that reads mg/dL what the glucose of its batches was scaled by."""
    if hasattr(module, "glucose_scale"):
        module.glucose_scale = (scaler.mean[GLUCOSE], scaler.std[GLUCOSE])


def _base_state(artifact: Artifact, task: Task) -> State:
    assert artifact.base is not None
    weights, revision = artifact.base["weights"], artifact.base["revision"]
    if is_artifact(weights):
        earlier = restore_model(load_artifact(Path(weights)), task)
        merge(earlier)
        hashes = _hash_of_artifact(Path(weights))
        state = earlier.state_dict()
    else:
        checkpoint = find_checkpoint(weights, revision)
        hashes = checkpoint.identity()["sha256"]
        state = _network_state(checkpoint.state(), plugins.load("model", artifact.name))
    if hashes != artifact.base["sha256"]:
        raise InputError(
            f"'{artifact.name}' was fitted to other weights than '{weights}' holds now. Give that "
            f"folder its old content, or run the training pipeline again."
        )
    return state


def _hash_of_artifact(folder: Path) -> dict[str, str]:
    weights = folder / "weights.safetensors"
    return {weights.name: sha256(weights)}


def _network_state(state: State, code: Any) -> State:
    """A library's names as those below the attribute `network`."""
    rename = getattr(code, "weight_name", lambda name: name)
    return {f"network.{rename(name)}": weight for name, weight in state.items()}


def _take(module: nn.Module, state: State, weights: str) -> frozenset[str]:
    """Load what fits by name and shape; return the names of what was not there to load."""
    wrong = _misfits(module, state)
    if wrong:
        own = module.state_dict()
        name = sorted(wrong)[0]
        raise InputError(
            f"weights '{weights}' are of another size: {name} has the shape "
            f"{tuple(state[name].shape)} there, and {tuple(own[name].shape)} by its configuration."
        )
    taken = module.load_state_dict(state, strict=False)
    own = module.state_dict()
    loaded = {own[name].data_ptr() for name in state if name in own}
    if not loaded:
        raise InputError(
            f"weights '{weights}' are of another model: none of their {len(state)} names is known."
        )
    # A weight under two names (tied embeddings) is stored under one.
    return frozenset(name for name in taken.missing_keys if own[name].data_ptr() not in loaded)


def _misfits(module: nn.Module, state: State) -> set[str]:
    own = module.state_dict()
    return {name for name in state if name in own and state[name].shape != own[name].shape}


def attach(
    module: nn.Module,
    lora: LoRA,
    targets: tuple[str, ...] | Literal["all-linear"],
    fresh: frozenset[str],
) -> None:
    """Put adapters beside the targeted layers; only they, and `fresh`, are trained.

    Raises `InputError` where no layer has such a name.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    linear = {
        name: part for name, part in module.named_modules() if isinstance(part, nn.Linear | Conv1D)
    }
    chosen = [
        name
        for name in linear
        if targets == "all-linear" or any(f".{name}".endswith(f".{end}") for end in targets)
    ]
    if not chosen:
        ends = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise InputError(
            f"lora: no linear layer's name ends in {', '.join(targets)}; names end in: "
            f"{', '.join(ends)}."
        )
    inject_adapter_in_model(
        LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=chosen,
            fan_in_fan_out=all(isinstance(linear[name], Conv1D) for name in chosen),
        ),
        module,
    )
    for name, weight in module.named_parameters():
        weight.requires_grad = ".lora_" in name or name.replace(BESIDE, ".") in fresh


def merge(module: nn.Module) -> None:
    """Fold every adapter into the weights beside it, and take it away."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, part in list(module.named_modules()):
        if isinstance(part, BaseTunerLayer):
            part.merge()
            above, _, last = name.rpartition(".")
            setattr(module.get_submodule(above), last, part.get_base_layer())
    if hasattr(module, "peft_config"):
        del module.peft_config


def _some(names: set[str] | frozenset[str]) -> str:
    shown = sorted(names)
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    return ", ".join(shown[:3]) + more
