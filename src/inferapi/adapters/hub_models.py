"""Models of the hub: in its cache on this machine, or asked for through a process that can be ended at any time."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
from huggingface_hub import constants, snapshot_download

from inferapi.adapters.hub_messages import Answer, Failed, Fetched, Fetching, Profiled, Question
from inferapi.adapters.model_folder import SMALL_FILES, SUBFOLDERS, is_complete
from inferapi.domain.errors import HubTimeout, ModelLoadFailed, error_named
from inferapi.domain.model import ModelProfile, ModelRef

log = logging.getLogger(__name__)

_GRACE_S = 2.0
_MOST_LINE_BYTES = 64 * 1024**2
_ENVIRONMENT = {"HF_HUB_ETAG_TIMEOUT": "10", "HF_HUB_DOWNLOAD_TIMEOUT": "10"}  # seconds; the operator's go before
_QUIET = {
    "HF_HUB_VERBOSITY": "critical",  # its warnings quote whole addresses, signed ones included
    "HF_HUB_DISABLE_TELEMETRY": "1",  # it would ask the hub by what to tell the software around it, and tell that
}


class HubModels:
    """Profiles and files of models on the hub.

    Args:
        endpoint: the hub's address; default: the hub library's, which is HF_ENDPOINT.
        cache_dir: default: the hub library's, which follows HF_HOME.
        silence_timeout_s: a profile must be had, and a download must go on, within that time.
    """

    def __init__(self, endpoint: str | None, cache_dir: Path | None, silence_timeout_s: float) -> None:
        self.cache_dir = (cache_dir or Path(constants.HF_HUB_CACHE)).absolute()
        self._endpoint, self._silence_timeout_s = endpoint, silence_timeout_s

    def cached(self, ref: ModelRef, revision: str | None) -> Path | None:
        """The folder of a complete model at that branch, tag or commit; nobody is asked."""
        try:
            folder = snapshot_download(
                ref.name,
                revision=revision,
                cache_dir=self.cache_dir,
                local_files_only=True,
                allow_patterns=[*SMALL_FILES],
                ignore_patterns=[SUBFOLDERS],
            )
        except (OSError, ValueError):  # not here, or not all of it
            return None
        return Path(folder) if is_complete(Path(folder), str(ref)) else None

    def remember(self, ref: ModelRef, folder: Path) -> None:
        """Let ``cached`` find this folder for the revision of ``ref``, if the cache can be written."""
        if ref.revision == folder.name:
            return
        path = folder.parents[1] / "refs" / (ref.revision or constants.DEFAULT_REVISION)
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            beside.write_text(folder.name, encoding="ascii")
            beside.replace(path)

    async def profile(self, ref: ModelRef) -> ModelProfile:
        """What the hub has under that name now. Raises as ``ModelRepository.profile``."""
        answer = await self._ask(ref, None, lambda _: None)
        assert isinstance(answer, Profiled)  # noqa: S101 - for the types
        return answer.profile

    async def fetch(self, ref: ModelRef, commit: str, hear: Callable[[int], None]) -> Path:
        """Have all files of a commit here, and return their folder; ``hear`` is told how many bytes have come.

        Raises as ``ModelRepository.fetch``.
        """
        answer = await self._ask(ref, commit, hear)
        assert isinstance(answer, Fetched)  # noqa: S101 - for the types
        return Path(answer.folder)

    async def _ask(self, ref: ModelRef, commit: str | None, hear: Callable[[int], None]) -> Answer:
        question = Question(ref, commit, self._endpoint, str(self.cache_dir))
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "inferapi.adapters.hub_fetch"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=_environment(os.environ),
                limit=_MOST_LINE_BYTES,
            )
        except OSError as error:
            raise ModelLoadFailed(model=str(ref), problem="no process could be started") from error
        assert process.stdin is not None  # noqa: S101 - for the types
        assert process.stdout is not None  # noqa: S101 - for the types
        try:
            process.stdin.write(msgspec.json.encode(question) + b"\n")
            while True:
                async with asyncio.timeout(self._silence_timeout_s):
                    line = await process.stdout.readline()
                if not line:
                    raise ModelLoadFailed(model=str(ref), problem="its download ended unexpectedly")
                answer: Answer = msgspec.json.decode(line, type=Answer)
                if isinstance(answer, Failed):
                    log.warning("the hub on %s: %s from %s", ref, answer.error, answer.causes)
                    raise error_named(answer.error, answer.facts)
                if not isinstance(answer, Fetching):
                    return answer
                hear(answer.done_bytes)
        except TimeoutError as error:
            raise HubTimeout(model=str(ref)) from error
        finally:
            process.stdin.close()
            await asyncio.shield(_gone(process))


async def _gone(process: asyncio.subprocess.Process) -> None:
    """Wait for the end of a process that ends with its input, and see to it."""
    try:
        async with asyncio.timeout(_GRACE_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    """What the hub's process needs: the token and the proxies, and none of the server's own settings and keys."""
    kept = {name: value for name, value in ours.items() if not name.upper().startswith("INFERAPI_")}
    return _ENVIRONMENT | kept | _QUIET
