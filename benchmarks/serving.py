"""How fast the service answers on loopback, from a uvicorn process of its own, under load.

    python benchmarks/serving.py [--json PATH] [--check] [--requests N] [--threads N]

TTM of the small preset; each request is three days of one simulated person's record, each answer
the quantiles, P(low tonight) and the card of a night. One process answers, one forecast at a time.

Targets, which `--check` holds (exit 1 where one is missed):
- HTTP, JSON and checks add at most 0.6 times what the forecast takes in Python.
- 16 clients at once get at least 0.7 times as many answers a second as one does.
- Of 16 at once nobody waits long past their turn: p99 is at most 3 times 16 answers to one.
- 500 answers more take under 32 MiB more memory.
- Every request is answered by 200.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch

from nocturnal_kedro.series.corpus import build_corpus
from nocturnal_kedro.series.grid import GridOptions, grid_people, order_readings
from nocturnal_kedro.series.origins import Task, build_origins
from nocturnal_kedro.series.physiology import Physiology
from nocturnal_kedro.series.schema import READING_COLUMNS
from nocturnal_kedro.series.splits import SplitOptions, build_splits
from nocturnal_kedro.serving.readings import Recent
from nocturnal_kedro.serving.tonight import forecast_tonight, make_ready, read_about
from nocturnal_kedro.sources import simulated
from nocturnal_kedro.training.artifact import load_artifact, save_artifact
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.fit import fit_model
from nocturnal_kedro.training.options import Training

MOST_ADDED = 0.6  # times the forecast in Python
LEAST_THROUGHPUT = 0.7  # times that of one client
MOST_WAITED = 3.0  # times the clients' forecasts one after the other
MOST_GROWTH_MIB = 32.0
CLIENTS = (1, 4, 16)
DAYS = 73 / 24  # a longer record says no more


def make_model(folder: Path) -> list[bytes]:
    """A fitted model in `folder`, and requests: nights of people it has not seen."""
    readings = simulated.read((), simulated.Options(subjects=12, days=14))
    series, _ = grid_people(order_readings("simulated", readings), GridOptions())
    corpus, splits = build_corpus(series, Physiology()), build_splits(series, SplitOptions())
    origins, _ = build_origins(corpus, splits, Task())
    training = Training(epochs=1, steps_per_epoch=20)
    data = Data(corpus, splits, origins, Task())
    save_artifact(fit_model("ttm", {"preset": "small"}, data, training), folder)
    tested = origins[origins["split"] == "patient"]
    bodies = [
        ask(readings.frame, night["subject"], night["origin"]) for _, night in tested.iterrows()
    ]
    return [body for body in bodies if body]


def ask(readings: pd.DataFrame, subject: str, origin: pd.Timestamp) -> bytes:
    """The record of the last days; none where the newest reading is too old."""
    own = readings[readings["subject"] == subject].sort_values("time")
    own = own[(own["time"] <= origin) & (own["time"] > origin - pd.Timedelta(days=DAYS))]
    seen = own.loc[own["glucose_mg_dl"].notna(), "time"]
    if seen.empty or origin - seen.iloc[-1] > pd.Timedelta(hours=1):
        return b""
    rows = [
        {"time": row["time"].isoformat()}
        | {
            name.replace("glucose_mg_dl", "glucose"): row[name]
            for name in READING_COLUMNS
            if not np.isnan(row[name])
        }
        for row in own.to_dict("records")
    ]
    asked = {"origin": origin.isoformat(), "unit": "mg/dL", "readings": rows}
    return json.dumps(asked).encode()


@contextmanager
def service(folder: Path, threads: int) -> Iterator[tuple[int, psutil.Process]]:
    """`kedro serve --artifact=...` in a process of its own: its port, and itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = "from nocturnal_kedro.serving.command import serve; serve()"
    command = [sys.executable, "-c", start, f"--artifact={folder}", f"--port={port}"]
    process = subprocess.Popen([*command, f"--threads={threads}"], stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                get(port, "/health")
                break
            except OSError:
                time.sleep(0.2)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    return connection.getresponse().read()


def load(port: int, bodies: list[bytes], clients: int, requests: int) -> dict[str, float]:
    """So many clients, each with a connection of its own, that ask again when they are answered."""

    def client(number: int) -> list[tuple[float, int]]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        told = []
        for at in range(number, requests, clients):
            begun = time.perf_counter()
            headers = {"content-type": "application/json"}
            connection.request("POST", "/forecast", bodies[at % len(bodies)], headers)
            answer = connection.getresponse()
            answer.read()
            told.append((time.perf_counter() - begun, answer.status))
        return told

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        told = [one for of_client in pool.map(client, range(clients)) for one in of_client]
    seconds = time.perf_counter() - started
    waited = 1000 * np.array([one for one, _ in told])
    return {
        "answers_per_second": len(told) / seconds,
        "median_ms": float(np.median(waited)),
        "p99_ms": float(np.quantile(waited, 0.99)),
        "not_200": sum(status != 200 for _, status in told),
    }


def beside_python(port: int, folder: Path, bodies: list[bytes], threads: int) -> dict[str, float]:
    """Median milliseconds of an answer, and of the same forecast in Python, taken in turn."""
    torch.set_num_threads(threads)
    artifact = load_artifact(folder)
    served = make_ready(artifact, read_about(folder, artifact.name, ""))
    asked = [Recent.model_validate_json(body) for body in bodies]
    forecast_tonight(served, asked[0])
    times: dict[str, list[float]] = {"http_ms": [], "python_ms": []}
    for at in range(60):
        times["http_ms"].append(load(port, bodies[at % len(bodies) :], 1, 1)["median_ms"])
        begun = time.perf_counter()
        forecast_tonight(served, asked[at % len(asked)])
        times["python_ms"].append(1000 * (time.perf_counter() - begun))
    return {name: float(np.median(of)) for name, of in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    parser.add_argument("--requests", type=int, default=400, help="by each number of clients")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    given = parser.parse_args()
    cores, busy = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{platform.platform()}, {platform.machine()}, {cores} cores, torch {torch.__version__}")
    print(f"load before: {busy:.1f} (others' work takes from what is measured)")
    figures: dict[str, Any] = {"load_before": busy}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "ttm"
        bodies = make_model(folder)
        print(f"{len(bodies)} different nights, {len(bodies[-1]) / 1000:.0f} kB each")
        with service(folder, given.threads) as (port, process):
            load(port, bodies, 1, 20)
            figures |= beside_python(port, folder, bodies, given.threads)
            loaded = {n: load(port, bodies, n, given.requests) for n in CLIENTS}
            before = process.memory_info().rss
            more = load(port, bodies, 4, 500)
            figures["growth_mib"] = (process.memory_info().rss - before) / 2**20
            figures["memory_mib"] = process.memory_info().rss / 2**20
    figures["clients"] = loaded
    one, most = loaded[CLIENTS[0]], loaded[CLIENTS[-1]]
    figures["added"] = figures["http_ms"] / figures["python_ms"] - 1
    figures["throughput"] = most["answers_per_second"] / one["answers_per_second"]
    figures["waited"] = most["p99_ms"] / (CLIENTS[-1] * one["median_ms"])
    figures["not_200"] = more["not_200"] + sum(told["not_200"] for told in loaded.values())
    print(pd.DataFrame(loaded).T.rename_axis("clients").to_string(float_format="{:,.1f}".format))
    print(pd.Series({n: v for n, v in figures.items() if n != "clients"}).round(2).to_string())
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2))
    missed = {
        f"HTTP adds {figures['added']:.2f} times a forecast": figures["added"] > MOST_ADDED,
        f"16 clients get {figures['throughput']:.2f} times as many": (
            figures["throughput"] < LEAST_THROUGHPUT
        ),
        f"p99 is {figures['waited']:.1f} times its turn": figures["waited"] > MOST_WAITED,
        f"memory grew by {figures['growth_mib']:.0f} MiB": figures["growth_mib"] > MOST_GROWTH_MIB,
        f"{figures['not_200']} requests were not answered by 200": figures["not_200"] > 0,
    }
    told = [what for what, is_missed in missed.items() if is_missed]
    print("; ".join(told) or "every target is held")
    return int(given.check and bool(told))


if __name__ == "__main__":
    raise SystemExit(main())
