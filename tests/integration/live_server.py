"""A real server process on a loopback port, and the models that the integration tests serve."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
import psutil
from safetensors.numpy import save_file

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEMO_FOLDER = REPOSITORY / "models" / DEMO
TINY = "tiny/random-llama"

COMMAND = os.environ.get("INFERAPI_TEST_COMMAND") or str(Path(sys.executable).with_name("inferapi"))
"""The server; tests/clients runs in an environment that has none of its own."""

PATIENCE_S = 90.0  # two slow cores, shared with others: only what never comes fails
_POLL_S = 0.02

HIDDEN, HEADS, LAYERS, VOCABULARY = 64, 4, 2, 49152


def until(condition, within_s=PATIENCE_S):
    """The first true value of ``condition``; fails when it stays false."""
    deadline_s = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"still false after {within_s} s: {condition}"
        time.sleep(_POLL_S)
    return value


class Server:
    """``inferapi serve`` in a process of its own, the demo model preloaded unless ``env`` says otherwise.

    ``env`` is settings, without their prefix; ``environment`` is for what is none of ours, such as the hub's.
    """

    def __init__(self, folder, models_dir, *, environment=None, **env):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / f"server-{port}.log"
        # One thread a worker: two that spin for each other on a busy machine are twenty times slower than one.
        settings = {"MODEL": DEMO, "MODELS_DIR": models_dir, "TEMPERATURE": 0, "THREADS": 1, "LOG_LEVEL": "debug"}
        settings |= {"PORT": port, **env}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("INFERAPI_")}
        kept |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), "XDG_DATA_HOME": str(folder)}  # nothing but loopback
        kept |= environment or {}
        kept |= {f"INFERAPI_{name}": str(value) for name, value in settings.items()}
        with self.log.open("wb") as log:
            command = [COMMAND, "serve"]
            self.process = subprocess.Popen(command, env=kept, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False)

    def stop(self):
        """End it and whatever it left behind, each by its own id."""
        tree = self.tree()
        self.http.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for left in tree:
            with suppress(psutil.NoSuchProcess):
                left.kill()  # psutil compares the start time: never a stranger that got the same id

    # What it says

    def wait_ready(self):
        until(self.is_ready)
        return self

    def is_ready(self):
        assert self.process.poll() is None, f"it ended while starting:\n{self.log_tail()}"
        try:
            return self.http.get("/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def post(self, path, body, **options):
        return self.http.post(path, json=body, **options)

    def answer(self, path, body):
        """The JSON of an answer that must be 200."""
        response = self.post(path, body)
        assert response.status_code == 200, response.text
        return response.json()

    def result(self, text="Once upon a time", **body):
        return self.answer("/infer", {"text": text, **body})["result"]

    def status(self):
        return self.http.get("/status").json()

    def model_line(self):
        """The line of ``/status`` of the current model."""
        status = self.status()
        return next(line for line in status["models"] if line["name"] == status["current_model"])

    def wait_busy(self, in_flight=1, queued=0):
        """Until so many requests run and wait."""
        until(lambda: self._busy() == (in_flight, queued))

    def wait_idle(self):
        """Until nobody holds the model."""
        until(lambda: self._busy() == (0, 0))

    def _busy(self):
        line = self.model_line()
        return line["in_flight"], line["queued"]

    def log_tail(self):
        return self.log.read_text(encoding="utf-8", errors="replace")[-6000:]

    @contextmanager
    def stream(self, path="/infer", **body):
        """The data of the events of a streamed answer, as they arrive."""
        asked = {"text": "Once upon a time", **body, "stream": True}
        with self.http.stream("POST", path, json=asked) as response:
            assert response.status_code == 200, response.read()
            yield events(response.iter_lines())

    # Its processes

    def tree(self):
        """Every process below it."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def workers(self):
        """The processes of the loaded models: children of the fork server, its only child."""
        with suppress(psutil.NoSuchProcess, IndexError):
            return psutil.Process(self.process.pid).children()[0].children()
        return []

    def worker_id(self):
        """The process id of the only worker."""
        (worker,) = self.workers()
        return worker.pid

    def kill_worker(self):
        """End the only worker the hard way."""
        (worker,) = self.workers()
        os.kill(worker.pid, signal.SIGKILL)
        return worker

    def own_bytes(self):
        """Memory that the process tree has written: what it shares, it shares within the tree."""
        return sum(_anonymous_bytes(process.pid) for process in (self.process, *self.tree()))


def _anonymous_bytes(process_id):
    # Not USS: the pages of torch's library count there or not, as other processes of the machine come and go.
    lines = Path(f"/proc/{process_id}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:"))


def events(lines):
    """The data of server-sent events: JSON parsed, ``[DONE]`` as it is."""
    for line in lines:
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield data if data == "[DONE]" else json.loads(data)


def text_of(received):
    """The deltas put together."""
    return "".join(event["delta"] for event in received if isinstance(event, dict) and "delta" in event)


def has_ended(process):
    """Whether nothing is left of it but, at most, what its parent has yet to bury."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def write_tiny_model(folder, **config):
    """A Llama with random weights, which fits every test's patience; it speaks the demo model's tokens."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copy(DEMO_FOLDER / name, folder / name)
    tokenizer = json.loads((DEMO_FOLDER / "tokenizer_config.json").read_text(encoding="utf-8"))
    _write_json(folder / "tokenizer_config.json", tokenizer | {"model_max_length": 32768})
    demo = json.loads((DEMO_FOLDER / "config.json").read_text(encoding="utf-8"))
    sizes = {
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HIDDEN // HEADS,
        "max_position_embeddings": 32768,
        "dtype": "float32",
    }
    _write_json(folder / "config.json", demo | sizes | config)
    random = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    ones = ["model.norm.weight"]
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
        shapes |= {f"{prefix}.mlp.{name}_proj.weight": (2 * HIDDEN, HIDDEN) for name in ("gate", "up")}
        shapes[f"{prefix}.mlp.down_proj.weight"] = (HIDDEN, 2 * HIDDEN)
        ones += [f"{prefix}.input_layernorm.weight", f"{prefix}.post_attention_layernorm.weight"]
    weights = {name: random.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    weights |= {name: np.ones(HIDDEN, np.float32) for name in ones}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _write_json(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
