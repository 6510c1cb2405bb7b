"""A share kept on an accelerator: near the one asked for in every dtype, and the host never waits for a number."""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from rst import Constant, ResidualSparseTrainer, RSTConfig
from rst.numerics import kernels
from rst.training.boundary_on_device import keep_about_
from rst.training.projection_eager import project_eager

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SHAPES = {"square": (600, 700), "wide": (96, 4800), "bias": (96,), "empty": (0,), "scalar": ()}


def weights(*dtypes: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    base, tuned = {}, {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        dtype = dtypes[number % len(dtypes)]
        base[name] = torch.randn(shape, generator=generator).to(dtype)
        change = 1e-2 * torch.randn(shape, generator=generator)
        tuned[name] = base[name] + change.to(dtype)
    base["wide"], tuned["wide"] = base["wide"].t(), tuned["wide"].t()
    return tuned, base


@pytest.mark.parametrize("ratio", [0.5, 0.05, 0.005])
@pytest.mark.parametrize("dtype", DTYPES)
def test_about_the_share_is_kept(dtype: torch.dtype, ratio: float) -> None:
    before, base = weights(dtype)
    for step in range(3):
        tuned = {name: weight.clone() for name, weight in before.items()}
        boundary = keep_about_(tuned, base, ratio, project_eager, step=step)
        assert isinstance(boundary, Tensor)
        kept = 0
        for name, weight in tuned.items():
            differs = weight != base[name]
            kept += int(differs.sum())
            assert torch.equal(weight[differs], before[name][differs]), "what is kept is kept as it was"
            change = (before[name] - base[name]).abs()
            assert bool((differs | (change <= boundary)).all()), "what is above the boundary is kept"
            assert not bool((differs & (change < boundary)).any())
        assert kept == pytest.approx(ratio * sum(weight.numel() for weight in base.values()), rel=0.1)


def test_dtypes_may_mix() -> None:
    tuned, base = weights(torch.bfloat16, torch.float32)
    keep_about_(tuned, base, 0.05, project_eager, step=1)
    kept = sum(int((tuned[name] != base[name]).sum()) for name in base)
    assert kept == pytest.approx(0.05 * sum(weight.numel() for weight in base.values()), rel=0.1)


def test_nan_stays_for_the_export_to_find() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        tuned, base = weights(dtype)
        tuned["bias"][3] = torch.nan
        keep_about_(tuned, base, 0.01, project_eager, step=0)
        assert tuned["bias"].isnan().nonzero().tolist() == [[3]]


def test_what_did_not_change_is_not_kept() -> None:
    base = {"w": torch.zeros(1000, dtype=torch.bfloat16)}
    tuned = {"w": base["w"].clone()}
    tuned["w"][:5] = 1
    tuned["w"][5:] = -0.0
    keep_about_(tuned, base, 0.5, project_eager, step=0)
    assert int((tuned["w"].view(torch.int16) != 0).sum()) == 5


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_does_not_wait_for_the_device(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """On pretended CUDA tensors, which have no values: `item`, `cpu`, `nonzero` or `bool` of one is an error."""
    monkeypatch.setattr(kernels, "run_on", lambda device: False)  # pretended tensors have no addresses
    config = RSTConfig(ratio=Constant(0.01), total_steps=9, base_storage="device")
    with FakeTensorMode(), torch.device("cuda"):
        model = nn.Sequential(nn.Linear(64, 64, dtype=dtype), nn.LayerNorm(64, dtype=dtype))
        trainer = ResidualSparseTrainer(model, config)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer.attach(optimizer)
        for _ in range(3):
            for weight in model.parameters():
                weight.grad = torch.ones_like(weight)
            optimizer.step()
        assert trainer.steps == 3
        with pytest.raises(DataDependentOutputException):
            float(trainer._boundary)  # type: ignore[arg-type]  # this would wait
