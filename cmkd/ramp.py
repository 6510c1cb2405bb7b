"""The ramp of lambda1 and lambda3 (Sec. IV.A): little self-training while the views are still noisy."""

import math


def sigmoid_ramp(iteration: int, max_iterations: int, *, clip: bool = True) -> float:
    """Return the factor of a lambda at an iteration: `2 / (1 + exp(-p)) - 1` with `p = iteration / max_iterations`.

    This is DSAN's curve with gamma = 1: 0 at the start and 0.4621 at `max_iterations`. (The formula printed in Sec.
    IV.A, `2a / exp(-p) - 1`, is negative at the start.)

    Args:
        iteration: number of completed iterations.
        max_iterations: where `p` reaches 1. The paper and the released code use 10,000 whatever the length of the run.
        clip: hold `p` at 1 afterwards, as the released code does; the paper does not mention it.

    Raises:
        ValueError: if `iteration` is negative or `max_iterations` is not positive.
    """
    if iteration < 0:
        raise ValueError(f"iteration must not be negative, got {iteration}")
    if max_iterations <= 0:
        raise ValueError(f"max_iterations must be positive, got {max_iterations}")
    progress = iteration / max_iterations
    if clip:
        progress = min(progress, 1.0)
    return 2 / (1 + math.exp(-progress)) - 1
