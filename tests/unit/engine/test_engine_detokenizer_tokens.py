"""How many tokens have said what they say is known at every moment."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from inferapi.engine.detokenizer import Detokenizer
from tiny import byte_level_tokenizer

FACE = "\N{GRINNING FACE}"  # four bytes
Encode = Callable[[str], list[int]]
Decode = Callable[[Sequence[int]], str]


@pytest.fixture
def decode(byte_tokenizer: Tokenizer) -> Decode:
    byte_tokenizer.add_special_tokens(["<|end|>"])
    return lambda ids: byte_tokenizer.decode(list(ids), skip_special_tokens=True)


@pytest.fixture
def encode(byte_tokenizer: Tokenizer) -> Encode:
    return lambda text: byte_tokenizer.encode(text).ids


def told(detokenizer: Detokenizer, tokens: Sequence[int]) -> list[int]:
    """How many tokens are told after each."""
    counts = []
    for token in tokens:
        detokenizer.push(token)
        counts.append(detokenizer.num_told_tokens)
    return counts


@pytest.mark.parametrize("stop", [(), ("never",)])
def test_the_bytes_of_a_character_are_told_with_its_last_one(decode: Decode, encode: Encode, stop: tuple) -> None:
    detokenizer = Detokenizer(decode, encode("Say: "), stop)

    assert told(detokenizer, encode(f"a{FACE}b")) == [1, 1, 1, 1, 5, 6]


@pytest.mark.parametrize("stop", [(), ("never",)])
def test_a_token_without_text_is_told_at_once(decode: Decode, encode: Encode, stop: tuple) -> None:
    assert told(Detokenizer(decode, encode("x"), stop), [256, *encode("a"), 256]) == [1, 2, 3]


def test_what_is_held_back_is_not_told_before_it_is_released(decode: Decode, encode: Encode) -> None:
    detokenizer = Detokenizer(decode, encode("x"), ("two",))

    assert told(detokenizer, encode("a tw")) == [1, 2, 2, 2]
    assert told(detokenizer, [256]) == [2]  # it comes after what is held back
    assert told(detokenizer, encode("?")) == [6]


def test_tokens_of_a_stop_string_are_never_told(decode: Decode, encode: Encode) -> None:
    detokenizer = Detokenizer(decode, encode("x"), ("\nUser:",))

    told(detokenizer, encode("Yes.\nUser:"))
    detokenizer.flush()

    assert detokenizer.num_told_tokens == len("Yes.")


@pytest.mark.parametrize(("stop", "count"), [("C", 2), ("oneC", 1), ("one", 1), ("D", 3)])
def test_a_token_is_told_if_any_of_its_text_is_left(stop: str, count: int) -> None:
    words = Tokenizer(models.BPE(vocab={"a": 0, "oneCtwo": 1, "D": 2}, merges=[]))
    words.decoder = decoders.ByteLevel()
    detokenizer = Detokenizer(words.decode, [], (stop,))
    for token in (0, 1):
        if not detokenizer.stopped:
            detokenizer.push(token)
    if not detokenizer.stopped:
        detokenizer.push(0)
    detokenizer.flush()

    assert detokenizer.num_told_tokens == count


@pytest.mark.parametrize("stop", [(), ("STOP",)])
def test_the_end_tells_what_is_left(decode: Decode, encode: Encode, stop: tuple) -> None:
    detokenizer = Detokenizer(decode, encode("x"), stop)
    tokens = [*encode("a ST"), *encode(FACE)[:2]]

    told(detokenizer, tokens)
    detokenizer.flush()

    assert detokenizer.num_told_tokens == len(tokens)


@settings(max_examples=100, deadline=None)
@given(
    answer=st.text(f"abc{FACE}", max_size=30),
    stops=st.lists(st.text(f"abc{FACE}", min_size=1, max_size=4), max_size=2),
    ends_early=st.booleans(),
)
def test_what_was_told_is_what_was_said(
    any_byte_tokenizer: Tokenizer, answer: str, stops: list[str], *, ends_early: bool
) -> None:
    tokens = any_byte_tokenizer.encode(answer).ids[: -1 if ends_early else None]
    data = answer.encode()
    detokenizer = Detokenizer(any_byte_tokenizer.decode, [], stops)
    said = ""
    for token in tokens:
        said += detokenizer.push(token)
        assert said.encode() == data[: detokenizer.num_told_tokens]  # a token is a byte, and none is told twice
        if detokenizer.stopped:
            break
    ending = detokenizer.flush()

    if detokenizer.stopped:
        assert (said + ending).encode() == data[: detokenizer.num_told_tokens]
    else:
        assert detokenizer.num_told_tokens == len(tokens)


@pytest.fixture(scope="module")
def any_byte_tokenizer() -> Tokenizer:
    return byte_level_tokenizer()
