"""Vectors are those that a fresh model of transformers makes, and whoever generates beside them notices nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel, PreTrainedModel

from inferapi.domain.errors import ContextWindowExceeded, EmbeddingsRefused
from inferapi.engine.embedder import POOLING_FILE
from native_kernels import compiled  # noqa: F401 - a fixture

BATCHED = ["llama", "gpt2", "qwen3", "mistral", "gemma3", "gemma2"]
SEQUENTIAL = ["mamba", "bloom", "falcon", "dynamic-llama"]
LENGTHS = [1, 30, 300]  # of which the two longer ones are beyond the sliding windows
TOLERANCE = 1e-4

Pool = Callable[[torch.Tensor], torch.Tensor]
POOLS: dict[str, Pool] = {
    "mean": lambda hidden: hidden.mean(0),
    "lasttoken": lambda hidden: hidden[-1],
    "cls": lambda hidden: hidden[0],
}


@torch.inference_mode()
def own_vector(body: PreTrainedModel, tokens: Sequence[int], pool: Pool = POOLS["mean"]) -> torch.Tensor:
    """What transformers itself makes of one text, padded by nothing: ``body`` has no output layer."""
    hidden = body(torch.tensor([list(tokens)]), use_cache=False).last_hidden_state[0].float()
    vector = pool(hidden)
    return vector / vector.norm()


def assert_close(found: Sequence[float], expected: torch.Tensor) -> None:
    assert len(found) == len(expected)
    assert float((torch.tensor(found) - expected).abs().max()) < TOLERANCE


@pytest.mark.parametrize("family", BATCHED + SEQUENTIAL)
def test_a_vector_is_the_mean_of_what_a_fresh_model_has_behind_its_last_layer(tiny, prompt_of, family: str) -> None:
    model = tiny(family)

    for length in LENGTHS:
        found = model.model.embedder.embed(prompt_of(length))
        assert_close(found, own_vector(model.reference.base_model, prompt_of(length)))
    assert model.model.facts.embeds
    assert model.model.facts.embedding_dimensions == len(found)
    assert model.model.facts.batching == ("continuous" if family in BATCHED else "sequential")


@pytest.mark.parametrize("family", BATCHED + SEQUENTIAL)
def test_answers_go_on_as_they_would_while_vectors_are_made_between_their_steps(
    tiny, new_request, drive, generate, prompt_of, answer_of, family: str
) -> None:
    model = tiny(family)
    loop, embedder = model.model.loop, model.model.embedder
    requests = [new_request(prompt_of(length), 12) for length in (40, 7)]
    texts = [prompt_of(length, seed=1) for length in (9, 130, 1, 30)]
    for request in requests:
        loop.submit(request)

    found = []
    for text in texts:
        drive(loop, steps=2)
        before = loop.load
        found.append(embedder.embed(text))
        assert loop.load == before  # no slot and no block was taken
    drive(loop)

    for request, length in zip(requests, (40, 7), strict=True):
        assert answer_of(request) == generate(model.reference, prompt_of(length), 12)
    for vector, text in zip(found, texts, strict=True):
        assert_close(vector, own_vector(model.reference.base_model, text))


@pytest.mark.parametrize("family", BATCHED)
def test_a_pass_that_fails_leaves_the_runner_its_attention(
    tiny, new_request, drive, generate, prompt_of, answer_of, family: str
) -> None:
    model = tiny(family)
    with pytest.raises(IndexError):
        model.model.embedder.embed([10**6])  # no such token

    request = new_request(prompt_of(50), 10)
    drive(model.model.loop, [request])

    assert answer_of(request) == generate(model.reference, prompt_of(50), 10)
    assert_close(model.model.embedder.embed(prompt_of(30)), own_vector(model.reference.base_model, prompt_of(30)))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_on_native_kernels_a_vector_is_as_near_to_float32_as_that_of_transformers(
    write_model, load, new_request, drive, prompt_of, answer_of, family: str
) -> None:
    folder = write_model(family)
    model = load(folder, dtype="bfloat16")
    # The same rounded weights for all three.
    rounded, exact = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(dtype).eval().base_model
        for dtype in (torch.bfloat16, torch.float32)
    )
    alone = new_request(prompt_of(40), 20)
    drive(model.loop, [alone])

    again = new_request(prompt_of(40), 20)
    again.salt = "computed anew"
    drive(model.loop, [again], steps=5)
    texts = [prompt_of(length, seed=2) for length in (5, 64, 300)]
    found = [torch.tensor(model.embedder.embed(text)) for text in texts]
    drive(model.loop)

    assert model.facts.kernels == "native"
    assert answer_of(again) == answer_of(alone)
    for vector, text in zip(found, texts, strict=True):
        target = own_vector(exact, text)
        mine, theirs = float((vector - target).norm()), float((own_vector(rounded, text) - target).norm())
        assert mine <= 1.5 * theirs + 0.01


@pytest.fixture(scope="module")
def with_pooling(write_model, load, tmp_path_factory):
    """A model whose folder says how it pools."""
    written = write_model("llama")

    def load_with(config: dict[str, object] | str):
        folder = shutil.copytree(written, tmp_path_factory.mktemp("pooling") / "llama")
        file = folder / POOLING_FILE
        file.parent.mkdir()
        file.write_text(config if isinstance(config, str) else json.dumps(config))
        return load(folder), folder

    return load_with


@pytest.mark.parametrize(
    ("config", "pool"),
    [
        ({"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
    ],
)
def test_a_model_made_for_embedding_pools_as_its_folder_says(
    with_pooling, prompt_of, config: dict[str, object], pool: str
) -> None:
    model, folder = with_pooling(config)
    fresh = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    found = model.embedder.embed(prompt_of(40))

    assert_close(found, own_vector(fresh, prompt_of(40), POOLS[pool]))
    vectors = [own_vector(fresh, prompt_of(40), each) for each in POOLS.values()]
    assert min(float((one - other).norm()) for one in vectors for other in vectors if one is not other) > 0.05


def test_an_encoder_that_was_stored_without_an_output_layer_makes_vectors(write_model, load, prompt_of) -> None:
    folder = write_model("llama")  # for its tokenizer
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    encoder = BertModel(BertConfig(vocab_size=260, **shape)).eval()
    encoder.save_pretrained(folder)

    found = load(folder).embedder.embed(prompt_of(30))

    assert_close(found, own_vector(encoder, prompt_of(30)))


@pytest.mark.parametrize("config", [{"pooling_mode_max_tokens": True}, "{"])
def test_a_model_that_pools_otherwise_makes_no_vectors_and_answers_all_the_same(
    with_pooling, new_request, drive, prompt_of, config: dict[str, object] | str
) -> None:
    model, _ = with_pooling(config)
    request = new_request(prompt_of(9), 5)

    with pytest.raises(EmbeddingsRefused, match="its pooling is neither the mean nor the first or last token"):
        model.embedder.embed(prompt_of(9))
    drive(model.loop, [request])

    assert not model.facts.embeds
    assert model.facts.embedding_dimensions is None
    assert request.num_completion_tokens == 5


def test_a_model_whose_numbers_overflow_makes_no_vectors(write_model, load, prompt_of) -> None:
    def spoil(model: PreTrainedModel) -> None:
        model.base_model.norm.weight.fill_(float("inf"))

    model = load(write_model("llama", spoil))

    assert not model.facts.embeds
    assert model.facts.embedding_dimensions is None
    with pytest.raises(EmbeddingsRefused, match="overflow"):
        model.embedder.embed(prompt_of(3))


@pytest.mark.model
def test_the_demo_model_makes_the_vectors_that_transformers_makes_of_the_same_text(smollm2, demo_folder: Path) -> None:
    model = smollm2("float32")
    tokenizer = AutoTokenizer.from_pretrained(demo_folder)
    fresh = AutoModel.from_pretrained(demo_folder, dtype=torch.float32).eval()

    for text in ("Once upon a time", "Größe\n\N{GRINNING FACE}", "The sea is deep. " * 60):
        tokens = model.encoder.encode_text(text)
        assert tokens == tokenizer(text)["input_ids"]
        assert_close(model.embedder.embed(tokens), own_vector(fresh, tokens))
    with pytest.raises(ContextWindowExceeded):
        model.encoder.encode_text("word " * (model.facts.context_window_tokens + 1))
