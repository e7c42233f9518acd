"""Gathers windows from a corpus of 2 GB; prints its bytes, and by how many the process grew."""

import json
import resource
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from nocturnal_kedro.series.corpus import CHANNELS, LARGE, read_corpus
from nocturnal_kedro.series.origins import Task
from nocturnal_kedro.series.physiology import Physiology, action_kernels
from nocturnal_kedro.series.schema import STEPS_PER_DAY
from nocturnal_kedro.series.windows import WindowGatherer
from tests.conftest import SCALER, USUAL

PEOPLE, DAYS = 100, 1750


def main(folder: Path) -> None:
    slots = PEOPLE * DAYS * STEPS_PER_DAY
    of_person = np.arange(PEOPLE) * DAYS * STEPS_PER_DAY
    start = pd.Timestamp("2020-01-01")
    shapes = {"values_TC": np.float32, "observed_TC": bool}
    for name, kind in shapes.items():
        np.lib.format.open_memmap(
            folder / f"{name}.npy", "w+", kind, (slots, len(CHANNELS))
        ).flush()
    for name, kind in {"late_T": bool, "covered_T": bool, "slot_of_day_T": np.int16}.items():
        np.save(folder / f"{name}.npy", np.zeros(slots, kind))
    np.save(folder / "kernels_4K.npy", action_kernels(Physiology()).astype(np.float32))
    subjects = [f"p{number}" for number in range(PEOPLE)]
    people = pd.DataFrame(
        {
            "source": "hole",
            "subject": subjects,
            "start": start,
            "first": of_person,
            "last": of_person + DAYS * STEPS_PER_DAY,
            "sampling_steps": 1,
        }
    )
    people.to_csv(folder / "people.csv", index=False)
    (folder / "made_from.json").write_text(json.dumps({"made_from": {}}))
    splits = pd.DataFrame(
        {
            "source": "hole",
            "subject": subjects,
            "split": "train",
            "start": start,
            "end": start + pd.Timedelta(days=DAYS),
        }
    )
    corpus = read_corpus(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gatherer = WindowGatherer(corpus, splits, SCALER, Task(), USUAL, resident=False)
    rows = np.random.default_rng(0).choice(slots - 1000, (50, 64)) + 600
    for batch in torch.from_numpy(rows):
        assert gatherer.gather(batch).context_BLC.shape[0] == 64
        assert gatherer.count_targets(batch) == 0
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(sum((folder / f"{name}.npy").stat().st_size for name in LARGE), 1024 * grown)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
