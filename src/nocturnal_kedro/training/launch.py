"""A training by several processes: they are started, waited for, and give back one result.

Each is `training.worker`, which knows nothing of Kedro; what it needs lies in a folder.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import BaseModel

from nocturnal_kedro.errors import InputError, StoppedError
from nocturnal_kedro.series.origins import Task
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.learn import Learnt
from nocturnal_kedro.training.options import SettledHardware, Training
from nocturnal_kedro.training.stop import SIGNALS, StopRequest

logger = logging.getLogger(__name__)

JOB, STOP, OUTCOME, STATE, LOG = "job.json", "stop", "outcome.json", "state.pt", "log.parquet"
NODES_OF_JOB = "SLURM_JOB_NODELIST"
PR_SET_PDEATHSIG = 1


class Job(BaseModel, extra="forbid", frozen=True):
    """What the processes of a training are told; the data lie beside it."""

    name: str
    options: dict[str, Any]  # of the model, whole
    task: Task
    training: Training
    hardware: SettledHardware
    checkpoints: str | None


class Outcome(BaseModel, extra="forbid", frozen=True):
    """How the processes ended."""

    stopped: str | None = None
    refused: str | None = None
    best_epoch: int = 0
    trained_parameters: int = 0
    windows: int = 0
    seconds: float = 0.0


def learn_on_processes(job: Job, data: Data) -> Learnt:
    """Start the processes of `job.hardware`, and wait for what they have learnt.

    A process that is lost takes the others with it, and all start again from the last checkpoint,
    `hardware.restarts` times at most. Raises `InputError` where they refuse or fail, `StoppedError`
    where they were told to stop.
    """
    room = (
        nullcontext(str(Path(job.checkpoints) / "job"))
        if job.checkpoints
        else tempfile.TemporaryDirectory(prefix="nocturnal-")
    )
    with room as named:
        folder = Path(named)
        for earlier in (STOP, OUTCOME):
            (folder / earlier).unlink(missing_ok=True)
        _write(job, data, folder)
        command = [*_srun(job.hardware), *_torchrun(job.hardware), str(folder)]
        with StopRequest(told=(folder / STOP).touch) as stop:
            # Started anew from here: torchrun's own restarts may meet at the address of the dead.
            for left in range(job.hardware.restarts, -1, -1):
                with subprocess.Popen(
                    command, env=_environment(job.hardware), preexec_fn=_tie_to_us
                ) as started:
                    code = started.wait()
                if (folder / OUTCOME).exists() or stop.asked or not left:
                    break
                logger.warning(
                    "model '%s': a process of its training was lost (exit code %d); all start "
                    "again from the last checkpoint, at most %d times",
                    job.name,
                    code,
                    left,
                )
        return _read_outcome(folder, job, code)


def _write(job: Job, data: Data, folder: Path) -> None:
    shutil.rmtree(folder / "data", ignore_errors=True)
    (folder / "data").mkdir(parents=True)
    data.write(folder / "data")
    (folder / JOB).write_text(job.model_dump_json(indent=2))


def read_job(folder: Path) -> tuple[Job, Data]:
    """What a process is told."""
    job = Job.model_validate_json((folder / JOB).read_text())
    return job, Data.read(folder / "data", job.task)


def write_learnt(learnt: Learnt, folder: Path) -> None:
    """The result, whole before the outcome tells of it."""
    torch.save(learnt.state, folder / STATE)
    learnt.log.to_parquet(folder / LOG)
    write_outcome(
        Outcome(
            best_epoch=learnt.best_epoch,
            trained_parameters=learnt.trained_parameters,
            windows=learnt.windows,
            seconds=learnt.seconds,
        ),
        folder,
    )


def write_outcome(outcome: Outcome, folder: Path) -> None:
    """How it ended, for the process that waits."""
    fresh = folder / f"{OUTCOME}.{os.getpid()}"
    fresh.write_text(outcome.model_dump_json())
    fresh.rename(folder / OUTCOME)


def _read_outcome(folder: Path, job: Job, code: int) -> Learnt:
    if not (folder / OUTCOME).exists():
        hardware = job.hardware
        raise InputError(
            f"model '{job.name}': the {hardware.machines} x {hardware.processes} processes of its "
            f"training ended with exit code {code}, after {hardware.restarts} restarts; what they "
            f"said stands above. Run the same command again: the training goes on from the last "
            f"checkpoint."
        )
    outcome = Outcome.model_validate_json((folder / OUTCOME).read_text())
    if outcome.stopped:
        raise StoppedError(outcome.stopped)
    if outcome.refused:
        raise InputError(outcome.refused)
    return Learnt(
        state=torch.load(folder / STATE, weights_only=True),
        log=pd.read_parquet(folder / LOG),
        best_epoch=outcome.best_epoch,
        trained_parameters=outcome.trained_parameters,
        windows=outcome.windows,
        seconds=outcome.seconds,
    )


def _torchrun(hardware: SettledHardware) -> list[str]:
    """On the CPU `accelerate launch` would quietly start one process alone."""
    if hardware.machines == 1:
        meet = ["--standalone"]
    else:
        job = os.environ["SLURM_JOB_ID"]
        meet = [
            f"--nnodes={hardware.machines}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={_first_node()}:{29500 + int(job) % 1000}",
            f"--rdzv-id={job}",
        ]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *meet,
        f"--nproc-per-node={hardware.processes}",
        "--max-restarts=0",
        "--monitor-interval=1",
        "-m",
        "nocturnal_kedro.training.worker",
    ]


def _environment(hardware: SettledHardware) -> dict[str, str]:
    """The cores shared out among the processes, unless somebody has done so."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    threads = max(cores // hardware.processes, 1)
    return {"OMP_NUM_THREADS": str(threads), **os.environ}


def _srun(hardware: SettledHardware) -> list[str]:
    """One start for each machine of the job."""
    if hardware.machines == 1:
        return []
    return [
        "srun",
        f"--nodes={hardware.machines}",
        f"--ntasks={hardware.machines}",
        "--ntasks-per-node=1",
        "--kill-on-bad-exit=1",
    ]


def _first_node() -> str:
    nodes = os.environ[NODES_OF_JOB]
    told = subprocess.run(
        ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
    )
    return told.stdout.split()[0]


def _tie_to_us() -> None:
    """A signal to the whole group must not end the processes before they have saved."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    die_with_parent()


def die_with_parent() -> None:
    """Whoever started this process takes it along, even by kill -9; on Linux alone.

    Left behind, it would go on writing checkpoints that a new run goes on from.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
