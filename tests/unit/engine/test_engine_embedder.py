"""How a folder says that its model pools: sentence-transformers' file, in its older form and in its newer one."""

import json
from pathlib import Path

import pytest

from inferapi.engine.embedder import MODULES_FILE, POOLING_FILE, NoPoolingError, Pooling, folder_pooling

OLD = {
    "word_embedding_dimension": 8,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": False,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
    "pooling_mode_weightedmean_tokens": False,
    "pooling_mode_lasttoken": False,
    "include_prompt": True,
}
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
DENSE = {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}


def write(folder: Path, content: str | bytes) -> str:
    file = folder / POOLING_FILE
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder)


def test_a_folder_that_says_nothing_means_the_mean(tmp_path: Path) -> None:
    assert folder_pooling(str(tmp_path)) is Pooling.MEAN


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        (OLD | {"pooling_mode_mean_tokens": True}, Pooling.MEAN),
        (OLD | {"pooling_mode_lasttoken": True}, Pooling.LAST_TOKEN),
        (OLD | {"pooling_mode_cls_token": True}, Pooling.FIRST_TOKEN),
        ({"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True}, Pooling.MEAN),
        ({"embedding_dimension": 8, "pooling_mode": "lasttoken"}, Pooling.LAST_TOKEN),
        ({"embedding_dimension": 8, "pooling_mode": ["cls"]}, Pooling.FIRST_TOKEN),
        (OLD, Pooling.MEAN),
        ({}, Pooling.MEAN),
    ],
)
def test_the_folder_decides(tmp_path: Path, config: dict[str, object], pooling: Pooling) -> None:
    assert folder_pooling(write(tmp_path, json.dumps(config))) is pooling


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(OLD | {"pooling_mode_max_tokens": True}),
        json.dumps(OLD | {"pooling_mode_weightedmean_tokens": True}),
        json.dumps(OLD | {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}),  # side by side
        json.dumps({"pooling_mode": "max"}),
        json.dumps({"pooling_mode": ["mean", "cls"]}),
        json.dumps({"pooling_mode": 1}),
        json.dumps({"pooling_mode": [["mean"]]}),
        "[]",
        "mean",
        "",
        b"\xff\xfe",
        '{"a": ' * 5000,
        json.dumps({"padding": "x" * 100_000, "pooling_mode": "mean"}),  # larger than any such file
    ],
)
def test_what_is_not_done_here_is_not_guessed(tmp_path: Path, content: str | bytes) -> None:
    with pytest.raises(NoPoolingError, match="its pooling is neither the mean nor"):
        folder_pooling(write(tmp_path, content))


def test_a_folder_in_the_place_of_the_file_says_nothing(tmp_path: Path) -> None:
    (tmp_path / POOLING_FILE).mkdir(parents=True)

    assert folder_pooling(str(tmp_path)) is Pooling.MEAN


def test_a_model_of_the_usual_modules_pools_as_its_folder_says(tmp_path: Path) -> None:
    (tmp_path / MODULES_FILE).write_text(json.dumps(MODULES))

    assert folder_pooling(write(tmp_path, json.dumps({"pooling_mode": "lasttoken"}))) is Pooling.LAST_TOKEN


def test_a_model_with_layers_behind_its_pooling_is_not_done_by_half(tmp_path: Path) -> None:
    (tmp_path / MODULES_FILE).write_text(json.dumps([*MODULES, DENSE]))

    with pytest.raises(NoPoolingError, match="layers behind its pooling"):
        folder_pooling(write(tmp_path, json.dumps({"pooling_mode": "mean"})))


def test_a_model_that_pools_in_a_way_that_nobody_told_us_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / MODULES_FILE).write_text(json.dumps(MODULES))

    with pytest.raises(NoPoolingError, match=r"its folder lacks 1_Pooling/config.json"):
        folder_pooling(str(tmp_path))


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "[1]", '[{"idx": 0}]'])
def test_modules_that_cannot_be_read_are_not_guessed(tmp_path: Path, content: str) -> None:
    (tmp_path / MODULES_FILE).write_text(content)

    with pytest.raises(NoPoolingError):
        folder_pooling(str(tmp_path))
