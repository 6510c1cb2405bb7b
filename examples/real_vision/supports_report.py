"""The report of the comparison of supports: a table of test accuracies, with rows of the comparison of rules."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from examples.real_vision import compare_rules
from examples.real_vision.compare_rules import DOMAINS, SEEDS
from examples.real_vision.compare_supports import chosen_rate
from examples.real_vision.rules import Rule
from examples.real_vision.rules_report import DOMAIN_NAMES, Record, cell
from examples.real_vision.supports import METHODS, SHARE

OF_RULES = {
    "all weights": Rule("once", 1.0),
    "share": Rule("geometric", SHARE),
    "random support": Rule("random", SHARE),
}
"""The same runs, of the comparison of rules. A mask after each step trains what a support does."""


def write_report(records: Mapping[str, Record], rules: Mapping[str, Record], folder: Path) -> list[Path]:
    """Write `supports.md` into a folder. Returns its path."""
    table = folder / "supports.md"
    table.write_text("\n".join(_lines(records, rules)) + "\n")
    return [table]


def _lines(records: Mapping[str, Record], rules: Mapping[str, Record]) -> Iterator[str]:
    yield "| trained | weights, % | rate | " + " | ".join(DOMAIN_NAMES[domain] for domain in DOMAINS) + " |"
    yield "|---|---:|---:|" + "---:|" * len(DOMAINS)
    for name, rule in OF_RULES.items():
        rate = compare_rules.chosen_rate(rule, "adamw", rules)
        wanted = (asdict(rule), "adamw", rate)
        yield _row(name, rate, [one for one in rules.values() if _settings(one) == wanted])
    for method in METHODS:
        rate = chosen_rate(method, records)
        yield _row(method, rate, [one for one in records.values() if (one["method"], one["rate"]) == (method, rate)])
    yield ""
    yield (
        f"Test accuracy in per cent, mean ± standard deviation over {SEEDS} seeds; in brackets their number where it "
        "is smaller. AdamW; the learning rate of a row is that of the lowest validation loss on sketch with seed 0."
    )


def _settings(one: Record) -> tuple[object, ...]:
    return one["rule"], one["optimizer"], one["rate"]


def _row(name: str, rate: float, runs: list[Record]) -> str:
    cells = [cell([one for one in runs if one["domain"] == domain]) for domain in DOMAINS]
    return f"| {name} | {100 * max(one['share'] for one in runs):.3g} | {rate:g} | " + " | ".join(cells) + " |"
