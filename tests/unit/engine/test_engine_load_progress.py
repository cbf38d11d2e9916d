"""Reading weights is watched through transformers' progress bar, and a load never fails for it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import transformers
from safetensors.numpy import save_file

from inferapi.domain.states import ModelState
from inferapi.engine.load_progress import tensor_bytes, weights_reported

SIZES = {"a": 40, "b": 80, "c": 120}


def write(folder, name="model.safetensors", sizes=SIZES):
    save_file({tensor: np.zeros(size // 4, np.float32) for tensor, size in sizes.items()}, folder / name)


def parameter(*sources):
    """What transformers hands to its bar: a name, and a mapping that knows what it is made of."""
    return "name", SimpleNamespace(layer_targets={"target": set(sources)})


def draw(items, desc="Loading weights"):
    """A load's loop, as transformers writes it."""
    return list(transformers.utils.logging.tqdm(items, desc=desc))


@pytest.fixture
def reports():
    return []


@pytest.fixture
def report(reports):
    return lambda *values: reports.append(values)


@pytest.fixture(autouse=True)
def no_bars():
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


def test_the_sizes_of_tensors_are_those_of_their_headers(tmp_path):
    write(tmp_path)
    assert tensor_bytes(str(tmp_path)) == SIZES


def test_shards_are_those_that_the_index_names(tmp_path):
    write(tmp_path, "one.safetensors", {"a": 40})
    write(tmp_path, "two.safetensors", {"b": 80})
    write(tmp_path, "consolidated.safetensors", {"x": 4000})
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert tensor_bytes(str(tmp_path)) == {"a": 40, "b": 80}


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02" + b"\x00" * 7 + b"[]", b"\x04" + b"\x00" * 7 + b"nope"])
def test_a_file_that_is_no_safetensors_has_no_sizes(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert tensor_bytes(str(tmp_path)) == {}


def test_each_parameter_counts_when_it_is_done(tmp_path, reports, report):
    write(tmp_path)
    with weights_reported(str(tmp_path), report):
        assert len(draw([parameter("a"), parameter("b", "c")])) == 2
    assert reports == [(ModelState.LOADING, done, 240) for done in (0, 40, 240, 240)]


def test_a_parameter_of_unknown_make_counts_nothing_and_the_end_is_told_all_the_same(tmp_path, reports, report):
    write(tmp_path)
    items = ["name", ("name", None), ("name", SimpleNamespace()), parameter("z")]
    with weights_reported(str(tmp_path), report):
        assert draw(items) == items
    assert reports == [(ModelState.LOADING, done, 240) for done in (0, 0, 0, 0, 0, 240)]


def test_other_bars_are_left_alone(tmp_path, reports, report):
    write(tmp_path)
    with weights_reported(str(tmp_path), report):
        assert draw([1, 2, 3], desc="Something else") == [1, 2, 3]
    assert reports == [(ModelState.LOADING, 0, 240), (ModelState.LOADING, 240, 240)]


def test_a_load_that_fails_is_not_told_to_be_done_and_the_hook_goes_back(tmp_path, reports, report):
    write(tmp_path)
    with pytest.raises(ZeroDivisionError), weights_reported(str(tmp_path), report):
        raise ZeroDivisionError
    assert draw([parameter("a")]) != []
    assert reports == [(ModelState.LOADING, 0, 240)]
