"""`rst combine`: combine several deltas of one base into one."""

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from rst.cli.allow_class import AllowClass
from rst.cli.console import human_size, print_json, say
from rst.cli.export import Encoding
from rst.cli.hub_ids import local_delta, local_weights
from rst.cli.output_paths import check_output

EXAMPLE = (
    "Example: [bold]rst combine a.safetensors b.safetensors --weights 0.5 0.5 --method ties --density 0.5 "
    "-o both.safetensors[/bold]"
)


class Method(str, Enum):
    """The methods of `rst.combine`, defined here so that the choices of --method do not import torch."""

    LINEAR = "linear"
    TIES = "ties"
    DARE_LINEAR = "dare_linear"
    DARE_TIES = "dare_ties"
    MAGNITUDE_PRUNE = "magnitude_prune"


class MajoritySignMethod(str, Enum):
    """How TIES elects a sign."""

    TOTAL = "total"
    FREQUENCY = "frequency"


class WeightsInARow(TyperCommand):
    """A command whose --weights is followed by any number of numbers."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each number, as click requires."""
        return super().parse_args(ctx, _repeated(args))


def combine(
    deltas: Annotated[list[Path], typer.Argument(metavar="DELTA...", help="Deltas of the same base, with op add.")],
    weights: Annotated[
        list[float], typer.Option("--weights", "-w", help="A factor for each DELTA, in the same order.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    method: Annotated[
        Method,
        typer.Option(
            help="linear: weighted sum; ties: elect signs; dare_*: keep a random share; magnitude_prune: keep the "
            "largest."
        ),
    ] = Method.LINEAR,
    density: Annotated[
        float | None,
        typer.Option(
            help="Share of each DELTA's changed weights to keep, in (0, 1]; needed by all methods but linear."
        ),
    ] = None,
    majority_sign_method: Annotated[
        MajoritySignMethod, typer.Option(help="Elect signs by the sum of the changes, or by their number.")
    ] = MajoritySignMethod.TOTAL,
    base: Annotated[
        Path | None,
        typer.Option(
            "--base", "-b", help="Weights that the DELTAs were made from; adds their digests, which merging checks."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random share that dare_* keeps.")] = 0,
    sparse_only: Annotated[
        bool, typer.Option("--sparse-only", help="Leave out tensors stored whole, such as heads, which rarely agree.")
    ] = False,
    encoding: Annotated[
        Encoding, typer.Option(help="coo: readable with safetensors alone; packed: a third of the bytes or less.")
    ] = Encoding.COO,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing output (never an input).")] = False,
    allow_class: AllowClass = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Combine DELTAs by task arithmetic, TIES or DARE into one delta of the same base."""
    import torch

    from rst.checkpoints.checkpoint import checkpoint_files
    from rst.delta.file import delta_file, load_delta
    from rst.operations.combine import combine as combine_deltas

    places = [local_delta(path) for path in deltas]
    weights_of_base = local_weights(base) if base else None
    inputs = [*map(delta_file, places), *(checkpoint_files(weights_of_base) if weights_of_base else ())]
    check_output(output, inputs, force, kind="a delta")
    loaded = [load_delta(place) for place in places] if sparse_only else []
    combined = combine_deltas(
        [delta.sparse_only() for delta in loaded] or places,
        weights,
        method=method.value,
        density=density,
        majority_sign_method=majority_sign_method.value,
        generator=torch.Generator().manual_seed(seed),
        base=weights_of_base,
    )
    combined.save(output, encoding.value)
    size = output.stat().st_size
    record = {
        "output": str(output),
        "bytes": size,
        "encoding": encoding.value,
        "deltas": [str(path) for path in deltas],
        "changed": combined.nnz,
        "parameters": len(combined),
        "stored_whole": len(combined.dense),
        "left_out": len({name for delta in loaded for name in delta.dense}),
        **combined.config["combined"],
    }
    if as_json:
        print_json(record)
        return
    say(f"wrote {output} ({human_size(size)}), {method.value} of {len(deltas)} deltas")
    more = f", {len(combined.dense):,} tensors stored whole" if combined.dense else ""
    say(f"{combined.nnz:,} weights in {len(combined):,} parameters changed{more}")
    if record["left_out"]:
        say(f"left out {record['left_out']:,} tensors that the deltas store whole")


def _repeated(words: Sequence[str]) -> list[str]:
    """Turn `--weights 0.5 0.5` into `--weights 0.5 --weights 0.5`.

    >>> _repeated(["a", "-w", "0.5", "-1", "--json"])
    ['a', '-w', '0.5', '-w', '-1', '--json']
    """
    result: list[str] = []
    option = ""
    for word in words:
        if option and result[-1] != option and _is_number(word):
            result.append(option)
        elif word in ("--weights", "-w"):
            option = word
        elif not (option and result[-1] == option):
            option = ""
        result.append(word)
    return result


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
