"""Batches whose samples use different adapters: each sample's output is that of its own tuned model."""

import copy
import gc
import threading
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rst import (
    ConfigError,
    NonFiniteError,
    ParameterMismatchError,
    RSTConfig,
    RSTModel,
    SparseDelta,
    WrongBaseError,
    convert,
    export,
    get_rst_model,
    mixed_forward,
)
from rst.mixed import batch, sample_groups
from rst.mixed.batch import _known


def tuned_from(base: nn.Module, seed: int, share: float = 0.03, size: float = 0.3) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in tuned.parameters():
            moved = torch.rand(parameter.shape, generator=generator) < share
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += (moved * size * noise).to(parameter.dtype)
    return tuned


def delta_between(base: nn.Module, tuned: nn.Module, **settings: Any) -> SparseDelta:
    return export(base.state_dict(), tuned.state_dict(), **settings)


def assert_matches_single_runs(
    base: nn.Module,
    inputs: dict[str, Tensor],
    pick: Callable[[Any], Tensor] = lambda output: output,
    adapters: int = 3,
    tolerance: float = 1e-12,
    **change: float,
) -> None:
    """Compare with one run a sample of its tuned model; "images" is passed by position, the rest by name."""
    base.eval()
    models = {"__base__": base} | {f"task{seed}": tuned_from(base, seed, **change) for seed in range(adapters)}
    deltas = {name: delta_between(base, tuned) for name, tuned in models.items() if name != "__base__"}
    size = len(next(iter(inputs.values())))
    names = [[*models][sample % len(models)] for sample in range(size)]
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}

    def run(call: Callable[..., Any], which: slice) -> Tensor:
        named = {name: tensor[which] for name, tensor in inputs.items() if name != "images"}
        return pick(call(*(inputs[name][which] for name in inputs if name == "images"), **named))

    with torch.no_grad():
        found = run(lambda *args, **kwargs: mixed_forward(base, deltas, names, args, kwargs), slice(None))
        wanted = torch.cat([run(models[name], slice(sample, sample + 1)) for sample, name in enumerate(names)])
        plain = run(base, slice(None))
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    assert (wanted - plain).abs().max() > 10 * tolerance, "the adapters change nothing"
    for name, tensor in base.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def clip_visual(dtype: torch.dtype) -> nn.Module:
    from open_clip.transformer import VisionTransformer

    torch.manual_seed(0)
    model: nn.Module = VisionTransformer(32, 8, 32, 2, 4, 4.0, output_dim=16).to(dtype)
    return model


@cache
def clip_of_64_tasks() -> tuple[nn.Module, dict[str, SparseDelta], Tensor, Tensor]:
    """A base, the deltas of 64 models tuned from it, an image for each, and what each makes of its own."""
    base, images = clip_visual(torch.float64).eval(), torch.randn(64, 3, 32, 32, dtype=torch.float64)
    tuned = [tuned_from(base, seed) for seed in range(len(images))]
    deltas = {f"task{seed}": delta_between(base, model) for seed, model in enumerate(tuned)}
    with torch.no_grad():
        return base, deltas, images, torch.cat([model(images[i : i + 1]) for i, model in enumerate(tuned)])


class Small(nn.Module):
    """Linear layers and a head, as little as the messages need."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.body(x)))
        return logits


@pytest.fixture
def small() -> Small:
    torch.manual_seed(0)
    return Small().double().eval()


@pytest.fixture(params=["joined", "few joined", "tuned copies"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take one way through a layer, which the sizes decide otherwise."""
    monkeypatch.setattr(sample_groups, "_WORTH_COPIES", 0 if request.param == "tuned copies" else 1 << 40)
    if request.param == "few joined":
        monkeypatch.setattr(batch, "_MOST_JOINT", 0)
        monkeypatch.setattr(batch, "_FEW_COPIES", 1)


@pytest.mark.usefixtures("way")
class TestRealArchitectures:
    def test_resnet(self) -> None:
        import torchvision

        torch.manual_seed(0)
        block = torchvision.models.resnet.BasicBlock
        model = torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=5).double()
        images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
        assert_matches_single_runs(model, {"images": images}, adapters=2, size=0.05)

    @pytest.mark.parametrize(
        ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 4e-2)]
    )
    def test_clip_image_encoder(self, dtype: torch.dtype, tolerance: float) -> None:
        images = torch.randn(6, 3, 32, 32).to(dtype)
        assert_matches_single_runs(clip_visual(dtype), {"images": images}, tolerance=tolerance)

    def test_transformers_models(self) -> None:
        import transformers

        torch.manual_seed(0)
        ids, mask = torch.randint(0, 50, (6, 7)), torch.ones(6, 7, dtype=torch.int64)
        mask[2, 4:] = 0
        sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        bert = transformers.BertModel(
            transformers.BertConfig(**sizes, intermediate_size=64, max_position_embeddings=16)
        )
        assert_matches_single_runs(
            bert.double(), {"input_ids": ids, "attention_mask": mask}, lambda output: output.last_hidden_state
        )
        special = {"bos_token_id": 0, "eos_token_id": 1}
        gpt2 = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=16, **special)
        )
        assert_matches_single_runs(gpt2.double(), {"input_ids": ids}, lambda output: output.logits)
        llama = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**sizes, intermediate_size=64, num_key_value_heads=2, **special)
        )
        assert_matches_single_runs(llama.double(), {"input_ids": ids}, lambda output: output.logits)

    def test_a_model_that_computes_gradients_itself(self) -> None:
        class Force(nn.Module):
            """The gradient of an energy, as in models of molecules."""

            def __init__(self) -> None:
                super().__init__()
                self.energy = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))

            def forward(self, positions: Tensor) -> Tensor:
                with torch.enable_grad():
                    moved = positions.detach().requires_grad_()
                    return torch.autograd.grad(self.energy(moved).sum(), moved)[0]

        torch.manual_seed(0)
        positions = torch.randn(9, 6, dtype=torch.float64)
        assert_matches_single_runs(Force().double(), {"images": positions}, share=0.3)

    def test_64_different_adapters_in_one_batch_match_64_single_runs(self) -> None:
        base, deltas, images, wanted = clip_of_64_tasks()
        found = mixed_forward(base, deltas, [*deltas], (images,), {})
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_the_joint_index_of_a_batch_is_no_larger_than_four_of_each_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a copy for each sample would be too large: one adapter for 64 samples has its own index only."""
    monkeypatch.setattr(batch, "_MOST_JOINT", 0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False)).eval()
    deltas = {f"task{seed}": delta_between(model, tuned_from(model, seed)) for seed in range(3)}
    inputs = torch.randn(70, 64)
    names = [*["task0"] * 64, *["task1"] * 4, "task2", "__base__"]
    found = mixed_forward(model, deltas, names, (inputs,))
    for name in deltas:
        with deltas[name].apply(model):
            own = [k for k, one in enumerate(names) if one == name]
            torch.testing.assert_close(found[own], model(inputs[own]))
    kept = batch._latest[model].groups._joint.values()
    entries = sum(len(block.sources) for _, blocks in kept for block in blocks)  # type: ignore[attr-defined]
    assert entries == deltas["task0"].nnz + 4 * deltas["task1"].nnz + deltas["task2"].nnz


class TestLayers:
    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("batch_first", [False, True])
    def test_attention_with_its_weights_and_masks(self, batch_first: bool, masked: bool) -> None:
        class Cross(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.cross = nn.MultiheadAttention(8, 2, kdim=4, vdim=4, batch_first=batch_first)
                self.inner = nn.MultiheadAttention(8, 2, batch_first=batch_first)

            def forward(self, images: Tensor, other: Tensor, padding: Tensor) -> Tensor:
                query, source = (t if batch_first else t.transpose(0, 1) for t in (images, other))
                settings = {"key_padding_mask": padding, "attn_mask": torch.eye(3, 5).bool()} if masked else {}
                output, weights = self.cross(query, source, source, **settings, average_attn_weights=False)
                output, _ = self.inner(output, query, query, need_weights=False)
                return torch.cat(
                    [(output if batch_first else output.transpose(0, 1)).flatten(1), weights.flatten(1)], 1
                )

        torch.manual_seed(0)
        padding = torch.zeros(4, 5, dtype=torch.bool)
        padding[1, 3:] = True
        inputs = {"images": torch.randn(4, 3, 8).double(), "other": torch.randn(4, 5, 4).double(), "padding": padding}
        assert_matches_single_runs(Cross().double(), inputs, share=0.3)

    def test_attention_with_weights_averaged_over_heads(self) -> None:
        class Attention(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

            def forward(self, images: Tensor) -> Tensor:
                output, weights = self.inner(images, images, images)
                return torch.cat([output.flatten(1), weights.flatten(1)], 1)

        torch.manual_seed(0)
        assert_matches_single_runs(Attention().double(), {"images": torch.randn(4, 3, 8).double()}, share=0.3)

    def test_layers_over_what_all_samples_share(self) -> None:
        """Positions, tokens and prompts that are parameters: computed once an adapter, then met by the samples."""

        class Shared(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.token = nn.Parameter(torch.randn(1, 4, 6))
                self.places = nn.Embedding(4, 6)
                self.layer = nn.LayerNorm(6)
                self.group = nn.GroupNorm(2, 4)
                self.mix = nn.Conv1d(4, 4, 3, padding="valid")
                self.matrix = nn.Parameter(torch.randn(4, 3))
                self.bias = nn.Parameter(torch.randn(3))

            def forward(self, images: Tensor) -> Tensor:
                token = self.group(self.layer(self.token)) + self.places(torch.arange(4)[None])
                x = self.mix(images) + self.mix(token)
                token = torch.matmul(token.mean(dim=1), self.token[0].T)
                return torch.matmul(x.mean(dim=2), self.matrix) + torch.addmm(self.bias, token, self.matrix)

        torch.manual_seed(0)
        images = torch.randn(5, 4, 6, dtype=torch.float64)
        assert_matches_single_runs(Shared().double(), {"images": images}, share=0.5)

    def test_norms_and_anything_else_run_once_an_adapter(self) -> None:
        class Mixture(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scale = nn.Parameter(torch.rand(()))
                self.token = nn.Parameter(torch.randn(1, 4, 1))
                self.group = nn.GroupNorm(2, 4)
                self.batch = nn.BatchNorm1d(4)
                self.rms = nn.RMSNorm(7)
                self.up = nn.ConvTranspose1d(4, 4, 3, padding=1, padding_mode="zeros")
                self.prelu = nn.PReLU(4)
                self.bilinear = nn.Bilinear(7, 7, 3)

            def forward(self, images: Tensor) -> Tensor:
                x = torch.cat([images, self.token.expand(len(images), -1, -1)], dim=2)
                x = self.rms(self.batch(self.group(x)))
                x = self.prelu(self.up(x)) * self.scale.exp()
                x += self.token
                x.mul_(self.scale)
                return self.bilinear(x, nn.functional.normalize(self.token, dim=1) * x)

        torch.manual_seed(0)
        images = torch.randn(5, 4, 6, dtype=torch.float64)
        assert_matches_single_runs(Mixture().double(), {"images": images}, share=0.7)

    @pytest.mark.parametrize("batch_first", [False, True])
    @pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
    def test_recurrent_layers(self, kind: type[nn.RNNBase], batch_first: bool) -> None:
        class Recurrent(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = kind(3, 4, num_layers=2, bidirectional=True, batch_first=batch_first)  # type: ignore[arg-type]

            def forward(self, images: Tensor) -> Tensor:
                output, state = self.layer(images if batch_first else images.transpose(0, 1))
                last = state[1] if isinstance(state, tuple) else state
                output = output if batch_first else output.transpose(0, 1)
                return torch.cat([output.flatten(1), last.transpose(0, 1).flatten(1)], dim=1)

        torch.manual_seed(0)
        assert_matches_single_runs(Recurrent().double(), {"images": torch.randn(5, 6, 3).double()}, share=0.5)

    def test_adapters_with_few_and_many_changes_and_none(self) -> None:
        """The samples of one product have differing numbers of changed outputs, and what lies there is not finite."""
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)).double().eval()
        models = {f"{share}": tuned_from(base, seed=1, share=share) for share in (0.02, 0.3, 1.0)}
        models["same"] = copy.deepcopy(base)
        deltas = {name: delta_between(base, tuned) for name, tuned in models.items()}
        names = ["0.3", "__base__", "1.0", "0.02", "same", "0.3"]
        x = torch.randn(6, 3, 6, dtype=torch.float64)
        x[0, 1, 0], x[1, 0, 0] = float("nan"), float("inf")
        found = mixed_forward(base, deltas, names, (x,))
        wanted = torch.stack(
            [(base if name == "__base__" else models[name])(one) for name, one in zip(names, x, strict=True)]
        )
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12, equal_nan=True)

    def test_samples_of_many_tokens_come_in_several_products(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rst.mixed.sparse_product._INPUTS", 64)
        monkeypatch.setattr("rst.mixed.sparse_product._MOST_GATHERED", 64)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Linear(6, 3)).double()
        assert_matches_single_runs(model, {"images": torch.randn(7, 2, 8).double()}, share=0.4)

    def test_tied_weights(self) -> None:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.tokens = nn.Embedding(9, 6, padding_idx=0)
                self.head = nn.Linear(6, 9, bias=False)
                self.head.weight = self.tokens.weight

            def forward(self, ids: Tensor) -> Tensor:
                logits: Tensor = self.head(self.tokens(ids))
                return logits

        torch.manual_seed(0)
        assert_matches_single_runs(Tied().double(), {"ids": torch.randint(0, 9, (5, 4))}, share=0.3)


class TestDeltas:
    @pytest.mark.parametrize("op", ["add", "replace", "step"])
    def test_every_operation_gives_the_same_change(self, small: Small, op: Any) -> None:
        tuned = tuned_from(small, seed=1, share=0.3)
        delta = convert(delta_between(small, tuned), op=op, base=small.state_dict())
        x = torch.randn(2, 6, dtype=torch.float64)
        found = mixed_forward(small, {"a": delta}, ["a", "__base__"], (x,), {})
        torch.testing.assert_close(found, torch.cat([tuned(x[:1]), small(x[1:])]), rtol=1e-13, atol=1e-13)

    def test_modules_saved_whole_and_running_statistics(self) -> None:
        torch.manual_seed(0)
        base = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5)).double()
        model = get_rst_model(base, RSTConfig(threshold=1e-3, modules_to_save=["3"]))
        assert model.trainer is not None
        pristine = copy.deepcopy(base).eval()
        optimizer = torch.optim.SGD(base.parameters(), lr=0.1)
        model.trainer.attach(optimizer)
        images = torch.randn(6, 3, 4, 4, dtype=torch.float64)
        for _ in range(3):
            model(images).square().sum().backward()
            optimizer.step()
        model.trainer.export()
        model.trainer.detach()
        base.eval()
        tuned = copy.deepcopy(base)
        assert set(model.get_delta().dense) >= {"3.weight", "3.bias", "1.running_mean"}
        found = model(images, adapter_names=["default", "__base__"] * 3)
        wanted = torch.where(torch.arange(6)[:, None] % 2 == 0, tuned(images), pristine(images))
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        assert torch.equal(model(images), tuned(images))

    def test_checked_once_and_forgotten_with_the_delta_or_the_model(
        self, small: Small, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checked: list[int] = []

        def counting(module: nn.Module, delta: SparseDelta) -> Any:
            checked.append(id(delta))
            return delta.prepare(module)

        monkeypatch.setattr("rst.mixed.batch.prepare", counting)
        deltas = {name: delta_between(small, tuned_from(small, seed)) for seed, name in enumerate("ab")}
        x = torch.randn(2, 6, dtype=torch.float64)
        for _ in range(3):
            mixed_forward(small, deltas, ["a", "b"], (x,), {})
        assert len(checked) == 2
        assert len(_known[small]) == 2
        del deltas["a"]
        assert len(_known[small]) == 1
        other = copy.deepcopy(small)
        mixed_forward(other, deltas, ["b", "b"], (x,), {})
        model = weakref.ref(other)
        del other
        gc.collect()
        assert model() is None

    def test_other_base_is_refused_also_where_it_comes_later(self, small: Small) -> None:
        delta = delta_between(small, tuned_from(small, seed=1, share=0.3))
        inputs = (torch.randn(1, 6, dtype=torch.float64),)
        mixed_forward(small, {"a": delta}, ["a"], inputs, {})
        other = copy.deepcopy(small)
        small.body.weight = nn.Parameter(small.body.weight.detach() + 1)
        other.load_state_dict(small.state_dict())
        for model in (small, other):
            with pytest.raises(WrongBaseError, match="body.weight"):
                mixed_forward(model, {"a": delta}, ["a"], inputs, {})


class TestRSTModel:
    def test_the_active_adapter_plays_no_part_and_stays(self, small: Small) -> None:
        models = {name: tuned_from(small, seed, share=0.3) for seed, name in enumerate(["art", "photo"])}
        models["__base__"] = copy.deepcopy(small)
        model = RSTModel(small)
        for name in ("art", "photo"):
            model.add_adapter(name, delta_between(models["__base__"], models[name]))
        x = torch.randn(4, 6, dtype=torch.float64)
        names = ["photo", "__base__", "art", "photo"]
        for _ in range(2):
            found = model(x, adapter_names=names)
            wanted = torch.cat([models[name](x[i : i + 1]) for i, name in enumerate(names)])
            torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)
            assert torch.equal(model(x), models["art"](x))
        assert not found.requires_grad

    def test_adapters_follow_the_base(self, small: Small) -> None:
        tuned = tuned_from(small, seed=1, share=0.3)
        model = RSTModel(small)
        model.add_adapter("a", delta_between(small, tuned))
        x = torch.randn(2, 6, dtype=torch.float64)
        before = model(x, adapter_names=["a", "__base__"])
        model._apply(torch.clone)
        assert torch.equal(model(x, adapter_names=["a", "__base__"]), before)
        model.float()
        torch.testing.assert_close(model(x.float(), adapter_names=["a", "__base__"]), before.float())

    def test_compiled_models_run_uncompiled(self, small: Small) -> None:
        tuned = tuned_from(small, seed=1, share=0.3)
        delta = delta_between(small, tuned)
        x = torch.randn(2, 6, dtype=torch.float64)
        compiled = torch.compile(small, backend="eager")
        found = mixed_forward(compiled, {"a": delta}, ["a", "a"], (x,), {})  # type: ignore[arg-type]
        torch.testing.assert_close(found, tuned(x), rtol=1e-13, atol=1e-13)

    def test_other_threads_notice_nothing(self, small: Small) -> None:
        tuned = tuned_from(small, seed=1, share=0.3)
        model = RSTModel(small)
        model.add_adapter("a", delta_between(small, tuned))
        model.disable_adapters()
        x = torch.randn(2, 6, dtype=torch.float64)
        seen: list[Tensor] = []

        class Watched(nn.Module):
            def forward(self, values: Tensor) -> Tensor:
                if threading.current_thread() is threading.main_thread():
                    other = threading.Thread(target=lambda: seen.append(small.body(values)))
                    other.start()
                    other.join()
                return values

        watched = nn.Sequential(Watched(), small).eval()
        delta = delta_between(watched, nn.Sequential(Watched(), tuned))
        found = mixed_forward(watched, {"a": delta}, ["a", "a"], (x,), {})
        torch.testing.assert_close(found, tuned(x), rtol=1e-13, atol=1e-13)
        assert torch.equal(seen[0], small.body(x))


class Scaled(nn.Module):
    """Layers that compute with parameters beside the changed one, all as many rows as the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.ones(6))
        self.u, self.v = nn.Parameter(torch.randn(6, 3)), nn.Parameter(torch.randn(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.scale, self.scale) @ (self.u @ self.v)


@pytest.mark.parametrize("changed", ["weight", "scale", "u", "v"])
def test_a_parameter_with_as_many_rows_as_the_batch_is_no_sample(changed: str) -> None:
    torch.manual_seed(0)
    base = Scaled().double().eval()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.get_parameter(changed).mul_(1.5)
    inputs = torch.randn(6, 6, dtype=torch.float64)
    found = mixed_forward(base, {"task": delta_between(base, tuned)}, ["task", "__base__"] * 3, (inputs,))
    with torch.no_grad():
        torch.testing.assert_close(found[::2], tuned(inputs[::2]))
        torch.testing.assert_close(found[1::2], base(inputs[1::2]))


class TestRefusals:
    @pytest.fixture
    def delta(self, small: Small) -> SparseDelta:
        return delta_between(small, tuned_from(small, seed=1, share=0.5))

    def test_names(self, small: Small, delta: SparseDelta) -> None:
        x = torch.randn(3, 6, dtype=torch.float64)
        with pytest.raises(ConfigError, match="2 adapter_names for a batch of 3 samples"):
            mixed_forward(small, {"a": delta}, ["a", "a"], (x,), {})
        with pytest.raises(ConfigError, match=r"unknown \['b'\]"):
            mixed_forward(small, {"a": delta}, ["a", "b", "a"], (), {"x": x})
        with pytest.raises(ConfigError, match="no tensor"):
            mixed_forward(small, {"a": delta}, ["a"])
        with pytest.raises(ConfigError, match="training mode"):
            mixed_forward(small.train(), {"a": delta}, ["a", "a", "a"], (x,), {})
        model = RSTModel(small.eval())
        model.add_adapter("a", delta)
        with pytest.raises(ConfigError, match="'b'"):
            model(x, adapter_names=["a", "b", "a"])

    def test_positions_from_any_first_one_are_no_samples(self) -> None:
        """OPT's start at 2."""
        base = nn.Embedding(9, 2).eval()
        deltas = {"task": delta_between(base, tuned_from(base, 0))}
        with pytest.raises(ParameterMismatchError, match="2 to 6.*5 samples or 5") as caught:
            mixed_forward(base, deltas, ["task"] * 5, (torch.arange(5) + 2,))
        assert caught.value.parameter == "weight"
        labels = torch.tensor([3, 4, 5])  # so few may follow each other by chance
        assert mixed_forward(base, deltas, ["task"] * 3, (labels,)).shape == (3, 2)

    @pytest.mark.parametrize(
        ("layer", "shape", "message"),
        [
            (nn.LSTM(3, 4), (3, 5, 3), r"0\.weight_ih_l0.*lstm"),
            (nn.Embedding(9, 2, max_norm=1.0), (3,), r"0\.weight.*max_norm"),
            (nn.Embedding(9, 2), (3,), r"0\.weight.*3 samples or 3 positions"),
            (nn.BatchNorm1d(3, track_running_stats=False), (3, 3), r"0\.weight.*mix"),
            (nn.MultiheadAttention(4, 2, add_bias_kv=True), (5, 3, 4), r"0\.in_proj_weight.*2 extra keys"),
        ],
    )
    def test_what_cannot_be_told_apart_is_named(self, layer: nn.Module, shape: tuple[int, ...], message: str) -> None:
        class Wrapped(nn.Sequential):
            def forward(self, samples: Tensor, x: Tensor) -> Any:
                return self[0](*[x] * (3 if isinstance(layer, nn.MultiheadAttention) else 1))

        base = Wrapped(layer).eval()
        x = torch.arange(3) if isinstance(layer, nn.Embedding) else torch.randn(shape)
        delta = delta_between(base, tuned_from(base, seed=1, share=0.8))
        with pytest.raises(ParameterMismatchError, match=message):
            mixed_forward(base, {"a": delta}, ["a", "__base__", "a"], (torch.zeros(3), x), {})

    def test_tokens_first_values_asked_for_and_output_without_samples(self) -> None:
        class Odd(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scale = nn.Parameter(torch.ones(1))
                self.body = nn.Linear(4, 4)
                self.way = "first"

            def forward(self, x: Tensor) -> Any:
                if self.way == "first":
                    return self.body(x.transpose(0, 1))
                if self.way == "item":
                    return x * self.scale.item()
                if self.way == "write":
                    return self.scale.add_(1)
                return self.scale.exp()

        base = Odd().eval()
        delta = delta_between(base, tuned_from(base, seed=1, share=1.0))
        before = copy.deepcopy(base.state_dict())
        for way, message in {
            "first": r"body\.weight.*linear.*\(5, 3, 4\).*3 samples",
            "item": r"scale.*item.*no tensor",
            "write": r"scale.*add_ would write",
            "output": r"scale.*has no batch dimension",
        }.items():
            base.way = way
            with pytest.raises(ParameterMismatchError, match=message):
                mixed_forward(base, {"a": delta}, ["a"] * 3, (torch.randn(3, 5, 4),), {})
        for name, tensor in base.state_dict().items():
            assert torch.equal(tensor, before[name]), name

    @pytest.mark.filterwarnings("ignore:.*torch.jit.script")
    def test_scripted_modules_hide_their_parameters(self, small: Small, delta: SparseDelta) -> None:
        scripted = torch.jit.script(small)
        with pytest.raises(ConfigError, match="torch.jit"):
            mixed_forward(scripted, {"a": delta}, ["a"], (torch.randn(1, 6).double(),), {})

    def test_a_failure_leaves_nothing_behind(self, small: Small, delta: SparseDelta) -> None:
        class Failing(Small):
            def forward(self, x: Tensor) -> Tensor:
                super().forward(x)
                raise KeyError("inside")

        failing = Failing().double().eval()
        failing.load_state_dict(small.state_dict())
        x = torch.randn(2, 6, dtype=torch.float64)
        with pytest.raises(KeyError, match="inside"):
            mixed_forward(failing, {"a": delta}, ["a", "a"], (x,), {})
        assert torch.equal(failing.body(x), small.body(x))
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in failing.modules())
        for name, tensor in failing.state_dict().items():
            assert torch.equal(tensor, small.state_dict()[name]), name

    def test_a_change_that_is_infinite(self, small: Small) -> None:
        tuned = copy.deepcopy(small)
        with torch.no_grad():
            tuned.body.weight[0, 0] = float("inf")
        delta = delta_between(small, tuned)
        x = torch.randn(1, 6, dtype=torch.float64)
        with pytest.raises(NonFiniteError, match=r"body\.weight: the change has infinite weights"):
            mixed_forward(small, {"a": delta}, ["a"], (x,), {})

    def test_an_operation_that_fails_on_single_samples_is_named(self) -> None:
        class Whole(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table = nn.Parameter(torch.randn(3, 2))

            def forward(self, x: Tensor) -> Tensor:
                return torch.nn.functional.cosine_similarity(x, self.table.view(1, 6)[:, :5])

        base = Whole().eval()
        delta = delta_between(base, tuned_from(base, seed=1, share=1.0))
        with pytest.raises(ParameterMismatchError, match=r"table: .*cosine_similarity cannot run sample by sample"):
            mixed_forward(base, {"a": delta}, ["a", "__base__"], (torch.randn(2, 3),), {})
