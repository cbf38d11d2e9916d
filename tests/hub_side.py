"""What tests of the hub share: models that a stub hub may serve, and the machine that asks it."""

import asyncio
import hashlib
import json
import struct

import psutil

from inferapi.adapters.hub_fetch import Asking
from inferapi.adapters.hub_messages import Failed, Question
from inferapi.adapters.transformers_repository import TransformersRepository
from inferapi.domain.errors import error_named
from inferapi.domain.model import ModelRef
from inferapi.domain.states import ModelState

NAME = "org/name"
REF = ModelRef(NAME)
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 512,
}  # fmt: skip
ROWS = 3000
WEIGHTS_BYTES = ROWS * 256 * 4


def safetensors(rows=ROWS, name="model.embed_tokens.weight"):
    """A file of that many rows of 1 KiB, no two the same."""
    header = json.dumps({name: {"dtype": "F32", "shape": [rows, 256], "data_offsets": [0, rows * 1024]}}).encode()
    rows_of_bytes = b"".join(hashlib.sha256(b"%d" % row).digest() * 32 for row in range(rows))
    return struct.pack("<Q", len(header)) + header + rows_of_bytes


def write_model(folder, **files):
    """A model that the repository takes, but for ``files``; ``None`` leaves one out, ``__`` is a dot."""
    folder.mkdir()
    contents = {"config.json": CONFIG, "tokenizer.json": {"version": "1.0"}, "README.md": b"Hello"}
    contents |= {"model.safetensors": safetensors()} if "model__safetensors" not in files else {}
    for name, content in (contents | {name.replace("__", "."): content for name, content in files.items()}).items():
        if content is not None:
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


class Side:
    """This machine: an empty models folder, an empty cache, and repositories on them."""

    def __init__(self, folder, url):
        self.models, self.cache, self.url = folder / "models", folder / "cache", url

    def repository(self, *, free_bytes=None, **settings):
        settings = {"endpoint": self.url, "cache_dir": self.cache, **settings}
        if free_bytes is not None:
            settings["free_bytes"] = lambda _: free_bytes
        return TransformersRepository(self.models, **settings)

    def answer(self, ref=REF, commit=None, *, endpoint=None):
        """What the hub is asked for; in this process, as a process for each question takes its time."""
        return Asking(Question(ref, commit, endpoint or self.url, str(self.cache))).answer()

    def failure(self, ref=REF, commit=None, *, endpoint=None):
        """The error that asking for it ends with."""
        answer = self.answer(ref, commit, endpoint=endpoint)
        assert isinstance(answer, Failed), answer
        return error_named(answer.error, answer.facts)

    def partials(self):
        """What is left of files that did not come in full."""
        return list(self.cache.rglob("*.incomplete"))


def askers():
    """The processes that ask the hub for this one."""
    return [child for child in psutil.Process().children() if "inferapi.adapters.hub_fetch" in child.cmdline()]


async def fetch(repository, ref=REF):
    """Profile and fetch, and the bytes that were reported."""
    profile = await repository.profile(ref)
    reports = []
    loop = asyncio.get_running_loop()

    def report(*told):
        assert asyncio.get_running_loop() is loop
        reports.append(told)

    folder = await repository.fetch(profile, report)
    assert {stage for stage, _, _ in reports} <= {ModelState.DOWNLOADING}
    return folder, [(done, total) for _, done, total in reports]
