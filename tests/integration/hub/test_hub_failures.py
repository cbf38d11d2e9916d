"""Failures of the hub, of its answers and of the disk: told apart, and nothing hangs."""

import resource

import pytest

from hub_side import NAME, REF, fetch, safetensors, write_model
from inferapi.adapters.hub_errors import CREDENTIALS_REFUSED, NO_ACCESS, WITHOUT_CREDENTIALS
from inferapi.adapters.hub_messages import Fetched, Profiled
from inferapi.domain.errors import (
    HubTimeout,
    HubUnavailable,
    InsufficientStorage,
    ModelGated,
    ModelInvalid,
    ModelLoadFailed,
    ModelNotFound,
)
from inferapi.domain.model import ModelRef
from stub_hub import ACCEPTED, VALID, unused_address


@pytest.mark.parametrize("token", [None, VALID])
def test_an_unknown_name_an_unknown_revision_and_a_private_model_are_not_found(hub, here, source, give_token, token):
    give_token(token)
    hub.add(NAME, source)
    hub.add("org/private", source, private=True)
    for ref in (ModelRef("org/other"), ModelRef(NAME, "nope"), ModelRef("org/private")):
        error = here.failure(ref)
        assert (type(error), error.facts) == (ModelNotFound, {"model": str(ref)})


@pytest.mark.parametrize(
    ("token", "advice"),
    [
        (None, WITHOUT_CREDENTIALS),
        (VALID, NO_ACCESS),
        ("hf_expired", CREDENTIALS_REFUSED),
        ("hf_\x07bell", CREDENTIALS_REFUSED),
        ("hf_caf\u00e9", CREDENTIALS_REFUSED),
    ],
)
def test_a_gated_model_says_what_is_missing(hub, here, source, give_token, token, advice):
    give_token(token)
    hub.add(NAME, source, gated=True)
    error = here.failure()
    assert (type(error), error.facts) == (ModelGated, {"model": NAME, "advice": advice})
    assert "HUGGING_FACE_HUB_TOKEN" in error.message
    assert token is None or token not in error.message


def test_a_gated_model_whose_terms_were_accepted_is_served(hub, here, source, give_token):
    give_token(ACCEPTED)
    commit = hub.add(NAME, source, gated=True).commit
    assert isinstance(here.answer(), Profiled)
    assert isinstance(here.answer(commit=commit), Fetched)
    assert {one.authorization for one in hub.requests} == {f"Bearer {ACCEPTED}"}


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429, 418])
@pytest.mark.parametrize("commit", [None, "a" * 40])
def test_a_hub_that_fails_is_unavailable(hub, here, source, status, commit):
    hub.add(NAME, source, status=status)
    assert type(here.failure(commit=commit)) is HubUnavailable


@pytest.mark.parametrize("cut", [{"cut_listing": 100}, {"cut_headers": 100}])
def test_a_hub_that_breaks_off_before_the_download_is_unavailable(hub, here, source, cut):
    hub.add(NAME, source, **cut)
    assert type(here.failure()) is HubUnavailable


@pytest.mark.parametrize("endpoint", ["http://", "nonsense", "ftp://127.0.0.1", "http://127.0.0.1:99999", None])
def test_an_endpoint_that_is_none_or_nobody_listens_at_is_unavailable(here, endpoint):
    assert type(here.failure(endpoint=endpoint or unused_address())) is HubUnavailable


@pytest.mark.parametrize(
    "listing",
    [
        b"", b"garbage", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000, b'{"sha": 5}', b'{"sha": "x", "siblings": []}',
        b'{"sha": "../../x", "siblings": []}',
        b'{"sha": "%s", "siblings": [{"rfilename": 5}]}' % (b"a" * 40),
    ],
    ids=range(11),
)  # fmt: skip
def test_a_hub_that_answers_with_garbage_is_unavailable_and_nothing_is_written(hub, here, source, listing):
    hub.add(NAME, source, listing=listing)
    assert type(here.failure()) is HubUnavailable
    assert not here.cache.exists()


def test_a_hub_that_does_not_answer_is_too_slow(hub, here, source):
    hub.add(NAME, source, silent_listing=True)
    assert type(here.failure()) is HubTimeout


async def test_a_hub_that_is_silent_for_too_long_in_all_is_too_slow(hub, here, source, monkeypatch):
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "60")
    hub.add(NAME, source, silent_listing=True)
    with pytest.raises(HubTimeout):
        await here.repository(silence_timeout_s=1.0).profile(REF)


async def test_a_download_that_falls_silent_is_too_slow_and_leaves_nothing(hub, here, source):
    hub.add(NAME, source)
    profile = await here.repository().profile(REF)
    hub.repos[NAME].silent_after = 200_000
    with pytest.raises(HubTimeout):
        await here.repository(silence_timeout_s=3.0).fetch(profile, lambda *_: None)
    assert here.partials() == []


async def test_a_disk_without_room_is_told_before_the_download(hub, here, source):
    hub.add(NAME, source)
    profile = await here.repository().profile(REF)
    left = profile.download_bytes
    with pytest.raises(InsufficientStorage):
        await here.repository(free_bytes=left - 1).fetch(profile, lambda *_: None)
    assert not list(here.cache.rglob("model.safetensors"))
    await here.repository(free_bytes=left).fetch(profile, lambda *_: None)


def test_a_disk_that_fills_up_meanwhile_is_told_and_its_room_given_back(hub, here, source):
    commit = hub.add(NAME, source).commit
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))  # the kernel refuses to write beyond
    try:
        assert type(here.failure(commit=commit)) is InsufficientStorage
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert here.partials() == []


def test_a_cache_that_cannot_be_written_is_told(hub, here, source):
    hub.add(NAME, source)
    here.cache.write_bytes(b"a file where the folder should be")
    error = here.failure()
    assert (type(error), error.facts["problem"]) == (ModelLoadFailed, "the cache of the hub cannot be written")


async def test_weights_that_are_truncated_on_the_hub_never_become_a_model(hub, here, tmp_path):
    hub.add(NAME, write_model(tmp_path / "source", model__safetensors=safetensors()[:-1]))
    with pytest.raises(ModelInvalid, match="truncated or no safetensors"):
        await fetch(here.repository())
    assert not list(here.cache.rglob("refs/main"))
