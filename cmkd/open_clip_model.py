"""open_clip's models with their weights, and with the activation function that the weights were trained with."""

import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of the image channels in pretraining."""


def open_clip_model(name: str, pretrained: str | Path | None) -> tuple[Any, Statistics]:
    """Build a model, and return it with its `Statistics`. `pretrained` and the errors are those of `load_open_clip`."""
    from open_clip.pretrained import get_pretrained_cfg  # type: ignore[import-untyped]

    open_clip = _library_with(name)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        model = open_clip.create_model(name, pretrained_text=False)
    elif str(pretrained) in tags:
        config = get_pretrained_cfg(name, str(pretrained))
        model = fetched(
            f"the weights {str(pretrained)!r} of {name}",
            f"download {_address(config)} elsewhere and pass the file as pretrained= of {_architecture(name, config)}",
            lambda: open_clip.create_model(
                name, pretrained=str(pretrained), force_quick_gelu=bool(config.get("quick_gelu"))
            ),
        )
    elif not Path(pretrained).is_file():
        raise ValueError(
            f"pretrained={str(pretrained)!r} is neither a file nor one of {name}'s weights: {', '.join(tags) or 'none'}"
        )
    elif _is_torchscript(Path(pretrained)):
        model = open_clip.create_model(name, force_quick_gelu=True, pretrained_text=False)
        model.load_state_dict(_openai_weights(Path(pretrained)))
    else:
        model = open_clip.create_model(name, pretrained=str(pretrained))

    statistics = {_statistics(get_pretrained_cfg(name, tag)) for tag in tags}
    if len(statistics) == 1:  # a file does not record them; open_clip would use CLIP's for SigLIP
        return model, statistics.pop()
    return model, (tuple(model.visual.image_mean), tuple(model.visual.image_std))


def open_clip_tokenizer(name: str) -> Callable[[list[str]], Tensor]:
    """Return the model's own tokenizer, which maps N texts to tokens (N, length). Raises as `load_open_clip` does."""
    open_clip = _library_with(name)
    tokenizer: Callable[[list[str]], Tensor] = fetched(
        f"the tokenizer of {name}", "pass tokenizer=", lambda: open_clip.get_tokenizer(name)
    )
    return tokenizer


def _library_with(name: str) -> Any:
    try:
        import open_clip  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError('open_clip is missing; pip install "residual-sparse-training[cmkd]"') from error
    if name not in open_clip.list_models():
        raise ValueError(f"open_clip has no model {name!r}; see open_clip.list_models()")
    return open_clip


def _statistics(config: dict[str, Any]) -> Statistics:
    return tuple(config["mean"]), tuple(config["std"])


def _architecture(name: str, config: dict[str, Any]) -> str:
    return f"{name}-quickgelu" if config.get("quick_gelu") and not name.endswith("-quickgelu") else name


def _address(config: dict[str, Any]) -> str:
    hub = config.get("hf_hub", "").strip("/")
    places = [f"https://huggingface.co/{hub}" if hub else "", config.get("url", "")]
    return " or ".join(place for place in places if place)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(Path(member).name == "constants.pkl" for member in archive.namelist())


def _openai_weights(path: Path) -> dict[str, Tensor]:
    """Load the weights of an OpenAI TorchScript archive, which holds them in half precision beside three numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated, but it is their format
        weights = torch.jit.load(path, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    numbers = ("input_resolution", "context_length", "vocab_size")
    return {name: tensor.float() for name, tensor in weights.items() if name not in numbers}


def fetched(what: str, instead: str, fetch: Callable[[], Any]) -> Any:
    """Call `fetch`, which may download, and raise an error that says what is missing if it fails."""
    try:
        return fetch()
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(f"could not load {what} ({reason}); {instead}") from error
