"""One process of a training: python -m nocturnal_kedro.training.worker FOLDER, by torchrun."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import torch
from torch import distributed

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError, StoppedError
from nocturnal_kedro.training.launch import (
    STOP,
    Outcome,
    die_with_parent,
    read_job,
    write_learnt,
    write_outcome,
)
from nocturnal_kedro.training.learn import begin, learn
from nocturnal_kedro.training.loop import Care
from nocturnal_kedro.training.resume import Checkpoints
from nocturnal_kedro.training.stop import StopRequest


def main(folder: Path) -> None:
    """Train as the folder says; the first process writes there how it ended."""
    die_with_parent()
    first = os.environ["RANK"] == "0"
    logging.basicConfig(
        level=logging.INFO if first else logging.WARNING,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
    )
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it tells of every file it writes
    refused = False
    try:
        with StopRequest(folder / STOP) as stop:
            job, data = read_job(folder)
            if job.hardware.device == "gpu":
                _take_own_gpu()
            options = plugins.options("model", job.name, job.options)
            begun = begin(job.name, options, data, job.training, job.hardware)
            kept = Path(job.checkpoints) if job.checkpoints else None
            steps = job.hardware.checkpoint_steps
            learnt = learn(begun, Care(Checkpoints(kept, steps) if kept else None, stop))
        if first:
            write_learnt(learnt, folder)
    except StoppedError as stopped:
        if first:
            write_outcome(Outcome(stopped=str(stopped)), folder)
    except InputError as error:  # a second try would end the same: there is none
        refused = True
        write_outcome(Outcome(refused=str(error)), folder)
    if distributed.is_initialized():
        if not refused:  # one alone may have refused: the others, cut off from it, end by that
            distributed.barrier()  # without, about one run in seven dies at its exit
        distributed.destroy_process_group()
    elif refused:
        sys.exit(1)


def _take_own_gpu() -> None:
    own, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if own >= there:
        raise InputError(
            f"this machine has {there} GPUs, and {os.environ['LOCAL_WORLD_SIZE']} processes were "
            f"started on it. Set hardware.processes to what every machine has."
        )
    torch.cuda.set_device(own)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
