"""The choices of the options `--op`, defined here so that they do not import torch."""

from enum import Enum


class Operation(str, Enum):
    """The operations of `ParameterDelta`."""

    ADD = "add"
    REPLACE = "replace"
    STEP = "step"


class WantedOperation(str, Enum):
    """The same, and the choice by size."""

    ADD = "add"
    REPLACE = "replace"
    STEP = "step"
    SMALLEST = "smallest"
