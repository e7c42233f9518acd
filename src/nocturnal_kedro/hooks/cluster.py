"""Where the parts of the sources are prepared: in this process, or on workers of a cluster."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from pydantic import BaseModel, Field

from nocturnal_kedro.datasets import PreparedDataset
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.hooks.command_line import told_on_the_command_line

logger = logging.getLogger(__name__)

PARAMETER, PREPARED = "cluster", "prepared"
INSTALL = 'pip install "nocturnal-kedro[cluster]"'


class ClusterOptions(BaseModel, extra="forbid", frozen=True):
    """Dask's embedded scheduler, processes of this machine, or jobs of SLURM."""

    kind: Literal["embedded", "local", "slurm"] = "embedded"
    workers: int = Field(default=2, ge=1)  # processes, or SLURM jobs; a lost one is replaced
    cores: int = Field(default=1, ge=1)  # of each
    memory: str = "8GiB"  # of each
    partition: str | None = None  # these and the following are SLURM's alone
    account: str | None = None
    walltime: str = "01:00:00"
    interface: str | None = None  # of the network between the nodes, e.g. ib0
    directives: tuple[str, ...] = ()  # further #SBATCH lines, e.g. --constraint=...
    prologue: tuple[str, ...] = ()  # lines of the job script before the worker, e.g. module load
    log_directory: str | None = None
    start_seconds: float = Field(default=600, gt=0)  # until the first worker must be there


class Cluster:
    """Opens the workers when there are parts to prepare, and closes them as soon as they are."""

    def __init__(self) -> None:
        self._options = ClusterOptions()
        self._prepared: PreparedDataset | None = None
        self._open: list[Any] = []  # closed in reverse

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        self._prepared = None
        if PREPARED not in pipeline.all_outputs():
            return
        self._options = ClusterOptions.model_validate(catalog.load(f"params:{PARAMETER}"))
        if self._options.kind == "embedded":
            return
        if "ParallelRunner" in str(run_params["runner"]):
            with told_on_the_command_line():
                raise InputError(
                    f"--runner=ParallelRunner prepares parts in a process that has no workers: run "
                    f"data_processing by itself without it, or with cluster.kind=embedded instead "
                    f"of {self._options.kind}."
                )
        self._prepared = catalog[PREPARED]  # type: ignore[assignment]

    @hook_impl
    def before_dataset_saved(self, dataset_name: str, data: Any) -> None:
        if dataset_name == PREPARED and self._prepared and self._prepared.absent(data):
            self._start(self._options)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str) -> None:
        if dataset_name == PREPARED:
            self._close()

    @hook_impl(tryfirst=True)
    def on_pipeline_error(self) -> None:
        self._close()

    def _start(self, options: ClusterOptions) -> None:
        try:
            import dask

            # Each worker that comes or goes is told otherwise; its own log keeps that.
            dask.config.set({"logging.distributed": "warning"})
            os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "warning")  # for what it starts
            from distributed import Client
        except ImportError as error:
            raise InputError(
                f"cluster.kind={options.kind} needs Dask's scheduler, which is not installed: "
                f"{INSTALL}. Or leave cluster.kind=embedded."
            ) from error
        try:
            cluster = _slurm(options) if options.kind == "slurm" else _local(options)
            self._open.append(cluster)
            client = Client(cluster)  # from here on, Dask computes there
            self._open.append(client)
            _wait(client, options)
        except BaseException:
            self._close()
            raise
        logger.info("%s: %d workers asked for, the first is there", options.kind, options.workers)

    def _close(self) -> None:
        while self._open:
            self._open.pop().close()


def _local(options: ClusterOptions) -> Any:
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=options.workers,
        threads_per_worker=options.cores,
        memory_limit=options.memory,
        dashboard_address=None,
    )


def _slurm(options: ClusterOptions) -> Any:
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise InputError(
            f"cluster.kind=slurm needs dask-jobqueue, which is not installed: {INSTALL}."
        ) from error
    if shutil.which("sbatch") is None:
        raise InputError(
            "cluster.kind=slurm: there is no command 'sbatch' on this machine. Run on a login node "
            "of the cluster, or with cluster.kind=local."
        )
    answer = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise InputError(
            f"cluster.kind=slurm: no SLURM controller answers ({answer.stderr.strip()}). Run on a "
            f"login node of the cluster, or with cluster.kind=local."
        )
    cluster = SLURMCluster(
        queue=options.partition,
        account=options.account,
        cores=options.cores,
        processes=1,
        memory=options.memory,
        walltime=options.walltime,
        interface=options.interface,
        python=sys.executable,
        job_extra_directives=list(options.directives),
        job_script_prologue=list(options.prologue),
        log_directory=options.log_directory and str(Path(options.log_directory).resolve()),
        scheduler_options={"dashboard": False},
    )
    # Adaptive between the same two numbers: a job that is lost is submitted again.
    cluster.adapt(minimum_jobs=options.workers, maximum_jobs=options.workers)
    return cluster


def _wait(client: Any, options: ClusterOptions) -> None:
    try:
        client.wait_for_workers(1, timeout=options.start_seconds)
    except TimeoutError as error:
        raise InputError(
            f"cluster.kind={options.kind}: no worker within {options.start_seconds:g} s. See "
            f"`squeue --me` for why its jobs wait, and the job's log; check cluster.partition, "
            f"cluster.account, cluster.memory and cluster.interface, or give more "
            f"cluster.start_seconds."
        ) from error
