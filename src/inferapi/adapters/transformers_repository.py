"""Models by name: the models folder, then the hub's cache on this machine, then the hub."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import constants

from inferapi.adapters.hub_models import HubModels
from inferapi.adapters.local_models import models_in
from inferapi.adapters.model_folder import folder_unreadable, profile_of_folder, refuse_links_and_devices
from inferapi.domain.errors import InsufficientStorage, ModelNotFound
from inferapi.domain.model import ModelProfile, ModelRef
from inferapi.domain.states import ModelState, Report


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder that need not be there yet."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


class TransformersRepository:
    """A ``ModelRepository`` of models that transformers can load from safetensors.

    A model of the models folder or of the cache is never asked after on the hub: a name without a revision goes on
    to mean what was downloaded first.

    Args:
        models_dir: local models, ``<org>/<name>/``; they need no hub.
        endpoint: the hub's address; default: HF_ENDPOINT, as the hub library reads it.
        cache_dir: the hub's cache; default: as the hub library's environment variables say.
        silence_timeout_s: a profile must be had, and a download must go on, within that time.
        free_bytes: the room on the disk of a folder.
    """

    def __init__(
        self,
        models_dir: Path,
        endpoint: str | None = None,
        cache_dir: Path | None = None,
        *,
        silence_timeout_s: float = 60.0,
        free_bytes: Callable[[Path], int] = free_bytes,
    ) -> None:
        self._models_dir = models_dir.absolute()
        self._hub = HubModels(endpoint, cache_dir, silence_timeout_s)
        self._free_bytes = free_bytes

    async def profile(self, ref: ModelRef) -> ModelProfile:
        """See ``ModelRepository``."""
        profile = await asyncio.to_thread(self._profile_of_this_machine, ref)
        if profile is not None:
            return profile
        _refuse_if_offline(ref)
        return await self._hub.profile(ref)

    async def local(self) -> dict[ModelRef, float]:
        """See ``ModelRepository``: those of the models folder."""
        return await asyncio.to_thread(models_in, self._models_dir)

    async def fetch(self, profile: ModelProfile, report: Report) -> str:
        """See ``ModelRepository``."""
        ref, commit, total = profile.ref, profile.commit, profile.download_bytes
        here = await asyncio.to_thread(self._folder_of_this_machine, ref, commit)
        if here is not None:
            return str(here)
        _refuse_if_offline(ref)
        if commit is None:
            raise ModelNotFound(model=str(ref))
        if await asyncio.to_thread(self._free_bytes, self._hub.cache_dir) < total:
            raise InsufficientStorage(model=str(ref))
        most_bytes = 0

        def hear(done_bytes: int) -> None:
            nonlocal most_bytes  # what has to come again is no step back
            most_bytes = max(most_bytes, min(done_bytes, total))
            report(ModelState.DOWNLOADING, most_bytes, total)

        hear(0)
        folder = await self._hub.fetch(ref, commit, hear)
        hear(total)
        await asyncio.to_thread(self._accept, ref, folder)
        return str(folder)

    def _profile_of_this_machine(self, ref: ModelRef) -> ModelProfile | None:
        if (local := self._local(ref)) is not None:
            return profile_of_folder(ref, local)
        folder = self._hub.cached(ref, ref.revision)
        return None if folder is None else profile_of_folder(ref, folder, commit=folder.name)

    def _folder_of_this_machine(self, ref: ModelRef, commit: str | None) -> Path | None:
        if commit is not None:
            folder = self._hub.cached(ref, commit)
            if folder is not None:
                self._accept(ref, folder)
        elif (folder := self._local(ref)) is not None:
            profile_of_folder(ref, folder)
        return folder

    def _accept(self, ref: ModelRef, folder: Path) -> None:
        """Check what came, it may not be what was announced; only then the name means it."""
        profile_of_folder(ref, folder)
        self._hub.remember(ref, folder)

    def _local(self, ref: ModelRef) -> Path | None:
        folder = self._models_dir / ref.name
        try:
            if ref.revision is not None or not folder.is_dir():
                return None
        except OSError as error:
            raise folder_unreadable(str(ref)) from error
        refuse_links_and_devices(folder, self._models_dir, str(ref))
        return folder


def _refuse_if_offline(ref: ModelRef) -> None:
    if constants.is_offline_mode():
        raise ModelNotFound(model=str(ref))
