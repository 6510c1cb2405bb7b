"""Office-Home as partial-set adaptation: the target has the first 25 classes only (App. K, appendix Table VIII)."""

from dataclasses import replace

from examples.uda.benchmarks.office_home import OFFICE_HOME

OFFICE_HOME_PARTIAL = replace(
    OFFICE_HOME,
    name="office_home_partial",
    title="Office-Home (partial set)",
    target_classes=25,
)
