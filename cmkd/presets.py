"""Where the paper's text and the authors' released code differ in CMKD's losses: a named field for each difference."""

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True)
class Preset:
    """One reading of CMKD's losses. Vary one with `dataclasses.replace(PRESETS["paper"], alpha="entropy")`.

    Attributes:
        gini: "mean" is `GI(p)` per sample, averaged (Eq. 4, 7); "balanced" divides by class mass and sums over the
            batch. The gradients differ by a factor of about C, so lambda1 and lambda3 do not carry over.
        alpha: "kl_student_teacher" is `exp(-KL(p_h || p_g))` (Eq. 11), "kl_teacher_student" is `exp(-KL(p_g || p_h))`;
            "entropy" and "constant" are the other rows of Table X.
        entropy_epsilon: added to `p` inside the logarithm when alpha is "entropy".
        ramp_clip: whether the ramp stays level after `max_iterations` or keeps rising.
    """

    gini: Literal["mean", "balanced"]
    alpha: Literal["kl_student_teacher", "kl_teacher_student", "entropy", "constant"]
    entropy_epsilon: float
    ramp_clip: bool


PRESETS: Final[dict[str, Preset]] = {
    # The text, word for word.
    "paper": Preset(gini="mean", alpha="kl_student_teacher", entropy_epsilon=0.0, ramp_clip=False),
    # The released code, which gave the published numbers.
    "official": Preset(gini="balanced", alpha="kl_teacher_student", entropy_epsilon=1e-5, ramp_clip=True),
    # What to run. The code's scale, because the published lambdas were chosen with it; Eq. 11's direction, because
    # the code's is a swap of kl_div's arguments; no epsilon, because log-probabilities need none; a level ramp,
    # because lambdas should not depend on how long training goes on.
    "corrected": Preset(gini="balanced", alpha="kl_student_teacher", entropy_epsilon=0.0, ramp_clip=True),
}
