"""Serve one base model and a folder of adapters.

python -m examples.serving --base examples.serving.demo:base_model --adapters outputs/serving/adapters
"""

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
import uvicorn
from torch import nn

from examples.serving.bank import DeltaBank
from examples.serving.scheduler import Scheduler
from examples.serving.server import MAX_BODY, READ_SECONDS, create_app


def load_base(factory: str) -> nn.Module:
    """Call `package.module:function`, which returns the base model with its weights."""
    module, _, function = factory.partition(":")
    try:
        model = getattr(import_module(module), function)()
    except (ImportError, AttributeError, ValueError) as error:
        raise typer.BadParameter(f"{factory}: not package.module:function ({error})") from error
    if not isinstance(model, nn.Module):
        raise typer.BadParameter(f"{factory}: returned {type(model).__name__}, not a torch module")
    return model


def main(
    base: Annotated[str, typer.Option(help="package.module:function that returns the base model with its weights.")],
    adapters: Annotated[Path, typer.Option(help="Folder with one adapter folder a domain.", file_okay=False)],
    max_bytes: Annotated[int, typer.Option(help="Memory for adapters that are ready, in bytes.")] = 256 * 2**20,
    max_body: Annotated[int, typer.Option(help="Bytes that one request may have.")] = MAX_BODY,
    read_seconds: Annotated[float, typer.Option(help="Time for one request to arrive.")] = READ_SECONDS,
    device: Annotated[str, typer.Option(help="Where the model runs.")] = "cpu",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
) -> None:
    """Serve one base model and its adapters over HTTP."""
    model = load_base(base).to(device)
    scheduler = Scheduler(model, DeltaBank(model, adapters, max_bytes))
    uvicorn.run(create_app(scheduler, device, max_body, read_seconds), host=host, port=port)


if __name__ == "__main__":
    typer.run(main)
