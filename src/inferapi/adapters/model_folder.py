"""A model's folder on this machine: what it must hold, what it must not, and the profile of it."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from inferapi.adapters import model_profile
from inferapi.adapters.model_files import Json, Tensor, read_header, read_json
from inferapi.domain.errors import ModelInvalid, UnsafeWeights
from inferapi.domain.model import ModelProfile, ModelRef

CONFIGS = ("config.json", "tokenizer_config.json", "generation_config.json")
"""The files in which a model could ask for code; the first one must be there."""

SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
"""Patterns of all that transformers reads beside the weights."""
SUBFOLDERS = "*/*"
"""The pattern of what it does not read: other formats of the same weights, original/, onnx/, …"""
POOLING = "1_Pooling/config.json"
"""How a model made for embedding pools, as sentence-transformers keeps it: the one file in a folder that is read."""
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKENIZER_FILES = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt"}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MOST_ENTRIES = 10_000


def profile_of_folder(ref: ModelRef, folder: Path, *, commit: str | None = None) -> ModelProfile:
    """Profile a model whose files are here.

    Raises:
        ModelInvalid, UnsafeWeights, RemoteCodeRefused: it must not be served.
    """
    model = str(ref)
    names = {entry.name for entry in _listed(folder, model)}
    config = checked_config(names, folder, model)
    tensors: dict[str, Tensor] = {}
    for name in weight_files(names, folder, model):
        tensors |= read_header(folder / name, model)
    return replace(model_profile.profile(ref, config, tensors), commit=commit)


def checked_config(names: Collection[str], folder: Path, model: str) -> Json:
    """The config of a model that has files of these names; all that could ask for code lie in ``folder``.

    Raises:
        ModelInvalid, RemoteCodeRefused: a config is broken or hostile, or there is no tokenizer.
    """
    config = read_json(folder / CONFIGS[0], model)
    for name in CONFIGS:
        if name in names:
            model_profile.refuse_hostile(read_json(folder / name, model), model)
    if _TOKENIZER_FILES.isdisjoint(names):
        raise ModelInvalid(model=model, problem="it has no tokenizer")
    return config


def weight_files(names: Collection[str], folder: Path, model: str) -> list[str]:
    """Which of a model's files hold the weights that transformers reads; the index lies in ``folder``.

    One file goes before many: transformers looks at the index only where that file is missing.

    Raises:
        ModelInvalid, UnsafeWeights: there are none, or only some.
    """
    if WEIGHTS in names:
        return [WEIGHTS]
    if WEIGHTS_INDEX in names:
        return _indexed_files(names, read_json(folder / WEIGHTS_INDEX, model), model)
    if any(name.endswith(_PICKLES) for name in names):
        raise UnsafeWeights(model=model)
    raise ModelInvalid(model=model, problem="it has no weights")


def is_complete(folder: Path, model: str) -> bool:
    """Whether a snapshot of the hub has all it needs: an interrupted download may have left only some files."""
    try:
        names = {entry.name for entry in folder.iterdir() if entry.exists()}
        return (
            CONFIGS[0] in names and not _TOKENIZER_FILES.isdisjoint(names) and bool(weight_files(names, folder, model))
        )
    except UnsafeWeights:
        return True  # complete enough to be refused for what it is
    except (ModelInvalid, OSError):
        return False


def refuse_links_and_devices(folder: Path, root: Path, model: str) -> None:
    """Refuse a folder below ``root`` from which a link leads out, or that holds what is neither file nor folder.

    Reading a named pipe would wait for ever.

    Raises:
        ModelInvalid: at the first such entry.
    """
    root = root.resolve()
    pending = [folder]
    seen = 0
    try:
        if not folder.resolve(strict=True).is_relative_to(root):
            raise _leads_out(model)
        while pending:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    seen += 1
                    if seen > _MOST_ENTRIES:
                        raise ModelInvalid(model=model, problem=f"its folder holds more than {_MOST_ENTRIES} files")
                    if _is_folder(entry, root, model):
                        pending.append(Path(entry))
    except (OSError, RuntimeError) as error:  # a link that leads nowhere or to itself, a folder that cannot be read
        raise folder_unreadable(model) from error


def folder_unreadable(model: str) -> ModelInvalid:
    """What is said of a folder that this process may not look into."""
    return ModelInvalid(model=model, problem="its folder cannot be read")


def _is_folder(entry: os.DirEntry[str], root: Path, model: str) -> bool:
    """Whether to go on below ``entry``; a link to a folder of ours is looked at where that lies."""
    if entry.is_symlink() and not Path(entry).resolve().is_relative_to(root):
        raise _leads_out(model)
    mode = entry.stat().st_mode
    if not S_ISDIR(mode) and not S_ISREG(mode):
        raise ModelInvalid(model=model, problem="its folder holds what is neither a file nor a folder")
    return S_ISDIR(mode) and not entry.is_symlink()


def _listed(folder: Path, model: str) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise folder_unreadable(model) from error


def _indexed_files(names: Collection[str], index: Json, model: str) -> list[str]:
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ModelInvalid(model=model, problem="its index of weights is broken")
    files = sorted(set(shards.values()))
    if any(Path(name).name != name or not name.endswith(".safetensors") for name in files):
        raise ModelInvalid(model=model, problem="its index of weights names files outside its folder")
    if missing := [name for name in files if name not in names]:
        raise ModelInvalid(model=model, problem=f"{len(missing)} of {len(files)} weight files are missing")
    return files


def _leads_out(model: str) -> ModelInvalid:
    return ModelInvalid(model=model, problem="its folder links to files outside the models folder")
