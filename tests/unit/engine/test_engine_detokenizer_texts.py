"""Any text, cut into any tokens, comes out as it went in."""

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from inferapi.engine.detokenizer import Detokenizer

EMOJI = (
    "\N{GRINNING FACE}\N{FAMILY}\N{ZERO WIDTH JOINER}\N{WOMAN}\N{EMOJI MODIFIER FITZPATRICK TYPE-4}\u4f60\u597d\u00e9"
)
texts = st.text(st.one_of(st.sampled_from("ab \n"), st.sampled_from(EMOJI), st.characters(exclude_categories=["Cs"])))
texts = texts.filter(lambda text: "\ufffd" not in text)


def byte_letters(data: bytes) -> str:
    """GPT-2's printable letter for every byte."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return "".join(chr(byte) if byte in shown else chr(256 + hidden.index(byte)) for byte in data)


def cut(data: bytes, borders: Sequence[int]) -> list[bytes]:
    points = sorted({0, len(data), *(border % (len(data) + 1) for border in borders)})
    return [data[start:end] for start, end in pairwise(points)]


def tokenized(prompt: str, answer: str, borders: Sequence[int]) -> tuple[Tokenizer, list[int], list[int]]:
    """A byte-level tokenizer whose tokens are exactly the parts that the texts were cut into."""
    parts = [cut(text.encode(), borders) for text in (prompt, answer)]
    vocabulary = {byte_letters(part): 0 for part in (*parts[0], *parts[1], b"?")}
    ids = {piece: index for index, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    prompt_ids, answer_ids = ([ids[byte_letters(part)] for part in each] for each in parts)
    return tokenizer, prompt_ids, answer_ids


borders_of_tokens = st.lists(st.integers(0, 200), max_size=60)


@settings(max_examples=100, deadline=None)
@given(prompt=texts, answer=texts, borders=borders_of_tokens)
def test_the_pieces_are_the_text_and_none_is_broken(prompt: str, answer: str, borders: list[int]) -> None:
    tokenizer, prompt_ids, answer_ids = tokenized(prompt, answer, borders)
    detokenizer = Detokenizer(tokenizer.decode, prompt_ids, ())

    pieces = [detokenizer.push(token) for token in answer_ids] + [detokenizer.flush()]

    assert "".join(pieces) == answer
    assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=100, deadline=None)
@given(
    answer=st.text("abc\N{GRINNING FACE}", max_size=30),
    stop=st.text("abc\N{GRINNING FACE}", min_size=1, max_size=4),
    borders=borders_of_tokens,
)
def test_an_answer_ends_where_its_stop_string_begins(answer: str, stop: str, borders: list[int]) -> None:
    tokenizer, _, answer_ids = tokenized("", answer, borders)
    detokenizer = Detokenizer(tokenizer.decode, [], (stop,))

    pieces = []
    for token in answer_ids:
        pieces.append(detokenizer.push(token))
        if detokenizer.stopped:
            break
    pieces.append(detokenizer.flush())

    assert "".join(pieces) == answer.split(stop, maxsplit=1)[0]
    assert detokenizer.stopped == (stop in answer)


@settings(max_examples=100, deadline=None)
@given(
    answer=st.text("abc", min_size=1, max_size=30),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), min_size=2, max_size=3),
    borders=borders_of_tokens,
)
def test_no_stop_string_leaks_and_nothing_certain_is_kept(answer: str, stops: list[str], borders: list[int]) -> None:
    assume(any(stop in answer for stop in stops))
    tokenizer, _, answer_ids = tokenized("", answer, borders)
    detokenizer = Detokenizer(tokenizer.decode, [], stops)

    text = "".join(detokenizer.push(token) for token in answer_ids if not detokenizer.stopped)

    assert detokenizer.stopped
    assert answer.startswith(text)
    assert not any(stop in text for stop in stops)
    assert any(answer.startswith(stop, len(text)) for stop in stops)


llama_words = st.lists(
    st.sampled_from(
        ["\u2581", "\u2581Hello", "world", "!", "\u2581a", "b", "\N{GRINNING FACE}", "\u4f60", "\u00e9", "\n"]
    ),
    max_size=14,
)


@settings(max_examples=100, deadline=None)
@given(prompt=llama_words, answer=llama_words)
def test_words_and_byte_tokens_after_any_prompt_come_out_whole(
    llama_tokenizer: Tokenizer, llama_ids, prompt: list[str], answer: list[str]
) -> None:
    before, after = llama_ids(*prompt), llama_ids(*answer)
    detokenizer = Detokenizer(llama_tokenizer.decode, before, ())

    text = "".join(detokenizer.push(token) for token in after) + detokenizer.flush()

    assert text == llama_tokenizer.decode(before + after)[len(llama_tokenizer.decode(before)) :]
