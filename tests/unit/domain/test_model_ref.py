from __future__ import annotations

import pytest

from inferapi.domain.errors import ModelNameInvalid
from inferapi.domain.model import ModelRef


@pytest.mark.parametrize(
    ("text", "name", "revision"),
    [
        ("gpt2", "gpt2", None),
        ("org/name", "org/name", None),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", None),
        ("org/name@main", "org/name", "main"),
        ("gpt2@0123456789abcdef0123456789abcdef01234567", "gpt2", "0123456789abcdef0123456789abcdef01234567"),
        ("a", "a", None),
        ("a.b_c-d/e.f_g-h@v1.0", "a.b_c-d/e.f_g-h", "v1.0"),
        ("name_", "name_", None),
        ("x" * 96, "x" * 96, None),
    ],
)
def test_a_hub_id_is_read(text, name, revision):
    assert ModelRef.parse(text) == ModelRef(name, revision)


def test_the_revision_may_come_beside_the_name():
    assert ModelRef.parse("org/name", "v2") == ModelRef("org/name", "v2")


@pytest.mark.parametrize("text", ["gpt2", "org/name", "org/name@v2"])
def test_a_name_is_written_as_it_was_read(text):
    assert str(ModelRef.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "/etc/passwd",
        "../models",
        "org/../name",
        "org/..",
        "..",
        ".",
        "./gpt2",
        ".hidden",
        "org/.hidden",
        "-option",
        "name-",
        "name.",
        "a..b",
        "a--b",
        "a/b/c",
        "org/",
        "/name",
        "//name",
        "org\\name",
        "C:\\models",
        "~/models",
        "https://huggingface.co/gpt2",
        "file:///etc/passwd",
        "hf://gpt2",
        "gpt2\n",
        "gpt2\x00",
        "gp t2",
        "gpt2;ls",
        "$(ls)",
        "%2e%2e/x",
        "gpt²",
        "模型",
        "gpt2@",
        "gpt2@../x",
        "gpt2@a/b",
        "gpt2@-x",
        "gpt2@a@b",
        "@main",
        "x" * 97,
        "gpt2@" + "x" * 65,
    ],
)
def test_a_path_a_url_or_anything_else_is_refused(text):
    with pytest.raises(ModelNameInvalid):
        ModelRef.parse(text)


@pytest.mark.parametrize("revision", ["", "../x", "a@b", "a/b", "main\n"])
def test_a_revision_that_is_a_path_is_refused(revision):
    with pytest.raises(ModelNameInvalid):
        ModelRef.parse("gpt2", revision)


def test_a_name_with_a_revision_takes_no_second_one():
    with pytest.raises(ModelNameInvalid):
        ModelRef.parse("gpt2@main", "v2")


def test_a_refusal_does_not_repeat_the_name():
    with pytest.raises(ModelNameInvalid) as caught:
        ModelRef.parse("/home/secret/models")
    assert "secret" not in caught.value.message
