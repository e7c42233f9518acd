"""TimeGPT's API on the loopback, in the shapes that its client sends and recorded answers have.

Known from nixtla 0.7 to 0.9 (client) and from answers recorded by nixtlar, the client in R. A
forecast is the last value and a slope; intervals widen with their level.
"""

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import zstandard

KEY = "nixak-0123456789abcdef"
SLOPE = 0.1  # of every forecast, mg/dL a step


@dataclass
class Asked:
    """One request as it came."""

    method: str
    path: str  # with its query
    headers: dict[str, str]
    body: Any
    at: float  # seconds


@dataclass
class Fault:
    """What a forecast is answered with instead, once."""

    status: int = 200
    body: Any = None  # bytes go out as they are
    headers: dict[str, str] = field(default_factory=dict)
    edit: Callable[[dict[str, Any]], object] | None = None  # of the right answer
    close: bool = False  # without an answer
    hang: bool = False  # until the server ends


class Server:
    """Takes note of every request; `faults` are answered first, one a forecast."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.faults: deque[Fault] = deque()
        self.ended = threading.Event()
        self.hanging = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    @property
    def forecasts(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.path == "/v2/forecast"]

    @property
    def nights(self) -> int:
        """Series of all forecasts that were asked for."""
        return sum(len(asked.body["series"]["sizes"]) for asked in self.forecasts)

    @contextmanager
    def running(self) -> Iterator["Server"]:
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            self.ended.set()
            self._http.shutdown()
            self._http.server_close()
            thread.join()


def forecast(payload: dict[str, Any]) -> dict[str, Any]:
    series, h = payload["series"], payload["h"]
    mean: list[float] = []
    end = 0
    for size in series["sizes"]:
        end += size
        mean += [series["y"][end - 1] + SLOPE * (step + 1) for step in range(h)]
    intervals = {}
    for level in payload["level"] or ():
        width = level / 4
        intervals[f"lo-{level}"] = [value - width for value in mean]
        intervals[f"hi-{level}"] = [value + width for value in mean]
    return {
        "input_tokens": sum(series["sizes"]),
        "output_tokens": len(mean) * (1 + len(intervals)),
        "finetune_tokens": 0,
        "mean": mean,
        "intervals": intervals or None,
        "weights_x": [0.5] * len(series["X"]) if series["X"] else None,
        "feature_contributions": None,
        "request_id": "5865QMGLZN",
    }


def _complaint(payload: dict[str, Any]) -> dict[str, Any] | None:
    """What FastAPI would not let through; it repeats the value."""
    series, h = payload["series"], payload["h"]
    wrong = (
        (sum(series["sizes"]) != len(series["y"]), "sizes", series["sizes"]),
        (None in series["y"], "y", series["y"]),
        (any(len(x) != len(series["y"]) or None in x for x in series["X"] or ()), "X", None),
        (
            any(len(x) != h * len(series["sizes"]) for x in series["X_future"] or ()),
            "X_future",
            None,
        ),
        (payload["freq"] != "5min", "freq", payload["freq"]),
    )
    for fault, name, given in wrong:
        if fault:
            return {"detail": [{"loc": ["body", name], "msg": "not valid", "input": given}]}
    return None


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._note(None)
            if self._is_known() and urlsplit(self.path).path == "/model_params":
                self._answer(200, {"detail": {"input_size": 840, "horizon": 168}})

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "zstd":
                content = zstandard.ZstdDecompressor().decompressobj().decompress(content)
            payload = json.loads(content)
            self._note(payload)
            if not self._is_known():
                return
            fault = server.faults.popleft() if server.faults else Fault()
            if fault.hang:
                server.hanging.set()
                server.ended.wait()
            if fault.close or fault.hang:
                self.close_connection = True
            elif fault.body is not None or fault.status != 200:
                self._answer(fault.status, fault.body, fault.headers)
            elif complaint := _complaint(payload):
                self._answer(422, complaint)
            else:
                right = forecast(payload)
                if fault.edit:
                    fault.edit(right)
                self._answer(200, right)

        def _note(self, body: Any) -> None:
            headers = dict(self.headers.items())
            server.asked.append(Asked(self.command, self.path, headers, body, monotonic()))

        def _is_known(self) -> bool:
            given = self.headers.get("authorization", "")
            if given == f"Bearer {KEY}":
                return True
            details = f"Key not found: {given}"
            wrong = {"data": None, "message": "Invalid API key", "details": details, "code": "A12"}
            self._answer(401, wrong)
            return False

        def _answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Handler
