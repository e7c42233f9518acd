"""The lineage view in a real browser: no loose end from raw to report, and nobody's rows."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kedro.framework.context import KedroContext
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from nocturnal_kedro import plugins
from tests.conftest import PROJECT, Browser

pytestmark = pytest.mark.slow

KEDRO = Path(sys.executable).parent / "kedro"
FONTS = "fonts.googleapis.com"
# What may be previewed: no row of it is a person's.
SHOWN = (
    "alarms", "audit", "bands", "breakdown", "calibration", "cost", "leaderboard", "pairs",
    "readings", "reliability", "run_record", "trade_off", "translated",
)  # fmt: skip


@pytest.fixture(scope="module")
def lineage(finished: tuple[Path, KedroContext], tmp_path_factory: Any) -> Iterator[str]:
    """Address of `kedro viz run` over the finished run."""
    port = free_port()
    log = tmp_path_factory.mktemp("viz") / "log"
    address = f"http://127.0.0.1:{port}"
    command = [
        str(KEDRO), "viz", "run", "--no-browser", "--host=127.0.0.1", f"--port={port}",
        f"--params=data_root={finished[0]}",
    ]  # fmt: skip
    with log.open("w") as output:
        server = subprocess.Popen(
            command,
            cwd=PROJECT,
            stdout=output,
            stderr=output,
            env={**os.environ, "DO_NOT_TRACK": "1"},
            start_new_session=True,
        )
    try:
        for _ in range(120):
            try:
                fetch(f"{address}/api/main")
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                time.sleep(0.5)
        yield address
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=30)


def free_port() -> int:
    """Kedro-Viz takes none above 49151, where the system would look for one."""
    for port in random.sample(range(20_000, 49_000), 50):
        with socket.socket() as candidate:
            if candidate.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no free port among fifty")


def fetch(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=10) as answer:
        return json.load(answer)


def test_lineage_has_no_loose_end(lineage: str) -> None:
    graph = fetch(f"{lineage}/api/main")
    fed = {edge["target"] for edge in graph["edges"]}
    feeding = {edge["source"] for edge in graph["edges"]}
    nodes = [node for node in graph["nodes"] if node["type"] != "parameters"]
    ends = {"answers", "readings", "run_record", "trained"}
    ends |= {f"nocturnal_point.{model}.unfinished" for model in plugins.names("model")}
    assert {n["name"] for n in nodes if n["id"] not in fed} == ends
    last = {f"nocturnal_point.{made}" for made in ("report", "figures", "tables")}
    assert {n["name"] for n in nodes if n["id"] not in feeding} == last
    data = [node for node in nodes if node["type"] == "data"]
    assert {n["name"] for n in data if n["layer"] is None} == set()
    layers = [
        "raw",
        "intermediate",
        "primary",
        "model_input",
        "models",
        "model_output",
        "reporting",
    ]
    assert graph["layers"] == layers


def test_lineage_serves_nobodys_rows(lineage: str, finished: tuple[Path, KedroContext]) -> None:
    people = finished[1].catalog.load("splits")["subject"].unique()
    graph = fetch(f"{lineage}/api/main")
    previewed = set()
    for node in graph["nodes"]:
        text = json.dumps(fetch(f"{lineage}/api/nodes/{node['id']}"))
        assert not [person for person in people if person in text], node["name"]
        if '"preview"' in text:
            previewed.add(node["name"].rsplit(".")[-1])
    assert previewed == set(SHOWN)


def test_lineage_renders(lineage: str, browser: Browser) -> None:
    browser.open(lineage)
    graph = fetch(f"{lineage}/api/main")
    WebDriverWait(browser.driver, 30).until(
        lambda driver: driver.find_elements(By.CSS_SELECTOR, ".pipeline-node")
    )
    drawn = {
        text.text or text.get_attribute("textContent")
        for text in browser.driver.find_elements(By.CSS_SELECTOR, ".pipeline-node__text")
    }
    for name in ("readings", "series", "corpus", "origins", "nocturnal_point.report"):
        assert any(re.search(name.replace("_", "."), text, re.IGNORECASE) for text in drawn), drawn
    assert len(graph["nodes"]) > 60
    # Kedro-Viz asks for one font outside, and does without it.
    assert {urlsplit(asked).hostname for asked in browser.outside_requests()} <= {FONTS}
    assert [fault for fault in browser.faults() if FONTS not in fault] == []
