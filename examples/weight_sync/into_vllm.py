"""Train with transformers' Trainer in this process, generate with vLLM in another, and send it each step over HTTP.

python -m examples.weight_sync.into_vllm --steps 10

The server starts from random weights and must end with the answers, to the last digit of every log-probability, of a
server that has loaded the trained model. Needs `pip install "residual-sparse-training[vllm]"`; see docs/howto/vllm.md.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import torch
import typer
from torch import nn
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

from examples.weight_sync.language_model import generated_model
from rst.interop.publish_callback import PublishCallback
from rst.interop.vllm_server import VLLMServer
from rst.sync import Published

VOCABULARY = 1024
PROMPT = list(range(5, 25))
START_WITHIN = 600  # seconds; a minute on two cores


def main(
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps, each of them published.")] = 10,
    lr: Annotated[float, typer.Option(help="AdamW's learning rate.")] = 1e-5,
) -> None:
    """Train, publish and update the server at each step; then compare with a server of the trained model."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = generated_model(vocabulary=VOCABULARY)
        save(model, folder / "start")
        with serve(folder / "start", "--load-format", "dummy") as url:
            update = partial(bring, VLLMServer(url, folder / "chain"))
            train(model, folder, steps, lr, PublishCallback(folder / "chain", on_publish=update, op="replace"))
            followed = answer(url)
        save(model, folder / "trained")
        with serve(folder / "trained") as url:
            compare(followed, answer(url))


def bring(server: VLLMServer, done: Published) -> None:
    """Bring the server to a step, and say what it took."""
    began = time.perf_counter()
    server.update(done.step)
    seconds, share = time.perf_counter() - began, done.changed / done.weights
    print(f"step {done.step:3d}  {share:7.3%} changed  {done.delta_bytes:9,d} bytes  {seconds:.3f} s to vLLM")


def compare(followed: list[float], loaded: list[float]) -> None:
    """Fail unless the server that followed answers as one that has loaded the trained model."""
    same = followed == loaded
    print(f"{len(loaded)} log-probabilities {'identical' if same else 'DIFFERENT'}: {loaded[:3]} ...")
    if not same:
        raise typer.Exit(1)


def train(model: nn.Module, folder: Path, steps: int, lr: float, publish: PublishCallback) -> None:
    """Train on random tokens: what is shown is where the weights go."""
    tokens = torch.randint(3, VOCABULARY, (64, 32), generator=torch.Generator().manual_seed(0))
    arguments = TrainingArguments(
        str(folder / "trainer"),
        max_steps=steps,
        learning_rate=lr,
        lr_scheduler_type="constant",
        per_device_train_batch_size=8,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    samples: Any = [{"input_ids": row, "labels": row} for row in tokens]
    Trainer(model, arguments, train_dataset=samples, callbacks=[publish]).train()


def tokenizer() -> PreTrainedTokenizerFast:
    """One for a vocabulary of `word0`, `word1` and so on."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"word{number}": number for number in range(VOCABULARY)}, "word0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="word0", pad_token="word0", eos_token="word1")


def save(model: Any, folder: Path) -> None:
    """Write a model folder, with the tokenizer that vLLM asks for."""
    tokenizer().save_pretrained(folder)
    model.save_pretrained(folder)


@contextmanager
def serve(folder: Path, *options: str) -> Iterator[str]:
    """Run vLLM's server on a model folder, small enough for a laptop; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "examples.weight_sync.vllm_process", "--model", str(folder), "--dtype", "bfloat16"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += [
        "--max-model-len",
        "128",
        "--max-num-seqs",
        "4",
        "--enforce-eager",
        "--kv-cache-memory-bytes",
        "16777216",
    ]
    command += ["--weight-transfer-config", json.dumps({"backend": "rst"}), *options]
    settings = {"VLLM_SERVER_DEV_MODE": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    log = folder.with_suffix(".log")
    with (
        log.open("wb") as told,
        subprocess.Popen(command, env={**os.environ, **settings}, stdout=told, stderr=subprocess.STDOUT) as server,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url, server, log)
            yield url
        except BaseException:
            sys.stderr.write(log.read_text(errors="replace")[-5000:])
            raise
        finally:
            server.terminate()


def wait_for(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until the server answers. Raises `RuntimeError` if it ends before, or takes too long."""
    until = time.monotonic() + START_WITHIN
    while time.monotonic() < until and server.poll() is None:
        try:
            with urlopen(f"{url}/health", timeout=10):
                return
        except (URLError, TimeoutError, ConnectionError):
            time.sleep(1)
    raise RuntimeError(f"no server within {START_WITHIN} s (exit code {server.poll()}): {log}")


def answer(url: str) -> list[float]:
    """Log-probabilities of a prompt's tokens and of what the model goes on with."""
    with urlopen(f"{url}/v1/models", timeout=60) as found:
        name = json.load(found)["data"][0]["id"]
    body = {"model": name, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "logprobs": 1, "echo": True}
    request = Request(f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=120) as found:
        told = json.load(found)["choices"][0]["logprobs"]["token_logprobs"]
    return [value for value in told if value is not None]


if __name__ == "__main__":
    typer.run(main)
