import json
import shutil

import pytest
from transformers import T5Config, T5ForConditionalGeneration

from inferapi.domain.errors import ContextWindowExceeded, ModelInvalid
from inferapi.domain.generation import Prompt, SamplingParams

EMBEDDING = 260 * 64  # and the head of the same size
LAYER = {"attention": 2 * 64 * 64 + 2 * 64 * 32, "mlp": 3 * 64 * 96, "norms": 2 * 64}


def test_facts_tell_what_the_model_became(tiny) -> None:
    facts = tiny("llama").model.facts

    parameters = 3 * sum(LAYER.values()) + 2 * EMBEDDING + 64
    assert (facts.device, facts.dtype, facts.attention) == ("cpu", "float32", "sdpa")
    assert facts.weights_bytes == pytest.approx(4 * parameters, rel=0.001)  # and a few rotary frequencies
    assert facts.context_window_tokens == 2048
    assert facts.kv_cache_tokens == 4096


@pytest.mark.parametrize(("cache", "window"), [(256, 256), (300, 256), (65536, 2048)])
def test_the_context_window_is_what_model_and_cache_both_hold(load, write_model, cache: int, window: int) -> None:
    model = load(write_model("llama"), kv_cache_tokens=cache)

    assert model.facts.context_window_tokens == window
    with pytest.raises(ContextWindowExceeded):
        model.encoder.encode(Prompt(text="x" * window), SamplingParams(max_new_tokens=1))
    tokens, _ = model.encoder.encode(Prompt(text="x" * (window - 1)), SamplingParams(max_new_tokens=1))
    assert len(tokens) == window - 1


def test_bfloat16_is_loaded_as_bfloat16(load, write_model, new_request, drive, prompt_of) -> None:
    model = load(write_model("llama"), dtype="bfloat16")
    request = new_request(prompt_of(20), 5)

    drive(model.loop, [request])

    assert model.facts.dtype == "bfloat16"
    assert request.num_completion_tokens == 5


def test_a_folder_without_sound_weights_is_an_invalid_model(load, write_model) -> None:
    folder = write_model("llama")
    (folder / "model.safetensors").write_bytes(b"not weights")

    with pytest.raises(ModelInvalid, match="refused its files"):
        load(folder)


def test_a_folder_without_a_tokenizer_is_an_invalid_model(load, write_model) -> None:
    folder = write_model("llama")
    for file in folder.glob("tokenizer*"):
        file.unlink()

    with pytest.raises(ModelInvalid):
        load(folder)


def test_an_encoder_decoder_is_an_invalid_model(load, write_model, tmp_path) -> None:
    config = T5Config(vocab_size=260, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    for file in write_model("llama").glob("tokenizer*"):
        shutil.copy(file, tmp_path)

    with pytest.raises(ModelInvalid):
        load(tmp_path)


def test_code_in_a_models_folder_is_never_run(load, write_model) -> None:
    folder = write_model("llama")
    (folder / "code.py").write_text("raise SystemExit('ran')")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(ModelInvalid):
        load(folder)
