"""Models by name: the models folder, then the hub's cache on this machine, then the hub."""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    NotASafetensorsRepoError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)
from tqdm import tqdm

from inferapi.adapters import model_profile
from inferapi.adapters.model_profile import Tensor
from inferapi.domain.errors import (
    HubTimeout,
    HubUnavailable,
    InferapiError,
    InsufficientStorage,
    ModelGated,
    ModelInvalid,
    ModelNotFound,
    UnsafeWeights,
)
from inferapi.domain.model import ModelProfile, ModelRef

log = logging.getLogger(__name__)


_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
_SUBFOLDERS = "*/*"  # other formats of the same weights: original/, onnx/, …
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
_CONFIGS = ("config.json", "tokenizer_config.json", "generation_config.json")
_ANSWER_S = 10.0
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class TransformersRepository:
    """A ``ModelRepository`` of models that transformers can load from safetensors.

    Args:
        models_dir: local models, ``<org>/<name>/``; they need no hub.
    """

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir
        self._api = HfApi()

    async def profile(self, ref: ModelRef) -> ModelProfile:
        """See ``ModelRepository``."""
        return await asyncio.to_thread(self._profile, ref)

    async def fetch(self, ref: ModelRef) -> str:
        """See ``ModelRepository``."""
        stop = threading.Event()
        try:
            return str(await asyncio.to_thread(self._fetch, ref, stop))
        finally:
            stop.set()  # a cancelled download notices at its next bytes

    def _profile(self, ref: ModelRef) -> ModelProfile:
        folder = self._on_this_machine(ref)
        if folder is not None:
            return profile_of_folder(ref, folder)
        with _translated_errors(ref):
            # First, and without retries: it tells at once when the hub is not there or does not know the name.
            info = self._api.model_info(ref.name, revision=ref.revision, timeout=_ANSWER_S)
            files = {file.rfilename for file in info.siblings or ()}
            configs = [
                model_profile.read_json(Path(hf_hub_download(ref.name, name, revision=info.sha)), str(ref))
                for name in _CONFIGS
                if name in files or name == "config.json"
            ]
            for config in configs:
                model_profile.refuse_hostile(config, str(ref))
            try:
                metadata = self._api.get_safetensors_metadata(ref.name, revision=info.sha)
            except NotASafetensorsRepoError as error:
                raise UnsafeWeights(model=str(ref)) from error
        tensors = {
            name: Tensor(str(info.dtype), tuple(info.shape), info.data_offsets[1] - info.data_offsets[0])
            for file in metadata.files_metadata.values()
            for name, info in file.tensors.items()
        }
        return model_profile.profile(ref, configs[0], tensors)

    def _fetch(self, ref: ModelRef, stop: threading.Event) -> Path:
        folder = self._on_this_machine(ref)
        if folder is None:
            with _translated_errors(ref):
                folder = Path(
                    snapshot_download(
                        ref.name,
                        revision=ref.revision,
                        allow_patterns=[*_SMALL_FILES, "*.safetensors"],
                        ignore_patterns=[_SUBFOLDERS],
                        tqdm_class=_stoppable(stop),
                    )
                )
        profile_of_folder(ref, folder)  # what came may not be what was announced
        return folder

    def _on_this_machine(self, ref: ModelRef) -> Path | None:
        local = self._models_dir / ref.name
        if ref.revision is None and local.is_dir():
            root = self._models_dir.resolve()
            if not all(path.resolve().is_relative_to(root) for path in (local, *local.iterdir())):
                raise ModelInvalid(model=str(ref), problem="its folder links to files outside the models folder")
            return local
        try:
            cached = Path(snapshot_download(ref.name, revision=ref.revision, local_files_only=True))
        except (LocalEntryNotFoundError, OSError, ValueError):
            return None
        return cached if _is_complete(ref, cached) else None


def profile_of_folder(ref: ModelRef, folder: Path) -> ModelProfile:
    """Profile a model whose files are here.

    Raises:
        ModelInvalid, UnsafeWeights, RemoteCodeRefused: it must not be served.
    """
    model = str(ref)
    config = model_profile.read_json(folder / "config.json", model)
    for name in _CONFIGS:
        if (folder / name).exists():
            model_profile.refuse_hostile(model_profile.read_json(folder / name, model), model)
    if not any((folder / name).exists() for name in _TOKENIZER_FILES):
        raise ModelInvalid(model=model, problem="it has no tokenizer")
    tensors: dict[str, Tensor] = {}
    for file in _weight_files(ref, folder):
        tensors |= model_profile.read_header(file, model)
    return model_profile.profile(ref, config, tensors)


def _weight_files(ref: ModelRef, folder: Path) -> list[Path]:
    model = str(ref)
    if (folder / _INDEX).exists():
        names = model_profile.read_json(folder / _INDEX, model).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise ModelInvalid(model=model, problem="its index of weights is broken")
        files = sorted(set(names.values()))
        if any(Path(name).name != name or not name.endswith(".safetensors") for name in files):
            raise ModelInvalid(model=model, problem="its index of weights names files outside its folder")
        return [folder / name for name in files]
    if (folder / _WEIGHTS).exists():
        return [folder / _WEIGHTS]
    if any(file.suffix in _PICKLES for file in folder.iterdir()):
        raise UnsafeWeights(model=model)
    raise ModelInvalid(model=model, problem="it has no weights")


def _is_complete(ref: ModelRef, folder: Path) -> bool:
    """Whether a cached snapshot has all it needs: an interrupted download may have left only some files."""
    if not (folder / "config.json").exists() or not any((folder / name).exists() for name in _TOKENIZER_FILES):
        return False
    try:
        return all(file.exists() for file in _weight_files(ref, folder))
    except UnsafeWeights:
        return True  # complete enough to be refused for what it is
    except ModelInvalid:
        return False


def _stoppable(stop: threading.Event) -> type[tqdm]:
    """A progress bar that shows nothing, and ends the download that feeds it once ``stop`` is set."""

    class Stoppable(tqdm):  # type: ignore[misc]  # untyped
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if stop.is_set():
                raise InterruptedError
            super().update(n)

    return Stoppable


@contextmanager
def _translated_errors(ref: ModelRef) -> Iterator[None]:
    try:
        yield
    except InferapiError:
        raise
    except Exception as error:
        raise _translated(str(ref), error) from error


def _translated(model: str, error: Exception) -> InferapiError:
    """What the hub library's exceptions mean; the narrow ones first, most of them are subclasses of others."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if isinstance(error, GatedRepoError):
        return ModelGated(model=model)
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
        return ModelNotFound(model=model)
    if status in {401, 403}:
        return ModelGated(model=model)
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError) and constants.is_offline_mode():
        return ModelNotFound(model=model)
    if isinstance(error, SafetensorsParsingError | RemoteEntryNotFoundError):
        return ModelInvalid(model=model, problem="the repository holds no model that transformers knows")
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return InsufficientStorage(model=model)
    if "Timeout" in type(error).__name__:  # of httpx or its successor, whichever this hub library uses
        return HubTimeout(model=model)
    return HubUnavailable(model=model)
