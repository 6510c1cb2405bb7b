"""Delta files in both encodings: nothing lost, nothing altered unnoticed, nothing believed."""

import contextlib
import json
import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rst import CheckpointError, ConfigError, DeltaFormatError, ParameterDelta, RSTError, SparseDelta, export, merge
from rst.delta.embedded_digest import BLANK, write_sealed
from rst.delta.packed import pack_headers, to_arrays, unpack_headers
from rst.delta.parameter_delta import BaseDigests
from rst.delta.pcodec_stream import compress
from rst.delta.sparse_delta import BaseIdentity
from rst.files.budget import Budget
from rst.files.safetensors_writer import specs_of
from rst.numerics.dtypes import NAME_OF_DTYPE
from rst.numerics.exactness import bit_equal, bits
from rst.version import __version__
from tests.refusal import refused
from tests.strategies import FLOAT_DTYPES, pairs, vectors

ENCODINGS = ["coo", "packed"]
OPS = ["add", "replace", "step"]
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For Hypothesis, which may not use a folder for each function."""
    return tmp_path_factory.mktemp("deltas")


def round_trip(delta: SparseDelta, path: Path, encoding: str) -> SparseDelta:
    delta.save(path, encoding)
    loaded = SparseDelta.load(path)
    assert loaded == delta
    assert loaded.op == delta.op
    assert loaded.config == delta.config
    assert loaded.fingerprint() == delta.fingerprint()
    assert list(loaded) == list(delta)
    assert all(change.indices.dtype == torch.int32 for change in loaded.values())
    return loaded


@st.composite
def models(draw: st.DrawFn) -> tuple[Weights, Weights]:
    """A base and a tuned model: 0-d, empty and other shapes, every float dtype, every density, any bits."""
    base: Weights = {}
    tuned: Weights = {}
    for index in range(draw(st.integers(0, 5))):
        dtype = draw(st.sampled_from(FLOAT_DTYPES))
        shape = draw(st.sampled_from([(), (0,), (1,), (7,), (3, 4), (2, 0, 3), (2, 3, 5), (40,)]))
        size = math.prod(shape)
        origin, target = draw(vectors(dtype, size)), draw(vectors(dtype, size))
        density = draw(st.sampled_from([0.0, 0.03, 0.5, 1.0]))
        keep = torch.tensor(draw(st.lists(st.floats(0, 1), min_size=size, max_size=size))) < density
        target = bits(origin).where(~keep.reshape(-1), bits(target)).view(dtype)
        base[f"layer.{index}"], tuned[f"layer.{index}"] = origin.reshape(shape), target.reshape(shape)
    return base, tuned


@settings(max_examples=200)
@given(models(), st.sampled_from(ENCODINGS), st.sampled_from(OPS))
def test_any_model_survives_a_file(folder: Path, model: tuple[Weights, Weights], encoding: str, op: str) -> None:
    base, tuned = model
    delta = SparseDelta({name: ParameterDelta.between(name, base[name], tuned[name], op=op) for name in base})
    loaded = round_trip(delta, folder / "delta.safetensors", encoding)
    if base:
        merged = merge(base, loaded)
        assert all(bit_equal(merged[name], tuned[name]) for name in base)


def mixed_model() -> tuple[Weights, Weights]:
    """Quantised and wide dtypes, tied names, a task head and buffers."""
    generator = torch.Generator().manual_seed(0)
    base: Weights = {
        "w": torch.randn(30, 20, generator=generator),
        "half": torch.randn(50, generator=generator).bfloat16(),
        "scale": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
        "bn.running_mean": torch.zeros(4),
        "bn.num_batches_tracked": torch.tensor(3),
    }
    for dtype in (torch.int8, torch.uint16, torch.int64, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2):
        name = NAME_OF_DTYPE[dtype].lower()
        base[name] = torch.randint(0, 2, (9,), generator=generator, dtype=torch.int32).to(dtype)
    tuned = {name: weights.clone() for name, weights in base.items()}
    tuned["w"] += torch.randn(30, 20, generator=generator) * (torch.rand(30, 20, generator=generator) < 0.05)
    tuned["half"] += 0.01
    tuned["scale"] = torch.tensor(-0.0)
    tuned["bn.running_mean"] += 0.5
    tuned["bn.num_batches_tracked"] += 1
    for name in ("i8", "u16", "i64", "bool", "f8_e4m3", "f8_e5m2"):
        tuned[name] = (1 - base[name].to(torch.int32)).to(base[name].dtype)
    base["alias"], tuned["alias"] = base["w"], tuned["w"]
    tuned["head.weight"] = torch.randn(3, 3, generator=generator)
    tuned["head.steps"] = torch.tensor([1, 2, 3])
    return base, tuned


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("op", OPS)
def test_every_kind_of_tensor_survives_a_file(tmp_path: Path, encoding: str, op: str) -> None:
    base, tuned = mixed_model()
    delta = export(base, tuned, op=op)
    assert delta.tied == {"alias": "w"}
    assert delta.buffers == {"bn.running_mean", "bn.num_batches_tracked"}
    merged = merge(base, round_trip(delta, tmp_path / "delta.safetensors", encoding))
    assert merged.keys() == tuned.keys()
    assert all(bit_equal(merged[name], weights) for name, weights in tuned.items())


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("sizes", [(2**30, 2**30 - 1), (2**30, 2**30), (5, 2**31 - 1, 2**31, 2**33)])
def test_positions_beyond_32_bits(tmp_path: Path, encoding: str, sizes: tuple[int, ...]) -> None:
    origin, target = torch.zeros(3), torch.tensor([1.0, 2.0, 3.0])
    places = {f"w{size}.{order}": torch.tensor([0, 3, size - 1]) for order, size in enumerate(sizes)}
    shapes = {name: (int(positions[-1]) + 1,) for name, positions in places.items()}
    changes = {name: ParameterDelta.at(places[name], origin, target, shapes[name], None) for name in places}
    SparseDelta(changes).save(tmp_path / "delta.safetensors", encoding)
    loaded = SparseDelta.load(tmp_path / "delta.safetensors")
    assert loaded == SparseDelta(changes)
    for name, change in loaded.items():
        assert change.indices.tolist() == places[name].tolist()
        assert change.indices.dtype == (torch.int32 if shapes[name][0] < 2**31 else torch.int64)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_sums_and_products_survive_a_file(tmp_path: Path, encoding: str) -> None:
    base = {"w": torch.ones(100), "v": torch.ones(10)}
    first, second = export(base, {**base, "w": torch.full((100,), 3.0)}), export(base, {**base, "v": torch.zeros(10)})
    total = first * 0.5 + second
    loaded = round_trip(total, tmp_path / "delta.safetensors", encoding)
    assert loaded.fingerprint() is None
    assert merge(base, loaded)["w"].tolist() == [2.0] * 100


def test_a_residual_that_looks_like_the_mark_of_no_change_is_kept(tmp_path: Path) -> None:
    values = torch.full((8,), -0.0)
    change = ParameterDelta(torch.arange(8, dtype=torch.int32), values, (8,), torch.float32)
    steps = replace(change, values=torch.zeros(8, dtype=torch.int32), op="step")
    for kept in (change, steps):
        round_trip(SparseDelta({"w": kept}), tmp_path / "delta.safetensors", "coo")


def test_the_full_form_may_hold_the_mark_where_the_tuned_value_is_given_too(tmp_path: Path) -> None:
    base, tuned = {"w": torch.zeros(50)}, {"w": torch.ones(50)}
    tuned["w"][3] = -0.0  # no residual leads here from 0.0, and -0.0 - 0.0 is the mark
    round_trip(export(base, tuned), tmp_path / "delta.safetensors", "coo")
    with safe_open(tmp_path / "delta.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["w.exact_indices", "w.exact_values", "w.full"]


def test_the_full_form_can_be_added_as_it_is(tmp_path: Path) -> None:
    base, tuned = {"w": torch.full((50,), -0.0)}, {"w": torch.ones(50)}
    tuned["w"][3] = -0.0
    export(base, tuned).save(tmp_path / "delta.safetensors")
    with safe_open(tmp_path / "delta.safetensors", "pt") as file:
        assert bit_equal(base["w"] + file.get_tensor("w.full"), tuned["w"])


def test_the_plain_encoding_is_readable_without_the_library(tmp_path: Path) -> None:
    base, tuned = {"w": torch.zeros(3, 4)}, {"w": torch.zeros(3, 4)}
    tuned["w"][1, 2], tuned["w"][2, 3] = 0.5, -0.25
    for op, values in {"add": [0.5, -0.25], "replace": [0.5, -0.25], "step": [0x3F000000, -0x3E800001]}.items():
        export(base, tuned, op=op).save(tmp_path / "delta.safetensors")
        with safe_open(tmp_path / "delta.safetensors", "pt") as file:
            assert file.metadata()["op"] == op
            assert file.get_tensor("w.indices").tolist() == [6, 11]
            assert file.get_tensor("w.values").tolist() == values


@pytest.mark.parametrize(("dtype", "op"), [(torch.float32, "add"), (torch.bfloat16, "add"), (torch.bfloat16, "step")])
def test_a_dense_change_takes_no_more_than_the_parameter(tmp_path: Path, dtype: torch.dtype, op: str) -> None:
    base = {"w": torch.randn(200, 100).to(dtype)}
    tuned = {"w": base["w"] * 1.5 + 1}
    round_trip(export(base, tuned, op=op), tmp_path / "delta.safetensors", "coo")
    size = (tmp_path / "delta.safetensors").stat().st_size
    overlay = export(base, tuned, op=op)["w"].exact_indices.numel() * (4 + dtype.itemsize)
    assert size < 20_000 * dtype.itemsize + overlay + 2000


# --- Damage ---------------------------------------------------------------------------------------------------------


def small_delta() -> SparseDelta:
    base = {"w": torch.linspace(-1, 1, 30), "h": torch.linspace(-1, 1, 12).bfloat16()}
    tuned = {"w": base["w"].clone(), "h": base["h"].clone(), "head": torch.ones(2)}
    tuned["w"][::7] += 0.01
    tuned["h"][3] = -0.0
    return export(base, tuned)


def load_damaged(path: Path, contents: bytes, original: SparseDelta) -> None:
    path.write_bytes(contents)
    with contextlib.suppress(RSTError):
        assert SparseDelta.load(path) == original


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_no_flipped_or_cut_byte_of_a_small_file_goes_unnoticed(tmp_path: Path, encoding: str) -> None:
    delta, path = small_delta(), tmp_path / "delta.safetensors"
    delta.save(path, encoding)
    contents = path.read_bytes()
    for place in range(len(contents)):
        altered = bytearray(contents)
        altered[place] ^= 1 << place % 8
        load_damaged(path, bytes(altered), delta)
        load_damaged(path, contents[:place], delta)


@given(st.data(), st.sampled_from(ENCODINGS), st.sampled_from(OPS))
def test_no_damage_to_a_file_goes_unnoticed(folder: Path, data: st.DataObject, encoding: str, op: str) -> None:
    base, tuned = mixed_model()
    delta, path = export(base, tuned, op=op), folder / "damaged.safetensors"
    delta.save(path, encoding)
    contents = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(contents) - 1))
    contents[place : place + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    load_damaged(path, bytes(contents), delta)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_digest_is_that_of_the_file_with_zeros_in_its_place(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "delta.safetensors"
    small_delta().save(path, encoding)
    with safe_open(path, "pt") as file:
        digits = file.metadata()["digest"]
    blanked = path.read_bytes().replace(digits.encode(), b"0" * 32)
    assert blake3(blanked).hexdigest()[:32] == digits


@pytest.mark.parametrize("digits", ["", "0" * 32, "f" * 31])
def test_a_file_without_a_digest_is_refused(tmp_path: Path, digits: str) -> None:
    path = tmp_path / "delta.safetensors"
    small_delta().save(path)
    with safe_open(path, "pt") as file:
        metadata, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata.pop("digest")
    for contents in (metadata, {**metadata, "digest": digits}):
        save_file(arrays, tmp_path / "other.safetensors", contents)
        with refused(DeltaFormatError, "digest", file="other.safetensors"):
            SparseDelta.load(tmp_path / "other.safetensors")


def test_names_and_settings_may_look_like_a_digest(tmp_path: Path) -> None:
    name = f'"digest":"{BLANK}"'
    base, tuned = {name: torch.zeros(9)}, {name: torch.ones(9)}
    round_trip(replace(export(base, tuned), config={"note": name}), tmp_path / "delta.safetensors", "coo")


def test_a_loaded_delta_does_not_hang_on_its_file(tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    small_delta().save(path)
    loaded = SparseDelta.load(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert loaded == small_delta()


# --- Untrusted files with a right digest ----------------------------------------------------------------------------


Forge = Callable[[dict[str, str], dict[str, Tensor]], object]


def forge(path: Path, change: Forge) -> None:
    """Alter a file's contents and make its digest right again."""
    with safe_open(path, "pt") as file:
        metadata, arrays = file.metadata(), {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    change(metadata, arrays)
    specs = specs_of(arrays)
    write_sealed(path, specs, (arrays[name] for name in specs), metadata)


def records_of(metadata: dict[str, str], arrays: dict[str, Tensor]) -> dict[str, dict[str, object]]:
    text = metadata.get("parameters") or zlib.decompress(arrays["records"].numpy().tobytes()).decode()
    records: dict[str, dict[str, object]] = json.loads(text)
    return records


def with_records(change: Callable[[dict[str, dict[str, object]]], object]) -> Forge:
    def alter(metadata: dict[str, str], arrays: dict[str, Tensor]) -> None:
        records = records_of(metadata, arrays)
        change(records)
        if "parameters" in metadata:
            metadata["parameters"] = json.dumps(records)
        else:
            arrays["records"] = pack_headers(json.dumps(records), len(records))

    return alter


def put(name: str, array: Tensor) -> Forge:
    return lambda _, arrays: arrays.update({name: array})


def drop(name: str) -> Forge:
    return lambda _, arrays: arrays.__delitem__(name)


def tell(setting: str, value: str) -> Forge:
    return lambda metadata, _: metadata.update({setting: value})


FORGERIES: dict[str, Forge] = {
    "negative shape": with_records(lambda records: records["w"].update(shape=[-30])),
    "another shape": with_records(lambda records: records["w"].update(shape=[3])),
    "immense shape": with_records(lambda records: records["w"].update(shape=[1 << 40, 1 << 40])),
    "endless shape": with_records(lambda records: records["w"].update(shape=[30] + [1] * 10_000)),
    "shape of text": with_records(lambda records: records["w"].update(shape="30")),
    "unknown dtype": with_records(lambda records: records["w"].update(dtype="F3")),
    "another dtype": with_records(lambda records: records["w"].update(dtype="F64")),
    "dtype without residuals": with_records(lambda records: records["w"].update(dtype="I64")),
    "no dtype": with_records(lambda records: records["w"].pop("dtype")),
    "no record": with_records(lambda records: records.pop("w")),
    "a record too many": with_records(lambda records: records.update(x={})),
    "another operation": tell("op", "step"),
    "whole tensor missing": drop("head.dense"),
    "array too many": put("x.dense", torch.ones(2)),
    "ties no mapping": tell("tied", "[1, 2]"),
    "settings no mapping": tell("config", "3"),
    "base no mapping": tell("base", "[]"),
    "no JSON": tell("dense", "{"),
    "deep JSON": tell("tied", "[" * 100_000),
    "deep settings": tell("config", '{"a":' * 70 + "1" + "}" * 70),
    "a key twice": tell("tied", '{"a": "w", "a": "h"}'),
    "half a surrogate pair": tell("tied", '{"a\\ud800": "w"}'),
    "not a number": tell("config", '{"threshold": NaN}'),
    "infinity": tell("config", '{"threshold": 1e999}'),
    "a number as text": tell("base", '{"name": null, "revision": null, "weights": "42"}'),
    "negative weights": tell("base", '{"name": null, "revision": null, "weights": -1}'),
    "base named by a list": tell("base", '{"name": ["x"], "revision": null, "weights": 42}'),
    "tied to a number": tell("tied", '{"a": 1}'),
    "tied and stored": tell("tied", '{"head": "w"}'),
    "another number of weights": lambda metadata, _: metadata.update(nnz="9" * 200_000),
    "another number of DSP": lambda metadata, _: metadata.update(dsp="1"),
    "changed and stored whole": lambda metadata, arrays: (
        metadata.update(dense='{"names": ["head", "w"], "buffers": []}'),
        arrays.update({"w.dense": torch.ones(30)}),
    ),
    "names as text": tell("dense", '{"names": "head", "buffers": []}'),
    "buffers as text": tell("dense", '{"names": ["head"], "buffers": "head"}'),
    "shape of truths": with_records(lambda records: records["w"].update(shape=[30, True])),
    "digest of a number": with_records(lambda records: records["w"].update(base=1)),
}
PLAIN_FORGERIES: dict[str, Forge] = {
    "descending": put("w.indices", torch.tensor([28, 21, 14, 7, 0], dtype=torch.int32)),
    "repeated": put("w.indices", torch.tensor([0, 7, 7, 21, 28], dtype=torch.int32)),
    "outside": put("w.indices", torch.tensor([0, 7, 14, 21, 30], dtype=torch.int32)),
    "negative": put("w.indices", torch.tensor([-1, 7, 14, 21, 28], dtype=torch.int32)),
    "unsigned": put("w.indices", torch.tensor([0, 7, 14, 21, 28], dtype=torch.uint8)),
    "floats": put("w.indices", torch.tensor([0.0, 7, 14, 21, 28])),
    "too few": put("w.values", torch.ones(4)),
    "NaN": put("w.values", torch.full((5,), float("nan"))),
    "infinite": put("w.values", torch.full((5,), float("inf"))),
    "missing": drop("w.values"),
    "full of another shape": put("w.full", torch.ones(31)),
    "exact elsewhere": put("h.exact_indices", torch.tensor([4], dtype=torch.int32)),
    "exact outside": put("h.exact_indices", torch.tensor([40], dtype=torch.int32)),
}
PACKED_FORGERIES: dict[str, Forge] = {
    "no gaps": drop("gaps"),
    "no values": drop("values.F32"),
    "no exact values": drop("exact_values.BF16"),
    "no records": drop("records"),
    "gaps of floats": lambda _, arrays: arrays.update(gaps=arrays["values.F32"].clone()),
    "streams swapped": lambda _, arrays: arrays.update(gaps=arrays["exact_gaps"], exact_gaps=arrays["gaps"]),
    "stream of floats": put("gaps", torch.ones(40)),
    "cut records": lambda _, arrays: arrays.update(records=arrays["records"][:-9].clone()),
    "records no text": put("records", torch.frombuffer(bytearray(zlib.compress(b"\xff")), dtype=torch.uint8)),
}


@pytest.mark.parametrize(
    ("encoding", "forgery"),
    [(encoding, name) for encoding in ENCODINGS for name in FORGERIES]
    + [("coo", name) for name in PLAIN_FORGERIES]
    + [("packed", name) for name in PACKED_FORGERIES],
)
def test_a_forged_file_is_refused_by_name(tmp_path: Path, encoding: str, forgery: str) -> None:
    path = tmp_path / "delta.safetensors"
    small_delta().save(path, encoding)
    forge(path, (FORGERIES | PLAIN_FORGERIES | PACKED_FORGERIES)[forgery])
    with refused(DeltaFormatError, file=path, parameter=ANY):
        SparseDelta.load(path)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_forger_s_tools_leave_an_honest_file_readable(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "delta.safetensors"
    small_delta().save(path, encoding)
    forge(path, with_records(lambda records: None))
    assert SparseDelta.load(path) == small_delta()


def test_the_first_weight_alone_survives_a_file(tmp_path: Path) -> None:
    round_trip(export({"w": torch.zeros(2)}, {"w": torch.tensor([1.0, 0.0])}), tmp_path / "d.safetensors", "packed")


def test_values_and_positions_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    small_delta().save(path, "packed")
    forge(path, put("values.F32", compress(torch.ones(4), [4])))
    with refused(DeltaFormatError, 4, 5, "values.F32", file=path):
        SparseDelta.load(path)


@pytest.mark.parametrize("second", [-(2**31), -2, 30, 2**31 - 1])  # 30 leads just behind the last entry
def test_gaps_cannot_lead_back_or_outside(tmp_path: Path, second: int) -> None:
    path = tmp_path / "delta.safetensors"
    small_delta().save(path, "packed")
    gaps = torch.tensor([7, second, 0, 0, 0, 0], dtype=torch.int32)
    forge(path, put("gaps", compress(gaps, [6])))
    with refused(DeltaFormatError, "gaps", 42, file=path):
        SparseDelta.load(path)


def test_records_unfold_within_bounds() -> None:
    bomb = torch.frombuffer(bytearray(zlib.compress(b"{" + b" " * (1 << 24))), dtype=torch.uint8)
    with refused(DeltaFormatError, "records", 65536 + 64 * len(bomb), file="here"):
        unpack_headers("here", bomb, Budget(len(bomb)))
    plain = torch.frombuffer(bytearray(zlib.compress(bytes(1 << 27 | 1), 0)), dtype=torch.uint8)
    with refused(DeltaFormatError, "records", 1 << 27, file="here"):
        unpack_headers("here", plain, Budget(len(plain)))


@pytest.mark.parametrize("one", ['"{i:x}":{{"shape":[0],"dtype":"F32"}}', '"{i:x}":[]', '"{i:x}":[1,1,1,1,1,1,1,1]'])
def test_records_are_as_many_as_the_bytes_explain(one: str) -> None:
    text = "{" + ",".join(one.format(i=i) for i in range(100_000)) + "}"
    packed = torch.frombuffer(bytearray(zlib.compress(text.encode(), 9)), dtype=torch.uint8)
    with refused(DeltaFormatError, "records", file="here"):
        unpack_headers("here", packed, Budget(len(packed)))


@pytest.mark.parametrize("length", [1, 1000, 1_000_000])
def test_records_however_regular_can_be_read_again(length: int) -> None:
    text = " " * length
    packed = pack_headers(text, 0)
    assert unpack_headers("here", packed, Budget(len(packed))) == text


def test_many_small_parameters_alike_can_be_read_again(tmp_path: Path) -> None:
    names = [f"experts.{number}" for number in range(5_000)]
    change = export({"w": torch.zeros(2)}, {"w": torch.ones(2)})["w"]
    delta = SparseDelta({name: replace(change, base=None) for name in names})
    delta.save(tmp_path / "x.safetensors", "packed")
    assert SparseDelta.load(tmp_path / "x.safetensors") == delta


def test_a_delta_of_equal_numbers_can_be_read_again(tmp_path: Path) -> None:
    delta = export({"w": torch.zeros(3_000_000)}, {"w": torch.ones(3_000_000)})
    delta.save(tmp_path / "x.safetensors", "packed")
    assert SparseDelta.load(tmp_path / "x.safetensors") == delta


def test_unknown_versions_name_both(tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    for setting, value, *shown in (
        ("format_version", "2", 2, 1),
        ("encoding", "zip", "encoding", "zip", "['coo', 'packed']", __version__),
        ("op", "xor", "op", "xor", "['add', 'replace', 'step']", __version__),
        ("format", "other", "rst export"),
    ):
        small_delta().save(path)
        forge(path, tell(setting, value))
        with refused(DeltaFormatError, *shown, file=path):
            SparseDelta.load(path)


def test_what_is_no_delta_is_refused(tmp_path: Path) -> None:
    with refused(CheckpointError, file="missing.safetensors"):
        SparseDelta.load(tmp_path / "missing.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "weights.safetensors")
    with refused(DeltaFormatError, "rst export", file="weights.safetensors"):
        SparseDelta.load(tmp_path / "weights.safetensors")


def test_nothing_is_written_that_could_not_be_read(tmp_path: Path) -> None:
    path, delta = tmp_path / "delta.safetensors", small_delta()
    with refused(ConfigError, "encoding='zip'"):
        delta.save(path, "zip")
    broken = replace(delta, parameters={"w": replace(delta["w"], values=torch.ones(3))})
    for encoding in ENCODINGS:
        with refused(DeltaFormatError, 3, 5, parameter="w"):
            broken.save(path, encoding)
    assert not list(tmp_path.iterdir())


@given(pairs())
def test_a_file_is_the_same_every_time(folder: Path, pair: tuple[Tensor, Tensor]) -> None:
    delta = export({"w": pair[0]}, {"w": pair[1]})
    for encoding in ENCODINGS:
        delta.save(folder / "one.safetensors", encoding)
        delta.save(folder / "two.safetensors", encoding)
        assert (folder / "one.safetensors").read_bytes() == (folder / "two.safetensors").read_bytes()


# --- Size -----------------------------------------------------------------------------------------------------------


def vision_tower() -> dict[str, tuple[int, ...]]:
    """The parameters of CLIP's ViT-B/16: 86,192,640 weights."""
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (768,),
        "visual.positional_embedding": (197, 768),
        "visual.proj": (768, 512),
        "visual.conv1.weight": (768, 3, 16, 16),
    }
    norms = {"visual.ln_pre": 768, "visual.ln_post": 768}
    for block in (f"visual.transformer.resblocks.{index}" for index in range(12)):
        norms |= {f"{block}.ln_1": 768, f"{block}.ln_2": 768}
        linear = {"attn.in_proj_": (2304, 768), "attn.out_proj.": (768, 768)}
        linear |= {"mlp.c_fc.": (3072, 768), "mlp.c_proj.": (768, 3072)}
        for name, shape in linear.items():
            shapes |= {f"{block}.{name}weight": shape, f"{block}.{name}bias": shape[:1]}
    for name, width in norms.items():
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return shapes


def synthetic_delta(
    density: float, op: str, tune: Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]
) -> SparseDelta:
    """Changes at random positions of the tower; `tune` gives w0 and wt for so many draws from N(0, 0.02)."""
    generator = torch.Generator().manual_seed(0)
    parameters = {}
    for name, shape in vision_tower().items():
        count = round(math.prod(shape) * density)
        positions = torch.randint(math.prod(shape), (count,), generator=generator).unique()
        origin, target = tune(torch.randn(positions.numel(), generator=generator) * 0.02, generator)
        digests = BaseDigests(*(f"{int(word):016x}" for word in torch.randint(1 << 62, (2,), generator=generator)))
        if count:
            parameters[name] = ParameterDelta.at(positions, origin, target, shape, digests, op)
    weights = sum(math.prod(shape) for shape in vision_tower().values())
    return SparseDelta(parameters, base=BaseIdentity("ViT-B-16.safetensors", None, weights), config={"threshold": 1e-6})


def barely_over_the_threshold(weights: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    size = torch.empty_like(weights).exponential_(generator=generator) + 1
    return weights, weights + torch.randn(weights.shape, generator=generator).sign() * size * 1e-6


def rounded_to_the_next_bfloat16(weights: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One unit in the last place up or down, rarely two: what a small update of float32 weights leaves in bfloat16."""
    origin = weights.bfloat16()
    distance = 1 + (torch.rand(weights.shape, generator=generator) < 0.05).to(torch.int16)
    sign = torch.randn(weights.shape, generator=generator).sign().to(torch.int16)
    return origin, (bits(origin) + distance * sign).view(torch.bfloat16)


def test_gaps_of_parameters_of_different_density_are_packed_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    deltas = {}
    for name, one_in in (("dense", 3), ("sparse", 30)):
        positions = torch.randperm(10_000 * one_in, generator=generator)[:10_000].sort()[0]
        deltas[name] = ParameterDelta.at(positions, torch.zeros(10_000), torch.ones(10_000), (10_000 * one_in,), None)
    apart = sum(to_arrays({name: delta})["gaps"].numel() for name, delta in deltas.items())
    assert to_arrays(deltas)["gaps"].numel() < apart + 10


@pytest.mark.parametrize(
    ("density", "op", "tune", "limit"),
    [
        (0.001, "add", barely_over_the_threshold, 27.0),
        (0.001, "step", barely_over_the_threshold, 27.0),
        (0.012, "step", rounded_to_the_next_bfloat16, 10.4),
    ],
)
def test_bits_of_a_packed_file_for_each_changed_weight(
    tmp_path: Path,
    density: float,
    op: str,
    tune: Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]],
    limit: float,
) -> None:
    delta = synthetic_delta(density, op, tune)
    assert delta.base.weights == 86_192_640
    round_trip(delta, tmp_path / "delta.safetensors", "packed")
    assert (tmp_path / "delta.safetensors").stat().st_size * 8 / delta.nnz <= limit
