"""Constrained answers, penalties and log-probabilities on real engines, beside others in one batch."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from jsonschema import Draft202012Validator
from llguidance import LLTokenizer
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from inferapi.domain.errors import InvalidRequest
from inferapi.domain.generation import Chunk, Constraint, ConstraintKind, FinishReason, Prompt, SamplingParams
from inferapi.engine.model_tokenizer import grammar_tokenizer
from inferapi.engine.request import Request

END = 256


def closed(**properties: dict) -> dict:
    """A schema of an object with exactly these."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


COLOUR = {"enum": ["red", "green", "blue"]}
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
SCHEMAS = (
    {"type": "boolean"},
    {"type": "integer", "minimum": -5, "maximum": 120},
    COLOUR,
    closed(colour=COLOUR, is_new={"type": "boolean"}),
    closed(word={"type": "string", "maxLength": 12}),
    closed(code={"type": "string", "pattern": "^[A-Z]{3}-[0-9]{2}$"}, size=DIGIT),
    {"type": "array", "items": COLOUR, "minItems": 1, "maxItems": 4},
    closed(day={"type": "string", "format": "date"}, inner=closed(none={"type": "null"})),
    {"anyOf": [{"type": "null"}, closed(n={"const": 7})]},
)
"""None allows an answer without end, whatever a model of random weights says."""


def schema(value: dict) -> Constraint:
    return Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(value))


@pytest.fixture
def constrained(new_request):
    """A request to a model whose answer keeps to a schema."""

    def make(model, value: dict, prompt, max_new_tokens: int = 200, **sampling: object) -> Request:
        request = new_request(prompt, max_new_tokens, **{"temperature": 1.0, **sampling})
        request.matcher = model.constrainer.matcher(schema(value))
        return request

    return make


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.0}, {"temperature": 3.0, "top_k": 40, "top_p": 0.95}])
def test_answers_of_random_weights_keep_to_their_schemas_in_one_batch(
    tiny, constrained, drive, prompt_of, sampling: dict
) -> None:
    model = tiny("llama").model
    asked = {
        number: constrained(model, value, prompt_of(9 + number), seed=number, **sampling)
        for number, value in enumerate(SCHEMAS)
    }

    answers = drive(model.loop, asked.values())

    for number, request in asked.items():
        assert answers.finish[request.request_id].reason is FinishReason.STOP
        Draft202012Validator(SCHEMAS[number]).validate(json.loads(answers.text(request)))


def test_answers_beside_constrained_ones_are_what_they_are_alone(
    tiny, constrained, new_request, drive, generate, prompt_of, answer_of
) -> None:
    model = tiny("llama")
    free = [new_request(prompt_of(20 + n), 30) for n in range(3)]
    kept = [constrained(model.model, value, prompt_of(8), 30, seed=1) for value in SCHEMAS[3:6]]

    drive(model.model.loop, [free[0], *kept, *free[1:]])

    for n, request in enumerate(free):
        assert answer_of(request) == generate(model.reference, prompt_of(20 + n), 30)


def test_a_constrained_answer_is_the_same_alone_and_in_a_batch(
    tiny, constrained, new_request, drive, prompt_of, answer_of
) -> None:
    model = tiny("llama").model

    def requests() -> list[Request]:
        return [constrained(model, value, prompt_of(11), seed=5, top_k=30) for value in SCHEMAS[3:7]]

    alone, together = requests(), requests()
    for request in alone:
        drive(model.loop, [request])
    drive(model.loop, [new_request(prompt_of(40), 60, temperature=1.0), *together])

    assert list(map(answer_of, together)) == list(map(answer_of, alone))


@pytest.mark.parametrize("family", ["mamba", "dynamic-llama"])
def test_a_model_that_takes_one_request_at_a_time_keeps_to_schemas_too(
    tiny, constrained, drive, prompt_of, family: str
) -> None:
    model = tiny(family).model
    request = constrained(model, SCHEMAS[3], prompt_of(7), seed=2, top_logprobs=3)

    answers = drive(model.loop, [request])

    assert model.facts.batching == "sequential"
    Draft202012Validator(SCHEMAS[3]).validate(json.loads(answers.text(request)))


def test_log_probabilities_are_those_of_the_reference_model(tiny, new_request, prompt_of, answer_of) -> None:
    model = tiny("llama")
    asking, silent = (new_request(prompt_of(15), 12, top_logprobs=number) for number in (5, None))
    told = []
    for request in (asking, silent):
        model.model.loop.submit(request)
    while not model.model.loop.is_idle:
        outputs = model.model.loop.step()
        told += [t for out in outputs if out.request_id == asking.request_id for t in out.item.tokens]
        assert not any(out.item.tokens for out in outputs if out.request_id == silent.request_id)

    assert [token.chance.token_id for token in told] == answer_of(asking) == answer_of(silent)
    with torch.inference_mode():
        logits = model.reference(torch.tensor([asking.tokens[:-1]])).logits[0, asking.num_prompt_tokens - 1 :]
    expected = logits.log_softmax(-1)
    for row, token in zip(expected, told, strict=True):
        assert token.chance.logprob == pytest.approx(float(row[token.chance.token_id]), abs=1e-3)
        assert [c.logprob for c in token.likeliest] == pytest.approx(row.topk(5).values.tolist(), abs=1e-3)


def test_penalties_and_biases_reach_the_answer(tiny, new_request, drive, prompt_of, answer_of) -> None:
    loop = tiny("llama").model.loop
    penalized = new_request(prompt_of(6), 60, frequency_penalty=100.0)
    biased = new_request(prompt_of(6), 60, logit_bias=((65, 100.0),))

    drive(loop, [penalized, biased])

    assert len(set(answer_of(penalized))) == 60
    assert set(answer_of(biased)) == {65}


def test_a_tokenizer_that_is_not_fast_or_has_no_bytes_cannot_constrain(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel(vocab={"a": 0, "?": 1}, unk_token="?"))
    slow = object()

    for tokenizer in (PreTrainedTokenizerFast(tokenizer_object=words), slow):
        with pytest.raises((TypeError, ValueError)):
            grammar_tokenizer(str(tmp_path), tokenizer, [])


def test_the_loader_s_own_tokenizer_knows_every_end(write_model) -> None:
    folder = write_model("llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)

    made = grammar_tokenizer(str(folder), tokenizer, {END, 3, 10**6})

    assert isinstance(made, LLTokenizer)
    assert made.vocab_size == END + 1
    assert sorted(made.eos_tokens) == [3, END]


@pytest.mark.model
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_demo_model_answers_in_a_schema(smollm2, drive, dtype: str) -> None:
    model = smollm2(dtype)
    value = closed(city={"type": "string", "maxLength": 30}, population={"type": "integer"}, is_capital=SCHEMAS[0])
    sampling = SamplingParams(max_new_tokens=120, temperature=1.0, seed=7, constraint=schema(value), top_logprobs=2)
    tokens, _ = model.encoder.encode(Prompt(text="A record of the city of Paris as JSON: "), sampling)
    requests = [
        Request(number, list(tokens), len(tokens), sampling, 0.0, matcher=model.constrainer.matcher(schema(value)))
        for number in range(6)
    ]

    answers = drive(model.loop, requests)

    for request in requests:
        finish = answers.finish[request.request_id]
        if finish.reason is FinishReason.STOP:
            Draft202012Validator(value).validate(json.loads(answers.text(request)))
    assert any(finish.reason is FinishReason.STOP for finish in answers.finish.values())


@pytest.mark.model
def test_the_demo_model_s_told_tokens_are_its_text(smollm2) -> None:
    loop, encoder = smollm2("float32").loop, smollm2("float32").encoder
    sampling = SamplingParams(max_new_tokens=40, temperature=1.0, seed=3, top_logprobs=20, stop=("zzz",))
    tokens, _ = encoder.encode(Prompt(text="\N{GRINNING FACE}\N{PARTY POPPER} caf\u00e9 \u4f60\u597d"), sampling)
    loop.submit(Request(0, tokens, len(tokens), sampling, 0.0))
    data, text = b"", ""
    while not loop.is_idle:
        for output in loop.step():
            assert isinstance(output.item, Chunk)
            text += output.item.text
            data += b"".join(token.chance.data for token in output.item.tokens)
            assert all(
                first.logprob >= second.logprob
                for token in output.item.tokens
                for first, second in zip(token.likeliest, token.likeliest[1:], strict=False)
            )

    assert data.decode(errors="replace") == text


def test_a_refused_schema_names_the_field(tiny) -> None:
    matcher = partial(tiny("llama").model.constrainer.matcher, schema({"not": {}}))

    with pytest.raises(InvalidRequest, match=r"^response_format: "):
        matcher()
