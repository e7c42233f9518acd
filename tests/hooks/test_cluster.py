"""Parts prepared by workers are the parts prepared here, and a lost worker loses nothing."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from kedro.framework.context import KedroContext
from kedro.runner import ParallelRunner

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.hooks.cluster import Cluster, ClusterOptions
from tests.conftest import PROJECT, Run

KEDRO = str(Path(sys.executable).parent / "kedro")


def fingerprint(context: KedroContext) -> str:
    return context.catalog.load("corpus").fingerprint


@pytest.mark.slow
def test_workers_of_this_machine_give_the_same_corpus(run: Run, tmp_path: Path) -> None:
    here = run(tmp_path / "here", pipeline="data_processing")
    there = run(
        tmp_path / "there", pipeline="data_processing", cluster={"kind": "local", "memory": "2GiB"}
    )
    assert fingerprint(there) == fingerprint(here)
    from distributed import default_client

    with pytest.raises(ValueError, match="No client"):  # closed at the end of the run
        default_client()


@pytest.mark.slow
def test_workers_are_closed_after_a_run_that_fails(run: Run, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="nobody is left to train on"):
        run(
            tmp_path, pipeline="data_processing", cluster={"kind": "local", "workers": 1},
            splits={"hold_out": "simulated"},
        )  # fmt: skip
    from distributed import default_client

    with pytest.raises(ValueError, match="No client"):
        default_client()


def test_a_runner_of_processes_is_refused_with_workers(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ParallelRunner prepares parts .*cluster.kind=embedded"):
        run(tmp_path, runner=ParallelRunner(), cluster={"kind": "local"})


@pytest.mark.slow
def test_no_worker_is_started_for_parts_that_are_there(run: Run, tmp_path: Path) -> None:
    run(tmp_path, pipeline="data_processing")
    never = {"kind": "slurm", "start_seconds": 1}  # would fail where there is no SLURM
    run(tmp_path, pipeline="data_processing", cluster=never)


@pytest.mark.parametrize("kind", ["local", "slurm"])
def test_an_absent_extra_is_named_with_its_command(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = {"local": "distributed", "slurm": "dask_jobqueue"}[kind]
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(InputError, match=rf"{kind} needs .*pip install \"nocturnal-kedro\[cluster"):
        Cluster()._start(ClusterOptions(kind=kind))  # type: ignore[arg-type]


def test_without_slurm_the_command_that_lacks_is_told(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Exception, match=r"cluster.kind=slurm: .*sbatch.*cluster.kind=local"):
        run(tmp_path, pipeline="data_processing", cluster={"kind": "slurm", "start_seconds": 5})


@pytest.fixture(scope="module")
def slurm(start_slurm: Path) -> Iterator[dict[str, str]]:
    """The environment of a login node of a SLURM cluster with two nodes."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # its keys must lie where all may pass
    folder.chmod(0o755)
    given = {
        "SIM_DIR": str(folder), "SIM_NODES": "2", "SIM_CPUS": "2", "SIM_MEM": "6000",
        "SIM_GPUS": "none", "SIM_BASE_PORT": "17817",
    }  # fmt: skip
    subprocess.run(["bash", start_slurm], env=os.environ | given, check=True, capture_output=True)
    yield os.environ | {"SLURM_CONF": str(folder / "etc" / "slurm.conf")}
    stop = start_slurm.with_name("stop_slurm.sh")
    subprocess.run(["bash", stop], env=os.environ | given, check=False, capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)


def start(tmp_path: Path, environment: dict[str, str], **given: object) -> subprocess.Popen[str]:
    parameters = {
        "data_root": tmp_path / "data", "cluster.workers": 2, "cluster.memory": "2GiB",
        "cluster.log_directory": tmp_path / "log", "cluster.start_seconds": 120, **given,
    }  # fmt: skip
    words = ",".join(f"{name}={value}" for name, value in parameters.items())
    return subprocess.Popen(
        [KEDRO, "run", "--env=slurm", "--pipelines=data_processing", f"--params={words}"],
        cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def jobs(environment: dict[str, str]) -> list[str]:
    told = subprocess.run(
        ["squeue", "-h", "-o", "%i %T"], env=environment, capture_output=True, text=True, check=True
    )
    return [line.split()[0] for line in told.stdout.splitlines() if "RUNNING" in line]


def write_people(root: Path, people: int) -> None:
    """Files like those of azt1d, a part each, large enough that a worker is busy for a while."""
    draw = np.random.default_rng(0)
    times = pd.date_range("2024-01-01", periods=200 * 288, freq="5min").astype(str)
    for number in range(1, people + 1):
        folder = root / "azt1d" / "CGM Records" / f"Subject {number}"
        folder.mkdir(parents=True)
        glucose = 140 + (np.cumsum(draw.normal(0, 2, len(times))) % 60).astype(int)
        frame = pd.DataFrame({"EventDateTime": times, "Basal": 0.8, "CGM": glucose})
        frame = frame.assign(TotalBolusInsulinDelivered="", CarbSize="")
        frame.to_csv(folder / f"Subject {number}.csv", index=False)


@pytest.mark.slow
def test_jobs_of_slurm_give_the_same_corpus_though_they_are_lost(
    slurm: dict[str, str], run: Run, tmp_path: Path
) -> None:
    """Every job is cancelled in the middle of its work; new ones are submitted and do the rest."""
    write_people(tmp_path, people=24)
    source = {"sources": "azt1d", "raw_root": str(tmp_path)}
    running = start(tmp_path, slurm, **source)
    assert running.stdout
    told, lost, done = [], [], []
    for line in running.stdout:
        told.append(line)
        if "0 of 24 parts are unchanged" in line:  # the workers are there and begin
            prepared = tmp_path / "data" / "02_intermediate" / "prepared"
            while len(done) < 3:
                time.sleep(0.05)
                done = list(prepared.glob("*/made_from.json"))
            lost = jobs(slurm)
            subprocess.run(["scancel", *lost], env=slurm, check=True)
    assert running.wait(timeout=300) == 0, "".join(told)
    assert lost
    assert len(done) < 24
    logs = {path.stem for path in (tmp_path / "log").glob("dask-worker-*.err")}
    assert len(logs) > len(lost)  # others were started in their place
    assert jobs(slurm) == []  # and all are gone at the end
    here = run(tmp_path / "here", pipeline="data_processing", **source)
    there = run(tmp_path / "data", pipeline="data_processing", nodes=["split_people"], **source)
    assert fingerprint(there) == fingerprint(here)


@pytest.mark.slow
def test_jobs_that_never_start_end_in_one_error(slurm: dict[str, str], tmp_path: Path) -> None:
    running = start(tmp_path, slurm, **{"cluster.memory": "900GiB", "cluster.start_seconds": 15})
    told, _ = running.communicate(timeout=300)
    assert running.returncode == 1
    assert "Error: cluster.kind=slurm: no worker within 15 s" in told
    assert "Traceback" not in told.split("Error:")[-1]
    assert not list((tmp_path / "data").rglob("series.parquet"))
