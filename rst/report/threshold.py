"""Tau according to a delta's settings, which are untrusted and may hold anything."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Threshold:
    """The last tau of the run, if one was used, and how entries were selected, in a sentence."""

    tau: float | None
    text: str


def threshold_of(config: Mapping[str, Any]) -> Threshold:
    """Read `RSTConfig.to_dict`, the settings of `rst.export`, or those of `rst.combine`."""
    selection = config.get("select", "threshold")
    if selection == "top":
        return Threshold(None, f"The weights that changed most were kept (ratio {config.get('ratio')}), without a tau.")
    if selection == "bias":
        return Threshold(None, "Biases alone were trained, without a tau.")
    if "combined" in config:
        return Threshold(None, "Several deltas were combined; no single tau holds.")
    value = config.get("threshold")
    if value is None:
        return Threshold(None, "No tau: every changed bit was kept.")
    if _is_number(value):
        return Threshold(float(value), f"Tau is {float(value):g}: smaller changes were put back (Eq. 17).")
    if isinstance(value, Mapping) and _is_number(value.get("end")):
        start = f"{float(value['start']):g}" if _is_number(value.get("start")) else "unknown"
        end = float(value["end"])
        return Threshold(end, f"Tau went from {start} to {end:g}; the last selection used {end:g}, if the run ended.")
    if isinstance(value, Mapping) and _is_number(value.get("value")):
        return Threshold(float(value["value"]), f"Tau was constant at {float(value['value']):g}.")
    return Threshold(None, f"Tau followed a schedule that the file does not define: {value}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max
