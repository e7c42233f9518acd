"""Fits a model again and again, killed each time, until it is fitted; one line of JSON tells how.

python -m tests.training._cut_off DATA FOLDER KILLS: DATA holds what `Data.write` wrote. It forks,
so that each try begins where the imports are done.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

from tqdm.auto import tqdm

from nocturnal_kedro.series.origins import Task
from nocturnal_kedro.training.artifact import Artifact, save_artifact
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.fit import Kept, fit_model
from nocturnal_kedro.training.options import Hardware, Training
from nocturnal_kedro.training.unfinished import Unfinished

HARDWARE = Hardware(checkpoint_steps=7)
TRAINING = Training(epochs=12, steps_per_epoch=50, batch_size=16, patience=12, ema=0.9)
ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT


def fit(data: Data, training: Training, kept: Unfinished | None) -> Artifact:
    given = {"preset": "tiny", "learning_rate": 1e-3}
    return fit_model("ttm", given, data, training, HARDWARE, Kept(kept))


def main(data: Data, folder: Path, kills: int) -> None:
    fit(data, Training(epochs=1, steps_per_epoch=1), None)  # imports what a fit imports
    chance = random.Random(7)
    killed, furthest = 0, []
    while True:
        child = os.fork()
        if not child:
            # One for all forks, the lock of a bar that is killed would be held on.
            tqdm.set_lock(threading.RLock())
            save_artifact(fit(data, TRAINING, Unfinished(folder / "kept")), folder / "fitted")
            os._exit(0)
        if killed < kills:
            if killed % 3:  # some are killed wherever they are, most a little after a checkpoint
                before = last_checkpoint(folder)
                while last_checkpoint(folder) == before and not os.waitid(os.P_PID, child, ENDED):
                    time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.3))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            print(json.dumps({"killed": killed, "furthest": furthest, "status": status}))
            return
        killed += 1
        furthest.append(last_checkpoint(folder))


def last_checkpoint(folder: Path) -> int:
    kept = folder.glob("kept/*/forecast/step-*")
    return max((int(step.name.removeprefix("step-")) for step in kept), default=0)


if __name__ == "__main__":
    main(Data.read(Path(sys.argv[1]), Task()), Path(sys.argv[2]), int(sys.argv[3]))
