"""When an optimiser has written its weights: of one that wraps others, after the outermost step.

Lookahead, schedule-free wrappers and ZeRO write after the step of the optimiser inside; SAM is stepped by methods of
another name, which step the one inside.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from types import MethodType
from typing import Any

from torch.optim import Optimizer

Before = Callable[[Any, Any], Any]
"""What is called with a step's arguments before it, and returns others to use, or None."""

Step = Callable[..., Any]


class OptimizerSteps:
    """Calls others around whatever changes an optimiser's weights, until `detach`."""

    def __init__(
        self, optimizer: Optimizer, before: Before, moved: Callable[[], None], after: Callable[[], None]
    ) -> None:
        """Follow `optimizer` and those that it wraps.

        Args:
            optimizer: the one that the training loop knows.
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
        if _wrapped_by(optimizer):
            self._detach.append(_replace_step(optimizer, self._outermost))

    def detach(self) -> None:
        """Leave the optimisers as they were."""
        for undo in self._detach:
            undo()
        self._detach = []

    def _follow(self, optimizer: Optimizer) -> list[Callable[[], None]]:
        """Be told of the steps of an optimiser that wraps none."""
        if getattr(type(optimizer).step, "hooked", False) and hasattr(optimizer, "_optimizer_step_post_hooks"):
            # Bound methods would be copied with the optimiser, and their trainer with it.
            return [
                optimizer.register_step_pre_hook(
                    lambda _, *given: None if self._inside else self._before(*given)
                ).remove,
                optimizer.register_step_post_hook(lambda one, *_: self._moved() if self._ends(one) else None).remove,
                optimizer.register_step_post_hook(lambda *_: None if self._inside else self._after()).remove,
            ]
        return [_replace_step(optimizer, self._innermost)]

    def _ends(self, optimizer: Optimizer) -> bool:
        """Note a step of an inner optimiser; return whether it wrote weights and no other step goes on around it."""
        # A fused optimiser gets the gradient scaler's verdict, and skips inside its own step.
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
    """An optimiser and all that it wraps, outermost first."""
    waiting, seen = [optimizer], set()
    while waiting:
        if id(found := waiting.pop(0)) not in seen:
            seen.add(id(found))
            yield found
            waiting += _wrapped_by(found)


def may_write_between_steps(optimizer: Optimizer) -> bool:
    """Whether an optimiser may write weights outside of `step`.

    SAM does, and a schedule-free one that shows its averaged weights; accelerate's wrapper never does.
    """
    return any(
        callable(getattr(found, "eval", None))
        or (_wrapped_by(found) and type(found).__module__.partition(".")[0] != "accelerate")
        for found in optimizers_in(optimizer)
    )


def show_averaged_weights(optimizer: Optimizer) -> None:
    """Have a schedule-free optimiser put the weights that it is for into the model; of others, do nothing."""
    for found in optimizers_in(optimizer):
        if callable(show := getattr(found, "eval", None)):
            show()
            return


def _wrapped_by(optimizer: Optimizer) -> list[Optimizer]:
    return [value for value in vars(optimizer).values() if isinstance(value, Optimizer) and value is not optimizer]


def _replace_step(optimizer: Optimizer, around: Callable[[Step, Optimizer, Any, Any], Any]) -> Callable[[], None]:
    """Put another `step` on one optimiser, which calls its own; return what undoes it."""
    own: Step = optimizer.step
    on = True

    @wraps(own)
    def step(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        return around(own, self, args, kwargs) if on else own(*args, **kwargs)

    def undo() -> None:
        nonlocal on
        on = False  # a scheduler may have wrapped this step meanwhile
        if getattr(vars(optimizer).get("step"), "__func__", None) is step:
            optimizer.step = own  # type: ignore[method-assign]

    optimizer.step = MethodType(step, optimizer)  # type: ignore[method-assign]
    return undo
