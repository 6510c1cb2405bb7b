"""The configurations that ship: each builds, and stands beside the paper's figures."""

import pytest
from torch import nn

from examples.experiment.settings import SettingsError
from examples.uda.benchmarks import get_benchmark
from examples.uda.methods import build_objective, parse_method
from examples.uda.report import PAPER, published
from examples.uda.tables import CONFIGS, table_names, variants, with_method
from tests.messages import names

VARIANTS = [variant for table in table_names() for variant in variants(table)]
EXTRA = {"CLIP (prompts in order)"}  # a row that the paper does not have


def test_every_classification_table_of_the_paper_is_there():
    main = {f"table{number}" for number in (1, 2, 3, 4, 5, 6, 8, 9, 10)} | {"figure4"}
    appendix = {f"appendix{number}" for number in (2, 3, 4, 5, 6, 8)} | {"appendix_figure2"}
    assert main | appendix <= set(table_names())


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: f"{variant.table}-{variant.name}")
def test_every_row_builds(variant):
    for settings in variant.rows.values():
        get_benchmark(settings.benchmark)
        method = parse_method(settings.method)
        if method.trains:
            build_objective(settings, nn.Identity(), feature_dim=8, classes=3)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: f"{variant.table}-{variant.name}")
def test_every_row_of_a_paper_s_table_has_its_figures(variant):
    _, columns, rows = published(variant.table, variant.name)
    if not (PAPER / f"{variant.table}.yaml").exists():
        pytest.skip("not a table of the paper")
    assert set(variant.rows) - EXTRA <= set(rows)
    for row in rows.values():
        values = row.get("values", [])
        assert len(values) in (0, len(columns))
        assert not values or abs(sum(values) / len(values) - row["avg"]) < 1.6  # slips in print are kept


def test_a_paper_s_columns_are_the_benchmark_s_tasks():
    for variant in VARIANTS:
        _, columns, _ = published(variant.table, variant.name)
        benchmark = get_benchmark(next(iter(variant.rows.values())).benchmark)
        if columns and benchmark.metric == "accuracy":
            assert columns == ["-".join(task) for task in benchmark.tasks], variant
        elif columns:
            assert len(columns) == len(benchmark.classes)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_file_begins_with_its_command(path):
    command = path.read_text().splitlines()[0]
    assert command.startswith(f"# python -m examples.uda reproduce {path.parent.name}")


def test_a_method_that_the_table_lacks_becomes_a_row():
    variant = next(variant for variant in VARIANTS if (variant.table, variant.name) == ("table1", "RN50"))
    (row,) = with_method(variant, "bnm+rst").rows.values()
    assert (row.method, row.benchmark, row.encoder_lr) == ("bnm+rst", "office_home", 3e-7)
    assert list(with_method(variant, "cmkd+rst").rows) == ["CMKD+RST"]


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("cmkdd", ("'cmkdd'",)),
        ("cmkd+lora", ("'lora'",)),
        ("clip+rst", ("'clip+rst'", "clip")),
        ("linear_probe+rst", ("'linear_probe+rst'", "linear_probe")),
        ("bnm+fixmatch", ("'bnm+fixmatch'", "bnm")),
    ],
)
def test_methods_that_mean_nothing_are_refused(name, facts):
    with pytest.raises(SettingsError, match=names(*facts)):
        parse_method(name)


def test_an_unknown_option_of_a_baseline_is_named():
    settings = next(iter(with_method(VARIANTS[0], "bnm").rows.values()))
    wrong = type(settings).from_dict({**settings.to_dict(), "options": {"wieght": 1.0}})
    with pytest.raises(SettingsError, match=names("bnm", "'wieght'")):
        build_objective(wrong, None, feature_dim=8, classes=3)
