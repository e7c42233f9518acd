"""What many tests start from: invented readings, a small finished run, real data, a browser."""

import fcntl
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import psutil
import pytest
from hypothesis import settings
from kedro.framework.context import KedroContext
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

from nocturnal_kedro import plugins
from nocturnal_kedro.series.corpus import CHANNELS, Corpus, build_corpus
from nocturnal_kedro.series.grid import GridOptions, build_series
from nocturnal_kedro.series.origins import Task, build_origins
from nocturnal_kedro.series.physiology import Physiology
from nocturnal_kedro.series.scaler import Scaler
from nocturnal_kedro.series.schema import Readings, make_tally, readings_frame
from nocturnal_kedro.series.splits import SplitOptions, build_splits
from nocturnal_kedro.series.windows import Channels
from nocturnal_kedro.training.data import Data

# No test is judged by time. In CI the examples are the same at every run; elsewhere new ones.
settings.register_profile("project", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("project")

PROJECT = Path(__file__).parents[1]
RAW_ROOT = Path(os.environ.get("NOCTURNAL_RAW_ROOT", PROJECT.parent / "shared" / "data"))
DAY_SLOTS = 288
SCALER = Scaler(
    dict.fromkeys(CHANNELS, 0.0) | {"glucose_mg_dl": 140.0, "iob_u": 2.0, "cob_g": 10.0},
    dict.fromkeys(CHANNELS, 1.0) | {"glucose_mg_dl": 40.0, "iob_u": 2.0, "cob_g": 15.0},
)
USUAL = Channels(("iob_u", "cob_g", "clock"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """A process for each core, while there are 4 GiB for it and for what its tests start."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(cores, psutil.virtual_memory().available // 2**32))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of several processes, none is to begin a long file when the others are done."""
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: (item.path not in slow, item.path.parent.name != "pipelines"))


def invent_readings(people: int = 8, days: int = 14, seed: int = 0, **changes: float) -> Readings:
    """Smooth glucose with meals and boluses that move it, every 5 minutes on the grid."""
    parts = []
    for person in range(people):
        draw = np.random.default_rng([seed, person])
        slots = days * DAY_SLOTS
        hours = np.arange(slots) / 12
        wave = 35 * np.sin(2 * np.pi * (hours + draw.uniform(0, 24)) / 24)
        glucose = 140 + draw.normal(0, 12) + wave + np.cumsum(draw.normal(0, 1.5, slots)) % 30
        bolus = np.where(draw.random(slots) < 4 / DAY_SLOTS, draw.uniform(1, 6, slots), np.nan)
        carbs = np.where(np.isnan(bolus), np.nan, np.round(bolus * 10))
        parts.append(
            readings_frame(
                {
                    "subject": np.full(slots, f"p{person}"),
                    "time": pd.date_range("2026-01-05", periods=slots, freq="5min"),
                    "glucose_mg_dl": np.clip(glucose, 45, 390),
                    "basal_u_h": np.full(slots, 0.8),
                    "basal_minutes": np.full(slots, 5.0),
                    "bolus_u": bolus,
                    "carbs_g": carbs,
                }
            )
        )
    return Readings(pd.concat(parts, ignore_index=True), make_tally("read", []))


def grid(readings: Readings, source: str = "invented") -> pd.DataFrame:
    return build_series({source: readings}, GridOptions())[0]


@pytest.fixture(scope="session")
def series() -> pd.DataFrame:
    return grid(invent_readings())


@pytest.fixture(scope="session")
def splits(series: pd.DataFrame) -> pd.DataFrame:
    return build_splits(series, SplitOptions())


@pytest.fixture(scope="session")
def corpus(series: pd.DataFrame) -> Corpus:
    return build_corpus(series, Physiology())


@pytest.fixture(scope="session")
def task() -> Task:
    return Task()


@pytest.fixture(scope="session")
def data(corpus: Corpus, splits: pd.DataFrame, task: Task) -> Data:
    return Data(corpus, splits, build_origins(corpus, splits, task)[0], task)


@pytest.fixture(scope="session")
def raw_root() -> Path:
    if not RAW_ROOT.is_dir():
        pytest.skip(f"no real recordings at {RAW_ROOT}; set NOCTURNAL_RAW_ROOT to use them")
    return RAW_ROOT


TRAINED = [name for name in plugins.names("model") if not plugins.is_service(name)]
# Eight people and a handful of steps: the whole graph in seconds.
SMALL = {
    "source_options": {"simulated": {"subjects": 8, "days": 14}},
    "training": {"epochs": 2, "steps_per_epoch": 5},
    "comparison": {"resamples": 500},
    "tracking": {"send": False},  # seconds of each run
    "model_options": {name: {"preset": "tiny"} for name in TRAINED},
    "baseline_options": {
        "auto_ets": {"model": "ANN", "damped": False, "context_steps": 48},
        "gradient_boosting": {"rounds": 3, "leaves": 4, "steps_per_window": 1, "threads": 1},
    },
}

# Eight people, three weeks, both kinds of sensors: every sweep has something to vary.
SWEPT: dict[str, dict[str, Any]] = {
    "ablation": {
        "models": "tsmixer",
        "ablation": {"context_steps": "288", "day_shares": "0.5", "people_shares": "0.5"},
    },
    "night_anchors": {"models": "ttm tsmixer", "night_anchors": {"every_steps": 24}},
    "personalization": {
        "models": "tsmixer",
        "personalization": {
            "days": "3 7", "test_days": 5, "validation_days": 4, "epochs": 1, "steps_per_epoch": 5
        },
    },
    "transfer_learning": {"models": "tsmixer", "transfer_learning": {"few_days": 4}},
}  # fmt: skip

Run = Callable[..., KedroContext]
Sweep = Callable[[str], tuple[Path, KedroContext]]


@pytest.fixture(scope="session")
def project() -> None:
    bootstrap_project(PROJECT)


@pytest.fixture(scope="session")
def run(project: None) -> Run:
    """Run a pipeline of the project with parameters given; returns the context of the run."""

    def run_pipeline(
        data_root: Path,
        pipeline: str = "nocturnal_point",
        runner: Any = None,
        nodes: list[str] | None = None,
        tags: list[str] | None = None,
        load_versions: dict[str, str] | None = None,
        env: str | None = None,
        **given: Any,
    ) -> KedroContext:
        parameters = SMALL | {"data_root": str(data_root)} | given
        with KedroSession.create(
            project_path=PROJECT, env=env, runtime_params=parameters
        ) as session:
            context = session.load_context()
            session.run(
                pipeline_names=pipeline.split(","),
                runner=runner,
                node_names=nodes,
                tags=tags,
                load_versions=load_versions,
            )
            return context

    return run_pipeline


@pytest.fixture(scope="session")
def finished(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, KedroContext]:
    """`nocturnal_point` on the small simulated cohort: its data_root and context."""
    data_root = tmp_path_factory.mktemp("finished")
    return data_root, run(data_root)


@pytest.fixture(scope="session")
def sweep(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A sweep with two seeds by its name: its data_root, which all share, and its context."""
    data_root, made = tmp_path_factory.mktemp("swept"), {}

    def run_once(name: str) -> tuple[Path, KedroContext]:
        if name not in made:
            made[name] = run(
                data_root, pipeline=name, seeds="3 4", splits={"patient_share": 0.25},
                source_options={"simulated": {"subjects": 8, "days": 24, "slow_sensor_share": 0.4}},
                **SWEPT[name],
            )  # fmt: skip
        return data_root, made[name]

    return run_once


@pytest.fixture
def finished_copy(finished: tuple[Path, KedroContext], tmp_path: Path) -> Path:
    """A data_root of the test's own, which holds what the finished run does."""
    return shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def start_slurm() -> Iterator[Path]:
    """The script that starts a cluster: one at a time, as each writes into the table of hosts."""
    script = PROJECT.parent / "shared" / "tools" / "slurm" / "start_slurm.sh"
    if os.geteuid() != 0 or not script.exists():
        pytest.skip("no SLURM to try: it takes root, and a script that starts one")
    with (Path(tempfile.gettempdir()) / "nocturnal-slurm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield script


class Browser:
    """Headless Chromium, and what it logged of a page."""

    def __init__(self, folder: Path) -> None:
        from selenium.webdriver import Chrome, ChromeOptions
        from selenium.webdriver.chrome.service import Service

        options = ChromeOptions()
        for argument in (
            "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
            "disable-background-networking", "disable-component-update", "disable-sync",
            "hide-scrollbars", "window-size=1280,900", f"user-data-dir={folder}",
        ):  # fmt: skip
            options.add_argument(f"--{argument}")
        options.binary_location = shutil.which("chromium") or ""
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = Chrome(options, Service(shutil.which("chromedriver")))

    def open(self, address: str) -> None:
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.driver.get(address)

    def faults(self) -> list[str]:
        """Errors on the console since the page was opened."""
        return [e["message"] for e in self.driver.get_log("browser") if e["level"] == "SEVERE"]

    def outside_requests(self) -> list[str]:
        """Addresses asked for that are neither this machine's nor part of the page."""
        events = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        asked = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return [
            address
            for address in asked
            if urlsplit(address).scheme in ("http", "https", "ws", "wss")
            and urlsplit(address).hostname not in ("localhost", "127.0.0.1")
        ]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    missing = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    if missing and not os.environ.get("CI"):
        pytest.skip(f"needs {' and '.join(missing)}; .ci/run installs them")
    opened = Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.driver.quit()
