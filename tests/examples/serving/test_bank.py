"""The bank: what it keeps, what it drops, which names and files it refuses."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from examples.serving.bank import AdapterTooLargeError, DeltaBank, UnknownAdapterError
from rst import DeltaFormatError, SparseDelta, WrongBaseError
from tests.examples.serving.conftest import NAMES
from tests.messages import names


def size_of(adapters: Path, name: str, base: nn.Module) -> int:
    return SparseDelta.load(adapters / name / "delta.safetensors").prepare(base).nbytes


def test_least_recently_used_adapters_go_when_the_bytes_run_out(base: nn.Module, adapters: Path) -> None:
    largest = max(size_of(adapters, name, base) for name in NAMES)
    bank = DeltaBank(base, adapters, max_bytes=3 * largest)
    for name in NAMES[:3]:
        bank.prepared(name)
    assert (bank.use.loads, bank.use.evictions) == (3, 0)
    first = bank.prepared(NAMES[0])  # used again, so the second is the oldest
    bank.prepared(NAMES[3])
    assert (bank.use.hits, bank.use.loads, bank.use.evictions, bank.use.adapters) == (1, 4, 1, 3)
    assert bank.prepared(NAMES[0]) is first
    assert bank.use.hits == 2
    bank.prepared(NAMES[1])
    assert (bank.use.loads, bank.use.evictions) == (5, 2)
    for name in NAMES * 2:
        bank.prepared(name)
        assert bank.use.bytes <= bank.use.max_bytes


def test_an_evicted_adapter_gives_the_same_again(
    base: nn.Module, adapters: Path, images: Tensor, expected: dict[str, Tensor]
) -> None:
    bank = DeltaBank(base, adapters, max_bytes=max(size_of(adapters, name, base) for name in NAMES))
    for name in NAMES + NAMES[:2]:
        with bank.prepared(name), torch.inference_mode():
            assert torch.equal(base(images), expected[name])
    assert bank.use.evictions == len(NAMES) + 1
    assert bank.use.adapters == 1


def test_a_replaced_adapter_is_read_again(
    base: nn.Module, adapters: Path, images: Tensor, expected: dict[str, Tensor], tmp_path: Path
) -> None:
    shutil.copytree(adapters, tmp_path, dirs_exist_ok=True)
    bank = DeltaBank(base, tmp_path, 2**30)
    with bank.prepared(NAMES[0]), torch.inference_mode():
        assert torch.equal(base(images), expected[NAMES[0]])
    (tmp_path / NAMES[1] / "delta.safetensors").replace(tmp_path / NAMES[0] / "delta.safetensors")
    with bank.prepared(NAMES[0]), torch.inference_mode():
        assert torch.equal(base(images), expected[NAMES[1]])
    assert (bank.use.loads, bank.use.adapters, bank.use.hits) == (2, 1, 0)
    assert bank.use.bytes == size_of(adapters, NAMES[1], base)


def test_one_adapter_above_the_bound_is_refused_and_nothing_dropped(base: nn.Module, adapters: Path) -> None:
    sizes = {name: size_of(adapters, name, base) for name in NAMES}
    small, large = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    bank = DeltaBank(base, adapters, max_bytes=sizes[large] - 1)
    bank.prepared(small)
    with pytest.raises(AdapterTooLargeError, match=names(large, f"{sizes[large]:,}")):
        bank.prepared(large)
    assert bank.use.adapters == 1


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../outside", "/etc", "a/../outside", "..\\outside", "a\0b", "none", "x" * 100_000, "\ud800"],
)
def test_no_name_leads_out_of_the_folder(name: str, base: nn.Module, adapters: Path, tmp_path: Path) -> None:
    shutil.copytree(adapters / NAMES[0], tmp_path / "outside")
    shutil.copy(adapters / NAMES[0] / "delta.safetensors", tmp_path)
    (tmp_path / "inside" / "a").mkdir(parents=True)
    bank = DeltaBank(base, tmp_path / "inside", 2**30)
    assert bank.names() == []
    with pytest.raises(UnknownAdapterError):
        bank.prepared(name)


def test_damaged_and_foreign_adapters_are_refused(base: nn.Module, adapters: Path, tmp_path: Path) -> None:
    shutil.copytree(adapters, tmp_path, dirs_exist_ok=True)
    damaged = tmp_path / NAMES[0] / "delta.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    bank = DeltaBank(base, tmp_path, 2**30)
    with pytest.raises(DeltaFormatError, match=names("domain-0/delta.safetensors")):
        bank.prepared(NAMES[0])
    with torch.no_grad():
        for parameter in base.parameters():
            parameter += 1
    with pytest.raises(WrongBaseError):
        bank.prepared(NAMES[1])
    assert bank.use.adapters == bank.use.bytes == 0


def test_missing_folder(base: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match=names("nowhere")):
        DeltaBank(base, tmp_path / "nowhere", 1)
