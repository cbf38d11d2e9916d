"""The official client: models, chat, completions and embeddings, whole and streamed, at once and one by one."""

import asyncio
import math
from collections import defaultdict
from itertools import pairwise

import pytest
from client_side import HERMES, REASONER
from live_server import DEMO, DEMO_FOLDER, TINY
from tokenizers import Tokenizer

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
STORY = [{"role": "user", "content": "Tell me a story."}]
GREEDY = {"model": DEMO, "temperature": 0}
ON = {"ignore_eos": True}  # an extension: the answer is as long as it may be


def token_id(text):
    """The only token of a text."""
    (found,) = Tokenizer.from_file(str(DEMO_FOLDER / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    return found


def test_models_are_listed_with_their_state_and_told_one_by_one(client):
    listed = {model.id: model for model in client.models.list()}
    assert {DEMO, TINY, HERMES, REASONER} <= set(listed)
    assert {model.object for model in listed.values()} == {"model"}
    assert all(model.created > 0 and model.owned_by for model in listed.values())
    assert listed[DEMO].model_extra["state"] in {"ready", "leased"}
    one = client.models.retrieve(DEMO)  # whose name has a slash
    assert (one.id, one.owned_by, one.created) == (DEMO, listed[DEMO].owned_by, listed[DEMO].created)


def test_a_chat_completion_answers_and_counts(client):
    answer = client.chat.completions.create(messages=CAPITAL, max_completion_tokens=32, **GREEDY)
    (choice,) = answer.choices
    assert (answer.object, answer.model) == ("chat.completion", DEMO)
    assert answer.id.startswith("chatcmpl-")
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "stop", "assistant")
    assert "Paris" in choice.message.content
    assert choice.message.tool_calls is None
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens < 32


def test_a_system_message_a_developer_message_and_text_parts_are_the_same_words(client):
    def content(role, parts):
        system = {"role": role, "content": "Answer with one word."}
        user = [{"type": "text", "text": "What is the capital of France?"}]
        messages = [system, {"role": "user", "content": user if parts else user[0]["text"]}]
        answer = client.chat.completions.create(messages=messages, max_tokens=16, **GREEDY)
        return answer.choices[0].message.content, answer.usage.prompt_tokens

    assert content("system", parts=False) == content("developer", parts=False) == content("system", parts=True)


def test_a_stream_says_what_the_whole_answer_says_and_usage_only_where_it_is_asked_for(client):
    asked = {"messages": CAPITAL, "max_tokens": 32, **GREEDY}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(stream=True, **asked))
    counted = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **asked))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert [chunk.usage for chunk in chunks] == [None] * len(chunks)
    *before, last = counted
    assert [chunk.usage for chunk in before] == [None] * len(before)
    assert last.choices == []
    counts = (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens)
    assert counts == (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens)


def test_several_choices_differ_and_a_seed_brings_all_of_them_again(client):
    asked = {"model": DEMO, "messages": STORY, "n": 3, "max_tokens": 12, "temperature": 1, "extra_body": ON}

    def texts(seed):
        answer = client.chat.completions.create(seed=seed, **asked)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert {choice.finish_reason for choice in answer.choices} == {"length"}
        assert answer.usage.completion_tokens == 36
        return [choice.message.content for choice in answer.choices]

    first = texts(7)
    assert len(set(first)) == 3
    assert texts(7) == first
    assert texts(8) != first
    streamed = defaultdict(str)
    for chunk in client.chat.completions.create(seed=7, stream=True, **asked):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert [streamed[index] for index in range(3)] == first


def test_log_probabilities_tell_every_token_and_the_likeliest_in_its_place(client):
    asked = {"messages": CAPITAL, "max_tokens": 6, "logprobs": True, "top_logprobs": 3, "extra_body": ON, **GREEDY}
    (choice,) = client.chat.completions.create(**asked).choices
    told = choice.logprobs.content
    assert len(told) == 6
    assert b"".join(bytes(token.bytes) for token in told).decode() == choice.message.content
    for token in told:
        likeliest = [other.logprob for other in token.top_logprobs]
        assert len(likeliest) == 3
        assert likeliest == sorted(likeliest, reverse=True)
        assert token.logprob == likeliest[0] <= 0  # greedy
        assert token.token == token.top_logprobs[0].token
        assert sum(math.exp(logprob) for logprob in likeliest) <= 1.001
    streamed = []
    for chunk in client.chat.completions.create(stream=True, **asked):
        streamed += chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else []
    assert [token.token for token in streamed] == [token.token for token in told]
    assert [token.logprob for token in streamed] == pytest.approx([token.logprob for token in told], abs=1e-2)


def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(client):
    asked = {"messages": STORY, "max_tokens": 32, "extra_body": ON, **GREEDY}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    stop = whole[20:24]
    for given in (stop, ["never said", stop]):
        (choice,) = client.chat.completions.create(stop=given, **asked).choices
        assert (choice.message.content, choice.finish_reason) == (whole[: whole.index(stop)], "stop")
        chunks = client.chat.completions.create(stop=given, stream=True, **asked)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole[: whole.index(stop)]


def test_a_bias_forbids_a_token_or_makes_it_the_only_one(client):
    asked = {"model": DEMO, "prompt": "The capital of France is", "max_tokens": 3, "temperature": 0, "extra_body": ON}
    paris = token_id(" Paris")
    assert client.completions.create(**asked).choices[0].text.startswith(" Paris")
    forbidden = client.completions.create(logit_bias={str(paris): -100}, **asked)
    assert " Paris" not in forbidden.choices[0].text
    forced = client.completions.create(logit_bias={str(paris): 100}, **asked)
    assert forced.choices[0].text == " Paris" * 3


def test_a_frequency_penalty_counts_against_what_was_said(client):
    asked = {
        "model": DEMO,
        "prompt": "The cat sat. The cat sat. The cat sat. The cat",
        "temperature": 0,
        "extra_body": ON,
    }
    plain = client.completions.create(max_tokens=24, **asked).choices[0].text
    penalised = client.completions.create(max_tokens=24, frequency_penalty=2, **asked).choices[0].text
    assert plain.count("cat sat") > 3
    assert penalised.count("cat sat") < plain.count("cat sat")


def test_a_text_completion_continues_and_tells_its_log_probabilities(client):
    asked = {"model": DEMO, "prompt": "The capital of France is", "max_tokens": 5, "temperature": 0, "extra_body": ON}
    answer = client.completions.create(logprobs=2, **asked)
    (choice,) = answer.choices
    assert answer.object == "text_completion"
    assert choice.text.startswith(" Paris")
    assert choice.finish_reason == "length"
    told = choice.logprobs
    assert "".join(told.tokens) == choice.text
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == 5
    assert all(2 <= len(likeliest) <= 3 for likeliest in told.top_logprobs)
    steps = [after - before for before, after in pairwise(told.text_offset)]
    assert steps == [len(token) for token in told.tokens[:-1]]
    chunks = list(client.completions.create(stream=True, **asked))
    assert "".join(chunk.choices[0].text for chunk in chunks) == choice.text
    assert answer.usage.completion_tokens == 5


def test_embeddings_are_the_same_as_numbers_and_as_base64(client):
    texts = ["The cat sat on the mat.", "Der Himmel über Berlin", "x"]
    packed = client.embeddings.create(model=DEMO, input=texts)  # base64 on the wire: the client's own default
    plain = client.embeddings.create(model=DEMO, input=texts, encoding_format="float")
    assert [entry.index for entry in packed.data] == [0, 1, 2]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert len(one.embedding) == 576
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert math.hypot(*one.embedding) == pytest.approx(1, abs=1e-3)
    assert packed.usage.prompt_tokens == packed.usage.total_tokens > 10
    alone = client.embeddings.create(model=DEMO, input=texts[1], encoding_format="float").data[0].embedding
    assert sum(a * b for a, b in zip(alone, plain.data[1].embedding, strict=True)) == pytest.approx(1, abs=1e-2)
    assert sum(a * b for a, b in zip(alone, plain.data[0].embedding, strict=True)) < 0.999


def test_what_a_model_thinks_comes_apart_from_what_it_says(client):
    asked = {"model": REASONER, "messages": CAPITAL, "temperature": 0, "max_tokens": 12, "extra_body": ON}
    (choice,) = client.chat.completions.create(**asked).choices
    thought = choice.message.model_extra["reasoning_content"]
    assert thought
    assert not choice.message.content
    assert choice.finish_reason == "length"
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(stream=True, **asked)]
    assert "".join((delta.model_extra or {}).get("reasoning_content") or "" for delta in deltas) == thought
    assert not any(delta.content for delta in deltas)


async def test_a_stream_of_coroutines_says_the_same(async_client):
    asked = {"messages": CAPITAL, "max_tokens": 32, **GREEDY}
    whole = await async_client.chat.completions.create(**asked)
    stream = await async_client.chat.completions.create(stream=True, **asked)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == whole.choices[0].message.content


async def test_many_at_once_are_all_answered_and_counted_by_themselves(async_client):
    async def ask(number):
        messages = [{"role": "user", "content": f"Count to ten, beginning with {number}."}]
        asked = {"messages": messages, "max_tokens": number + 4, "extra_body": ON, **GREEDY}
        return await async_client.chat.completions.create(**asked)

    answers = await asyncio.gather(*(ask(number) for number in range(16)))
    assert [answer.usage.completion_tokens for answer in answers] == [number + 4 for number in range(16)]
    assert len({answer.id for answer in answers}) == 16
    assert all(answer.choices[0].message.content for answer in answers)
