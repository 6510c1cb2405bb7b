"""The prompts of each benchmark, in the order of its labels, known by the start of their SHA-256."""

import hashlib
import json

from cmkd import build_prompts
from examples.uda.backbones import prompt_names, prompt_template
from examples.uda.benchmarks import get_benchmark
from examples.uda.settings import Settings
from tests.parity.numbers import FOLDER, Case, Differences


def read_prompts() -> dict[str, Case]:
    found: dict[str, Case] = json.loads((FOLDER / "prompts.json").read_text())["benchmarks"]
    return found


def prompts(name: str, case: Case) -> Differences:
    found = Differences()
    settings = Settings(
        benchmark=name, method="clip", backbone="RN50", iterations=1, encoder_lr=0.0, head_lr=0.0, evaluate_every=1
    )
    names = prompt_names(settings, get_benchmark(name).class_names())
    filled = [prompt.lower() for (prompt,) in build_prompts(names, prompt_template(settings))]
    here = [hashlib.sha256(prompt.encode()).hexdigest()[:12] for prompt in filled]
    there = case["sha256_12_of_lowercase_prompts"]
    found.equal("template", prompt_template(settings) == case["template"], True)
    found.equal("prompts", sum(a != b for a, b in zip(here, there, strict=True)), 0)
    return found
