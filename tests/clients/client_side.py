"""What the tests of all clients share: the models that are served, where they are, and what the server answered."""

import re
import shutil

from live_server import DEMO, DEMO_FOLDER, TINY, write_tiny_model

HERMES = "demo/hermes"
"""The demo model's weights behind a template that knows tools, as Qwen's and Hermes' do."""
REASONER = "demo/reasoner"
"""The same behind one that has the model think first."""

HERMES_TEMPLATE = """\
{%- set rules = messages[0]['content'] if messages[0]['role'] == 'system' else '' -%}
{%- if tools %}
    {{- '<|im_start|>system\\n' + rules + '\\nYou may call these functions:\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
    {{- '\\n</tools>\\nTo call one, answer with its name and arguments as JSON between tags:\\n<tool_call>\\n' }}
    {{- '{"name": "a function", "arguments": {"an": "argument"}}\\n</tool_call><|im_end|>\\n' }}
{%- elif rules %}
    {{- '<|im_start|>system\\n' + rules + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message['role'] == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message['content'] + '\\n</tool_response><|im_end|>\\n' }}
    {%- elif message['role'] == 'assistant' %}
        {{- '<|im_start|>assistant\\n' + (message['content'] or '') }}
        {%- for call in message['tool_calls'] or [] %}
            {{- '\\n<tool_call>\\n' + (call['function'] | tojson) + '\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message['role'] != 'system' %}
        {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
REASONER_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}
"""


def base_url(server):
    """What a client is pointed at."""
    return f"{server.url}/v1"


def answered(server, path, status):
    """How often the server's access log has such an answer."""
    log = server.log.read_text(encoding="utf-8", errors="replace")
    return len(re.findall(rf"POST '{re.escape(path)}' {status} in ", log))


def write_models(models):
    """The demo model, a tiny one, and the demo model's weights behind other templates."""
    demo = models / DEMO
    shutil.copytree(DEMO_FOLDER, demo)
    write_tiny_model(models / TINY)
    for name, template in ((HERMES, HERMES_TEMPLATE), (REASONER, REASONER_TEMPLATE)):
        folder = models / name
        folder.mkdir(parents=True)
        for file in demo.iterdir():
            if file.name == "chat_template.jinja":
                (folder / file.name).write_text(template, encoding="utf-8")
            else:
                (folder / file.name).hardlink_to(file)
    return models
