"""Class prototypes over a pretrained classifier's outputs, against Co-Tuning."""

from cmkd import average_prototypes, relationship_prototypes
from tests.parity.numbers import Case, Differences


def prototypes(name: str, case: Case) -> Differences:
    found = Differences()
    train, validation = (
        (case["logit_factor"] * case[f"{half}_logits"]).softmax(dim=1) for half in ("train", "validation")
    )
    labels = case["train_labels"], case["validation_labels"]
    classes = len(case["direct"])
    found.value("direct", average_prototypes(train, labels[0], classes), case["direct"])
    relationship = relationship_prototypes(train, labels[0], validation, labels[1], classes)
    there = case["relationship"]
    found.equal("relationship's arg-max", relationship.argmax(1), there.argmax(1))
    # both rows sum to 1, so this is the total variation
    found.values["relationship (total variation)"] = float(0.5 * (relationship - there).abs().sum(dim=1).max())
    return found
