from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from inferapi.engine.detokenizer import Detokenizer
from inferapi.engine.tag_tokens import tag_tokens, with_tags
from tiny import byte_level_tokenizer


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    backend = byte_level_tokenizer()
    backend.add_special_tokens(["<|end|>", "[TOOL_CALLS]", "[THINK]", "[/THINK]"])
    backend.add_tokens(["<tool_call>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


def decode(tokenizer: PreTrainedTokenizerFast):
    return lambda ids: tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=True)


def test_the_tags_of_calls_and_of_the_models_reasoning_are_found_with_their_ids(tokenizer):
    assert tag_tokens(tokenizer, None) == (("<tool_call>", 260), ("[TOOL_CALLS]", 257))
    assert tag_tokens(tokenizer, ("[THINK]", "[/THINK]")) == (
        ("<tool_call>", 260),
        ("[/THINK]", 259),
        ("[THINK]", 258),
        ("[TOOL_CALLS]", 257),
    )


def test_tags_have_text_and_other_special_tokens_have_none(tokenizer):
    decoded = with_tags(decode(tokenizer), tag_tokens(tokenizer, ("[THINK]", "[/THINK]")))
    text = "[THINK]né[/THINK]a <|end|>[TOOL_CALLS][TOOL_CALLS]b<tool_call>"
    assert decoded(tokenizer(text)["input_ids"]) == text.replace("<|end|>", "")
    assert decoded([]) == ""


def test_a_vocabulary_without_tags_is_decoded_as_before(tokenizer):
    plain = decode(tokenizer)
    assert with_tags(plain, ()) is plain


def test_an_answer_that_comes_token_by_token_has_its_tags(tokenizer):
    decoded = with_tags(decode(tokenizer), tag_tokens(tokenizer, ("[THINK]", "[/THINK]")))
    detokenizer = Detokenizer(decoded, tokenizer("user: né[THINK]")["input_ids"], ())
    text = "Hmé[/THINK] ü[TOOL_CALLS][{}]"
    pieces = [detokenizer.push(token) for token in tokenizer(text)["input_ids"]]
    assert "".join([*pieces, detokenizer.flush()]) == text
    assert pieces.count("[TOOL_CALLS]") == 1
