"""What fits the context window, and which turns go when not all do."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from inferapi.domain.chat import Message
from inferapi.domain.errors import ContextWindowExceeded
from inferapi.domain.generation import Prompt, SamplingParams
from inferapi.engine import prompt_encoder
from inferapi.engine.prompt_encoder import PromptEncoder

SYSTEM = Message("system", "S" * 10)
TURNS = tuple(
    message for turn in range(3) for message in (Message("user", f"u{turn}" * 5), Message("assistant", f"a{turn}" * 5))
)
QUESTION = Message("user", "Q" * 10)
CHAT = (SYSTEM, *TURNS, QUESTION)  # 80 characters, 20 a turn


@pytest.fixture
def tokenizer(byte_tokenizer: Tokenizer) -> PreTrainedTokenizerBase:
    """One token a character, and a template that adds none."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return tokenizer


class CountingTokenizer:
    """A tokenizer that counts how often it renders a conversation, and how much of it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.renderings = 0
        self.rendered_messages = 0

    def __getattr__(self, name: str):
        return getattr(self._tokenizer, name)

    def __call__(self, *args, **kwargs):
        return self._tokenizer(*args, **kwargs)

    def apply_chat_template(self, messages, **kwargs):
        self.renderings += 1
        self.rendered_messages += len(messages)
        return self._tokenizer.apply_chat_template(messages, **kwargs)


def encode(tokenizer, window: int, messages: tuple[Message, ...], new: int, *, drop: bool) -> tuple[str, int]:
    encoder = PromptEncoder(tokenizer, window)
    tokens, dropped = encoder.encode(
        Prompt(messages=messages, drop_oldest_turns=drop), SamplingParams(max_new_tokens=new)
    )
    return tokenizer.decode(tokens), dropped


def text_of(*messages: Message) -> str:
    return "".join(message.content for message in messages)


def test_a_prompt_that_just_fits_with_its_answer_is_taken(tokenizer) -> None:
    assert encode(tokenizer, 100, CHAT, 20, drop=False) == (text_of(*CHAT), 0)


@pytest.mark.parametrize("drop", [True, False])
def test_a_raw_prompt_that_does_not_fit_is_refused_with_its_counts(tokenizer, *, drop: bool) -> None:
    prompt = Prompt(text="x" * 81, drop_oldest_turns=drop)

    with pytest.raises(ContextWindowExceeded) as refusal:
        PromptEncoder(tokenizer, 100).encode(prompt, SamplingParams(max_new_tokens=20))

    assert refusal.value.facts == {"prompt_tokens": 81, "max_new_tokens": 20, "context_window_tokens": 100}


def test_messages_that_do_not_fit_are_refused_unless_turns_may_go(tokenizer) -> None:
    with pytest.raises(ContextWindowExceeded) as refusal:
        encode(tokenizer, 100, CHAT, 21, drop=False)

    assert refusal.value.facts == {"prompt_tokens": 80, "max_new_tokens": 21, "context_window_tokens": 100}


@pytest.mark.parametrize(("new", "dropped"), [(20, 0), (21, 1), (40, 1), (41, 2), (60, 2), (61, 3), (80, 3)])
def test_the_oldest_turns_go_whole_and_no_more_than_needed(tokenizer, new: int, dropped: int) -> None:
    expected = text_of(SYSTEM, *TURNS[2 * dropped :], QUESTION)

    assert encode(tokenizer, 100, CHAT, new, drop=True) == (expected, dropped)


def test_a_long_history_is_not_encoded_anew_for_every_turn_that_goes(tokenizer) -> None:
    turns = tuple(m for n in range(500) for m in (Message("user", f"u{n:04}"), Message("assistant", f"a{n:04}")))
    prompt = Prompt(messages=(SYSTEM, *turns, QUESTION), drop_oldest_turns=True)
    counting = CountingTokenizer(tokenizer)

    tokens, dropped = PromptEncoder(counting, 100).encode(prompt, SamplingParams(max_new_tokens=10))

    assert dropped == 493
    assert tokenizer.decode(tokens) == text_of(SYSTEM, *turns[2 * 493 :], QUESTION)
    assert counting.renderings <= 11


def test_system_prompt_and_question_are_never_dropped(tokenizer) -> None:
    with pytest.raises(ContextWindowExceeded) as refusal:
        encode(tokenizer, 100, CHAT, 81, drop=True)

    assert refusal.value.facts == {"prompt_tokens": 20, "max_new_tokens": 81, "context_window_tokens": 100}


@pytest.mark.parametrize("characters_per_token", [0, 1, 1000])
@given(lengths=st.lists(st.integers(1, 60), max_size=30), room=st.integers(25, 400))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_as_many_of_the_newest_turns_stay_as_fit_however_good_the_first_guess(
    tokenizer, characters_per_token: int, lengths: list[int], room: int
) -> None:
    turns = tuple(
        message
        for number, length in enumerate(lengths)
        for message in (Message("user", chr(65 + number) * length), Message("assistant", "a"))
    )
    fitting = [
        kept for kept in range(len(lengths) + 1) if 20 + sum(n + 1 for n in lengths[len(lengths) - kept :]) <= room
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt_encoder, "_CHARACTERS_PER_TOKEN", characters_per_token)

        text, dropped = encode(tokenizer, room, (SYSTEM, *turns, QUESTION), 0, drop=True)

    assert dropped == len(lengths) - max(fitting)
    assert text == text_of(SYSTEM, *turns[2 * dropped :], QUESTION)


def test_what_is_far_too_old_is_not_even_encoded(tokenizer) -> None:
    turns = tuple(m for _ in range(5000) for m in (Message("user", "u" * 50), Message("assistant", "a" * 50)))
    prompt = Prompt(messages=(SYSTEM, *turns, QUESTION), drop_oldest_turns=True)
    counting = CountingTokenizer(tokenizer)

    _, dropped = PromptEncoder(counting, 1000).encode(prompt, SamplingParams(max_new_tokens=10))

    assert dropped == 4991
    assert counting.rendered_messages < 1000
