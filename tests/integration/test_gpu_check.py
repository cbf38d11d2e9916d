"""The check for a GPU, on small shapes and a CPU: that the script runs and tells wrong answers from right ones."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def gpu_check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_check", *arguments]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=170)


def test_every_check_passes_and_every_contender_is_in_the_table(tmp_path: Path) -> None:
    report = tmp_path / "gpu.md"

    run = gpu_check("--device", "cpu", "--tiny", "--write", str(report))

    assert run.returncode == 0, run.stderr
    text = report.read_text(encoding="utf-8")
    assert text in run.stdout
    assert len(re.findall(r"^\| \S+-shaped, \w+: .* \| passed \|", text, re.MULTILINE)) == 24
    assert "failed" not in text
    rows = re.findall(r"^\| tiny \| (\d+) \| ([a-z ]+) \|", text, re.MULTILINE)
    assert rows == [(str(n), who) for n in (1, 3) for who in ("inferapi", "generate", "continuous batching")]
    assert "nothing about speed" in text
    assert len(re.findall(r"ahead of transformers' continuous batching", text)) == 2


def test_a_wrong_answer_is_told_and_ends_with_status_1() -> None:
    spoiled = (
        "import sys; from benchmarks import gpu_check; from benchmarks.gpu import correctness;"
        "expected = correctness.Engine.expected;"
        "correctness.Engine.expected = lambda self, request: [*expected(self, request)[:-1], -1];"
        "correctness.FAMILIES = {'Llama': 'llama'};"
        "sys.exit(gpu_check.main(['--device', 'cpu', '--tiny', '--part', 'correctness']))"
    )

    run = subprocess.run(
        [sys.executable, "-c", spoiled], cwd=ROOT, check=False, capture_output=True, text=True, timeout=170
    )

    assert run.returncode == 1, run.stderr
    assert "| Llama-shaped, float32: alone | **failed** | 0 of 4 answers equal token for token |" in run.stdout
    assert "| Llama-shaped, bfloat16: alone | passed |" in run.stdout


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_ends_with_status_2() -> None:
    run = gpu_check()

    assert run.returncode == 2
    assert "torch finds no CUDA device" in run.stderr
