"""The contract of the whole library: merge(w0, export(wt)) is wt, bit for bit, for any weights."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from rst import export, merge
from rst.numerics.exactness import bit_equal, bits
from tests.strategies import pairs


@given(pairs())
def test_merging_an_export_gives_the_tuned_weights_bit_for_bit(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    base, tuned = pair
    before = base.clone()
    merged = merge({"w": base}, export({"w": base}, {"w": tuned}))
    assert bit_equal(merged["w"], tuned)
    assert bit_equal(base, before)


@given(pairs(), st.sampled_from([0.0, 1e-6, 0.5, 1e30]))
def test_a_threshold_keeps_exactly_the_set_of_equation_17(
    pair: tuple[torch.Tensor, torch.Tensor], threshold: float
) -> None:
    base, tuned = pair
    wanted = torch.where((tuned - base).abs() > threshold, tuned, base)
    delta = export({"w": base}, {"w": tuned}, threshold=threshold)
    assert bit_equal(merge({"w": base}, delta)["w"], wanted)
    kept = (bits(wanted) != bits(base)).nonzero().squeeze(1)
    assert delta["w"].indices.tolist() == kept.tolist() if "w" in delta else kept.numel() == 0


@given(pairs())
def test_only_changed_entries_are_stored_and_every_residual_is_finite(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    base, tuned = pair
    delta = export({"w": base}, {"w": tuned})
    assert delta.nnz == int((bits(base) != bits(tuned)).sum())
    for change in delta.values():
        assert change.values.isfinite().all()


@given(pairs())
def test_the_overlay_holds_only_what_addition_misses(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    base, tuned = pair
    for change in export({"w": base}, {"w": tuned}).values():
        plain = base[change.indices.long()] + change.values
        missed = bits(plain) != bits(tuned[change.indices.long()])
        assert change.indices[missed].tolist() == change.exact_indices.tolist()
