"""Folders of models that script-based repositories left: found, and read without trust.

What their files say is data: no code of theirs runs, no name in them is a place to look, and none
is read past a limit.
"""

from __future__ import annotations

import io
import json
import math
import pickletools
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from nocturnal_kedro.errors import InputError

if TYPE_CHECKING:  # torch costs seconds
    from torch import Tensor

SCRIPT, HUGGING_FACE = "script", "hugging_face"
SCRIPTS = "ttm"  # the folder below the root that holds those of scripts
PICKLED, CONFIG, METADATA, LOG = "model.pt", "config.yaml", "metadata.json", "training_log.json"
HUB_CONFIG, HUB_WEIGHTS = "config.json", ("model.safetensors", "pytorch_model.bin")

MOST_BYTES_OF_TEXT = 2**20
MOST_BYTES_OF_LOG = 2**24
MOST_VALUES, DEEPEST = 20_000, 20  # of one file of text, aliases spelt out
MOST_VALUES_OF_LOG = 2_000_000
LONGEST_NUMBER = 100  # characters: one of 1:59:59... takes a time that grows with its square
MOST_SHOWN = 200  # characters of what a stranger wrote

NAME = re.compile(r"[\w.+=-]+", re.ASCII)
OF_RUN = re.compile(
    r"(?P<timestamp>\d{8}[-_T]?\d{4,6}|\d{4}-\d\d-\d\d[-_T]\d\d[-_.]?\d\d(?:[-_.]?\d\d)?|\d{8})"
    r"_(?P<dataset>.+?)"
    r"_(?P<strategy>(?:full_)?fine_?tun(?:e|ed|ing)|zero_?shot|(?:from_)?scratch|[^_]+)"
)
# All that a state dict needs of a pickle; the sizes of other things are not told by the file's.
KNOWN_GLOBALS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(?:tensor_v2|parameter)|torch \w+Storage"
)
OTHER_WAYS_TO_NAME = ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4")
HOLDERS = ("model_state_dict", "state_dict", "model", "network", "weights")
# What wrappers put before every name.
WRAPPERS = ("module.", "_orig_mod.", "base_model.model.", "model.", "network.", "ttm.")
# In metadata, what would name a file of the folder itself.
NAMES_A_FILE = re.compile(
    r"(?:model|weights?|checkpoint|state_dict|scaler|config|log)_(?:file|name)"
)


@dataclass(frozen=True)
class Found:
    """A folder that holds, or should hold, a model."""

    name: str  # below the root
    path: Path
    layout: str = ""
    timestamp: str = ""
    dataset: str = ""
    strategy: str = ""
    link_to: str = ""  # another folder below the root, which is listed itself
    fault: str = ""  # why it is not looked into


@dataclass(frozen=True)
class Legacy:
    """What a folder holds: plain values and tensors."""

    state: dict[str, Tensor]
    texts: dict[str, dict[str, Any]]  # by file: config and metadata
    log: pd.DataFrame
    files: dict[str, str]  # SHA-256 of each that was read
    notes: list[str] = field(default_factory=list)


def find_folders(root: Path) -> list[Found]:
    """Everything in `root`/ttm, and what looks like a model among the folders of `root`.

    Raises `InputError` where there is no such folder, or nothing in it.
    """
    root = root.expanduser()
    if not root.is_dir():
        raise InputError(
            f"legacy_root '{root}' is not a folder; give the one that holds {SCRIPTS}/, or folders "
            f"with {HUB_CONFIG} and {HUB_WEIGHTS[0]}."
        )
    root = root.resolve()
    found = [_look(root, path) for path in _entries(root) if _may_hold_a_model(path)]
    scripts = root / SCRIPTS
    if scripts.is_symlink() or (_is_there(scripts) and not scripts.is_dir()):
        found.append(Found(SCRIPTS, scripts, fault="is a link or a file, not a folder of models"))
    elif scripts.is_dir():
        found += [_look(root, path) for path in _entries(scripts)]
    if not found:
        raise InputError(
            f"no model is below legacy_root '{root}': expected "
            f"{SCRIPTS}/<timestamp>_<dataset>_<strategy>/{PICKLED}, or folders with {HUB_CONFIG} "
            f"and {' or '.join(HUB_WEIGHTS)}."
        )
    return found


def _entries(folder: Path) -> list[Path]:
    """All but hidden ones, such as .DS_Store."""
    return sorted(path for path in folder.iterdir() if path.name[0] != "." or ".." in path.name)


def _may_hold_a_model(path: Path) -> bool:
    """Beside ttm/ anything may lie: only what looks like a model is listed."""
    if path.name == SCRIPTS or not path.is_dir():
        return False
    return any(_is_there(path / name) for name in (PICKLED, *HUB_WEIGHTS))


def _is_there(path: Path) -> bool:
    """Whether there is such a file, as far as anybody may know."""
    try:
        return path.exists()
    except OSError:
        return False


def _look(root: Path, path: Path) -> Found:
    name = path.relative_to(root).as_posix()
    if not NAME.fullmatch(path.name) or ".." in path.name:
        fault = "its name holds '..', or other than letters, digits and . _ + = -: rename it"
        return Found(shown(name), path, fault=fault)
    if path.is_symlink():
        if not _is_below(root, path):
            return Found(name, path, fault="is a link that leads out of legacy_root")
        return Found(name, path, link_to=path.resolve().relative_to(root).as_posix())
    if not path.is_dir():
        return Found(name, path, fault="is a file where the folder of a model is expected")
    told = OF_RUN.fullmatch(path.name)
    of_hub = any(_is_there(path / weights) for weights in HUB_WEIGHTS)
    layout = HUGGING_FACE if of_hub and not _is_there(path / PICKLED) else SCRIPT
    return Found(name, path, layout, **(told.groupdict() if told else {}))


def _is_below(root: Path, path: Path) -> bool:
    try:
        return path.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):  # leads nowhere, or in a circle
        return False


def read_folder(root: Path, found: Found, most_bytes: int) -> Legacy:
    """Every file that tells of the model, read once.

    Raises `InputError` where one is absent, leads out of `root`, is larger than its limit, or is
    not what it should be.
    """
    import hashlib

    contents: dict[str, bytes] = {}

    def take(name: str, most: int) -> bytes | None:
        content = _content(root.expanduser().resolve(), found.path, name, most)
        if content is not None:
            contents[name] = content
        return content

    texts = {}
    for name, parse in (
        (HUB_CONFIG, _of_json), (CONFIG, _of_yaml), (METADATA, _of_json)
    ):  # fmt: skip
        if (content := take(name, MOST_BYTES_OF_TEXT)) is not None:
            texts[name] = _plain_dict(name, parse(name, content))
    config = CONFIG if found.layout == SCRIPT else HUB_CONFIG
    if config not in texts:
        raise InputError(f"{config} is missing")
    _require_own_names(texts)
    notes = [] if METADATA in texts else [f"no {METADATA}"]
    log = pd.DataFrame()
    if (content := take(LOG, MOST_BYTES_OF_LOG)) is not None:
        log = _epochs(plain(LOG, _of_json(LOG, content), MOST_VALUES_OF_LOG))
    else:
        notes.append(f"no {LOG}")
    weights = [PICKLED] if found.layout == SCRIPT else list(HUB_WEIGHTS)
    for name in weights:
        if (content := take(name, most_bytes)) is not None:
            state = _weights(name, content, most_bytes)
            break
    else:
        raise InputError(f"{' or '.join(weights)} is missing")
    files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return Legacy(_unwrapped(state), texts, log, files, notes)


def _content(root: Path, folder: Path, name: str, most: int) -> bytes | None:
    path = folder / name
    if not path.exists() and not path.is_symlink():
        return None
    if not _is_below(root, path):
        raise InputError(f"{name} is a link that leads out of legacy_root, or nowhere")
    if not path.is_file():  # a pipe would be waited for
        raise InputError(f"{name} is not a file")
    with path.open("rb") as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        size = path.stat().st_size
        raise InputError(f"{name} has {size} bytes, and at most {most} are read")
    return content


def _of_json(name: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not JSON that can be read: {shown(error)}") from error


def _of_yaml(name: str, content: bytes) -> Any:
    import yaml  # type: ignore[import-untyped]

    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(content)
        try:
            tree = loader.get_single_node()
            if tree is None:
                return None
            _require_short(name, tree)
            return loader.construct_document(tree)
        finally:
            loader.dispose()
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{name} is not plain YAML: {shown(error)}") from error


def _require_short(name: str, tree: Any) -> None:
    """Raise where a little YAML would take long to be built: before anything of it is."""
    left, seen = [tree], set()
    while left:
        node = left.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if node.tag == "tag:yaml.org,2002:merge":  # twice as many keys by each of a chain
            raise InputError(
                f"{name} merges settings into others (<<), which may repeat themselves without "
                f"end; write them out"
            )
        if isinstance(node.value, str):
            number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
            if number and len(node.value) > LONGEST_NUMBER:
                raise InputError(f"{name} holds a number of {len(node.value)} characters")
        else:  # a list has nodes, a mapping pairs of them
            left += [
                n for part in node.value for n in (part if isinstance(part, tuple) else [part])
            ]


def _plain_dict(name: str, value: Any) -> dict[str, Any]:
    value = plain(name, value, MOST_VALUES)
    if not isinstance(value, dict):
        raise InputError(f"{name} holds no names with values")
    return value


def plain(name: str, value: Any, most: int) -> Any:
    """The value as JSON can hold it; `InputError` if it is too deep, or too much by its aliases."""
    left = most

    def walk(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > DEEPEST:
            raise InputError(
                f"{name} holds more than {most} values, or deeper ones than {DEEPEST}: aliases may "
                f"repeat themselves"
            )
        if isinstance(value, dict):
            return {shown(key): walk(part, depth + 1) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [walk(part, depth + 1) for part in value]
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int) and abs(value) < 2**63:
            return value
        if isinstance(value, float) and math.isfinite(value):
            return value
        return printable(value)

    return walk(value, 0)


def printable(value: object) -> str:
    """As text that a table, a database and a terminal can take."""
    return "".join(sign if sign.isprintable() else " " for sign in str(value)).strip()


def shown(value: object) -> str:
    """The same in one line of a table."""
    text = " ".join(printable(value).split())
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 3] + "..."


def _require_own_names(texts: dict[str, dict[str, Any]]) -> None:
    """Raise where a name of a file is a path: the folder is all that is read, and none follows."""

    def walk(file: str, value: Any) -> None:
        for key, part in value.items() if isinstance(value, dict) else ():
            if isinstance(part, str) and NAMES_A_FILE.fullmatch(key.lower()):
                steps = re.split(r"[/\\]", part)
                if ".." in steps or steps[0] in ("", "~") or re.match(r"[A-Za-z]:", part):
                    raise InputError(
                        f"{file} names '{shown(part)}' as its {key}, which leads out of the folder"
                    )
            walk(file, part)

    for file, told in texts.items():
        walk(file, told)


def _epochs(told: Any) -> pd.DataFrame:
    """A training log as a table: a list of rows, or a row or a list for each name."""
    if isinstance(told, dict):
        inner = next((v for v in told.values() if isinstance(v, list) and _are_rows(v)), None)
        if inner is None:
            lists = {name: part for name, part in told.items() if isinstance(part, list)}
            longest = max(map(len, lists.values()), default=0)
            inner = [
                {name: part[at] for name, part in lists.items() if at < len(part)}
                for at in range(longest)
            ]
        told = inner
    if not isinstance(told, list) or not _are_rows(told):
        raise InputError(f"{LOG} is neither a list of epochs nor a list for each measure")
    single = [
        {name: v for name, v in row.items() if not isinstance(v, dict | list)} for row in told
    ]
    return pd.DataFrame(single)


def _are_rows(rows: list[Any]) -> bool:
    return all(isinstance(row, dict) for row in rows)


def _weights(name: str, content: bytes, most_bytes: int) -> dict[str, Tensor]:
    if name.endswith(".safetensors"):
        loaded: Any = _of_safetensors(name, content)
    else:
        loaded = _of_pickle(name, content, most_bytes)
    return _sound(name, _state_in(name, loaded), most_bytes)


def _of_safetensors(name: str, content: bytes) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    size = int.from_bytes(content[:8], "little")
    room = len(content) - 8 - size
    if len(content) < 8 or room < 0:
        raise InputError(f"{name} is cut short: its header has {size} bytes, the file fewer")
    try:
        header = json.loads(content[8 : 8 + size])
        offsets = {key: told["data_offsets"] for key, told in header.items() if key[:2] != "__"}
        for key, (begin, end) in offsets.items():
            if not 0 <= begin <= end <= room:
                raise InputError(
                    f"{name} declares tensor '{shown(key)}' at bytes {begin} to {end}, and has "
                    f"{room}"
                )
        return load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} is not safetensors: {shown(error)}") from error
    except RecursionError as error:
        raise InputError(f"{name} is not safetensors: its header is too deep") from error


def _of_pickle(name: str, content: bytes, most_bytes: int) -> Any:
    """What torch.save wrote since torch 1.6, a zip file with one pickle that names no code."""
    import torch

    if not zipfile.is_zipfile(io.BytesIO(content)):
        named = [told for told in _globals(content) if not KNOWN_GLOBALS.fullmatch(told)]
        code = f": a pickle that names '{named[0]}'" if named else ""
        raise InputError(f"{name} is not a file of torch.save (since torch 1.6){code}")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            size = sum(entry.file_size for entry in entries)
            if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or size > most_bytes:
                raise InputError(
                    f"{name} is compressed, or declares {size} bytes: more than the file holds"
                )
            pickles = [told for told in names if told.endswith(".pkl")]
            if len(set(names)) < len(names) or len(pickles) != 1:
                raise InputError(f"{name} is not a state dict: it holds {len(pickles)} pickles")
            if damaged := archive.testzip():
                raise InputError(f"{name} is damaged: '{shown(damaged)}' has another check sum")
            named = _globals(archive.read(pickles[0]))
    except InputError:
        raise
    except Exception as error:  # a damaged archive may raise anything
        raise InputError(f"{name} is a damaged zip file: {shown(error)}") from error
    for told in named:
        if not KNOWN_GLOBALS.fullmatch(told):
            raise InputError(
                f"{name} is a pickle that names '{told}', which is no part of a state dict; "
                f"nothing of it was run. Where it is trusted: torch.save(model.state_dict(), ...)"
            )
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise InputError(f"{name} cannot be loaded as weights: {shown(error)}") from error


def _globals(pickled: bytes) -> list[str]:
    """Whatever a pickle names to be called, 'module name'; nothing of it is run."""
    named, texts = [], [""]
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if isinstance(argument, str):
                texts.append(argument)
            if opcode.name == "GLOBAL":
                named.append(shown(argument))
            elif opcode.name in OTHER_WAYS_TO_NAME:  # mostly by the two texts before it
                named.append(shown(" ".join([*texts[-2:], f"({opcode.name})"])))
    except Exception:  # what stands before the damage is told; torch says the rest
        pass
    return named


def _state_in(name: str, loaded: Any) -> dict[str, Tensor]:
    from torch import Tensor

    for held in (loaded, *(loaded.get(key) for key in HOLDERS if isinstance(loaded, dict))):
        pairs = list(held.items()) if isinstance(held, dict) else []
        if pairs and all(isinstance(k, str) and isinstance(w, Tensor) for k, w in pairs):
            return dict(pairs)
    keys = ", ".join(map(shown, list(loaded)[:5])) if isinstance(loaded, dict) else ""
    raise InputError(
        f"{name} holds no state dict, nor one under {', '.join(HOLDERS[:2])}"
        + (f"; it holds: {keys}" if keys else "")
    )


def _sound(name: str, state: dict[str, Tensor], most_bytes: int) -> dict[str, Tensor]:
    """Plain tensors, finite, each as large as what is stored of it; `InputError` names another."""
    import torch

    whole, floats = 0, (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    for key, weight in state.items():
        told = f"{name}: weight '{shown(key)}'"
        plain_kind = weight.dtype in floats or weight.dtype in (
            torch.int64,
            torch.int32,
            torch.bool,
        )
        if weight.layout != torch.strided or weight.device.type != "cpu" or not plain_kind:
            raise InputError(f"{told} is not a plain tensor of numbers ({weight.dtype})")
        size = weight.numel() * weight.element_size()
        whole += size
        if size > weight.untyped_storage().nbytes() or whole > most_bytes:
            raise InputError(f"{told} declares {size} bytes, more than is stored of it")
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise InputError(f"{told} is not finite: NaN or infinite")
    return {key: weight.detach().clone().contiguous() for key, weight in state.items()}


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as the library has them, without what a wrapper put before each."""
    while True:
        prefix = next((p for p in WRAPPERS if all(key.startswith(p) for key in state)), None)
        if prefix is None:
            return state
        state = {key.removeprefix(prefix): weight for key, weight in state.items()}
