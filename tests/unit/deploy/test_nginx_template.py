"""The proxy's configuration as text: what is filled in, and what it must say. tests/stack runs it."""

from __future__ import annotations

import re

import pytest

from compose_file import REPOSITORY, service


@pytest.fixture
def template() -> str:
    return (REPOSITORY / "deploy/nginx/nginx.conf.template").read_text(encoding="utf-8")


def test_every_variable_of_the_template_has_a_value_and_every_value_a_place(template):
    environment = service("proxy")["environment"]
    assert re.search(environment["NGINX_ENVSUBST_FILTER"], "PROXY_PREFIX")
    named = set(re.findall(r"\$\{([A-Z_]+)\}", template))
    assert named == {name for name in environment if name.startswith("PROXY_")}
    assert re.findall(r"\$[A-Z]", template) == []  # envsubst would take those too


def test_nothing_is_buffered_and_nothing_is_sent_twice(template):
    directives = {line.strip() for line in template.splitlines()}
    assert {"proxy_buffering off;", "proxy_next_upstream off;", "proxy_ignore_client_abort off;"} <= directives
    assert template.count("proxy_buffering") == template.count("proxy_next_upstream ") == 1


def test_the_client_is_named_by_the_proxy_alone(template):
    assert "proxy_set_header X-Forwarded-For $remote_addr;" in template
    assert "proxy_add_x_forwarded_for" not in template
    for header in ("X-Forwarded-Port", "X-Real-IP", "Forwarded"):
        assert f'proxy_set_header {header} "";' in template


def test_no_location_drops_the_headers_of_the_server(template):
    # One directive of that kind in a location, and those of the server do not hold there any more.
    _, server = template.split("\n    server {")
    directives, *locations = re.split(r"\n +location ", server)
    assert directives.count("proxy_set_header") == 10
    assert len(locations) == 8
    assert not any("proxy_set_header" in location for location in locations)
