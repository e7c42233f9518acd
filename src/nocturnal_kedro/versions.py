"""Which versions of what made a result."""

from __future__ import annotations

import importlib.metadata
import platform

RECORDED_PACKAGES = (
    "nocturnal-kedro",
    "kedro",
    "torch",
    "granite-tsfm",
    "chronos-forecasting",
    "neuralforecast",
    "transformers",
    "peft",
    "accelerate",
    "deepspeed",
    "lightgbm",
    "statsforecast",
    "numpy",
    "pandas",
)


def versions() -> dict[str, str]:
    """Python and the packages that numbers depend on, by name."""
    installed = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = "not installed"
    return installed
