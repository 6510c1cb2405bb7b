"""The templates of the pages: HTML without scripts, in which names from untrusted files can do no harm."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from rst.printable import printable
from rst.report.chart import percent
from rst.report.density_by_layer import bar_share


def load_template(name: str) -> Template:
    """Load a template with the filters that pages use; undefined variables are errors."""
    environment = Environment(
        loader=PackageLoader("rst.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters.update(
        percent=percent,
        count=lambda number: f"{number:,}",
        size=_human_size,
        share=bar_share,
        place=lambda x: f"{x:.2f}",
    )
    return environment.get_template(name)


def _shown(value: Any) -> Any:
    """Escape characters that control the reading direction, in names from an untrusted file; jinja escapes HTML."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _human_size(nbytes: int) -> str:
    from rich.filesize import decimal

    return decimal(nbytes)
