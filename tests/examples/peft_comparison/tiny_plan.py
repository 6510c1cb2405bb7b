"""A plan of a few iterations on fake images and a tiny ResNet, shared by the tests."""

from dataclasses import replace

from examples.peft_comparison.plan import DIGITS
from examples.peft_comparison.running import Runner
from examples.uda.tiny_backbones import load_tiny_backbone
from tests.examples.uda.smoke_runs import TINY

PLAN = replace(
    DIGITS,
    settings=replace(TINY, backbone="RN50", iterations=8, ramp_iterations=8, evaluate_every=8, encoder_lr=0.05),
    tasks=(("C", "I"), ("I", "C")),
    rates=(0.01, 0.1),
    thresholds=(1e-3,),
)
TASK = PLAN.tasks[0]


def tuning_of(label):
    return next(tuning for tuning in PLAN.tunings() if tuning.label == label)


def runner(data):
    return Runner(PLAN, data, load=load_tiny_backbone)
