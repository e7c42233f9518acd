"""What can be known to be wrong before the first node is told before the first node."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.framework.project import pipelines
from kedro.io import DataCatalog, DatasetError
from kedro.pipeline import Pipeline
from kedro.validation.parameter_validator import ParameterValidator
from pydantic import BaseModel

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError, require_known, validated
from nocturnal_kedro.hooks.cluster import ClusterOptions
from nocturnal_kedro.hooks.command_line import (
    tell_on_the_command_line,
    told_on_the_command_line,
)
from nocturnal_kedro.hooks.record import RUN_RECORD, STAGES
from nocturnal_kedro.registry.tracking import Tracking
from nocturnal_kedro.training.options import Hardware

MODEL_OPTIONS = "params:model_options."
# Parameters that no node takes as they are.
HOOKS_TAKE = ("model_options", "models", "seeds", "cluster", "tracking", "experiment", "model")


class EntryChecks:
    """Builds the pipelines of the selected models; raises on what no run could use."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        from nocturnal_kedro.pipeline_registry import select

        parameters = context.config_loader["parameters"]
        with told_on_the_command_line():
            _require_one_place_of_parameters()
            select(parameters)
            require_known_parameters(parameters, context.config_loader["globals"])

    @hook_impl(tryfirst=True)
    def before_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        needed = pipeline.inputs()
        with told_on_the_command_line():
            for name in sorted(needed):
                if name.startswith(MODEL_OPTIONS):
                    _require_ready(name.removeprefix(MODEL_OPTIONS), catalog.load(name))
            if "params:baseline_options" in needed:
                for name, given in catalog.load("params:baseline_options").items():
                    plugins.options("baseline", name, given)
            if "params:tuning" in needed:
                _require_searchable(catalog)
            if "params:hardware" in needed:
                _require_hardware(catalog, needed)
            _require_made(needed, catalog)


class ClearErrors:
    """On the command line a mistake of the user ends in its message, not in a traceback."""

    @hook_impl
    def on_pipeline_error(self, error: Exception) -> None:
        causes: list[BaseException] = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        for cause in reversed(causes):
            if isinstance(cause, InputError):
                tell_on_the_command_line(cause)
        for cause in reversed(causes):
            if isinstance(cause, DatasetError):
                tell_on_the_command_line(
                    f"{cause}\nA damaged file is made anew by its stage: kedro run "
                    f"--pipelines=STAGE with the same --params; stages: {', '.join(STAGES)}."
                )


def require_known_parameters(parameters: dict[str, Any], shared: dict[str, Any]) -> None:
    """Raise `InputError` on a parameter that nothing takes, or with a value not allowed.

    `shared` are the globals, which `--params` overrides by the same names.
    """
    names = {name for pipeline in pipelines.values() for name in pipeline.inputs()}
    taken_whole = {name for name in names if name.startswith("params:")}
    taken = {name.removeprefix("params:").split(".")[0] for name in taken_whole}
    for name in ("data_root", "raw_root"):
        if not parameters.get(name, shared[name]):
            raise InputError(f"'{name}' is empty; give a folder, or leave it out.")
    for name in ("model_options", "baseline_options", "source_options"):
        given = parameters.get(name, shared.get(name))
        if not isinstance(given, dict):
            raise InputError(
                f"'{name}' is {given!r}; it holds options by name, e.g. "
                f'--params="{name}.NAME.OPTION=VALUE".'
            )
    for name in parameters:
        require_known("parameter", name, {*taken, *HOOKS_TAKE, *shared})
    own = {tuple(name.removeprefix("params:").split(".")) for name in taken_whole if "." in name}
    for section in {path[0] for path in own} - set(HOOKS_TAKE):
        for name in parameters[section]:
            require_known(f"parameter of {section}", name, {p[1] for p in own if p[0] == section})
    options = parameters["model_options"]
    for name in options:
        plugins.require("model", name)
    for name in sorted(n.removeprefix(MODEL_OPTIONS) for n in taken_whole if MODEL_OPTIONS in n):
        if name not in options:
            raise InputError(
                f"model '{name}' has no line under model_options. Add `{name}: {{}}` there, in "
                f"conf/base/parameters.yml."
            )
    for name in plugins.names("sweep"):
        plugins.options("sweep", name, parameters[name])
    _require_no_secret(parameters.get("source_options", shared["source_options"]))
    validated(ClusterOptions, parameters["cluster"], "parameter 'cluster'")
    validated(Tracking, parameters["tracking"], "parameter 'tracking'")
    records = ParameterValidator(dict(pipelines)).type_extractor.extract_types_from_pipelines()
    for name, record in records.items():
        if isinstance(record, type) and issubclass(record, BaseModel):
            given = parameters
            for part in name.split("."):
                given = given[part]
            validated(record, given, f"parameter '{name}'")


def _require_one_place_of_parameters() -> None:
    """Raise `InputError` where --params would take the place of all that --config gives."""
    context = click.get_current_context(silent=True)
    if context is None or "params" not in (context.default_map or {}):
        return
    if context.get_parameter_source("params") is ParameterSource.COMMANDLINE:
        raise InputError(
            "--params would replace all the parameters in the file of --config. Change them in "
            "that file, or in a copy of it, and leave --params out."
        )


def _require_no_secret(source_options: dict[str, Any]) -> None:
    """What is typed as a parameter is recorded and shown: a secret comes from the environment."""
    for source, given in source_options.items():
        options: type[BaseModel] = plugins.load("source", source).Options
        for name, field in options.model_fields.items():
            if "SecretStr" in str(field.annotation) and name in (given or {}):
                raise InputError(
                    f"source '{source}', option '{name}' is a secret, and parameters are recorded. "
                    f"Give it by the environment variable named in conf/base/credentials.yml."
                )


def _require_ready(model: str, given: dict[str, Any]) -> None:
    """Raise `InputError` on options, packages or weights with which the model could not start."""
    options: Any = plugins.options("model", model, given)
    if getattr(options, "weights", None):
        from nocturnal_kedro.training.published import require_found

        require_found(options.weights, options.revision)


def _require_searchable(catalog: DataCatalog) -> None:
    """Raise `InputError` where the first trial could not begin."""
    from nocturnal_kedro.training.space import require_tunable, space_of

    model, trials, hardware, training, tuning = (
        catalog.load(f"params:{name}")
        for name in ("model", "trials", "hardware", "training", "tuning")
    )
    given = catalog.load(MODEL_OPTIONS + model)
    require_tunable(model, plugins.options("model", model, given), trials, hardware)
    space_of(model, given, training, tuning)


def _require_hardware(catalog: DataCatalog, needed: set[str]) -> None:
    """Raise `InputError` on hardware that is not there; torch is imported only to ask for it."""
    hardware = catalog.load("params:hardware")
    if hardware == Hardware():
        return
    from nocturnal_kedro.training.device import require_device, settle

    if "params:training" in needed:
        settle(hardware, catalog.load("params:training"))
    else:
        require_device(hardware.device)


def _require_made(needed: set[str], catalog: DataCatalog) -> None:
    """Raise `InputError` if a dataset that an earlier stage makes is not there."""
    for name in sorted(needed - {RUN_RECORD}):
        if name.startswith("param") or catalog.exists(name):
            continue
        maker, stage = next(
            (maker, stage)
            for maker, pipeline in pipelines.items()
            for node in pipeline.nodes
            if name in node.outputs
            for stage in node.tags
        )
        raise InputError(
            f"'{name}' is needed and does not exist: {catalog[name]}. Run "
            f"`kedro run --pipelines={maker} --tags={stage}` with the same --params first, or give "
            f"the data_root of the run that made it."
        )
