"""The optional extras of the distribution, and the command that installs one."""

DISTRIBUTION = "residual-sparse-training"


def install_command(extra: str) -> str:
    """Return the command that installs an extra.

    >>> install_command("peft")
    'pip install "residual-sparse-training[peft]"'
    """
    return f'pip install "{DISTRIBUTION}[{extra}]"'
