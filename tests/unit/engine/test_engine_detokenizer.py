from collections.abc import Callable, Sequence

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from inferapi.engine.detokenizer import Detokenizer

BROKEN = "\ufffd"
LETTERS = pre_tokenizers.ByteLevel.alphabet()


@pytest.fixture
def decode(byte_tokenizer: Tokenizer) -> Callable[[Sequence[int]], str]:
    byte_tokenizer.add_special_tokens(["<|end|>"])
    return lambda ids: byte_tokenizer.decode(list(ids), skip_special_tokens=True)


@pytest.fixture
def encode(byte_tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    return lambda text: byte_tokenizer.encode(text).ids


def stream(detokenizer: Detokenizer, tokens: Sequence[int]) -> list[str]:
    return [detokenizer.push(token) for token in tokens]


def test_an_emoji_appears_with_its_last_byte(decode, encode) -> None:
    pieces = stream(Detokenizer(decode, encode("Say: "), ()), encode("a\N{GRINNING FACE}b"))

    assert pieces == ["a", "", "", "", "\N{GRINNING FACE}", "b"]


def test_a_special_token_has_no_text_and_disturbs_nothing(decode, encode) -> None:
    end = 256
    pieces = stream(Detokenizer(decode, [*encode("x"), end], ()), [end, *encode("a"), end, *encode(" b")])

    assert pieces == ["", "a", "", " ", "b"]


def test_an_answer_without_a_prompt_is_streamed_too(decode, encode) -> None:
    assert "".join(stream(Detokenizer(decode, [], ()), encode(" \N{PARTY POPPER} ok"))) == " \N{PARTY POPPER} ok"


def test_a_character_cut_short_by_the_end_comes_out_as_broken_once(decode, encode) -> None:
    detokenizer = Detokenizer(decode, encode("x"), ())

    assert stream(detokenizer, encode("a\N{GRINNING FACE}")[:-1]) == ["a", "", "", ""]
    assert detokenizer.flush() == BROKEN
    assert detokenizer.flush() == ""


def test_bytes_that_never_become_a_character_do_not_hold_the_answer_up(decode) -> None:
    lead = sorted(LETTERS).index("\u00f0")  # the byte F0 begins a character of four bytes
    detokenizer = Detokenizer(decode, [], ())

    text = "".join(stream(detokenizer, [lead] * 8))

    assert text == BROKEN * 8


def test_a_stop_string_across_tokens_ends_the_answer_before_it(decode, encode) -> None:
    detokenizer = Detokenizer(decode, encode("x"), ("\nUser:",))

    pieces = stream(detokenizer, encode("Yes.\nUser:"))

    assert "".join(pieces) == "Yes."
    assert detokenizer.stopped
    assert detokenizer.flush() == ""


def test_what_only_began_like_a_stop_string_is_released(decode, encode) -> None:
    detokenizer = Detokenizer(decode, encode("x"), ("\nUser:",))

    pieces = stream(detokenizer, encode("a\nUs?"))

    assert pieces == ["a", "", "", "", "\nUs?"]
    assert not detokenizer.stopped


def test_text_held_back_is_flushed_at_the_end(decode, encode) -> None:
    detokenizer = Detokenizer(decode, encode("x"), ("STOP",))

    assert "".join(stream(detokenizer, encode("a ST"))) == "a "
    assert detokenizer.flush() == "ST"
    assert not detokenizer.stopped


def test_the_earliest_of_several_stop_strings_counts(decode) -> None:
    vocabulary = Tokenizer(models.BPE(vocab={"oneCtwoBend": 0}, merges=[]))
    vocabulary.decoder = decoders.ByteLevel()
    detokenizer = Detokenizer(vocabulary.decode, [], ("Bend", "C"))

    assert detokenizer.push(0) == "one"
    assert detokenizer.stopped


def test_a_stop_string_is_text_while_the_answer_may_not_stop(decode, encode) -> None:
    detokenizer = Detokenizer(decode, encode("x"), ("ab",))

    early = "".join(detokenizer.push(token, may_stop=False) for token in encode("1ab2a"))
    late = "".join(stream(detokenizer, encode("b")))

    assert (early, late, detokenizer.stopped) == ("1ab2", "", True)


def test_a_stop_string_before_a_character_cut_short_does_not_leak() -> None:
    mixed = Tokenizer(models.BPE(vocab={"END\u00f0": 0, "a": 1}, merges=[]))  # a token may end inside a character
    mixed.decoder = decoders.ByteLevel()
    detokenizer = Detokenizer(mixed.decode, [], ("END",))

    text = "".join(stream(detokenizer, [1, 0])) + detokenizer.flush()

    assert text == "a"


def test_spaces_before_words_survive_a_decoder_that_strips_the_first(llama_tokenizer: Tokenizer, llama_ids) -> None:
    prompt = llama_ids("\u2581Hello")

    detokenizer = Detokenizer(llama_tokenizer.decode, prompt, ())

    assert stream(detokenizer, llama_ids("\u2581world", "!", "\u2581", "\u2581a")) == [
        " world",
        "!",
        " ",
        " a",
    ]


def test_byte_tokens_become_characters(llama_tokenizer: Tokenizer, llama_ids) -> None:
    detokenizer = Detokenizer(llama_tokenizer.decode, llama_ids("\u2581Hello"), ())

    pieces = stream(detokenizer, llama_ids("\N{GRINNING FACE}", "\N{GRINNING FACE}", "a"))

    assert pieces == ["", "", "", "\N{GRINNING FACE}", "", "", "", "\N{GRINNING FACE}", "a"]


def test_a_prompt_that_ends_in_byte_tokens_does_not_break_the_answer(llama_tokenizer: Tokenizer, llama_ids) -> None:
    prompt = llama_ids("\u2581Hello", "\N{PARTY POPPER}", "\N{PARTY POPPER}")  # the window cuts the first
    detokenizer = Detokenizer(llama_tokenizer.decode, prompt, ())

    text = "".join(stream(detokenizer, llama_ids("\N{GRINNING FACE}", "\u2581world")))

    assert text == "\N{GRINNING FACE} world"
