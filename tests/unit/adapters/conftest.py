"""Small models, written by hand: a config, a tokenizer and the header of some weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from huggingface_hub import constants

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}
WIDTH = {"F32": 4, "BF16": 2, "F16": 2, "U8": 1}


def safetensors_bytes(shapes: dict[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """A whole safetensors file of zeros."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape) in shapes.items():
        size = WIDTH[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes(end)


def header_bytes(header: str | bytes, data_bytes: int = 0) -> bytes:
    """A safetensors file of just that header."""
    encoded = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes(data_bytes)


WEIGHTS = {"model.embed_tokens.weight": ("BF16", (100, 64)), "model.norm.weight": ("F32", (64,))}


class ModelsFolder:
    """A models folder, and models in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.mkdir()

    def add(self, name: str = "org/name", *, config: dict | None = None, **files: bytes | str | dict | None) -> Path:
        """A good model, but for the files that are given; ``None`` leaves one out, ``__`` in a name is a dot."""
        folder = self.path / name
        folder.mkdir(parents=True)
        contents = {
            "config.json": LLAMA if config is None else config,
            "tokenizer.json": {"version": "1.0"},
            "model.safetensors": safetensors_bytes(WEIGHTS),
        } | {name.replace("__", "."): content for name, content in files.items()}
        for file, content in contents.items():
            if isinstance(content, dict):
                content = json.dumps(content)  # noqa: PLW2901
            if content is not None:
                (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder


@pytest.fixture
def models(tmp_path: Path) -> ModelsFolder:
    return ModelsFolder(tmp_path / "models")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub library knows no network and an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def llama() -> dict:
    return dict(LLAMA)


@pytest.fixture
def make_safetensors():
    return safetensors_bytes


@pytest.fixture
def make_header():
    return header_bytes
