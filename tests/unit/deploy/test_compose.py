"""docker-compose.yml: who runs, with which rights, and that its limits are those of the settings."""

from __future__ import annotations

import ipaddress
import json
import re
import tomllib

import pytest

from compose_file import REPOSITORY, compose, service
from inferapi.api.sessions import export_bytes
from inferapi.domain.chat import SessionLimits
from inferapi.settings import Settings

pytestmark = pytest.mark.usefixtures("bare_environment")

APIS = ("api", "api-gpu")
SERVICES = (*APIS, "proxy", "redis", "prometheus", "grafana", "webui")
LAST_SECONDS = 5  # after the drain: workers that are told to end, and the last words of responses


def hosts_ports(name: str) -> list[str]:
    return service(name).get("ports", [])


def test_these_are_the_services_and_their_profiles():
    profiles = {name: found.get("profiles", []) for name, found in compose()["services"].items()}
    assert profiles == {
        "api": ["cpu"],
        "api-gpu": ["gpu"],
        "proxy": [],
        "redis": [],
        "prometheus": ["observability"],
        "grafana": ["observability"],
        "webui": ["webui"],
    }


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_without_capabilities_and_cannot_gain_any(name):
    found = service(name)
    assert found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in found
    assert "cap_add" not in found
    assert found["pids_limit"] > 0


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "webui"])
def test_every_service_but_the_web_interface_is_no_root_and_writes_to_volumes_alone(name):
    found = service(name)
    user, _, _ = found["user"].partition(":")
    assert int(user) > 0
    assert found["read_only"] is True


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_has_the_tag_of_a_release(name):
    image, _, tag = service(name)["image"].rpartition(":")
    assert image
    assert re.fullmatch(r"v?\d+(\.\d+)+(-[a-z]+)?", tag)


def test_only_the_proxy_is_published_beyond_loopback():
    published = {name: hosts_ports(name) for name in SERVICES if hosts_ports(name)}
    assert published == {
        "proxy": ["8443:8443"],
        "grafana": ["127.0.0.1:3001:3000"],
        "webui": ["127.0.0.1:3000:8080"],
    }


def test_redis_is_reached_by_the_server_alone_and_has_no_way_out():
    found = compose()
    assert found["networks"]["store"] == {"internal": True}
    assert {name for name in SERVICES if "store" in found["services"][name]["networks"]} == {*APIS, "redis"}
    assert found["services"]["redis"]["networks"] == ["store"]


@pytest.mark.parametrize("name", APIS)
def test_both_servers_differ_in_the_device_alone(name):
    found = service(name)
    assert found["build"]["context"] == "."
    assert re.search(rf"^FROM runtime AS {found['build']['target']}$", read("Dockerfile"), re.MULTILINE)
    assert found["networks"]["inside"] == {"aliases": ["api"]}
    assert found["tmpfs"] == ["/tmp:size=512m,mode=1777"]
    assert {volume.split(":")[1] for volume in found["volumes"]} == {
        "/srv/models",
        "/var/lib/inferapi/hub",
        "/var/cache/inferapi",
    }


def test_the_gpu_is_asked_for_by_its_profile_alone():
    (device,) = service("api-gpu")["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert service("api-gpu")["environment"]["INFERAPI_DEVICE"] == "cuda"
    assert "deploy" not in service("api")
    assert "INFERAPI_DEVICE" not in service("api")["environment"]


@pytest.mark.parametrize("name", APIS)
def test_a_server_is_given_more_time_to_end_than_it_takes(name):
    given_s = int(service(name)["stop_grace_period"].removesuffix("s"))
    assert given_s > Settings().drain_timeout_s + LAST_SECONDS


@pytest.mark.parametrize("name", APIS)
def test_what_the_file_sets_is_a_setting_and_a_limit_is_its_default(name, monkeypatch):
    environment = service(name)["environment"]
    assert {key.removeprefix("INFERAPI_").lower() for key in environment} <= set(Settings.model_fields)
    for key, text in environment.items():
        monkeypatch.setenv(key, text)
    told, default = Settings(), Settings.model_fields
    for limit in ("max_body_bytes", "request_timeout_s", "drain_timeout_s", "root_path", "model"):
        assert getattr(told, limit) == default[limit].default
    assert told.host == "0.0.0.0"


def test_the_proxy_takes_what_the_server_takes_and_waits_longer():
    proxy, settings = service("proxy")["environment"], Settings()
    assert int(proxy["PROXY_MAX_BODY_BYTES"]) == settings.max_body_bytes
    limits = SessionLimits(settings.session_max_turns, settings.session_max_bytes)
    assert int(proxy["PROXY_MAX_IMPORT_BYTES"]) == export_bytes(limits)
    assert int(proxy["PROXY_READ_TIMEOUT_S"]) > settings.request_timeout_s
    assert int(proxy["PROXY_LOAD_TIMEOUT_S"]) > int(proxy["PROXY_READ_TIMEOUT_S"])


def test_what_both_must_agree_on_is_one_variable():
    told = {"INFERAPI_MAX_BODY_BYTES": "4096", "INFERAPI_ROOT_PATH": "/llm", "INSIDE_SUBNET": "10.9.8"}
    proxy = service("proxy", **told)
    for name in APIS:
        server = service(name, **told)["environment"]
        assert server["INFERAPI_MAX_BODY_BYTES"] == proxy["environment"]["PROXY_MAX_BODY_BYTES"] == "4096"
        assert server["INFERAPI_ROOT_PATH"] == proxy["environment"]["PROXY_PREFIX"] == "/llm"
        assert json.loads(server["INFERAPI_FORWARDED_ALLOW_IPS"]) == ["10.9.8.2"]
    assert proxy["networks"]["inside"]["ipv4_address"] == "10.9.8.2"


def test_the_address_that_is_believed_is_the_proxys_and_is_given_to_nobody_else():
    (believed,) = json.loads(service("api")["environment"]["INFERAPI_FORWARDED_ALLOW_IPS"])
    (pool,) = compose()["networks"]["inside"]["ipam"]["config"]
    assert service("proxy")["networks"]["inside"]["ipv4_address"] == believed
    assert ipaddress.ip_address(believed) in ipaddress.ip_network(pool["subnet"])
    assert ipaddress.ip_address(believed) not in ipaddress.ip_network(pool["ip_range"])


def test_what_is_mounted_from_the_repository_and_built_is_there():
    mounted = [volume for name in ("proxy", "grafana") for volume in service(name)["volumes"] if volume[0] == "."]
    assert len(mounted) == 2
    for volume in mounted:
        assert (REPOSITORY / volume.split(":")[0]).exists()
        assert volume.endswith(":ro")


def test_every_secret_and_volume_that_is_used_is_declared():
    found = compose()
    used = [secret for name in SERVICES for secret in found["services"][name].get("secrets", [])]
    assert set(used) == set(found["secrets"])
    volumes = [volume.split(":")[0] for name in SERVICES for volume in found["services"][name].get("volumes", [])]
    assert {volume for volume in volumes if volume[0] not in "./"} == set(found["volumes"])


def test_no_password_or_key_stands_in_the_file():
    text = read("docker-compose.yml")
    assert re.search(r"(?i)(password|key|token)\w*: [\"']?[0-9a-f]{8}", text) is None
    assert "redis://" not in text


def test_the_image_is_not_roots_and_asks_itself_whether_it_lives():
    dockerfile = read("Dockerfile")
    for target in ("cpu", "cuda"):
        stage = dockerfile.split(f"FROM runtime AS {target}\n")[1].split("\nFROM ")[0]
        assert stage.strip().endswith(f"USER {service('api')['user']}")
    assert "HEALTHCHECK" in dockerfile
    assert "'/health/live'" in dockerfile
    assert dockerfile.rpartition("\nFROM ")[2].startswith("runtime AS cpu")  # the default
    assert "g++" in dockerfile.rpartition("\nFROM ")[2]


@pytest.mark.parametrize(("target", "extras"), [("cpu", {"otel"}), ("cuda", {"bitsandbytes", "otel"})])
def test_the_images_have_the_extras_that_settings_need(target, extras):
    stage = read("Dockerfile").split(f"FROM packages AS {target}-packages\n")[1].split("\nFROM ")[0]
    (installed,) = re.findall(r"pip install --constraint constraints\.txt '\.\[([a-z,]+)\]'", stage)
    assert set(installed.split(",")) == extras
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert extras <= project["optional-dependencies"].keys()


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")
