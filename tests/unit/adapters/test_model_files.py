"""Headers of safetensors: read, or refused for what they are."""

from __future__ import annotations

import os

import pytest

from inferapi.adapters.model_files import Tensor, read_header, read_json
from inferapi.domain.errors import ModelInvalid


@pytest.fixture
def good(make_safetensors) -> bytes:
    """Weights that nothing is wrong with."""
    return make_safetensors({"a": ("BF16", (100, 64)), "b": ("F32", (64,)), "scalar": ("F32", ())})


@pytest.fixture
def refused(tmp_path):
    """Assert that weights are refused, in the same words always."""

    def refuse(weights: bytes) -> None:
        path = tmp_path / "model.safetensors"
        path.write_bytes(weights)
        with pytest.raises(ModelInvalid) as caught:
            read_header(path, "org/name")
        assert caught.value.facts == {
            "model": "org/name",
            "problem": "model.safetensors is truncated or no safetensors file",
        }

    return refuse


def test_a_good_header_is_read_to_the_byte(tmp_path, good):
    (tmp_path / "x.safetensors").write_bytes(good)
    assert read_header(tmp_path / "x.safetensors", "org/name") == {
        "a": Tensor("BF16", (100, 64), 12_800),
        "b": Tensor("F32", (64,), 256),
        "scalar": Tensor("F32", (), 4),
    }


def test_empty_tensors_and_kinds_of_numbers_that_we_do_not_know_are_read(tmp_path, make_header):
    entries = '"a": {"dtype": "F32", "shape": [0, 5], "data_offsets": [0, 0]}, '
    entries += '"b": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}'
    (tmp_path / "x").write_bytes(make_header("{" + entries + "}", 4))
    assert read_header(tmp_path / "x", "org/name") == {"a": Tensor("F32", (0, 5), 0), "b": Tensor("F4", (8,), 4)}


@pytest.mark.parametrize("cut", [1, 7, 8, 20, -1])
def test_truncated_weights_are_refused(refused, good, cut):
    refused(good[:cut])


def test_weights_with_something_behind_them_are_refused(refused, good):
    refused(good + b"x")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xff\xfe",
        "garbage",
        "5",
        "[]",
        "null",
        '"text"',
        '{"a": 5}',
        '{"a": []}',
        '{"a": {}}',
        '{"a": {"dtype": "F32", "shape": [1]}}',
        '{"a": {"dtype": "F32", "shape": 5, "data_offsets": [0, 0]}}',
        '{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 0]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": 5}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": {"0": 0, "1": 1}}}',
        '{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 0]}}',
        '{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 0]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1e999]}}',
        '{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "X", "shape": [' + "9" * 4000 + '], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "X", "shape": [' + "9, " * 999 + '9], "data_offsets": [0, 4]}}',
        "[" * 5000,
    ],
    ids=lambda header: str(header[:60]),
)
def test_a_garbage_header_is_refused(refused, make_header, header):
    refused(make_header(header))


def test_a_header_longer_than_any_is_not_read(refused):
    refused(b"\xff" * 64)


@pytest.mark.parametrize("shape", ["[-5, 5]", "[5, -5]"])
def test_a_tensor_of_less_than_nothing_is_refused(refused, make_header, shape):
    header = '{"a": {"dtype": "F32", "shape": %s, "data_offsets": [0, 100]}}' % shape  # noqa: UP031
    refused(make_header(header, 100))


def test_offsets_that_run_backwards_are_refused(refused, make_header):
    header = '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}, '
    header += '"b": {"dtype": "F32", "shape": [1], "data_offsets": [1000000, 4]}}'
    refused(make_header(header, 8))


HEADERS_AT_ODDS = {
    "two tensors that overlap": (8, ("a", "F32", 1, 0, 4), ("b", "F32", 1, 2, 6), ("c", "U8", 2, 6, 8)),
    "two tensors in one place": (4, ("a", "F32", 1, 0, 4), ("b", "F32", 1, 0, 4)),
    "a hole": (12, ("a", "F32", 1, 0, 4), ("b", "F32", 1, 8, 12)),
    "a start behind the beginning": (8, ("a", "F32", 1, 4, 8)),
    "an end behind the file's": (8, ("a", "F32", 1, 0, 4), ("b", "F32", 25, 4, 104)),
    "a shape larger than its bytes": (4, ("a", "F32", 1000, 0, 4)),
    "a shape smaller than its bytes": (8, ("a", "F32", 1, 0, 8)),
    "a name twice": (8, ("a", "F32", 1, 0, 4), ("a", "F32", 1, 4, 8)),
}


@pytest.mark.parametrize(("data_bytes", "entries"), [(size, entries) for size, *entries in HEADERS_AT_ODDS.values()],
                         ids=HEADERS_AT_ODDS)  # fmt: skip
def test_a_header_at_odds_with_itself_or_the_file_is_refused(refused, make_header, data_bytes, entries):
    told = (
        f'"{name}": {{"dtype": "{dtype}", "shape": [{length}], "data_offsets": [{start}, {end}]}}'
        for name, dtype, length, start, end in entries
    )
    refused(make_header("{" + ", ".join(told) + "}", data_bytes))


@pytest.mark.parametrize("length", [0, 1, 65, 2**27, 2**63, 2**64 - 1])
def test_a_header_that_lies_about_its_length_is_refused(refused, make_safetensors, length):
    weights = make_safetensors({"a": ("F32", (4,))})
    refused(length.to_bytes(8, "little") + weights[8:])


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelInvalid, match=r"config\.json is missing or broken"):
        read_json(tmp_path / "config.json", "org/name")
