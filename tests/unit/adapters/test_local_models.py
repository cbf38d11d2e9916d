from __future__ import annotations

import os

import pytest

from inferapi.adapters.local_models import models_in
from inferapi.adapters.transformers_repository import TransformersRepository
from inferapi.domain.model import ModelRef


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "models"


def put(folder, name: str, written_s: float = 5.0) -> None:
    """A folder that looks like a model's."""
    model = folder / name
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    os.utime(model / "config.json", (written_s, written_s))


def test_models_lie_under_their_names_and_under_those_of_their_owners(folder):
    put(folder, "gpt2", 5.0)
    put(folder, "org/name", 6.5)
    put(folder, "org/other", 7.0)
    assert models_in(folder) == {ModelRef("gpt2"): 5.0, ModelRef("org/name"): 6.5, ModelRef("org/other"): 7.0}


def test_what_is_no_model_is_left_out(folder):
    put(folder, "good")
    put(folder, ".hidden")
    put(folder, "org/..odd")
    put(folder, "a b")
    put(folder, "name@main")
    put(folder, "deep/er/still")
    (folder / "empty/none").mkdir(parents=True)
    (folder / "file").write_text("x")
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "loop").symlink_to(folder / "loop")
    assert models_in(folder) == {ModelRef("good"): 5.0}


def test_a_link_to_a_model_is_one(folder):
    put(folder, "org/name")
    (folder / "alias").symlink_to(folder / "org/name")
    assert models_in(folder) == {ModelRef("alias"): 5.0, ModelRef("org/name"): 5.0}


def test_a_folder_that_is_not_there_has_none(folder):
    assert models_in(folder) == {}


async def test_the_repository_lists_its_folder(folder, tmp_path):
    put(folder, "org/name")
    repository = TransformersRepository(folder, cache_dir=tmp_path / "cache")
    assert await repository.local() == {ModelRef("org/name"): 5.0}
