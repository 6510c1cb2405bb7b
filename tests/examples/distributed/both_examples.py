"""Both examples, by their command lines, in the processes of one launcher: starting and importing takes the time."""

import runpy
import sys
from pathlib import Path
from unittest.mock import patch


def run(example: str, output: Path) -> None:
    sys.argv = [example, "--steps", "3", "--output", str(output / example)]
    try:
        runpy.run_module(f"examples.distributed.{example}", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code:
            raise


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with patch("torch.distributed.destroy_process_group"):  # it cannot be formed again; accelerate takes the one there
        run("train", folder)
    run("train_with_accelerate", folder)
