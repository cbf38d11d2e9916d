"""The model endpoints, their bodies exact to the key."""

from __future__ import annotations

import pytest

from inferapi.domain.errors import ModelLoadFailed


async def test_load_model_says_what_was_loaded(client, stage):
    answer = await client.post("/load_model", json={"model_name": "gpt2"})
    assert (answer.status_code, answer.json()) == (200, {"status": "Model gpt2 loaded successfully"})
    assert stage.launcher.live == ["gpt2"]


async def test_load_model_takes_a_revision_and_a_dtype(client, stage):
    body = {"model_name": "org/name", "revision": "v1", "dtype": "float32"}
    answer = await client.post("/load_model", json=body)
    assert answer.json() == {"status": "Model org/name loaded successfully"}
    assert [(spec.model, spec.dtype) for spec in stage.launcher.launched] == [("org/name@v1", "float32")]


async def test_change_model_says_the_size_of_the_weights(client, stage):
    await stage.load()
    answer = await client.post("/change_model", json={"new_model_name": "other"})
    assert (answer.status_code, answer.json()) == (200, {"status": "Changed to model other successfully (0.27 GB)"})
    assert stage.launcher.live == ["other"]


async def test_change_model_that_fails_says_that_the_old_model_serves(client, stage):
    await stage.load()
    stage.launcher.errors["other"] = [ModelLoadFailed(model="other", problem="its process ended")]
    answer = await client.post("/change_model", json={"new_model_name": "other"})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (500, "model_load_failed")
    assert problem["detail"] == "Model other could not be loaded: its process ended. Model gpt2 is serving again."


async def test_change_model_before_any_load_is_refused(client):
    answer = await client.post("/change_model", json={"new_model_name": "other"})
    assert (answer.status_code, answer.json()["code"]) == (409, "model_not_loaded")


@pytest.mark.parametrize("body", [{}, {"model_name": None}, {"model_name": "gpt2"}, None])
async def test_unload_model_takes_the_named_or_the_current_one(client, stage, body):
    await stage.load()
    answer = await client.post("/unload_model", json=body) if body is not None else await client.post("/unload_model")
    assert (answer.status_code, answer.json()) == (200, {"status": "Model gpt2 unloaded successfully"})
    assert stage.launcher.live == []


async def test_unload_model_of_nothing_is_refused(client):
    answer = await client.post("/unload_model", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "model_not_loaded")


@pytest.mark.parametrize("threshold", [120, 1, -1, 10**9])
async def test_change_inactivity_threshold_says_the_new_one(client, stage, threshold):
    answer = await client.post("/change_inactivity_threshold", json={"new_threshold": threshold})
    assert (answer.status_code, answer.json()) == (
        200,
        {"status": f"Inactivity threshold changed to {threshold} seconds"},
    )
    assert stage.lifecycle.inactivity_threshold_s == threshold


async def test_a_threshold_that_is_none_is_refused_and_changes_nothing(client, stage):
    thresholds = [0, -2, 10**9 + 1, 1.5, 120.0, "120", True, None, [120]]
    answers = [await client.post("/change_inactivity_threshold", json={"new_threshold": t}) for t in thresholds]
    told = {repr(t): (a.status_code, a.json()["code"]) for t, a in zip(thresholds, answers, strict=True)}
    assert told == {repr(t): (422, "invalid_request") for t in thresholds}
    assert stage.lifecycle.inactivity_threshold_s == 300


@pytest.mark.parametrize("path", ["/load_model", "/change_model"])
async def test_a_dry_run_answers_the_bytes_and_loads_nothing(client, stage, path):
    await stage.load()
    name = {"/load_model": "model_name", "/change_model": "new_model_name"}[path]
    answer = await client.post(path, json={name: "other", "dry_run": True})
    report = answer.json()
    assert answer.status_code == 200
    assert (report["model"], report["weights_bytes"], report["fits"]) == ("other", 2_000_000_000, True)
    parts = ("weights_bytes", "kv_cache_bytes", "working_bytes", "overhead_bytes")
    assert report["needed_bytes"] == sum(report[part] for part in parts)
    assert stage.launcher.live == ["gpt2"]


@pytest.mark.parametrize("path", ["/load_model", "/change_model", "/unload_model"])
async def test_a_name_that_is_a_path_is_refused_and_not_repeated(client, stage, path):
    field = "new_model_name" if path == "/change_model" else "model_name"
    names = ["/etc/passwd", "../secret", "https://evil/x", "a/b/c", "x" * 300, "a\x00b"]
    answers = {name: await client.post(path, json={field: name}) for name in names}
    told = {name: (a.status_code, a.json()["code"], name in a.text) for name, a in answers.items()}
    assert told == dict.fromkeys(names, (422, "invalid_request", False))
    assert stage.models.profiled == []


@pytest.mark.parametrize("path", ["/load_model", "/change_model"])
async def test_an_empty_name_is_refused(client, path):
    field = {"/load_model": "model_name", "/change_model": "new_model_name"}[path]
    answer = await client.post(path, json={field: ""})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_a_path_that_exists_is_refused_as_one_that_does_not(client):
    existing, missing = [
        (await client.post("/load_model", json={"model_name": name}, headers={"X-Request-ID": "1"})).json()
        for name in ("/etc", "/no/such/folder")
    ]
    assert existing == missing


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model_name": "unknown"}, 404, "model_not_found"),
        ({"model_name": "gpt2", "dtype": "int3"}, 422, "invalid_request"),
        ({"model_name": "gpt2", "quantization": "int3"}, 422, "invalid_request"),
        ({"model_name": "gpt2", "quantization": "INT8"}, 422, "invalid_request"),
        ({"model_name": "gpt2", "quantization": ""}, 422, "invalid_request"),
        ({"model_name": "gpt2", "quantization": 8}, 422, "invalid_request"),
        ({"model_name": "gpt2", "quantization": ["int8"]}, 422, "invalid_request"),
        ({"model_name": "gpt2", "quantization": "int8"}, 400, "quantization_refused"),  # it has no native kernels
        ({"model_name": "gpt2", "revision": "../x"}, 422, "invalid_request"),
        ({"model_name": "gpt2", "trust_remote_code": True}, 422, "invalid_request"),
        ({"model_name": "gpt2", "dry_run": 1}, 422, "invalid_request"),
        ({"model_name": 5}, 422, "invalid_request"),
        ({"name": "gpt2"}, 422, "invalid_request"),
        ({}, 422, "invalid_request"),
    ],
)
async def test_what_cannot_be_loaded_is_refused(client, stage, body, status, code):
    answer = await client.post("/load_model", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert stage.launcher.launched == []
