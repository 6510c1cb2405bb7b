"""Every form that weights come in, with everything that is done with a delta: the outcome is the same.

Each test is one pair of forms and one use, with some of the operations, encodings and kinds of change: each use sees
all. What a use cannot do it refuses with an error of the library; other outcomes are compared byte by byte.
"""

import copy
import json
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rst import ParameterMismatchError, SparseDelta, combine, convert, export, merge
from rst.delta.parameter_delta import Op
from rst.delta.sparse_delta import Encoding
from rst.operations.merge import rehearse
from rst.sync import Follower, Publisher

State = dict[str, Tensor]
OPS, ENCODINGS = get_args(Op), get_args(Encoding)


class Odd(nn.Module):
    """Tied, empty, 0-d, transposed, channels-last and expanded tensors, in three dtypes, with BatchNorm's buffers."""

    wide: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 6)
        self.stem = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.norm = nn.BatchNorm1d(6)
        self.half = nn.Linear(3, 3).to(torch.bfloat16)
        self.emb = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.emb.weight
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.nothing = nn.Parameter(torch.empty(0, 3))
        self.turned = nn.Parameter(torch.randn(5, 3).t())
        self.register_buffer("wide", torch.tensor([0.25]).expand(4))


def change_nothing(model: Odd) -> None:
    """The tuned weights are the base's."""


def change_one(model: Odd) -> None:
    model.turned[1, 2] += 1


def change_everything(model: Odd) -> None:
    for parameter in model.parameters():
        parameter.copy_(torch.where(parameter.abs() < 0.5, 0.75 - 3 * parameter, parameter + 0.5))
    model.norm.running_mean += 1  # type: ignore[operator]
    model.norm.num_batches_tracked += 3  # type: ignore[operator]


def add_a_head(model: Odd) -> None:
    change_one(model)
    model.added = nn.Linear(6, 2)


CHANGES: dict[str, tuple[Callable[[Odd], None], dict[str, Any]]] = {
    "no change": (change_nothing, {}),
    "one change": (change_one, {}),
    "everything": (change_everything, {}),
    "new tensors": (add_a_head, {}),
    "whole tensors": (change_everything, {"modules_to_save": ["norm", "half"]}),
}


def tuned(change: str) -> Odd:
    model = Odd()
    with torch.no_grad():
        CHANGES[change][0](model)
    return model


def once(model: nn.Module) -> State:
    """As safetensors hold it: the tied tensor under one name, everything contiguous."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in own_names(model).items()}


def own_names(model: nn.Module) -> State:
    return {name: tensor for name, tensor in model.state_dict().items() if name != "head.weight"}


# Forms of weights: each writes a model's weights below a folder and returns what the library is given.
def as_module(model: nn.Module, _: Path) -> nn.Module:
    return model


def as_state_dict(model: nn.Module, _: Path) -> State:
    return model.state_dict()


def as_safetensors(model: nn.Module, folder: Path) -> Path:
    save_file(once(model), folder / "weights.safetensors")
    return folder / "weights.safetensors"


def as_pickle(model: nn.Module, folder: Path) -> Path:
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, folder / "weights.pt")
    return folder / "weights.pt"


def as_folder(model: nn.Module, folder: Path) -> Path:
    save_file(once(model), folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def as_shards(model: nn.Module, folder: Path) -> Path:
    state = once(model)
    shards = {"model-00001-of-00002.safetensors": [*state][::2], "model-00002-of-00002.safetensors": [*state][1::2]}
    for file, names in shards.items():
        save_file({name: state[name] for name in names}, folder / file)
    index = {name: file for file, names in shards.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def as_dcp(model: nn.Module, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there is one process
        dcp.save(once(model), checkpoint_id=folder, no_dist=True)
    return folder


FORMS = {
    form.__name__.removeprefix("as_"): form
    for form in (as_module, as_state_dict, as_safetensors, as_pickle, as_folder, as_shards, as_dcp)
}
IN_MEMORY = ("module", "state_dict")


# Uses of a delta: each is given the base in a form, the delta in a file, the tuned model and a folder to write to.
Use = Callable[[Any, Path, Odd, Path], None]


def merged_in_memory(base: Any, delta: Path, wanted: Odd, _: Path) -> None:
    same(merge(base, SparseDelta.load(delta)), wanted)


def merged_into(name: str, **options: Any) -> Use:
    def use(base: Path, delta: Path, wanted: Odd, folder: Path) -> None:
        written = merge(base, delta, folder / name, **options)
        if written.suffix == ".pt":
            content = torch.load(written, weights_only=True)
            assert content["epoch"] == 3
            return same(content["state_dict"], wanted)
        files = sorted(written.glob("*.safetensors")) if written.is_dir() else [written]
        assert len(files) > 1 or not options
        return same({name: tensor for file in files for name, tensor in load_file(file).items()}, wanted, in_files=True)

    return use


def refuses_new_tensors(put: Callable[[nn.Module], object], served: nn.Module, wanted: Odd) -> bool:
    """Whether the tuned model has a tensor that no live base has; then a delta of it must be refused."""
    if not hasattr(wanted, "added"):
        return False
    with pytest.raises(ParameterMismatchError):
        put(served)
    return True


def applied(base: Odd, delta: Path, wanted: Odd, _: Path) -> None:
    served, before = copy.deepcopy(base), copy.deepcopy(base)
    if not refuses_new_tensors(SparseDelta.load(delta).apply, served, wanted):
        with SparseDelta.load(delta).apply(served):
            same(served.state_dict(), wanted)
    same(served.state_dict(), before)


def prepared(base: Odd, delta: Path, wanted: Odd, _: Path) -> None:
    served, before = copy.deepcopy(base), copy.deepcopy(base)
    if refuses_new_tensors(SparseDelta.load(delta).prepare, served, wanted):
        return
    ready = SparseDelta.load(delta).prepare(served)
    for _ in range(2):
        ready.apply()
        same(served.state_dict(), wanted)
        ready.remove()
        same(served.state_dict(), before)


def converted(base: Any, delta: Path, wanted: Odd, folder: Path) -> None:
    """To every operation and encoding, and merged from there."""
    for op, encoding in product(OPS, ENCODINGS):
        convert(SparseDelta.load(delta), op=op, base=base).save(folder / "converted.safetensors", encoding)
        change = SparseDelta.load(folder / "converted.safetensors")
        assert change.op == op or not change
        same(merge(Odd().state_dict(), change), wanted)


def combined(base: Any, delta: Path, wanted: Odd, _: Path) -> None:
    """Alone with the factor 1 it is what it was, but for the last bit, which sums of residuals do not have."""
    change = convert(SparseDelta.load(delta), op="add", base=base)
    found = merge(Odd().state_dict(), combine([change], [1.0], base=base))
    for name, tensor in wanted.state_dict().items():
        torch.testing.assert_close(found[name], tensor)


def verified(base: Path, delta: Path, wanted: Odd, _: Path) -> None:
    assert rehearse(base, delta) >= sum(tensor.nbytes for tensor in once(wanted).values())


def inspected(_: Any, delta: Path, wanted: Odd, __: Path) -> None:
    change = SparseDelta.load(delta)
    parameters = dict(wanted.named_parameters())
    moved = sum(int((parameters[name] != tensor).sum()) for name, tensor in Odd().named_parameters())
    whole = sum(int(name in parameters and parameters[name].numel()) for name in change.dense)
    assert moved <= change.dsp() <= moved + whole + 14  # what is stored whole, and BatchNorm's buffers
    assert change.summary()


FILE_USES: dict[str, Use] = {
    "a file": merged_into("merged.safetensors"),
    "a folder": merged_into("merged"),
    "shards": merged_into("merged", max_shard_size="200"),
    "verified": verified,
}
ANYWHERE: dict[str, Use] = {"converted": converted, "combined": combined}
USES: dict[str, dict[str, Use]] = {
    "module": {"applied": applied, "prepared": prepared} | ANYWHERE,
    "state_dict": {"merged in memory": merged_in_memory, "inspected": inspected} | ANYWHERE,
    "pickle": {"a pickle": merged_into("merged.pt")} | FILE_USES | ANYWHERE,
    **dict.fromkeys(("safetensors", "folder", "shards", "dcp"), FILE_USES | ANYWHERE),
}
KINDS = list(product(CHANGES, OPS, ENCODINGS))
A_TEST = 5  # kinds of delta; the seven producers together go through all 30 of them with each consumer and use
TESTS = [
    pytest.param(
        producer,
        consumer,
        use,
        [KINDS[(A_TEST * first + shift + k) % len(KINDS)] for k in range(A_TEST)],
        id=f"{producer}-{consumer}-{use.replace(' ', '_')}",
        marks=() if producer in ("module", "safetensors") else pytest.mark.slow,  # as these make the same deltas
    )
    for shift, (consumer, use) in enumerate((consumer, use) for consumer in FORMS for use in USES[consumer])
    for first, producer in enumerate(FORMS)
]


def same(found: Mapping[str, Tensor], wanted: nn.Module, *, in_files: bool = False) -> None:
    """Compare byte by byte. Files may have a tied tensor once."""
    expected = wanted.state_dict()
    assert found.keys() == expected.keys() or (in_files and found.keys() == own_names(wanted).keys())
    for name, tensor in found.items():
        assert (tensor.dtype, tensor.shape) == (expected[name].dtype, expected[name].shape), name
        assert (
            tensor.contiguous()
            .reshape(-1)
            .view(torch.uint8)
            .equal(expected[name].detach().contiguous().reshape(-1).view(torch.uint8))
        ), name


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, Op, Encoding], Path]:
    """The file of a delta that a form of weights gives."""

    @cache
    def weights(producer: str, change: str) -> tuple[Any, Any]:
        places = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("tuned")
        return FORMS[producer](Odd(), places[0]), FORMS[producer](tuned(change), places[1])

    @cache
    def delta(producer: str, change: str, op: Op, encoding: Encoding) -> Path:
        file = tmp_path_factory.mktemp("delta") / "delta.safetensors"
        export(*weights(producer, change), op=op, **CHANGES[change][1]).save(file, encoding)
        return file

    return delta


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("change", [change for change in CHANGES if change not in ("new tensors", "whole tensors")])
@pytest.mark.parametrize("form", FORMS)
def test_a_chain_begins_and_goes_on_from_every_form(tmp_path: Path, form: str, change: str, op: Op) -> None:
    places = tmp_path / "base", tmp_path / "tuned"
    for place in places:
        place.mkdir()
    Publisher(FORMS[form](Odd(), places[0]), tmp_path / "chain", op=op)
    follower = Follower(Odd(), tmp_path / "chain")
    follower.update()
    Publisher(FORMS[form](tuned(change), places[1]), tmp_path / "chain", op=op).publish()
    follower.update()
    same(follower.weights, tuned(change), in_files=True)


@pytest.mark.parametrize(("producer", "consumer", "use", "kinds"), TESTS)
def test_every_producer_goes_with_every_consumer(
    exported: Callable[[str, str, Op, Encoding], Path],
    tmp_path: Path,
    producer: str,
    consumer: str,
    use: str,
    kinds: list[tuple[str, Op, Encoding]],
) -> None:
    (tmp_path / "base").mkdir()
    base = FORMS[consumer](Odd(), tmp_path / "base")
    failed = []
    for number, (change, op, encoding) in enumerate(kinds):
        output = tmp_path / str(number)
        output.mkdir()
        try:
            USES[consumer][use](base, exported(producer, change, op, encoding), tuned(change), output)
        except Exception as error:
            failed.append(f"{change}, {op}, {encoding}: {type(error).__name__}: {str(error)[:200]}")
    assert not failed, "\n".join(failed)
