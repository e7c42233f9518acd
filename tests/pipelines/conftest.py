"""Sessions of the real project, and one small finished run that many tests look at."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kedro.framework.context import KedroContext
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

from tests.conftest import PROJECT

# Eight people and a handful of steps: the whole graph in seconds.
SMALL = {
    "source_options": {"simulated": {"subjects": 8, "days": 14}},
    "training": {"epochs": 2, "steps_per_epoch": 5},
    "model_options": {
        "ttm": {"d_model": 16, "decoder_d_model": 16},
        "chronos2": {"d_model": 16, "heads": 2, "d_ff": 16, "layers": 1},
    },
}

Run = Callable[..., KedroContext]


@pytest.fixture(scope="session", autouse=True)
def project() -> None:
    bootstrap_project(PROJECT)


@pytest.fixture(scope="session")
def run() -> Run:
    """Run a pipeline of the project with parameters given; returns the context of the run."""

    def run_pipeline(data_root: Path, pipeline: str = "nocturnal_point", **given: Any):
        parameters = SMALL | {"data_root": str(data_root)} | given
        with KedroSession.create(project_path=PROJECT, runtime_params=parameters) as session:
            context = session.load_context()
            session.run(pipeline_names=[pipeline])
            return context

    return run_pipeline


@pytest.fixture(scope="session")
def finished(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, KedroContext]:
    """`nocturnal_point` on the small simulated cohort: its data_root and context."""
    data_root = tmp_path_factory.mktemp("finished")
    return data_root, run(data_root)
