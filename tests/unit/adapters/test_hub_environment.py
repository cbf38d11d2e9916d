"""What the process that talks to the hub is given of the server's environment."""

from __future__ import annotations

from inferapi.adapters.hub_models import _environment


def test_it_gets_the_token_and_the_proxies_and_nothing_of_the_servers_own():
    ours = {
        "HF_TOKEN": "hf_x",
        "HTTPS_PROXY": "http://me:pass@proxy:3128",
        "PATH": "/bin",
        "INFERAPI_API_KEYS": "[]",
        "inferapi_session_store_url": "redis://:pass@host",
    }
    given = _environment(ours)
    assert {name: given[name] for name in ("HF_TOKEN", "HTTPS_PROXY", "PATH")} == dict(list(ours.items())[:3])
    assert not [name for name in given if name.upper().startswith("INFERAPI_")]
    assert given["HF_HUB_VERBOSITY"] == "critical"


def test_an_operators_timeout_goes_before_ours_and_his_verbosity_does_not():
    given = _environment({"HF_HUB_ETAG_TIMEOUT": "3", "HF_HUB_VERBOSITY": "debug"})
    assert (given["HF_HUB_ETAG_TIMEOUT"], given["HF_HUB_DOWNLOAD_TIMEOUT"]) == ("3", "10")
    assert given["HF_HUB_VERBOSITY"] == "critical"
