"""`PublishCallback` in TRL's trainers: a follower has the trained weights. Needs `pip install trl`."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from rst.numerics.exactness import bit_equal
from rst.sync import Follower

trl = pytest.importorskip("trl", reason="pip install trl")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of TRL and transformers about each other

WORDS = ["<pad>", "<eos>", "<unk>", *"abcdefgh"]


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def llama(seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes, **tokens))


@pytest.mark.parametrize("method", ["SFT", "GRPO"])
def test_a_follower_has_what_trl_trained(tmp_path: Path, method: str) -> None:
    from datasets import Dataset

    from rst.interop.publish_callback import PublishCallback

    own, row = {
        "SFT": ({"max_length": 32}, {"text": "a b c d e f g"}),
        "GRPO": ({"num_generations": 4, "max_completion_length": 8}, {"prompt": "a b c"}),
    }[method]
    reward = {"reward_funcs": lambda completions, **_: [float(text.count("a")) for text in completions]}
    arguments = getattr(trl, f"{method}Config")(
        str(tmp_path / "run"),
        max_steps=4,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        **own,
    )
    model, chain = llama(0), tmp_path / "chain"
    trainer = getattr(trl, f"{method}Trainer")(
        model,
        args=arguments,
        train_dataset=Dataset.from_list([row] * 16),
        processing_class=tokenizer(),
        callbacks=[PublishCallback(chain, dtype=torch.bfloat16)],
        **(reward if method == "GRPO" else {}),
    )
    trainer.train()
    served = llama(1).to(torch.bfloat16)
    assert Follower(served, chain).update().step == 4
    trained = copy.deepcopy(model).to(torch.bfloat16).state_dict()
    assert all(bit_equal(served.state_dict()[name], weight) for name, weight in trained.items())
