"""The OpenAPI document: complete under /v1, and whatever schemathesis makes of it, nothing ends with a 5xx."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from live_server import TINY

pytestmark = pytest.mark.model

HOOKS = Path(__file__).with_name("openapi_hooks.py")
ANSWERED = re.compile(r"([A-Z]+) '([^' ]*)' (\d{3}) in \d+ ms")
EXAMPLES = 2000
STREAMED = {"/v1/chat/completions", "/v1/completions", "/v1/responses"}
PATHS_V1 = {
    "/v1/models",
    "/v1/models/{model}",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/responses/{response_id}",
    "/v1/responses/{response_id}/input_items",
}
ERROR = {"$ref": "#/components/schemas/ErrorReply"}
KEYS = {scope: f"key-for-{scope}-0123456789abcdef" for scope in ("infer", "admin")}
LIMITS = {
    "MAX_NEW_TOKENS": 8,
    "ALLOWED_MODELS": json.dumps([TINY]),
    "SESSION_STORE_URL": "memory://",
    "API_KEYS": json.dumps([{"id": scope, "key": key, "scopes": [scope]} for scope, key in KEYS.items()]),
}
ADMIN = {"/load_model", "/change_model", "/unload_model", "/change_inactivity_threshold", "/system_prompt"}
READY = "^/health/ready$"  # it answers 503 by right, once no model is there any more


def fuzz(server, folder, *options, scope=None):
    """Let schemathesis ask the server, in a process of its own: it rebuilds hypothesis for its purposes."""
    command = [Path(sys.executable).with_name("schemathesis"), "run", f"{server.url}/openapi.json", *options]
    command += ["--header", f"Authorization: Bearer {KEYS[scope]}"] if scope else []
    command += ["--checks", "not_a_server_error", "--phases", "examples,coverage,fuzzing", "--seed", "20261123"]
    command += ["--suppress-health-check", "all", "--continue-on-failure", "--request-timeout", "60", "--no-color"]
    command += ["--generation-database", "none"]
    environment = os.environ | {"SCHEMATHESIS_HOOKS": str(HOOKS), "FUZZED_MODEL": TINY, "NO_PROXY": "127.0.0.1"}
    return subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=1200, check=False
    )


def answers(server):
    """How often the server gave which status for which path."""
    found = ANSWERED.findall(server.log.read_text(encoding="utf-8", errors="replace"))
    asked = [(method, path, int(status)) for method, path, status in found if not path.startswith("/health/")]
    return Counter(asked)  # without the probes: while the model was loaded they were told to wait


def asked(server, folder, *options, scope=None):
    """How often the server gave which status for which path in one run, which must have found no 5xx."""
    before = answers(server)
    run = fuzz(server, folder, *options, scope=scope)
    assert not run.returncode, run.stdout[-4000:] + run.stderr[-2000:]
    seen = answers(server) - before
    assert [(key, count) for key, count in seen.items() if key[2] >= 500] == []
    return seen


@pytest.mark.timeout(3600)
def test_nothing_that_schemathesis_sends_ends_with_a_5xx_whatever_its_key_may_do(fresh_server, tmp_path):
    server = fresh_server(MODEL=TINY, **LIMITS).wait_ready()
    infer = asked(server, tmp_path, "--include-path-regex", "^/v1/", "--max-examples", "300", scope="infer")
    for path in (*STREAMED, "/v1/embeddings"):  # it came further than the door
        assert infer["POST", path, 200] > 0, path
        assert infer["POST", path, 400] > 0, path
    native = "^/(v1/|health/ready$)"
    infer += asked(server, tmp_path, "--exclude-path-regex", native, "--max-examples", "30", scope="infer")
    for path in ("/infer", "/chat"):
        assert infer["POST", path, 200] > 0, path
        assert infer["POST", path, 422] > 0, path
    assert all(infer["POST", path, 403] > 0 and infer["POST", path, 200] == 0 for path in ADMIN)

    # The last, for it unloads the model.
    admin = asked(server, tmp_path, "--exclude-path-regex", READY, "--max-examples", "30", scope="admin")
    for path in ADMIN:
        assert admin["POST", path, 422] > 0, path
        assert admin["POST", path, 403] == 0 or path in {"/load_model", "/change_model"}, path  # names not allowed
    assert admin["POST", "/infer", 403] > 0
    assert not [path for method, path, status in admin if method == "POST" and path in STREAMED and status < 300]

    nobody = asked(server, tmp_path, "--exclude-path-regex", READY, "--max-examples", "5")
    assert {path for _, path, status in nobody if status < 300} == {"/openapi.json"}
    assert all(nobody["POST", path, 401] > 0 for path in (*ADMIN, *STREAMED, "/infer", "/chat"))

    assert sum((infer + admin).values()) >= EXAMPLES
    answer = server.http.post(
        "/v1/completions",
        json={"model": TINY, "prompt": "Hi", "max_tokens": 2},
        headers={"Authorization": f"Bearer {KEYS['infer']}"},
    )
    assert answer.json()["usage"]["completion_tokens"] <= 2
    assert "Traceback" not in server.log.read_text(encoding="utf-8", errors="replace")


def test_the_document_tells_everything_of_what_is_under_v1(client):
    document = client.get("/openapi.json").json()
    paths = {path: methods for path, methods in document["paths"].items() if path.startswith("/v1/")}
    assert set(paths) == PATHS_V1
    for path, methods in paths.items():
        for method, operation in methods.items():
            where = (path, method)
            assert operation.get("description") or operation.get("summary"), where
            responses = dict(operation["responses"])
            good = responses.pop("200")["content"]
            assert good["application/json"]["schema"], where
            assert responses, where
            # Not the framework's own answer to a wrong body: it is never given.
            for status, refused in responses.items():
                assert refused["content"]["application/json"]["schema"] == ERROR, (*where, status)
            if method == "post":
                assert ("text/event-stream" in good) == (path in STREAMED), where
                assert operation["requestBody"]["content"]["application/json"]["examples"], where


def test_every_example_of_the_document_is_answered(fresh_server):
    server = fresh_server(MAX_NEW_TOKENS=256).wait_ready()
    document = server.http.get("/openapi.json").json()
    for path in sorted(STREAMED | {"/v1/embeddings"}):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        for name, example in body["examples"].items():
            response = server.post(path, example["value"])
            # The demo model's template knows no tools.
            known = {400} if "function" in json.dumps(example["value"]) else {200}
            assert response.status_code in known, (path, name, response.text)
