"""Hostile repositories, the token, and offline: what is never fetched, sent or asked."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from hub_side import CONFIG, NAME, REF, fetch, write_model
from inferapi.adapters.hub_messages import Fetched
from inferapi.domain.errors import (
    HubUnavailable,
    ModelInvalid,
    ModelNotFound,
    ModelUnavailable,
    RemoteCodeRefused,
    UnsafeWeights,
)
from inferapi.domain.model import ModelRef
from stub_hub import ACCEPTED, VALID, StubHub, unused_address

INDEX_OF_PARENT = {"model__safetensors__index__json": {"weight_map": {"a": "../x.safetensors"}}}
INDEX_OF_NOTHING = {"model__safetensors__index__json": {"weight_map": {"a": "gone.safetensors"}}}

# Hostile repositories


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"config__json": CONFIG | {"auto_map": {"AutoModel": "evil.Model"}}}, RemoteCodeRefused),
        ({"tokenizer_config__json": {"a": [{"_x_internal": 1}]}}, RemoteCodeRefused),
        ({"generation_config__json": {"custom_pipelines": {}}}, RemoteCodeRefused),
        ({"model__safetensors": None, "pytorch_model__bin": b"x"}, UnsafeWeights),
        ({"model__safetensors": None}, ModelInvalid),
        ({"model__safetensors": b"\xff" * 64}, ModelInvalid),
        ({"model__safetensors": b""}, ModelInvalid),
        ({"config__json": None}, ModelInvalid),
        ({"config__json": b"[]"}, ModelInvalid),
        ({"config__json": CONFIG | {"transformers_weights": "x.safetensors"}}, ModelInvalid),
        ({"tokenizer__json": None}, ModelInvalid),
        ({"model__safetensors": None, **INDEX_OF_PARENT}, ModelInvalid),
        ({"model__safetensors": None, **INDEX_OF_NOTHING}, ModelInvalid),
    ],
)  # fmt: skip
def test_a_model_that_must_not_be_served_is_refused_before_any_weight_comes(hub, here, tmp_path, files, error):
    hub.add(NAME, write_model(tmp_path / "source", **files))
    assert type(here.failure()) is error
    assert not list(here.cache.rglob("*model.safetensors"))


async def test_what_came_is_looked_at_again_as_it_may_not_be_what_was_announced(hub, here, tmp_path):
    source = write_model(tmp_path / "source")
    hub.add(NAME, source)
    profile = await here.repository().profile(REF)
    source.joinpath("model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ModelInvalid):
        await here.repository().fetch(profile, lambda *_: None)


def test_a_config_that_is_too_large_is_not_downloaded(hub, here, source):
    extra = [{"rfilename": "generation_config.json", "size": 2**40, "blobId": "a" * 40}]
    hub.add(NAME, source, extra_files=extra)
    assert type(here.failure()) is ModelInvalid
    assert hub.asked(containing="resolve") == []


@pytest.mark.parametrize("name", ["../../../evil.json", "/evil.json", "..", "a/evil.json"])
def test_names_that_lead_elsewhere_are_not_asked_for(hub, here, source, name):
    hub.add(NAME, source, extra_files=[{"rfilename": name, "size": 2, "blobId": "a" * 40}])
    answer = here.answer(commit=hub.repos[NAME].commit)
    assert isinstance(answer, Fetched)
    assert {path.name for path in Path(answer.folder).iterdir()} == {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
    }
    assert hub.asked(containing="evil") == []


# Offline means offline, and the token stays here


async def test_a_model_of_the_cache_asks_nobody(hub, here, source):
    repo = hub.add(NAME, source)
    folder, _ = await fetch(here.repository())
    connections = hub.connections
    for url in (hub.url, unused_address()):
        for ref in (REF, ModelRef(NAME, repo.commit)):
            repository = here.repository(endpoint=url)
            profile = await repository.profile(ref)
            assert await repository.fetch(profile, lambda *_: None) == folder
    assert hub.connections == connections


async def test_a_model_of_the_models_folder_asks_nobody(hub, here, source):
    here.models.joinpath("org").mkdir(parents=True)
    source.rename(here.models / NAME)
    folder, reports = await fetch(here.repository())
    assert (folder, reports, hub.connections) == (str(here.models / NAME), [], 0)


async def test_offline_a_model_that_is_not_here_is_not_found_and_nobody_asked(hub, here, source, monkeypatch):
    hub.add(NAME, source)
    profile = await here.repository().profile(REF)
    connections = hub.connections
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for asking in (here.repository().profile(REF), here.repository().fetch(profile, lambda *_: None)):
        with pytest.raises(ModelNotFound):
            await asking
    assert hub.connections == connections


@pytest.fixture
def elsewhere():
    stub = StubHub()
    yield stub
    stub.close()


def test_a_redirect_carries_the_token_to_no_other_host(hub, elsewhere, here, source, give_token):
    give_token(ACCEPTED)
    hub.add(NAME, source, redirect=elsewhere.url)
    elsewhere.add(NAME, source).commit = hub.repos[NAME].commit
    assert isinstance(here.answer(commit=hub.repos[NAME].commit), Fetched)
    assert {one.authorization for one in hub.requests} == {f"Bearer {ACCEPTED}"}
    assert {one.authorization for one in elsewhere.requests} == {None}
    assert len(elsewhere.asked(containing="model.safetensors")) == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_of_another_host_is_not_taken_for_one_of_the_hub(hub, elsewhere, here, source, status):
    hub.add(NAME, source, redirect=elsewhere.url)
    elsewhere.add(NAME, source, status=status)
    assert type(here.failure()) is HubUnavailable


@pytest.mark.parametrize(
    ("token", "wrong"), [(VALID, {"gated": True}), (VALID, {"status": 500}), ("hf_caf\u00e9", {}), ("hf_expired", {})]
)
async def test_the_token_is_in_no_error_and_no_line_of_the_log(
    hub, here, source, give_token, caplog, capfd, token, wrong
):
    give_token(token)
    hub.add(NAME, source, **wrong)
    caplog.set_level("DEBUG")
    with pytest.raises(ModelUnavailable) as caught:
        await here.repository().profile(REF)
    assert token not in f"{caught.value!r} {caught.value.message}"
    assert "the hub on org/name" in caplog.text
    for text in (caplog.text, *capfd.readouterr()):
        assert token not in text
        assert hub.url not in text
