"""The batch scripts on a real SLURM controller: what is taken back or lost there changes nothing.

Two nodes in networks of their own, with GPUs that are none: training is told to use the CPU.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from nocturnal_kedro import plugins
from nocturnal_kedro.training.artifact import Artifact, load_artifact
from tests.conftest import PROJECT, SMALL, Run

pytestmark = pytest.mark.slow

ON_LOGIN_NODE = '. "$SIM_DIR/env.sh"; sim "$@"'
ONE_MODEL = "--namespaces=nocturnal_point.ttm"
TRAINING = {"epochs": 2, "steps_per_epoch": 60, "batch_size": 16}
HARDWARE = {"device": "cpu", "precision": "fp32", "processes": 1, "checkpoint_steps": 5}
BASELINES = plugins.names("baseline")
SECONDS = 240

Login = Callable[..., str]


@pytest.fixture(scope="module")
def login(start_slurm: Path) -> Iterator[Login]:
    """Runs a command on the login node, in the project's folder; returns what it says."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # its keys must lie where all may pass
    folder.chmod(0o755)
    given = os.environ | {
        "SIM_DIR": str(folder), "SIM_MODE": "netns", "SIM_NS": f"scripts{os.getpid()}",
        "SIM_NODES": "2", "SIM_CPUS": "8", "SIM_MEM": "6000", "SIM_GPUS": "a100:4",
        "SIM_BASE_PORT": "18817",
    }  # fmt: skip
    subprocess.run(["bash", start_slurm], env=given, check=True, capture_output=True)
    settings = {"VENV": str(Path(sys.executable).parents[1]), "OMP_NUM_THREADS": "1"}

    def run_there(*command: object, **more: str) -> str:
        done = subprocess.run(
            ["bash", "-c", ON_LOGIN_NODE, "_", *map(str, command)],
            cwd=PROJECT, env=given | settings | more, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    yield run_there
    stop = start_slurm.with_name("stop_slurm.sh")
    subprocess.run(["bash", stop], env=given, check=False, capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def prepared(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "data"
    run(folder, pipeline="data_processing")
    return folder


def words(given: dict[str, Any], prefix: str = "") -> list[str]:
    """Parameters as `--params` takes them."""
    return [
        word
        for name, value in given.items()
        for word in (
            words(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else [f"{prefix}{name}={value}"]
        )
    ]


def parameters(**given: object) -> str:
    return ",".join(words(SMALL | {"hardware": HARDWARE} | given))


class Job:
    """A training by one of the scripts, in a folder of its own."""

    def __init__(
        self,
        login: Login,
        prepared: Path,
        folder: Path,
        script: str,
        *options: str,
        **hardware: Any,
    ) -> None:
        self.login, self.root, self.log = login, folder / "data", folder / "job.log"
        shutil.copytree(prepared, self.root)
        self.number = login(
            "sbatch", "--parsable", "--mem=2400", "--cpus-per-task=2", f"--output={self.log}",
            *options, f"slurm/{script}", ONE_MODEL,
            EXPERIMENT="training",
            PARAMS=parameters(
                data_root=self.root, training=TRAINING, hardware=HARDWARE | hardware
            ),
        ).strip()  # fmt: skip

    def told(self, name: str) -> str:
        """What SLURM says of it, such as JobState."""
        said = self.login("scontrol", "show", "job", self.number, "--oneliner")
        return dict(word.split("=", 1) for word in said.split() if "=" in word)[name]

    def wait(self) -> Artifact:
        """What it has learnt, when it has ended."""
        wait_for_all(self.login)
        assert self.told("JobState") == "COMPLETED", self.log.read_text()
        return fitted(self.root)

    def wait_for_checkpoint(self) -> None:
        kept = "06_models/*/unfinished/ttm/*/forecast/step-*"
        wait_until(lambda: any(self.root.glob(kept)))

    def processes(self, part: str) -> list[psutil.Process]:
        """Those of its processes that were started with this word, on any node."""
        return [
            process
            for process in psutil.process_iter(["cmdline"])
            if part in (line := process.info["cmdline"] or ())
            and any(str(self.root) in word for word in line)
        ]


def wait_until(true: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end, f"not so within {SECONDS} s"
        time.sleep(0.1)


def wait_for_all(login: Login) -> None:
    """Until no job waits, runs or ends."""
    wait_until(lambda: not login("squeue", "--noheader"))


def fitted(root: Path) -> Artifact:
    [folder] = root.glob("06_models/nocturnal_point/ttm/*/ttm")  # saved once
    return load_artifact(folder)


def assert_same(first: Artifact, second: Artifact, most: float = 0) -> None:
    assert first.state.keys() == second.state.keys()
    for name, weight in first.state.items():
        np.testing.assert_allclose(second.state[name], weight, rtol=0, atol=most, err_msg=name)


@pytest.fixture(scope="module")
def whole(
    login: Login, prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Artifact]:
    """What is learnt on one machine when nobody interrupts, by the number of processes."""
    script = {1: "single_gpu.sh", 2: "multi_gpu.sh"}
    jobs = {
        processes: Job(login, prepared, tmp_path_factory.mktemp("whole"), name, processes=processes)
        for processes, name in script.items()
    }
    return {processes: job.wait() for processes, job in jobs.items()}


def test_several_gpus_of_one_node_are_a_process_each(whole: dict[int, Artifact]) -> None:
    assert whole[2].record["hardware"]["processes"] == 2
    assert_same(whole[2], whole[1], most=1e-6)


def test_two_nodes_that_are_taken_back_learn_what_one_does(
    login: Login, prepared: Path, whole: dict[int, Artifact], tmp_path: Path
) -> None:
    job = Job(login, prepared, tmp_path, "multi_node.sh")
    job.wait_for_checkpoint()
    login("scancel", "--signal=USR1", "--batch", job.number)
    learnt = job.wait()
    assert learnt.record["hardware"]["machines"] == 2
    assert learnt.record["hardware"]["processes"] == 1
    assert_same(learnt, whole[2])
    assert job.told("Restarts") == "1"
    assert "was told to stop after step" in job.log.read_text()
    assert "the training goes on after step" in job.log.read_text()


def test_a_process_lost_on_one_node_loses_nothing(
    login: Login, prepared: Path, whole: dict[int, Artifact], tmp_path: Path
) -> None:
    job = Job(login, prepared, tmp_path, "multi_node.sh")
    job.wait_for_checkpoint()
    [second] = [
        process
        for process in job.processes("nocturnal_kedro.training.worker")
        if process.environ()["SLURM_NODEID"] == "1"
        and "torch.distributed.run" not in process.cmdline()
    ]
    second.kill()
    assert_same(job.wait(), whole[2])
    assert job.told("Restarts") == "0"
    assert "a process of its training was lost" in job.log.read_text()


def test_a_job_that_gives_way_to_another_goes_on_after_it(
    login: Login, prepared: Path, whole: dict[int, Artifact], tmp_path: Path
) -> None:
    job = Job(login, prepared, tmp_path, "single_gpu.sh", "--partition=preempt")
    job.wait_for_checkpoint()
    login(
        "sbatch", "--partition=gpu", "--nodes=2", "--exclusive", "--mem=6000", "--time=1",
        "--output=/dev/null", "--wrap=sleep 1",
    )  # fmt: skip
    assert_same(job.wait(), whole[1])
    assert job.told("Restarts") == "1"
    assert "was told to stop after step" in job.log.read_text()


def test_a_job_is_queued_again_when_its_training_is_told_to_stop_and_not_when_it_is_cancelled(
    login: Login, prepared: Path, tmp_path: Path
) -> None:
    job = Job(login, prepared, tmp_path, "single_gpu.sh")
    job.wait_for_checkpoint()
    [kedro] = job.processes("run")
    kedro.send_signal(signal.SIGTERM)  # as SLURM by default signals what a job has started alone
    kedro.wait(timeout=SECONDS)
    wait_until(lambda: job.told("Restarts") == "1" and job.processes("run"))
    login("scancel", job.number)
    wait_for_all(login)
    assert job.told("JobState") == "CANCELLED"
    assert job.told("Restarts") == "1"
    assert "queued again and goes on" in job.log.read_text()
    assert "was cancelled" in job.log.read_text()


class Shared:
    """An experiment that slurm/sweep.sh shares out to many jobs, in a folder of its own."""

    def __init__(self, login: Login, root: Path, experiment: str, given: str, **more: str) -> None:
        self.login, self.root, self.experiment = login, root, experiment
        said = login(
            "slurm/sweep.sh", "--mem=2500", "--cpus-per-task=2", f"--output={root}/%A.%a.log",
            ROOT=str(root), EXPERIMENT=experiment, PARAMS=given, **more,
        ).replace(",", " ")  # fmt: skip
        numbers = [word for word in said.split() if word.isdigit()]
        self.array, self.last = numbers[1], numbers[-1]

    def log(self, part: int) -> str:
        file = self.root / f"{self.array}.{part}.log"
        return file.read_text() if file.exists() else ""

    def wait(self) -> tuple[str, list[Artifact]]:
        """The log of the job that reports, and the trainings that are kept."""
        wait_for_all(self.login)
        [log] = (file.read_text() for file in self.root.glob(f"{self.last}.*.log"))
        [report] = self.root.glob(f"**/{self.experiment}/report.html/*/report.html")
        assert f"Report: {report}" in log
        kept = (self.root / "prepared" / "06_models" / "trained").iterdir()
        return log, [load_artifact(folder) for folder in kept]


def test_parts_of_a_sweep_train_once_what_they_have_in_common_also_where_they_are_taken_back(
    login: Login, tmp_path: Path
) -> None:
    varied = {"questions": "days sampling", "day_shares": "0.5"}
    given = parameters(training=TRAINING | {"epochs": 5}, ablation=varied)
    ablation = Shared(login, tmp_path, "ablation", given, MODELS="ttm", SEEDS="1", JOBS="3")
    # The first part's model of all days is the third's of readings every 5 minutes.
    wait_until(lambda: any("waits for that training" in ablation.log(part) for part in (1, 3)))
    waits, trains = (1, 3) if "waits for" in ablation.log(1) else (3, 1)
    for part in (trains, waits):
        login("scancel", "--signal=USR1", "--batch", f"{ablation.array}_{part}")
    log, kept = ablation.wait()
    assert "was told to stop after step" in ablation.log(trains)
    for part in (trains, waits):
        assert f"Job {ablation.array}_{part} is queued again" in ablation.log(part)
    assert "the training goes on after step" in ablation.log(trains) + ablation.log(waits)
    names = Counter(artifact.name for artifact in kept)
    assert names == {"ttm": 3} | dict.fromkeys(BASELINES, 1)  # for four cells
    assert log.count("was trained before") == 4 + len(BASELINES)


def test_each_model_with_each_seed_is_trained_by_a_job_and_all_are_in_one_report(
    login: Login, tmp_path: Path
) -> None:
    models = ["ttm", "chronos2"]
    point = Shared(
        login, tmp_path, "nocturnal_point", parameters(), MODELS=" ".join(models), SEEDS="1 2"
    )
    log, kept = point.wait()
    learnt = Counter((one.name, one.record.get("training", {}).get("seed")) for one in kept)
    seeds = [(model, seed) for model in models for seed in (1, 2)]
    assert learnt == dict.fromkeys([*seeds, *((name, None) for name in BASELINES)], 1)
    assert log.count("was trained before") == len(learnt)
    made = [
        {folder.name for folder in tmp_path.glob(f"parts/{part}/06_models/nocturnal_point/*")}
        - {"unfinished"}
        for part in range(1, 5)
    ]
    assert made == [{"ttm", *BASELINES}, {"ttm"}, {"chronos2"}, {"chronos2"}]


def choice(login: Login, **given: str) -> str:
    """The command that adaptive_resources.sh would submit."""
    said = login("slurm/adaptive_resources.sh", "--dry-run", **given).splitlines()
    [command] = [line for line in said if line.startswith("sbatch")]
    return command


def test_resources_follow_the_partition_and_its_queue(
    login: Login, prepared: Path, tmp_path: Path
) -> None:
    """Nodes have 4 GPUs, 8 cores and 6000 MB each."""
    expected = "sbatch --partition=gpu --nodes=2 --gres=gpu:4 --cpus-per-task=8 --mem=6000M"
    assert choice(login) == f"{expected} --time=240 slurm/multi_node.sh"
    expected = "sbatch --partition=gpu --nodes=1 --gres=gpu:2 --cpus-per-task=2 --mem=2048M"
    assert (
        choice(login, MOST_GPUS="3", GB_PER_GPU="1", CORES_PER_GPU="1", MINUTES="9000")
        == f"{expected} --time=2880 slurm/multi_gpu.sh"  # at most what the partition allows
    )
    with pytest.raises(AssertionError, match="unknown partition 'cpu'; known: gpu preempt"):
        choice(login, PARTITION="cpu")

    def occupy(node: str, gpus: int) -> str:
        return login(
            "sbatch", "--parsable", f"--nodelist={node}", f"--gres=gpu:{gpus}", "--mem=500",
            "--output=/dev/null", "--wrap=sleep 100",
        ).strip()  # fmt: skip

    holding = [occupy("node1", 3), occupy("node2", 2)]
    wait_until(lambda: len(login("squeue", "--noheader", "--states=RUNNING").splitlines()) == 2)
    assert "--nodes=1 --gres=gpu:2 " in choice(login)
    holding.append(occupy("node1", 4))
    wait_until(lambda: "Resources" in login("squeue", "--noheader", "--format=%r"))
    expected = "sbatch --partition=gpu --nodes=1 --gres=gpu:1 --cpus-per-task=2 --mem=1500M"
    assert choice(login) == f"{expected} --time=60 slurm/single_gpu.sh"
    login("scancel", *holding)
    wait_for_all(login)

    shutil.copytree(prepared, tmp_path / "data")
    login(
        "slurm/adaptive_resources.sh", "--mem=2000", f"--output={tmp_path}/job.log",
        MOST_GPUS="1", MINUTES="5", EXPERIMENT="data_processing",
        PARAMS=parameters(data_root=tmp_path / "data"),
    )  # fmt: skip
    wait_for_all(login)
    assert len(list((tmp_path / "data" / "05_model_input" / "corpus").iterdir())) == 2
