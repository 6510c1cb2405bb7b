"""Error for a delta that another format cannot hold completely."""

from collections.abc import Mapping

from rst.errors import NotCarriedError

_NAMES_SHOWN = 20


def check_carried(output: str, reasons: Mapping[str, str], partial: bool, carried: int) -> None:
    """Raise `NotCarriedError` unless everything is carried, or with `partial` at least one tensor is.

    Args:
        output: the output, for the message.
        reasons: names of tensors that are not carried exactly, with the reason.
        partial: whether the caller allows leaving them out.
        carried: number of tensors that are carried.
    """
    if not reasons or (partial and carried):
        return
    shown = "; ".join(f"{name} {reason}" for name, reason in list(reasons.items())[:_NAMES_SHOWN])
    more = f"; and {len(reasons) - _NAMES_SHOWN} more" if len(reasons) > _NAMES_SHOWN else ""
    advice = "nothing else is left to convert" if partial else "convert the rest with partial=True (--partial)"
    raise NotCarriedError(f"cannot carry {len(reasons)} tensors; {advice}: {shown}{more}", file=output)
