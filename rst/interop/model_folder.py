"""A transformers model folder as a module: loaded, or as a skeleton without weights."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rst.errors import CheckpointError
from rst.extras import install_command


def load_model(folder: str | os.PathLike[str]) -> nn.Module:
    """Load the model of a folder in the architecture and dtype that its `config.json` names, in eval mode.

    Raises:
        CheckpointError: transformers is not installed, knows no such architecture, or cannot load the folder.
    """
    architecture, _ = _architecture(folder)
    with _errors_naming(folder), _without_progress_bar():
        model: nn.Module = architecture.from_pretrained(folder, torch_dtype="auto")
    return model


def model_skeleton(folder: str | os.PathLike[str]) -> nn.Module:
    """Build the model of a folder on the meta device: names, shapes and ties of its weights, without memory for them.

    Raises:
        CheckpointError: as `load_model`.
    """
    architecture, config = _architecture(folder)
    with _errors_naming(folder), torch.device("meta"):
        model: nn.Module = architecture(config)
    return model


def _architecture(folder: str | os.PathLike[str]) -> tuple[Any, Any]:
    """Return the transformers class and the configuration."""
    if not (Path(folder) / "config.json").is_file():
        raise CheckpointError("not a model folder of transformers, which contains a config.json", file=folder)
    with _errors_naming(folder):
        import transformers

        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        name = str((config.architectures or [""])[0])
        architecture = getattr(transformers, name, None)
        if not isinstance(architecture, type) or not issubclass(architecture, transformers.PreTrainedModel):
            raise ValueError(f"config.json names the architecture {name!r}, which transformers does not have")
        return architecture, config


@contextmanager
def _errors_naming(folder: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise CheckpointError(
            f"reading a model folder needs transformers: {install_command('peft')} ({error})", file=folder
        ) from error
    except Exception as error:  # a malformed folder can make transformers raise any class
        raise CheckpointError(f"transformers cannot load it ({error})", file=folder) from error


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
