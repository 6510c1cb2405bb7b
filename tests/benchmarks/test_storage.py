"""The storage benchmark in miniature: what it writes down, its layouts read back, its budgets."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import external_tools, vit_b_16
from benchmarks.checkpoint_pair import CheckpointPair, convolutions, synthetic
from benchmarks.entropy import position_bits, step_bits, step_bits_given_base
from benchmarks.file_parts import file_parts
from benchmarks.layouts import ESCAPE, LAYOUTS, encode_gaps, int32_absolute, shira_pairs, uint16_gaps, write_xor
from benchmarks.storage import first_blocks, run
from benchmarks.storage_measurement import FILES
from rst import export
from rst.numerics.exactness import bit_equal, bits
from tests.messages import names

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """The rows of every table of a quick run, which checks every round trip itself."""
    folder = tmp_path_factory.mktemp("results")
    run(quick=True, folder=folder)
    assert (folder / "storage.png").read_bytes().startswith(b"\x89PNG")
    return {path.stem: json.loads(path.read_text())["rows"] for path in folder.glob("*.json")}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def pair(request: pytest.FixtureRequest) -> CheckpointPair:
    """A few small tensors, 1 % changed."""
    base = first_blocks(vit_b_16.weights(request.param), 1)
    return synthetic({name: tensor[:64].clone() for name, tensor in base.items()}, 0.01)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_every_kind_of_change_is_measured_in_every_layout(tables):
    assert tables.keys() == {"storage", "storage-parts", "storage-tools", "storage-adapters"}
    names = " ".join(row["name"] for row in tables["storage"])
    for kind in ("float32, 0.1 %", "bfloat16, 1.2 %", "convolutions", "small CLIP", "causal LM"):
        assert kind in names
    for row in tables["storage"]:
        for layout in (*LAYOUTS, *(file.name for file in FILES)):
            assert isinstance(row[layout], float) or "not installed" in row[layout]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_packed_files_keep_their_budgets(tables):
    rows = {row["name"]: row for row in tables["storage"]}
    float32, bfloat16 = rows["float32, 0.1 % of ViT-B/16, synthetic"], rows["bfloat16, 1.2 % of ViT-B/16, synthetic"]
    assert float32["bound"] < float32["rst packed step"] < float32["rst packed add"] <= 27
    assert bfloat16["bound"] < bfloat16["rst packed step"] <= 8 * 1.3


def test_coo_takes_64_bits_besides_its_description(tmp_path: Path):
    change = convolutions(0.001, layers=1)
    export(change.base, change.tuned).save(tmp_path / "delta.safetensors")
    parts = file_parts(tmp_path / "delta.safetensors")
    assert parts.total == (tmp_path / "delta.safetensors").stat().st_size
    assert 64 * change.changed <= 8 * (parts.positions + parts.values) <= 64.5 * change.changed


def test_absolute_layouts_give_the_tuned_weights_back(pair, tmp_path: Path):
    for layout, read in ((shira_pairs, _read_pairs), (int32_absolute, _read_flat), (uint16_gaps, _read_gaps)):
        layout(pair, tmp_path / "file")
        arrays = load_file(tmp_path / "file")
        for name, tuned in pair.tuned.items():
            rebuilt = pair.base[name].clone().view(-1)
            if f"{name}.values" in arrays:
                rebuilt[read(arrays, name, tuned.shape)] = arrays[f"{name}.values"]
            assert bit_equal(rebuilt.view(tuned.shape), tuned), (layout, name)


def test_the_xor_gives_the_tuned_weights_back(pair, tmp_path: Path):
    write_xor(pair, tmp_path / "xor")
    raw = torch.frombuffer(bytearray((tmp_path / "xor").read_bytes()), dtype=bits(next(iter(pair.base.values()))).dtype)
    sizes = [tensor.numel() for tensor in pair.tuned.values()]
    for (name, tuned), part in zip(pair.tuned.items(), raw.split(sizes), strict=True):
        assert torch.equal(bits(pair.base[name]).view(-1) ^ part, bits(tuned).view(-1))


@pytest.mark.parametrize("positions", [[0], [ESCAPE - 1], [ESCAPE], [ESCAPE + 1, 5 * ESCAPE, 5 * ESCAPE + 1]])
def test_wide_gaps_are_escaped(positions):
    assert _decode_gaps(encode_gaps(torch.tensor(positions))).tolist() == positions


def test_bounds_are_those_of_the_definition():
    base, tuned = torch.ones(4), torch.ones(4)
    tuned[1] = 2.0
    assert position_bits(CheckpointPair("", {"w": base}, {"w": tuned})) == pytest.approx(2.0)  # one of four places
    base, up, down = torch.ones(400, dtype=torch.bfloat16), torch.tensor(1.0078125), torch.tensor(0.99609375)
    coins = torch.where(torch.arange(400) % 2 == 0, up, down).bfloat16()
    fair = CheckpointPair("", {"w": base}, {"w": coins})
    assert (step_bits(fair), step_bits_given_base(fair)) == pytest.approx((1.0, 1.0))
    assert step_bits(CheckpointPair("", {"w": torch.zeros(3)}, {"w": torch.rand(3) + 1})) is None


def test_a_missing_program_is_a_reason_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(external_tools.NotInstalledError, match=names("zstd")):
        external_tools.zstd(tmp_path / "a", tmp_path / "b", level=3)


def _read_flat(arrays: dict[str, torch.Tensor], name: str, shape: torch.Size) -> torch.Tensor:
    return arrays[f"{name}.indices"].long()


def _read_pairs(arrays: dict[str, torch.Tensor], name: str, shape: torch.Size) -> torch.Tensor:
    row, column = arrays[f"{name}.indices"].long()
    return row * (shape.numel() // (shape[0] if len(shape) > 1 else 1)) + column


def _read_gaps(arrays: dict[str, torch.Tensor], name: str, shape: torch.Size) -> torch.Tensor:
    return _decode_gaps(arrays[f"{name}.gaps"])


def _decode_gaps(encoded: torch.Tensor) -> torch.Tensor:
    wide = encoded.int().long()
    skipped = wide == ESCAPE
    return (wide + torch.where(skipped, 0, 1)).cumsum(0)[~skipped] - 1
