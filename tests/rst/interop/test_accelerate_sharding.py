"""FSDP and DeepSpeed out of accelerate's own configuration, of which a `Trainer`'s arguments say nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rst import ConfigError, RSTConfig
from rst.sync import verify
from tests.refusal import refused
from tests.rst.distributed.process_group import run
from tests.rst.distributed.sharded_models import Net
from tests.rst.interop import sharded_callback
from tests.rst.interop.sharded_callback import configure, publish

accelerate: Any = pytest.importorskip("accelerate")
transformers: Any = pytest.importorskip("transformers")

from rst.interop.accelerate_sharding import sharding_of  # noqa: E402
from rst.interop.publish_callback import PublishCallback  # noqa: E402
from rst.interop.transformers import RSTCallback  # noqa: E402

WAYS = ["FSDP", "FSDP2", "DeepSpeed"]


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Accelerate keeps its settings for the whole process."""
    yield
    accelerate.state.AcceleratorState._reset_state(True)
    accelerate.state.GradientState._reset_state()


def arguments(folder: Path) -> Any:
    return transformers.TrainingArguments(str(folder), use_cpu=True, report_to=[])


@pytest.mark.parametrize("way", [None, *WAYS])
def test_it_is_told_by_the_state(tmp_path: Path, way: str | None) -> None:
    args = arguments(tmp_path)
    assert sharding_of(args) is None
    configure(way)
    assert sharding_of(args) == way


@pytest.mark.parametrize(("config", "way"), [({}, "FSDP"), ({"version": 2}, "FSDP2")])
def test_it_is_told_by_the_arguments(tmp_path: Path, config: dict[str, Any], way: str) -> None:
    args = arguments(tmp_path)
    args.fsdp, args.fsdp_config = "full_shard", config
    assert sharding_of(args) == way


@pytest.mark.parametrize("way", WAYS)
def test_rst_callback_refuses_it_by_name(tmp_path: Path, way: str) -> None:
    model, state, control = nn.Linear(2, 2), transformers.TrainerState(), transformers.TrainerControl()
    callback, args = RSTCallback(RSTConfig(ratio=0.1)), arguments(tmp_path)  # which reset what accelerate has
    configure(way)
    for event in (callback.on_init_end, callback.on_train_begin):
        with refused(ConfigError, f"{way} "):
            event(args, state, control, model=model, optimizer=None)


@pytest.mark.parametrize("way", ["FSDP", "DeepSpeed"])
def test_publish_callback_refuses_what_hides_parameters_by_name(tmp_path: Path, way: str) -> None:
    callback, args = PublishCallback(tmp_path / "chain"), arguments(tmp_path)
    configure(way)
    with refused(ConfigError, f"{way} ", "FSDP2"):
        callback.on_train_begin(args, transformers.TrainerState(), transformers.TrainerControl(), model=nn.Linear(2, 2))
    assert not (tmp_path / "chain").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="fully_shard of this torch runs on GPUs alone"
)
def test_two_processes_of_fsdp2_publish_what_one_does(tmp_path: Path) -> None:
    wanted = publish(Net(), tmp_path / "one", None, first=True)
    assert [step for step, _ in wanted] == [1, 2]
    found = run(2, sharded_callback.publish_sharded, tmp_path / "two")
    assert found == [wanted, []]
    assert verify(tmp_path / "two" / "chain").state == wanted[-1][1]
