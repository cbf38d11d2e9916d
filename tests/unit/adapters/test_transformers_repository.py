"""Models of the models folder: what is refused, and with which word."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from contracts import ModelRepositoryContract
from inferapi.adapters.transformers_repository import TransformersRepository
from inferapi.domain.errors import ModelInvalid, RemoteCodeRefused, UnsafeWeights
from inferapi.domain.model import ModelProfile, ModelRef

REF = ModelRef("org/name")
FOLDER = ModelProfile(REF, "Any", {"F32": 1}, 4, (), 1, 1, 1, 1)  # commit None: a model of the models folder


async def fetch(repository):
    """The folder of ``REF``, and every report on the way."""
    reports = []
    return await repository.fetch(FOLDER, lambda *report: reports.append(report)), reports


class TestTransformersRepository(ModelRepositoryContract):
    @pytest.fixture
    def repository(self, models):
        models.add("org/name")
        return TransformersRepository(models.path)

    @pytest.fixture
    def known(self):
        return REF


@pytest.fixture
def repository(models):
    return TransformersRepository(models.path)


async def refused(repository, error=ModelInvalid) -> str:
    """What both ways in say of a model that must not be served."""
    messages = []
    for enter in (lambda: repository.profile(REF), lambda: fetch(repository)):
        with pytest.raises(error) as caught:
            await enter()
        assert type(caught.value) is error
        messages.append(caught.value.message)
    assert messages[0] == messages[1]
    return messages[0]


async def test_a_model_of_the_models_folder_is_served_from_there(repository, models):
    folder = models.add()
    assert await fetch(repository) == (str(folder), [])
    profile = await repository.profile(REF)
    assert profile.parameters_by_dtype == {"BF16": 6400, "F32": 64}
    assert (profile.commit, profile.download_bytes) == (None, 0)


async def test_a_sharded_model_is_the_sum_of_its_shards(repository, models, make_safetensors):
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}}
    folder = models.add(model__safetensors=None, model__safetensors__index__json=index)
    (folder / "one.safetensors").write_bytes(make_safetensors({"a": ("F32", (2, 3))}))
    (folder / "two.safetensors").write_bytes(make_safetensors({"b": ("BF16", (4,)), "c": ("BF16", (5,))}))
    profile = await repository.profile(REF)
    assert (profile.parameters_by_dtype, profile.stored_bytes) == ({"F32": 6, "BF16": 9}, 24 + 18)


async def test_truncated_weights_are_refused(repository, models):
    weights = models.add() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert await refused(repository) == (
        "Model org/name cannot be served: model.safetensors is truncated or no safetensors file."
    )


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()])
async def test_what_is_no_file_is_refused_and_nobody_waits_for_it(repository, models, file, make):
    path = models.add(model__safetensors=None) / file
    path.unlink(missing_ok=True)
    make(path)
    assert "Model org/name cannot be served: " in await refused(repository)


@pytest.mark.parametrize("target", ["name", "gone", "../gone"])
async def test_a_link_to_itself_or_to_nothing_is_refused(repository, models, target):
    (models.add() / "name").symlink_to(target)
    assert await refused(repository) == "Model org/name cannot be served: its folder cannot be read."


async def test_a_link_out_of_a_subfolder_is_refused(repository, models, tmp_path):
    (models.add() / "additional_chat_templates").mkdir()
    (models.path / "org" / "name" / "additional_chat_templates" / "x.jinja").symlink_to(tmp_path)
    assert "links to files outside the models folder" in await refused(repository)


async def test_a_config_that_names_other_weights_is_refused(repository, models, llama):
    """transformers would read those instead of what was profiled."""
    models.add(config=llama | {"transformers_weights": "other.safetensors"})
    assert "names other weights" in await refused(repository)


@pytest.fixture
def as_nobody():
    """Become a user who may read only what everybody may: root reads everything."""
    mine = os.geteuid()
    yield lambda: os.seteuid(65534 if mine == 0 else mine)
    os.seteuid(mine)


@pytest.mark.parametrize(
    ("locked", "problem"),
    [
        (".", "its folder cannot be read"),
        ("org/name/config.json", "config.json is missing or broken"),
        ("org/name/model.safetensors", "model.safetensors is truncated or no safetensors file"),
    ],
)
async def test_what_may_not_be_read_is_refused(models, as_nobody, locked, problem):
    models.add()
    with tempfile.TemporaryDirectory() as reachable:
        os.chmod(reachable, 0o755)  # noqa: PTH101 - of a string
        copy = Path(shutil.copytree(models.path, f"{reachable}/models"))
        (copy / locked).chmod(0)
        as_nobody()
        try:
            assert await refused(TransformersRepository(copy)) == f"Model org/name cannot be served: {problem}."
        finally:
            os.seteuid(os.getuid())
            (copy / locked).chmod(0o700)


async def test_a_model_of_pickles_alone_is_refused_as_unsafe(repository, models):
    models.add(model__safetensors=None, pytorch_model__bin=b"\x80\x04.")
    assert "never loaded" in await refused(repository, UnsafeWeights)


async def test_a_model_without_weights_is_refused(repository, models):
    models.add(model__safetensors=None)
    assert await refused(repository) == "Model org/name cannot be served: it has no weights."


@pytest.mark.parametrize("file", ["config__json", "tokenizer_config__json", "generation_config__json"])
@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}},
        {"_attn_implementation_internal": "evil/kernel"},
        {"nested": [{"deeper": {"_x_internal": 1}}]},
    ],
)
async def test_code_of_its_own_is_refused_in_every_config(repository, models, llama, file, config):
    models.add(**{file: llama | config})
    assert "asks for code of its own" in await refused(repository, RemoteCodeRefused)


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..", "", "x.bin", "..\\x/y.safetensors", 5, None],
)
async def test_an_index_that_names_files_elsewhere_is_refused(repository, models, make_safetensors, name):
    models.add("x.safetensors", model__safetensors=make_safetensors({"a": ("F32", (1,))}))
    models.add(model__safetensors=None, model__safetensors__index__json={"weight_map": {"a": name}})
    assert "its index of weights" in await refused(repository)


@pytest.mark.parametrize("index", ["{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": "x"}'])
async def test_an_index_that_is_none_is_refused(repository, models, index):
    models.add(model__safetensors=None, model__safetensors__index__json=index)
    assert await refused(repository) == "Model org/name cannot be served: its index of weights is broken."


async def test_an_index_that_names_a_missing_shard_is_refused(repository, models):
    index = {"weight_map": {"a": "gone.safetensors", "b": "here.safetensors"}}
    models.add(model__safetensors=None, model__safetensors__index__json=index, here__safetensors=b"")
    assert await refused(repository) == "Model org/name cannot be served: 1 of 2 weight files are missing."


async def test_an_index_beside_a_whole_file_does_not_count_as_transformers_reads_the_file(
    repository, models, make_safetensors
):
    index = {"weight_map": {"a": "small.safetensors"}}
    folder = models.add(model__safetensors__index__json=index)
    (folder / "small.safetensors").write_bytes(make_safetensors({"a": ("F32", (1,))}))
    assert (await repository.profile(REF)).parameters_by_dtype == {"BF16": 6400, "F32": 64}


async def test_a_model_without_a_tokenizer_is_refused(repository, models):
    models.add(tokenizer__json=None)
    assert await refused(repository) == "Model org/name cannot be served: it has no tokenizer."


async def test_a_model_without_a_config_is_refused(repository, models):
    models.add(config__json=None)
    assert await refused(repository) == "Model org/name cannot be served: config.json is missing or broken."


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"null", b"5", b"[" * 5000, b'{"a": ' * 5000])
async def test_a_config_that_is_no_json_object_is_refused(repository, models, content):
    models.add(config__json=content)
    assert "config.json is" in await refused(repository)


async def test_a_config_nested_deeply_is_read_or_refused_and_never_a_fault(repository, models, llama):
    """The limit of json's own recursion and that of the walk through the keys are not the same."""
    outcomes = {}
    folder = models.add()
    for depth in (10, *range(980, 1000), 1200, 3000, 9000, 200_000):
        text = json.dumps(llama)[:-1] + ', "deep": ' + '{"a": ' * depth + "1" + "}" * depth + "}"
        (folder / "config.json").write_text(text, encoding="ascii")
        try:
            outcomes[depth] = (await repository.profile(REF)).ref
        except Exception as error:  # noqa: BLE001 - which ones there are is the question
            outcomes[depth] = type(error)
    assert set(outcomes.values()) == {REF, ModelInvalid}
    assert (outcomes[10], outcomes[200_000]) == (REF, ModelInvalid)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "anything.txt"])
async def test_a_file_that_links_out_of_the_models_folder_is_refused(repository, models, tmp_path, file):
    folder = models.add()
    outside = tmp_path / "outside"
    link = folder / file
    outside.write_bytes(link.read_bytes() if link.exists() else b"x")
    link.unlink(missing_ok=True)
    link.symlink_to(outside)
    message = await refused(repository)
    assert "links to files outside the models folder" in message
    assert str(tmp_path) not in message


async def test_a_folder_that_links_out_of_the_models_folder_is_refused(repository, models, tmp_path):
    models.add("real/model").rename(tmp_path / "outside")
    (models.path / "org").mkdir()
    (models.path / "org" / "name").symlink_to(tmp_path / "outside")
    assert "links to files outside the models folder" in await refused(repository)


async def test_a_link_inside_the_models_folder_is_fine(repository, models):
    models.add("org/other")
    (models.path / "org" / "name").symlink_to(models.path / "org" / "other")
    assert (await repository.profile(REF)).ref == REF


async def test_a_models_folder_that_is_a_link_itself_is_fine(models, tmp_path):
    models.add()
    (tmp_path / "link").symlink_to(models.path)
    assert (await TransformersRepository(tmp_path / "link").profile(REF)).hidden_size == 64
