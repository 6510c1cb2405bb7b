"""Every form that weights come in, with everything that is done with a delta: the outcome is the same.

Each test is one pair of forms and one use, with some of the operations, encodings and kinds of change: each use sees
every two of them. What a use cannot do it refuses with an error of the library; other outcomes are compared byte by
byte.

The odd tensors of a made model go through all of it, small models of real architectures through every pair of two
things. `python -m tests.integration.test_matrix` counts the combinations.
"""

import copy
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
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
Weights = Callable[[str, str, str | None], Any]
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


def convnext() -> nn.Module:
    vision = pytest.importorskip("torchvision.models.convnext")
    blocks = [vision.CNBlockConfig(4, 8, 1), vision.CNBlockConfig(8, None, 1)]
    model: nn.Module = vision.ConvNeXt(blocks, num_classes=3)
    return model


def vision_transformer() -> nn.Module:
    vision = pytest.importorskip("torchvision.models.vision_transformer")
    model: nn.Module = vision.VisionTransformer(8, 4, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=3)
    return model


def resnet() -> nn.Module:
    """With BatchNorm and strides of channels-last."""
    hf = pytest.importorskip("transformers")
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "num_labels": 3}
    model: nn.Module = hf.ResNetForImageClassification(hf.ResNetConfig(**sizes))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def llama() -> nn.Module:
    """With tied embeddings, in bfloat16."""
    from tests.rst.checkpoints import tiny_models

    return tiny_models.llama().to(torch.bfloat16)


def bert() -> nn.Module:
    from tests.rst.checkpoints import tiny_models

    return tiny_models.bert()


MODELS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {  # each with modules to be stored whole
    "odd": (Odd, ["norm", "half"]),
    "convnext": (convnext, ["classifier"]),
    "vision_transformer": (vision_transformer, ["heads"]),
    "resnet": (resnet, ["classifier"]),
    "llama": (llama, ["norm"]),
    "bert": (bert, ["classifier"]),
}


@cache
def built(model: str) -> nn.Module:
    """One for all tests: what changes it makes the next ones fail."""
    torch.manual_seed(0)
    return MODELS[model][0]()


def change_nothing(model: nn.Module) -> None:
    """The tuned weights are the base's."""


def change_one(model: nn.Module) -> None:
    changed = next(tensor for tensor in model.parameters() if tensor.dim() > 1 and tensor.numel())
    changed[(-1,) * changed.dim()] += 1


def change_everything(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.copy_(torch.where(parameter.abs() < 0.5, 0.75 - 3 * parameter, parameter + 0.5))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer += 1
        if name.endswith("num_batches_tracked"):
            buffer += 3


def add_a_head(model: nn.Module) -> None:
    change_one(model)
    torch.manual_seed(1)
    model.added = nn.Linear(6, 2)


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "no change": change_nothing,
    "one change": change_one,
    "everything": change_everything,
    "new tensors": add_a_head,
    "whole tensors": change_everything,
}


@cache
def tuned(model: str, change: str) -> nn.Module:
    changed = copy.deepcopy(built(model))
    with torch.no_grad():
        CHANGES[change](changed)
    return changed


def once(model: nn.Module) -> State:
    """As safetensors hold it: a tied tensor under one name, everything contiguous."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in own_names(model).items()}


def own_names(model: nn.Module) -> State:
    tied = ("head.weight", "lm_head.weight")
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


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


# Uses of a delta: each is given the base in a form, the delta in a file, the base and the tuned model, and a folder.
Use = Callable[[Any, Path, nn.Module, nn.Module, Path], None]


def merged_in_memory(base: Any, delta: Path, _: nn.Module, wanted: nn.Module, __: Path) -> None:
    same(merge(base, SparseDelta.load(delta)), wanted)


def merged_into(name: str, *, shards: bool = False) -> Use:
    def use(base: Path, delta: Path, origin: nn.Module, wanted: nn.Module, folder: Path) -> None:
        third = sum(tensor.nbytes for tensor in once(origin).values()) // 3
        written = merge(base, delta, folder / name, max_shard_size=third if shards else None)
        if written.suffix == ".pt":
            content = torch.load(written, weights_only=True)
            assert content["epoch"] == 3
            return same(content["state_dict"], wanted)
        files = sorted(written.glob("*.safetensors")) if written.is_dir() else [written]
        assert len(files) > 1 or not shards
        return same({name: tensor for file in files for name, tensor in load_file(file).items()}, wanted, in_files=True)

    return use


def refuses_new_tensors(put: Callable[[nn.Module], object], served: nn.Module, wanted: nn.Module) -> bool:
    """Whether the tuned model has a tensor that no live base has; then a delta of it must be refused."""
    if not hasattr(wanted, "added"):
        return False
    with pytest.raises(ParameterMismatchError):
        put(served)
    return True


def applied(base: nn.Module, delta: Path, _: nn.Module, wanted: nn.Module, __: Path) -> None:
    served, before = copy.deepcopy(base), copy.deepcopy(base)
    if not refuses_new_tensors(SparseDelta.load(delta).apply, served, wanted):
        with SparseDelta.load(delta).apply(served):
            same(served.state_dict(), wanted)
    same(served.state_dict(), before)


def prepared(base: nn.Module, delta: Path, _: nn.Module, wanted: nn.Module, __: Path) -> None:
    served, before = copy.deepcopy(base), copy.deepcopy(base)
    if refuses_new_tensors(SparseDelta.load(delta).prepare, served, wanted):
        return
    ready = SparseDelta.load(delta).prepare(served)
    for _ in range(2):
        ready.apply()
        same(served.state_dict(), wanted)
        ready.remove()
        same(served.state_dict(), before)


def converted(base: Any, delta: Path, origin: nn.Module, wanted: nn.Module, folder: Path) -> None:
    """To every operation and encoding, and merged from there."""
    state, source = origin.state_dict(), SparseDelta.load(delta)
    for op in OPS:
        change = convert(source, op=op, base=base)
        for encoding in ENCODINGS:
            change.save(folder / "converted.safetensors", encoding)
            read = SparseDelta.load(folder / "converted.safetensors")
            assert read.op == op or not read
            same(merge(state, read), wanted)


def combined(base: Any, delta: Path, origin: nn.Module, wanted: nn.Module, _: Path) -> None:
    """Alone with the factor 1 it is what it was, but for the last bit, which sums of residuals do not have."""
    change = convert(SparseDelta.load(delta), op="add", base=base)
    found = merge(origin.state_dict(), combine([change], [1.0], base=base))
    for name, tensor in wanted.state_dict().items():
        torch.testing.assert_close(found[name], tensor)


def verified(base: Path, delta: Path, _: nn.Module, wanted: nn.Module, __: Path) -> None:
    assert rehearse(base, delta) >= sum(tensor.nbytes for tensor in once(wanted).values())


def inspected(_: Any, delta: Path, origin: nn.Module, wanted: nn.Module, __: Path) -> None:
    change = SparseDelta.load(delta)
    parameters = dict(wanted.named_parameters())
    moved = sum(int((parameters[name] != tensor).sum()) for name, tensor in origin.named_parameters())
    whole = sum(int(name in parameters and parameters[name].numel()) for name in change.dense)
    buffers = sum(buffer.numel() for buffer in wanted.buffers())
    assert moved <= change.dsp() <= moved + whole + buffers
    assert change.summary()


FILE_USES: dict[str, Use] = {
    "a file": merged_into("merged.safetensors"),
    "a folder": merged_into("merged"),
    "shards": merged_into("merged", shards=True),
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
PAIRS = [(consumer, use) for consumer in FORMS for use in USES[consumer]]
REAL = [model for model in MODELS if model != "odd"]


def half(shift: int) -> list[tuple[str, Op, Encoding]]:
    """One of the two halves of all kinds of delta; each has every two of change, operation and encoding."""
    numbers = product(*(range(len(values)) for values in (CHANGES, OPS, ENCODINGS)))
    return [kind for number, kind in zip(numbers, KINDS, strict=True) if sum(number) % 2 == shift % 2]


@dataclass(frozen=True)
class Case:
    """One test: what it goes through, and whether it is of the fast tier."""

    model: str
    producer: str
    consumer: str
    use: str
    kinds: list[tuple[str, Op, Encoding]]
    fast: bool

    def param(self) -> Any:
        words = self.model, self.producer, self.consumer, self.use.replace(" ", "_")
        return pytest.param(self, id="-".join(words), marks=() if self.fast else pytest.mark.slow)

    def combinations(self) -> list[tuple[str, ...]]:
        return [(self.model, self.producer, f"{self.consumer}, {self.use}", *kind) for kind in self.kinds]


CASES = [
    Case(
        "odd",
        producer,
        consumer,
        use,
        half(shift)[(first + shift) % len(FORMS) :: len(FORMS)],  # all producers together: all of the half
        producer == ("module", "safetensors")[shift % 2],  # as the others make the same deltas
    )
    for shift, (consumer, use) in enumerate(PAIRS)
    for first, producer in enumerate(FORMS)
]
CASES += [
    Case(
        model,
        [*FORMS][(number + shift) % len(FORMS)],
        consumer,
        use,
        [KINDS[(7 * (number + 5 * shift)) % len(KINDS)]],
        number % len(REAL) == shift % len(REAL),  # each use with one of them
    )
    for shift, model in enumerate(REAL)
    for number, (consumer, use) in enumerate(PAIRS)
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
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """A model's weights in a form, tuned or not; written once, as no use of them may change them."""

    @cache
    def in_form(model: str, form: str, change: str | None) -> Any:
        return FORMS[form](tuned(model, change) if change else built(model), tmp_path_factory.mktemp("weights"))

    return in_form


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, weights: Weights
) -> Callable[[str, str, str, Op, Encoding], Path]:
    """The file of a delta that a form of weights gives."""

    @cache
    def delta(model: str, producer: str, change: str, op: Op, encoding: Encoding) -> Path:
        file = tmp_path_factory.mktemp("delta") / "delta.safetensors"
        whole = MODELS[model][1] if change == "whole tensors" else None
        pair = weights(model, producer, None), weights(model, producer, change)
        export(*pair, op=op, modules_to_save=whole).save(file, encoding)
        return file

    return delta


CHAINS = [("odd", form, change, op) for form in FORMS for change in [*CHANGES][:3] for op in OPS]
CHAINS += [
    (model, form, [*CHANGES][(row + column) % 3], OPS[(row + 2 * column) % 3])
    for row, model in enumerate(REAL)
    for column, form in enumerate(FORMS)
]
FAST_CHAINS = [chain for chain in CHAINS if chain[0] == "odd" and chain[1] in ("module", "safetensors")]


@pytest.mark.parametrize(
    ("model", "form", "change", "op"),
    [pytest.param(*chain, marks=() if chain in FAST_CHAINS else pytest.mark.slow) for chain in CHAINS],
)
def test_a_chain_begins_and_goes_on_from_every_form(
    weights: Weights, tmp_path: Path, model: str, form: str, change: str, op: Op
) -> None:
    Publisher(weights(model, form, None), tmp_path, op=op)
    follower = Follower(copy.deepcopy(built(model)), tmp_path)
    follower.update()
    Publisher(weights(model, form, change), tmp_path, op=op).publish()
    follower.update()
    same(follower.weights, tuned(model, change), in_files=True)


@pytest.mark.parametrize("case", [case.param() for case in CASES])
def test_every_producer_goes_with_every_consumer(
    exported: Callable[[str, str, str, Op, Encoding], Path],
    weights: Weights,
    tmp_path: Path,
    case: Case,
) -> None:
    base = weights(case.model, case.consumer, None)
    failed = []
    for number, (change, op, encoding) in enumerate(case.kinds):
        output = tmp_path / str(number)
        output.mkdir()
        try:
            delta = exported(case.model, case.producer, change, op, encoding)
            USES[case.consumer][case.use](base, delta, built(case.model), tuned(case.model, change), output)
        except Exception as error:
            failed.append(f"{change}, {op}, {encoding}: {type(error).__name__}: {str(error)[:200]}")
    assert not failed, "\n".join(failed)


def every_combination() -> list[tuple[str, ...]]:
    return [combination for case in CASES for combination in case.combinations()]


def test_every_two_things_meet() -> None:
    """A model with a form, an operation with an encoding, and so on, and any two of a delta's settings in each use."""
    seen = every_combination()
    values = [MODELS, FORMS, [f"{consumer}, {use}" for consumer, use in PAIRS], CHANGES, OPS, ENCODINGS]
    in_a_use = [(2, *two) for two in combinations((3, 4, 5), 2)]
    for dimensions in [*combinations(range(len(values)), 2), *in_a_use]:
        met = {tuple(combination[dimension] for dimension in dimensions) for combination in seen}
        assert met == {*product(*(values[dimension] for dimension in dimensions))}


if __name__ == "__main__":
    print(f"{len(every_combination())} combinations and {len(CHAINS)} chains")
