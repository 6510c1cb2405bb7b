"""Detecting when an optimiser has written its weights; of nested optimisers, after the outermost step.

Lookahead, schedule-free wrappers and ZeRO write after the step of the inner optimiser; SAM is stepped through methods
of other names, which step the inner one.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import MethodType
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

Before = Callable[[Any, Any], Any]
"""Called with a step's arguments before it; returns other arguments to use, or None."""

Step = Callable[..., Any]


class OptimizerSteps:
    """Calls functions around whatever changes an optimiser's weights, until `detach`."""

    def __init__(
        self, optimizer: Optimizer, before: Before, moved: Callable[[], None], after: Callable[[], None]
    ) -> None:
        """Follow `optimizer` and the optimisers that it wraps.

        Args:
            optimizer: the optimiser that the training loop uses.
            before: called before each step.
            moved: called after a step that has written weights.
            after: called last, also after a step that was skipped.
        """
        self.optimizer = optimizer
        self._before, self._moved, self._after = before, moved, after
        self._inside = self._has_moved = False
        self._detach: list[Callable[[], None]] = []
        for inner in optimizers_in(optimizer):
            if not _wrapped_by(inner):
                self._detach += self._follow(inner)
        if _wrapped_by(optimizer) and not all(map(_only_calls, optimizers_in(optimizer))):
            self._detach.append(_replace_step(optimizer, self._outermost))

    def detach(self) -> None:
        """Restore the optimisers."""
        for undo in self._detach:
            undo()
        self._detach = []

    def _follow(self, optimizer: Optimizer) -> list[Callable[[], None]]:
        """Watch the steps of an optimiser that wraps no other."""
        if _has_hooks(optimizer):
            # Bound methods would be copied with the optimiser, and the trainer with them.
            return [
                optimizer.register_step_pre_hook(
                    lambda _, *given: None if self._inside else self._before(*given)
                ).remove,
                optimizer.register_step_post_hook(lambda one, *_: self._moved() if self._ends(one) else None).remove,
                optimizer.register_step_post_hook(lambda *_: None if self._inside else self._after()).remove,
            ]
        return [_replace_step(optimizer, self._innermost)]

    def _ends(self, optimizer: Optimizer) -> bool:
        """Record a step of an inner optimiser; return whether it wrote weights and no outer step is in progress."""
        # A fused optimiser receives the gradient scaler's verdict and skips inside its own step.
        found_inf = getattr(optimizer, "found_inf", None)
        moved = found_inf is None or not bool(found_inf.item())
        self._has_moved |= moved
        return moved and not self._inside

    def _innermost(self, step: Step, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        given = None if self._inside else self._before((optimizer, *args), kwargs)
        (_, *args), kwargs = given or ((optimizer, *args), kwargs)
        result = step(*args, **kwargs)
        if self._ends(optimizer):
            self._moved()
        if not self._inside:
            self._after()
        return result

    def _outermost(self, step: Step, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        given = self._before((optimizer, *args), kwargs)
        (_, *args), kwargs = given or ((optimizer, *args), kwargs)
        self._inside, self._has_moved = True, False
        try:
            result = step(*args, **kwargs)
        finally:
            self._inside = False
        if self._has_moved:
            self._moved()
        self._after()
        return result


def optimizers_in(optimizer: Optimizer) -> Iterator[Optimizer]:
    """Return an optimiser and all that it wraps, outermost first."""
    waiting, seen = [optimizer], set()
    while waiting:
        if id(found := waiting.pop(0)) not in seen:
            seen.add(id(found))
            yield found
            waiting += _wrapped_by(found)


def may_write_between_steps(optimizer: Optimizer) -> bool:
    """Return whether an optimiser may write weights outside of `step`.

    SAM does, and so does a schedule-free optimiser that shows its averaged weights; accelerate's wrapper does not.
    """
    return any(
        callable(getattr(found, "eval", None)) or (_wrapped_by(found) and not _is_accelerates(found))
        for found in optimizers_in(optimizer)
    )


def show_averaged_weights(optimizer: Optimizer) -> None:
    """Make a schedule-free optimiser put its averaged weights into the model; do nothing for others."""
    for found in optimizers_in(optimizer):
        if callable(show := getattr(found, "eval", None)):
            show()
            return


@contextmanager
def only(optimizer: Optimizer, weights: Iterable[Tensor]) -> Iterator[None]:
    """Let an optimiser see these of its parameters alone."""
    shown = {id(weight) for weight in weights}
    groups = optimizer.param_groups
    members = [group["params"] for group in groups]
    try:
        for group, own in zip(groups, members, strict=True):
            group["params"] = [weight for weight in own if id(weight) in shown]
        optimizer.param_groups = [group for group in groups if group["params"]]
        yield
    finally:
        optimizer.param_groups = groups
        for group, own in zip(groups, members, strict=True):
            group["params"] = own


def _has_hooks(optimizer: Optimizer) -> bool:
    return getattr(type(optimizer).step, "hooked", False) and hasattr(optimizer, "_optimizer_step_post_hooks")


def _is_accelerates(optimizer: Optimizer) -> bool:
    return type(optimizer).__module__.partition(".")[0] == "accelerate"


def _only_calls(optimizer: Optimizer) -> bool:
    """Return whether an optimiser writes nothing that the hooks of the one inside it would not see."""
    return _is_accelerates(optimizer) if _wrapped_by(optimizer) else _has_hooks(optimizer)


def _wrapped_by(optimizer: Optimizer) -> list[Optimizer]:
    return [value for value in vars(optimizer).values() if isinstance(value, Optimizer) and value is not optimizer]


def _replace_step(optimizer: Optimizer, around: Callable[[Step, Optimizer, Any, Any], Any]) -> Callable[[], None]:
    """Replace the `step` of one optimiser by a function that calls it; return a function that undoes this."""
    own: Step = optimizer.step
    on = True

    @wraps(own)
    def step(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        return around(own, self, args, kwargs) if on else own(*args, **kwargs)

    def undo() -> None:
        nonlocal on
        on = False  # needed if a scheduler has wrapped this step meanwhile
        if getattr(vars(optimizer).get("step"), "__func__", None) is step:
            optimizer.step = own  # type: ignore[method-assign]

    optimizer.step = MethodType(step, optimizer)  # type: ignore[method-assign]
    return undo
