"""A chat template is a program of a stranger: whatever it does, it ends, and the others go on."""

import asyncio
import shutil
from contextlib import aclosing
from dataclasses import replace

import pytest
import pytest_asyncio
from live_server import TINY, has_ended
from worker_processes import PATIENCE_S, answers, worker

from contracts import ask, listen, said, unheard, until
from inferapi.domain.chat import Message
from inferapi.domain.errors import GenerationTimeout
from inferapi.domain.generation import GenerationRequest, Prompt

pytestmark = pytest.mark.model  # the tiny model speaks its tokens

# A fork server takes seconds to import torch: the tests of this module share one, and so one event loop.
shared = pytest.mark.asyncio(loop_scope="module")

HOSTILE_TEMPLATE = """
{%- for message in messages -%}
  {%- if message.content == 'hold' -%}
    {{ (message.content | length + 3) ** 90000000 }}
  {%- elif message.content != 'Hello' -%}
    {%- for a in range(90000) -%}{%- for b in range(90000) -%}{%- endfor -%}{%- endfor -%}
  {%- endif -%}
  {{ message.content }}
{%- endfor -%}
"""
"""Loops for ever in Python, unless the message is Hello; in one call into C, which nothing interrupts, for hold."""


@pytest.fixture(scope="module")
def looping_folder(models_dir):
    folder = shutil.copytree(models_dir / TINY, models_dir / "tiny" / "looping", dirs_exist_ok=True)
    (folder / "chat_template.jinja").write_text(HOSTILE_TEMPLATE, encoding="utf-8")
    return folder


@pytest_asyncio.fixture(loop_scope="module")
async def looping(launcher, tiny_spec, looping_folder):
    engine = await launcher.launch(replace(tiny_spec, model="tiny/looping", path=str(looping_folder)), unheard)
    yield engine
    await engine.aclose()


def chat(text, deadline_s=PATIENCE_S, **sampling):
    request = ask(deadline_s=deadline_s, **sampling)
    prompt = Prompt(messages=(Message("user", text),))
    return GenerationRequest(prompt, request.sampling, arrived_s=request.arrived_s, deadline_s=request.deadline_s)


@shared
async def test_a_chat_template_that_loops_ends_at_the_deadline_and_the_next_prompt_is_served(looping):
    process = worker()
    with pytest.raises(GenerationTimeout):
        await listen(looping, chat("loop", deadline_s=0.5))
    assert (await listen(looping, chat("Hello")))[-1].finish is not None
    with pytest.raises(GenerationTimeout):
        await listen(looping, chat("loop again", deadline_s=0.5))
    assert (await listen(looping, chat("Hello")))[-1].finish is not None
    assert worker() == process


@shared
async def test_a_chat_template_that_loops_ends_when_its_client_leaves(looping):
    process = worker()
    for _ in range(5):
        leaving = asyncio.create_task(listen(looping, chat("loop")))
        await asyncio.sleep(0.05)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert (await listen(looping, chat("Hello")))[-1].finish is not None
    assert worker() == process


@shared
async def test_others_go_on_while_a_chat_template_loops(looping):
    alone = said(await listen(looping, ask(max_new_tokens=64, ignore_eos=True)))
    stuck = asyncio.create_task(listen(looping, chat("loop", deadline_s=PATIENCE_S)))
    async with aclosing(looping.generate(ask(max_new_tokens=64, ignore_eos=True))) as other:
        first = await anext(other)  # it was encoded before the one that loops, or the queue would hold it back
        stuck_now = not stuck.done()
        rest = [chunk async for chunk in other]
    assert first.text + said(rest) == alone
    assert stuck_now
    stuck.cancel()
    await asyncio.gather(stuck, return_exceptions=True)


@shared
async def test_a_chat_template_that_holds_the_interpreter_ends_its_worker_and_not_the_api(
    launcher, tiny_spec, looping, caplog
):
    process = worker()
    with pytest.raises(GenerationTimeout):
        await listen(looping, chat("hold", deadline_s=0.5))
    await asyncio.wait_for(looping.wait_closed(), PATIENCE_S)
    await until(lambda: has_ended(process))
    assert "gave no sign of life" in caplog.text
    assert await answers(launcher, tiny_spec)
