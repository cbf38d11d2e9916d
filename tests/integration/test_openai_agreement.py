"""The native routes and /v1 say the same: greedy, sampled with a seed, whole, streamed, alone and beside others."""

import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest
from live_server import DEMO, PATIENCE_S, events

pytestmark = pytest.mark.model

SYSTEM = "You are a helpful assistant."
QUESTIONS = [
    "What is the capital of France?",
    "Count from one to ten.",
    "Write a poem about the sea.",
    "Why is the sky blue? 🌊",
    "Translate 'good morning' into German.",
]
TOKENS = 24
PLAIN = {"temperature": 0, "repetition_penalty": 1.0}  # /v1 has no penalty by default, the native routes have


@pytest.fixture(scope="module")
def exact(start_server):
    """In float32, where neither the batch nor a cached beginning changes what is likeliest."""
    server = start_server(DTYPE="float32")
    yield server.wait_ready()
    server.stop()


@pytest.fixture
async def ask(exact):
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=exact.url, timeout=PATIENCE_S, trust_env=False, limits=limits) as client:

        async def post(path, **body):
            response = await client.post(path, json=body)
            assert response.status_code == 200, response.text
            return response

        yield post


def messages(question):
    return [{"role": "user", "content": question}]


async def infer(ask, text, **more):
    return (await ask("/infer", text=text, max_new_tokens=TOKENS, **PLAIN | more)).json()["result"]


async def completion(ask, prompt, **more):
    asked = {"model": DEMO, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, **more}
    return (await ask("/v1/completions", **asked)).json()["choices"][0]["text"]


async def chat_completion(ask, talk, **more):
    asked = {"model": DEMO, "messages": talk, "max_tokens": TOKENS, "temperature": 0, **more}
    return (await ask("/v1/chat/completions", **asked)).json()["choices"][0]["message"]["content"]


async def streamed(ask, talk, **more):
    asked = {"model": DEMO, "messages": talk, "max_tokens": TOKENS, "temperature": 0, "stream": True, **more}
    response = await ask("/v1/chat/completions", **asked)
    chunks = [event for event in events(response.text.splitlines()) if event != "[DONE]"]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


async def response(ask, question):
    asked = {"model": DEMO, "input": question, "max_output_tokens": TOKENS, "temperature": 0, "store": False}
    (item,) = (await ask("/v1/responses", **asked)).json()["output"]
    return "".join(part["text"] for part in item["content"])


@asynccontextmanager
async def neighbours(ask):
    """Requests of others, that sample, in the batch meanwhile."""
    body = {"text": "Once upon a time", "max_new_tokens": 200, "ignore_eos": True, "temperature": 1.0}
    others = [asyncio.create_task(ask("/infer", seed=seed, **body)) for seed in range(6)]
    try:
        yield
    finally:
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def test_a_continued_text_is_the_same_on_both_sides(ask):
    for text in QUESTIONS:
        assert await completion(ask, text) == await infer(ask, text)


async def test_a_question_is_answered_the_same_on_every_route(ask):
    for question in QUESTIONS:
        native = await infer(ask, question, chat=True)
        assert await chat_completion(ask, messages(question)) == native
        assert await streamed(ask, messages(question)) == native
        assert await response(ask, question) == native


async def test_a_conversation_goes_on_the_same_on_both_sides(ask):
    talk, session = [{"role": "system", "content": SYSTEM}], None
    for question in QUESTIONS[:3]:
        body = {"text": question, "max_new_tokens": TOKENS, **PLAIN} | ({"session_id": session} if session else {})
        native = (await ask("/chat", **body)).json()
        session = native["session_id"]
        talk += messages(question)
        assert await chat_completion(ask, talk) == native["result"]
        talk.append({"role": "assistant", "content": native["result"]})
        assert native["full_history"] == talk


async def test_beside_others_everybody_says_what_he_says_alone(ask):
    alone = [await chat_completion(ask, messages(question)) for question in QUESTIONS]
    texts = [await infer(ask, question) for question in QUESTIONS]
    async with neighbours(ask):
        together = await asyncio.gather(
            *(chat_completion(ask, messages(question)) for question in QUESTIONS),
            *(infer(ask, question, chat=True) for question in QUESTIONS),
            *(streamed(ask, messages(question)) for question in QUESTIONS),
            *(completion(ask, question) for question in QUESTIONS),
            *(infer(ask, question) for question in QUESTIONS),
        )
    assert together == alone * 3 + texts * 2


async def test_constraints_penalties_and_log_probabilities_of_others_change_nothing(ask):
    alone = [await completion(ask, question) for question in QUESTIONS]
    talk = messages("Describe Rome as JSON.")
    meddling = {"temperature": 1, "max_tokens": 60, "seed": 1}
    others = [
        chat_completion(ask, talk, response_format={"type": "json_object"}, **meddling),
        chat_completion(ask, talk, presence_penalty=2, frequency_penalty=2, logit_bias={"28": 5}, **meddling),
        chat_completion(ask, talk, logprobs=True, top_logprobs=20, top_p=0.5, n=3, **meddling),
        chat_completion(ask, talk, top_k=3, min_p=0.1, repetition_penalty=1.3, min_tokens=40, **meddling),
    ]
    together = await asyncio.gather(*(completion(ask, question) for question in QUESTIONS), *others)
    assert together[: len(alone)] == alone


async def test_the_same_seed_draws_the_same_on_both_sides_and_for_each_choice(ask):
    drawn = {"temperature": 1, "ignore_eos": True}  # a draw may be the end at once, and empty texts are all alike
    native = await infer(ask, QUESTIONS[2], seed=11, **drawn)
    assert await completion(ask, QUESTIONS[2], seed=11, **drawn) == native
    assert await infer(ask, QUESTIONS[2], seed=12, **drawn) != native
    asked = {"model": DEMO, "prompt": QUESTIONS[2], "max_tokens": TOKENS, "seed": 11, "n": 3, **drawn}
    choices = (await ask("/v1/completions", **asked)).json()["choices"]
    assert choices[0]["text"] == native
    assert len({choice["text"] for choice in choices}) == 3


async def test_the_same_tokens_are_counted_on_both_sides(ask):
    for question in QUESTIONS:
        body = {"text": question, "chat": True, "max_new_tokens": TOKENS, "details": True, **PLAIN}
        native = (await ask("/infer", **body)).json()["details"]
        asked = {"model": DEMO, "messages": messages(question), "max_tokens": TOKENS, "temperature": 0}
        answer = (await ask("/v1/chat/completions", **asked)).json()
        for kind in ("prompt_tokens", "completion_tokens", "total_tokens"):
            assert answer["usage"][kind] == native["usage"][kind]
        assert answer["choices"][0]["finish_reason"] == native["finish_reason"]
