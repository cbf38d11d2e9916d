"""Downloads from the hub: what comes, going on after a break, and ending them."""

import asyncio
import json
import sys

import psutil
import pytest
from huggingface_hub import get_cached_repo_tree, hf_hub_download, snapshot_download

from contracts import ModelRepositoryContract
from hub_side import NAME, REF, ROWS, WEIGHTS_BYTES, askers, fetch, safetensors, write_model
from inferapi.domain.errors import (
    DownloadIncomplete,
    ModelLoadFailed,
    ModelNotFound,
)
from stub_hub import unused_address


class TestTransformersRepository(ModelRepositoryContract):
    @pytest.fixture
    def repository(self, hub, here, source):
        hub.add(NAME, source)
        return here.repository()

    @pytest.fixture
    def known(self):
        return REF


# What comes


async def test_a_profile_comes_from_headers_alone_and_tells_commit_and_bytes_to_come(hub, here, source):
    repo = hub.add(NAME, source)
    profile = await here.repository().profile(REF)
    assert profile.parameters_by_dtype == {"F32": ROWS * 256}
    assert (profile.stored_bytes, profile.commit, profile.hidden_size) == (WEIGHTS_BYTES, repo.commit, 64)
    still = sum((source / name).stat().st_size for name in ("tokenizer.json", "model.safetensors"))
    assert profile.download_bytes == still
    gets = [one.range for one in hub.requests if "safetensors" in one.path and one.method == "GET"]
    assert gets == ["bytes=0-100000"]


async def test_a_download_is_of_the_commit_and_holds_what_the_hub_has(hub, here, source):
    repo = hub.add(NAME, source)
    repository = here.repository()
    folder, reports = await fetch(repository)
    assert folder == str(here.cache / "models--org--name" / "snapshots" / repo.commit)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        assert (here.cache / folder / name).read_bytes() == (source / name).read_bytes()
    total = reports[0][1]
    assert reports[0] == (0, total)
    assert reports[-1] == (total, total)
    assert reports == sorted(reports)
    assert {f"/resolve/{repo.commit}/" in path for path in hub.asked(containing="resolve")} == {True}
    assert hub.asked(containing="README") == []
    again = await repository.profile(REF)
    assert (again.commit, again.download_bytes) == (repo.commit, 0)
    assert askers() == []


async def test_the_commit_of_the_profile_is_fetched_and_no_newer_one(hub, here, source, tmp_path):
    old = hub.add(NAME, source)
    repository = here.repository()
    profile = await repository.profile(REF)
    hub.add(NAME, write_model(tmp_path / "newer"))
    with pytest.raises(ModelNotFound):  # the stub forgot the old commit; the new one would have been found
        await repository.fetch(profile, lambda *_: None)
    assert hub.repos[NAME].commit != old.commit


async def test_shards_come_from_the_index_and_nothing_else_that_is_large(hub, here, tmp_path):
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    files = {"one__safetensors": safetensors(5, "a"), "two__safetensors": safetensors(7, "b")}
    extra = {"consolidated__safetensors": safetensors(9), "pytorch_model__bin": b"x" * 10_000, "onnx/x__json": {}}
    source = write_model(
        tmp_path / "source", model__safetensors=None, model__safetensors__index__json=index, **files, **extra
    )
    hub.add(NAME, source)
    repository = here.repository()
    assert (await repository.profile(REF)).parameters_by_dtype == {"F32": 12 * 256}
    folder, reports = await fetch(repository)
    come = {path.name for path in (here.cache / folder).iterdir()}
    assert come == {
        "config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
        "one.safetensors",
        "two.safetensors",
    }
    assert reports[-1][0] == sum(
        (source / name).stat().st_size for name in ("tokenizer.json", "one.safetensors", "two.safetensors")
    )


async def test_how_a_model_made_for_embedding_pools_comes_with_it_and_nothing_else_of_any_folder(hub, here, tmp_path):
    pooling = {"word_embedding_dimension": 64, "pooling_mode_lasttoken": True}
    files = {"1_Pooling/config__json": pooling, "1_Pooling/other__json": {}, "onnx/config__json": {}}
    hub.add(NAME, write_model(tmp_path / "source", **files))
    repository = here.repository()
    folder, _ = await fetch(repository)
    come = {path.relative_to(folder).as_posix() for path in (here.cache / folder).rglob("*") if path.is_file()}
    assert come == {"config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"}
    assert json.loads((here.cache / folder / "1_Pooling" / "config.json").read_text()) == pooling
    assert (await repository.profile(REF)).download_bytes == 0


async def test_a_mirror_whose_listing_tells_neither_sizes_nor_hashes_will_do(hub, here, source):
    hub.add(NAME, source, names_alone=True)
    folder, reports = await fetch(here.repository())
    total = sum((source / name).stat().st_size for name in ("tokenizer.json", "model.safetensors"))
    assert (reports[0], reports[-1]) == ((0, total), (total, total))
    assert (here.cache / folder / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


async def test_the_hub_library_finds_what_came_in_the_cache(hub, here, source):
    hub.add(NAME, source)
    folder, _ = await fetch(here.repository())
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        assert hf_hub_download(NAME, file, cache_dir=here.cache, local_files_only=True) == f"{folder}/{file}"


async def test_what_the_hub_library_downloaded_is_found_and_the_hub_not_asked(hub, here, source):
    repo = hub.add(NAME, source)
    folder = await asyncio.to_thread(
        snapshot_download,
        NAME,
        endpoint=hub.url,
        cache_dir=here.cache,
        token=False,
        allow_patterns=["*.json", "*.safetensors"],
    )
    assert len(get_cached_repo_tree(NAME, cache_dir=here.cache)) == 4
    hub.requests.clear()
    profile = await here.repository(endpoint=unused_address()).profile(REF)
    assert (profile.commit, profile.download_bytes) == (repo.commit, 0)
    assert await here.repository().fetch(profile, lambda *_: None) == folder
    assert hub.requests == []


# Going on after a break


async def test_a_download_that_breaks_off_once_goes_on_from_there(hub, here, source):
    hub.add(NAME, source, cuts=[1_500_000])
    folder, reports = await fetch(here.repository())
    gets = [one.range for one in hub.requests if "safetensors" in one.path and one.method == "GET"]
    assert gets[:2] == ["bytes=0-100000", None]
    assert int(gets[2].removeprefix("bytes=").removesuffix("-")) > 1_000_000
    assert (here.cache / folder / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert reports[-1][0] == reports[-1][1]
    assert reports == sorted(reports)


async def test_a_download_that_breaks_off_again_and_again_is_incomplete_and_keeps_whole_files(hub, here, source):
    repo = hub.add(NAME, source, cuts=[100_000], cuts_always=True)
    repository = here.repository()
    with pytest.raises(DownloadIncomplete) as caught:
        await fetch(repository)
    assert caught.value.facts == {"model": NAME}
    assert here.partials() == []
    repo.cuts.clear()
    left = (source / "model.safetensors").stat().st_size
    assert (await repository.profile(REF)).download_bytes == left
    _, reports = await fetch(repository)
    assert (reports[0], reports[-1]) == ((0, left), (left, left))


@pytest.mark.parametrize("difference", [-1000, 1000])
def test_a_file_that_is_not_as_long_as_announced_is_incomplete_and_not_kept(hub, here, source, difference):
    repo = hub.add(NAME, source)
    repo.announced["model.safetensors"] = (source / "model.safetensors").stat().st_size + difference
    assert type(here.failure(commit=repo.commit)) is DownloadIncomplete
    assert here.partials() == []
    assert not list(here.cache.rglob("model.safetensors"))


async def test_two_downloads_of_one_model_at_once_fetch_every_file_once(hub, here, source):
    hub.add(NAME, source)
    profile = await here.repository().profile(REF)
    folders = await asyncio.gather(*(here.repository().fetch(profile, lambda *_: None) for _ in range(2)))
    assert len(set(folders)) == 1
    gets = [one for one in hub.requests if "safetensors" in one.path and one.method == "GET" and one.range is None]
    assert len(gets) == 1


# Nothing stays behind


async def gone(processes):
    """Wait until they are."""
    async with asyncio.timeout(60):
        while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_download_from_a_silent_hub_reports_what_came_and_leaves_nothing_when_it_is_cancelled(
    hub, here, source, monkeypatch
):
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "60")
    repo = hub.add(NAME, source, silent_after=2_000_000)
    profile = await here.repository().profile(REF)
    reports, far = [], asyncio.Event()

    def report(_, done, total):
        reports.append((done, total))
        if done > 1_000_000:
            far.set()

    task = asyncio.create_task(here.repository().fetch(profile, report))
    async with asyncio.timeout(50):
        assert await asyncio.to_thread(hub.silent.wait, 50)
        await far.wait()
    assert len(askers()) == 1
    assert here.partials() != []
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (here.partials(), askers()) == ([], [])
    assert reports[-1][0] < reports[-1][1] == profile.download_bytes
    repo.silent_after = None
    assert (await fetch(here.repository()))[1][-1][0] > WEIGHTS_BYTES


async def test_a_profile_of_a_hub_that_does_not_answer_leaves_nothing_when_it_is_cancelled(
    hub, here, source, monkeypatch
):
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "60")
    hub.add(NAME, source, silent_listing=True)
    task = asyncio.create_task(here.repository().profile(REF))
    assert await asyncio.to_thread(hub.silent.wait, 50)
    assert len(askers()) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert askers() == []


async def test_a_cancel_while_the_process_starts_leaves_none(hub, here, source):
    hub.add(NAME, source)
    for pause_s in (0.0, 0.002, 0.02):
        task = asyncio.create_task(here.repository().profile(REF))
        await asyncio.sleep(pause_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert askers() == []


DIES = """
import asyncio, sys
from pathlib import Path
from inferapi.adapters.transformers_repository import TransformersRepository
from inferapi.domain.model import ModelRef

async def main():
    repository = TransformersRepository(Path("none"), sys.argv[1], Path(sys.argv[2]))
    await repository.fetch(await repository.profile(ModelRef("org/name")), lambda *_: None)

asyncio.run(main())
"""


async def test_a_download_ends_with_the_server_however_that_ends(hub, here, source, monkeypatch):
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "60")
    hub.add(NAME, source, silent_after=2_000_000)
    server = psutil.Popen([sys.executable, "-c", DIES, hub.url, str(here.cache)])
    try:
        assert await asyncio.to_thread(hub.silent.wait, 50)
        asking = server.children()
        assert len(asking) == 1
    finally:
        server.kill()
        await asyncio.to_thread(server.wait)
    await gone(asking)
    assert here.partials() == []


async def test_a_download_whose_process_is_killed_has_failed(hub, here, source, monkeypatch):
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "60")
    hub.add(NAME, source, silent_after=2_000_000)
    task = asyncio.create_task(fetch(here.repository()))
    assert await asyncio.to_thread(hub.silent.wait, 50)
    (asking,) = askers()
    asking.kill()
    with pytest.raises(ModelLoadFailed, match="ended unexpectedly"):
        await task
    assert askers() == []
