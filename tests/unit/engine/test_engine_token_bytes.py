import pytest
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

from inferapi.engine.token_bytes import TokenBytes


def test_a_byte_level_token_is_its_bytes(byte_tokenizer: Tokenizer) -> None:
    tokens = TokenBytes(PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer))

    found = {token: tokens.of(token) for token in range(256)}

    assert sorted(found.values()) == [bytes([byte]) for byte in range(256)]
    text = " caf\u00e9\n\N{GRINNING FACE}"
    assert b"".join(found[token] for token in byte_tokenizer.encode(text).ids) == text.encode()


def test_a_sentencepiece_token_is_its_text_with_spaces_or_one_byte(llama_tokenizer: Tokenizer, llama_ids) -> None:
    tokens = TokenBytes(PreTrainedTokenizerFast(tokenizer_object=llama_tokenizer))

    pieces = [tokens.of(token) for token in llama_ids("\u2581Hello", "world", "\u00e9")]

    assert pieces == [b" Hello", b"world", b"\xc3", b"\xa9"]


def test_an_added_token_is_what_it_reads(byte_tokenizer: Tokenizer) -> None:
    byte_tokenizer.add_special_tokens(["<|end of turn|>"])
    byte_tokenizer.add_tokens([AddedToken("\u0120caf\u00e9 ", normalized=False)])
    tokens = TokenBytes(PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer))

    assert tokens.of(256) == b"<|end of turn|>"
    assert tokens.of(257) == "\u0120caf\u00e9 ".encode()  # not in the alphabet, whatever its letters


def test_words_of_other_tokenizers_are_their_text() -> None:
    words = Tokenizer(models.WordLevel(vocab={"caf\u00e9": 0, "<0x41>": 1, "?": 2}, unk_token="?"))
    tokens = TokenBytes(PreTrainedTokenizerFast(tokenizer_object=words))

    assert [tokens.of(token) for token in range(2)] == ["caf\u00e9".encode(), b"<0x41>"]


@pytest.mark.parametrize("token", [256, 10**6])
def test_an_id_beyond_the_tokenizer_has_no_bytes(byte_tokenizer: Tokenizer, token: int) -> None:
    tokens = TokenBytes(PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer))

    assert tokens.of(token) == b""
