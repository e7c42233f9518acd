"""A folder of modules is the list of what can be named: sources, models, baselines, sweeps."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from nocturnal_kedro.errors import InputError, require_known, validated

KINDS = {"source": "sources", "model": "models", "baseline": "baselines", "sweep": "sweeps"}


def names(kind: str) -> tuple[str, ...]:
    """Names of every plug-in of a kind: its folder's modules that do not start with `_`."""
    package = importlib.import_module(f"nocturnal_kedro.{KINDS[kind]}")
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return tuple(sorted(name for name in found if not name.startswith("_")))


def require(kind: str, name: str) -> str:
    """Return `name` if there is such a plug-in; otherwise raise `InputError` with the known."""
    return require_known(kind, name, names(kind))


def load(kind: str, name: str) -> ModuleType:
    """Import one plug-in; an unknown name raises `InputError` with the known ones."""
    require(kind, name)
    return importlib.import_module(f"nocturnal_kedro.{KINDS[kind]}.{name}")


def is_service(model: str) -> bool:
    """Whether a model runs elsewhere, behind an API, and is asked instead of trained."""
    return hasattr(load("model", model), "answer")


def options(kind: str, name: str, given: dict[str, Any] | None) -> BaseModel:
    """The plug-in's `Options`, with its defaults and what was `given` over them.

    Raises `InputError` on options that it does not allow, and where a package that it needs is not
    installed.
    """
    record: type[BaseModel] = load(kind, name).Options
    _require_installed(kind, name, getattr(record, "packages", ()), getattr(record, "extra", None))
    return validated(record, given, f"options of {kind} '{name}'")


def _require_installed(kind: str, name: str, packages: tuple[str, ...], extra: str | None) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(
            f"{kind} '{name}' needs {', '.join(missing)}, which is not installed: "
            f"pip install 'nocturnal-kedro[{extra}]', in a checkout "
            f"pip install -c constraints.txt -e '.[{extra}]'."
        )
