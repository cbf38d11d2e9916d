"""The proxy's configuration as text: what is filled in, and what it must say. tests/stack runs it."""

from __future__ import annotations

import re
from http import HTTPStatus

import pytest

from compose_file import REPOSITORY, service
from inferapi.api.errors import ANSWERS
from inferapi.api.openai.errors import error_object
from inferapi.domain.errors import BodyTooLarge, HeadTooLarge, MalformedHttp, TooManyConnections, UnexpectedError
from inferapi.settings import Settings


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
    assert {"proxy_buffering off;", "proxy_request_buffering off;"} <= directives
    assert {"proxy_next_upstream off;", "proxy_ignore_client_abort off;"} <= directives
    for directive in ("proxy_buffering", "proxy_request_buffering", "proxy_next_upstream"):
        assert template.count(f"{directive} ") == 1


def test_who_is_too_late_with_a_body_hears_it_from_the_server(template):
    # Between two reads nginx waits for longer than the server does for the whole: it would close without an answer.
    (given_s,) = re.findall(r"\bclient_body_timeout (\d+)s;", template)
    assert int(given_s) > Settings.model_fields["receive_timeout_s"].default


def test_no_address_can_take_all_connections_of_the_server(template):
    most = service("proxy")["environment"]["PROXY_MAX_CONNECTIONS_PER_ADDRESS"]
    assert int(most) == 128 < Settings.model_fields["max_connections"].default
    assert "limit_conn_zone $binary_remote_addr " in template
    # Two of nginx's own for each that the server may have, and room for those that ask for nothing.
    assert "worker_connections 4096;" in template
    assert service("proxy")["mem_limit"] == "512m"


def mapped(template: str, name: str) -> dict[str, str]:
    """Status, or ``default``, to what the map says of it."""
    (lines,) = re.findall(rf"map \$status \$refusal_{name} \{{\n(.*?)\n    \}}", template, re.DOTALL)
    return dict(re.findall(r'^ +(\w+) "?(.*?)"?;(?: #.*)?$', lines, re.MULTILINE))


def test_refusals_of_the_proxys_own_have_the_servers_words(template):
    titles, codes, details = (mapped(template, name) for name in ("title", "code", "detail"))
    assert titles.keys() == codes.keys() == details.keys()
    assert titles.pop("default") == HTTPStatus.INTERNAL_SERVER_ERROR.phrase
    assert titles.pop("413") == "Request Entity Too Large"  # Python has another name for it from 3.13 on
    assert titles == {status: HTTPStatus(int(status)).phrase for status in titles}
    errors = {"400": MalformedHttp, "413": BodyTooLarge, "431": HeadTooLarge, "503": TooManyConnections}
    for status, error in (errors | {"default": UnexpectedError}).items():
        assert codes[status] == error.code
        assert ANSWERS[error].status == (500 if status == "default" else int(status))
    for status in ("404", "405"):  # as the server tells of what is no error of its tree
        phrase = HTTPStatus(int(status)).phrase
        assert (codes[status], details[status]) == (phrase.lower().replace(" ", "_"), f"{phrase}.")
    assert details["400"] == MalformedHttp.text
    assert details["default"] == UnexpectedError.text
    assert details["503"] == TooManyConnections.text.format(limit="${PROXY_MAX_CONNECTIONS_PER_ADDRESS}")
    assert mapped(template, "retry_after_s")["503"] == str(ANSWERS[TooManyConnections].retry_after_s)


def test_under_v1_refusals_have_the_kinds_of_the_servers(template):
    kinds = {
        status: error_object(int(status), "", "")["type"] for status in mapped(template, "code") if status[0] in "45"
    }
    assert kinds.pop("404") == mapped(template, "kind")["404"]
    assert {status for status, kind in kinds.items() if kind == "server_error"} == {"502", "503", "504"}
    assert {kind for status, kind in kinds.items() if status[0] == "4"} == {"invalid_request_error"}
    assert '"~^4" invalid_request_error;\n        default server_error;' in template


def test_the_client_is_named_by_the_proxy_alone(template):
    assert "proxy_set_header X-Forwarded-For $remote_addr;" in template
    assert "proxy_add_x_forwarded_for" not in template
    for header in ("X-Forwarded-Port", "X-Real-IP", "Forwarded"):
        assert f'proxy_set_header {header} "";' in template


def test_no_location_drops_the_headers_of_the_server(template):
    # One directive of that kind in a location, and those of the server do not hold there any more.
    _, server = template.split("\n    server {")
    directives, *locations = re.split(r"\n +location ", server)
    assert directives.count("proxy_set_header") == 12
    assert len(locations) == 8
    assert not any("proxy_set_header" in location for location in locations)
