"""vLLM itself follows a chain, where it is installed (`make engines`): it answers as one that loaded the weights."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from rst.errors import CheckpointError
from rst.sync import ChainGapError, Publisher
from rst.sync.chain import delta_name
from tests.refusal import refused

pytest.importorskip("vllm", reason="vLLM is not installed; make engines sets up an environment that has it")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # vLLM's own are not ours

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
KEPT: list[Any] = []  # an engine that goes takes with it the process groups that all in a process share
PROMPT = [{"prompt_token_ids": list(range(5, 25))}]


def tiny_llama(tied: bool) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        **sizes,
        num_key_value_heads=2,
        vocab_size=256,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def engine(folder: Path, **settings: Any) -> Any:
    from vllm import LLM

    llm = LLM(
        str(folder),
        skip_tokenizer_init=True,
        max_model_len=128,
        dtype="bfloat16",
        enforce_eager=True,
        kv_cache_memory_bytes=16 << 20,
        enable_prefix_caching=False,
        **settings,
    )
    KEPT.append(llm)
    return llm


def log_probabilities(llm: Any) -> list[dict[int, float]]:
    from vllm import SamplingParams

    settings = SamplingParams(max_tokens=6, temperature=0, detokenize=False, logprobs=4)
    found = llm.generate(PROMPT, settings, use_tqdm=False)[0].outputs[0].logprobs
    return [{token: told.logprob for token, told in place.items()} for place in found]


def update(llm: Any, **info: Any) -> None:
    llm.start_weight_update()
    llm.update_weights({"update_info": info})
    llm.finish_weight_update()


class Run:
    """A model that is trained and published, and an engine that began with other weights."""

    def __init__(self, folder: Path, op: Any, tied: bool) -> None:
        from vllm.config import WeightTransferConfig

        self.folder, self.model = folder, tiny_llama(tied)
        self.model.save_pretrained(folder / "0")
        self.publisher = Publisher(self.model, folder / "chain", op=op, anchor_every=3)
        settings = {"load_format": "dummy", "weight_transfer_config": WeightTransferConfig(backend="rst")}
        self.llm = engine(folder / "0", **settings)
        self.llm.init_weight_transfer_engine({"init_info": {"store": str(folder / "chain")}})
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    def step(self) -> None:
        tokens = torch.randint(3, 256, (2, 32))
        self.model(tokens, labels=tokens).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.publisher.publish()

    def newly_loaded(self) -> Any:
        self.model.save_pretrained(self.folder / "now")
        return engine(self.folder / "now")


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: linear layers that multiply by their weights as they are."""
    import vllm._custom_ops

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(vllm._custom_ops, "_supports_onednn", False)


@pytest.fixture
def layout(request: pytest.FixtureRequest) -> str:
    if request.param == "unpacked":
        request.getfixturevalue("unpacked")
    return str(request.param)


@pytest.mark.parametrize(
    ("layout", "op", "tied"),
    [
        ("packed", "step", True),
        ("packed", "replace", False),
        ("unpacked", "step", False),
        ("unpacked", "replace", True),
    ],
    indirect=["layout"],
)
def test_every_step_back_and_over_a_gap_as_if_newly_loaded(tmp_path: Path, layout: str, op: Any, tied: bool) -> None:
    run = Run(tmp_path, op, tied)
    found = {0: log_probabilities(run.llm)}
    for step in range(1, 5):
        run.step()
        update(run.llm)
        found[step] = log_probabilities(run.llm)
    assert found[4] == log_probabilities(run.newly_loaded())
    assert found[4] != found[3]
    update(run.llm, step=1)
    assert log_probabilities(run.llm) == found[1]
    (tmp_path / "chain" / delta_name(2)).unlink()
    update(run.llm)  # the anchor of step 3, then a delta
    assert log_probabilities(run.llm) == found[4]
    with refused(ChainGapError, "step 9", "4"):
        update(run.llm, step=9)
    run.step()
    update(run.llm)
    assert log_probabilities(run.llm) == log_probabilities(run.newly_loaded())


@pytest.mark.usefixtures("unpacked")
def test_reading_back_tells_fused_weights_that_are_others(tmp_path: Path) -> None:
    from rst.interop.vllm_model import can_be_patched, check_loaded

    run = Run(tmp_path, "replace", False)

    def spoil(model: Any) -> None:
        weights = {name: weight.detach() for name, weight in run.model.state_dict().items()}
        check_loaded(model, weights.items())
        assert can_be_patched(model, weights)
        fused = dict(model.named_parameters())["model.layers.1.self_attn.qkv_proj.weight"]
        fused.data[128 + 7, 3] *= -1  # of the keys, which come after 128 rows of queries
        key = "model.layers.1.self_attn.k_proj.weight"
        with refused(CheckpointError, "8,192", "1 of them", parameter=key):
            check_loaded(model, [(key, weights[key])])
        check_loaded(model, [(name, weight) for name, weight in weights.items() if name != key])
        assert not can_be_patched(model, weights)

    run.llm.apply_model(spoil)
