"""Asks the hub for a profile or for files: ``python -m inferapi.adapters.hub_fetch``, a process for one question.

The hub library cannot be interrupted while the hub is silent; a process can. It ends when its standard input does:
that is, when nobody waits any more, or when the API process is gone, however that ended.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
from huggingface_hub import HfApi, constants, get_token, hf_hub_download, snapshot_download
from tqdm import tqdm

from inferapi.adapters import hub_errors, model_profile
from inferapi.adapters.hub_messages import Answer, Failed, Fetched, Fetching, Profiled, Question
from inferapi.adapters.model_files import MAX_JSON_BYTES, Json, Tensor, parse_tensor
from inferapi.adapters.model_folder import (
    CONFIGS,
    POOLING,
    SMALL_FILES,
    SUBFOLDERS,
    WEIGHTS_INDEX,
    checked_config,
    weight_files,
)
from inferapi.domain.errors import ModelGated, ModelInvalid
from inferapi.domain.model import ModelProfile

_COMMIT = re.compile(r"[0-9a-f]{40}")
_AT_ONCE = 8
_CHUNK_BYTES = 1024**2


@dataclass(frozen=True, slots=True)
class _Found:
    """What the hub said about a model; its configs are here already, in ``folder``."""

    commit: str
    folder: Path
    config: Json
    weights: list[str]
    has_pooling: bool


class Asking:
    """Answers one question with the hub library."""

    def __init__(self, question: Question) -> None:
        self._question, self._model = question, str(question.ref)
        self._endpoint = (question.endpoint or constants.ENDPOINT).rstrip("/")
        self._api = HfApi(endpoint=self._endpoint)
        self._token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
        self._downloading = False

    def answer(self) -> Answer:
        """What the question asks for, or why it cannot be had."""
        try:
            if self._token and not (self._token.isascii() and self._token.isprintable() and " " not in self._token):
                raise ModelGated(model=self._model, advice=hub_errors.CREDENTIALS_REFUSED)  # noqa: TRY301
            return Profiled(self._profile()) if self._question.commit is None else Fetched(self._fetch())
        except Exception as error:  # noqa: BLE001 - whatever the library raises
            told = hub_errors.translated(
                error, self._model, self._endpoint, has_token=bool(self._token), downloading=self._downloading
            )
            # Names alone: texts may quote signed addresses, or a token that no header can carry.
            causes = " from ".join(type(cause).__name__ for cause in hub_errors.chain(error))
            return Failed(type(told).__name__, told.facts, causes)

    def _profile(self) -> ModelProfile:
        found = self._find(self._question.ref.revision)
        tensors: dict[str, Tensor] = {}
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for of_file in pool.map(partial(self._header, found.commit), found.weights):
                tensors |= of_file
        profile = model_profile.profile(self._question.ref, found.config, tensors)
        files = snapshot_download(**self._files(found), dry_run=True)
        left = sum(file.file_size or 0 for file in files if file.will_download)
        return replace(profile, commit=found.commit, download_bytes=left)

    def _fetch(self) -> str:
        found = self._find(self._question.commit)
        self._downloading = True
        constants.DOWNLOAD_CHUNK_SIZE = _CHUNK_BYTES  # 10 MiB else: a slow hub would look like a silent one
        if found.has_pooling:  # first: with the weights the model would be complete without it
            hf_hub_download(self._question.ref.name, POOLING, **self._place(found.commit))
        return str(snapshot_download(**self._files(found)))

    def _find(self, revision: str | None) -> _Found:
        """Read and check the small files that tell whether the model may be served at all."""
        name, model = self._question.ref.name, self._model
        # First, and without retries: it tells at once when the hub is not there or does not know the name.
        info = self._api.model_info(name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT, files_metadata=True)
        if _COMMIT.fullmatch(info.sha or "") is None:
            raise ValueError(info.sha)
        commit = str(info.sha)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or () if "/" not in file.rfilename}
        needed = [file for file in (*CONFIGS, WEIGHTS_INDEX) if file in sizes]
        if CONFIGS[0] not in needed or any(sizes[file] > MAX_JSON_BYTES for file in needed):
            raise ModelInvalid(model=model, problem=f"{CONFIGS[0]} is missing, or a config is too large")
        paths = [Path(str(hf_hub_download(name, file, **self._place(commit)))) for file in needed]
        folder = paths[0].parent
        has_pooling = any(file.rfilename == POOLING for file in info.siblings or ())
        return _Found(
            commit, folder, checked_config(sizes, folder, model), weight_files(sizes, folder, model), has_pooling
        )

    def _header(self, commit: str, file: str) -> dict[str, Tensor]:
        """The tensors of a weight file, from its beginning."""
        metadata = self._api.parse_safetensors_file_metadata(
            self._question.ref.name, file, revision=commit, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        )
        try:
            return {name: parse_tensor(vars(tensor)) for name, tensor in metadata.tensors.items()}
        except (ValueError, LookupError, TypeError) as error:
            raise ModelInvalid(model=self._model, problem=f"{file} is no safetensors file") from error

    def _files(self, found: _Found) -> dict[str, Any]:
        """All that serving needs, and no more."""
        return {
            "repo_id": self._question.ref.name,
            "allow_patterns": [*SMALL_FILES, *found.weights],
            "ignore_patterns": [SUBFOLDERS],
            "tqdm_class": _Bar,
            **self._place(found.commit),
        }

    def _place(self, commit: str) -> dict[str, Any]:
        """From where, and to where."""
        return {"revision": commit, "cache_dir": self._question.cache_dir, "endpoint": self._endpoint}


class _Bar(tqdm):  # type: ignore[misc]  # untyped
    """A progress bar that shows nothing and tells of bytes."""

    _told_bytes = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._done_bytes, self._counts_bytes = 0, kwargs.get("unit") == "B"
        kwargs.pop("name", None)
        super().__init__(*args, **{**kwargs, "disable": True})

    def update(self, n: float | None = 1) -> None:
        """Hear of ``n`` more; less than none when some have to come again."""
        self._done_bytes += int(n or 0)
        if self._counts_bytes and self._done_bytes > _Bar._told_bytes:  # two bars count the same bytes
            _Bar._told_bytes = self._done_bytes
            _tell(Fetching(self._done_bytes))


def _tell(answer: Answer) -> None:
    os.write(sys.stdout.fileno(), msgspec.json.encode(answer) + b"\n")  # at once, and whole: many threads tell


def _end_with_input() -> None:
    """Wait until nobody waits, then end at once; what came of unfinished files is of no use to anybody."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            file = descriptor.readlink()
            if file.suffix == ".incomplete":
                file.unlink()
    os._exit(1)


def main() -> None:
    """Read a question, answer it."""
    # Ctrl-C and SIGTERM are the API process's business: terminals and supervisors send them to every process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if line := sys.stdin.buffer.readline():
        Thread(target=_end_with_input, daemon=True).start()
        _tell(Asking(msgspec.json.decode(line, type=Question)).answer())


if __name__ == "__main__":
    main()
