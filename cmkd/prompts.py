"""Prompts: the sentences from which a text encoder computes the class embeddings (Sec. III.A, IV.A)."""

from collections.abc import Sequence
from typing import Final, Literal

PHOTO: Final = "a photo of a {}"
"""Sec. III.A and Fig. 3; the released code uses it except on Office-Home and the digits."""
PHOTO_WITHOUT_ARTICLE: Final = "a photo of {}"
"""Sec. IV.A."""
IMAGE: Final = "an image of a {}"
"""The released code's template on Office-Home."""
DIGIT: Final = "a photo of the number: {}"
"""Sec. IV.A, digits."""
DIGIT_QUOTED: Final = 'a photo of the number: "{}"'
"""The released code's template on the digits."""

ENSEMBLE: Final = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""The seven templates that CLIP's authors selected from their eighty for ImageNet; the paper does not use them."""


def build_prompts(class_names: Sequence[str], templates: str | Sequence[str] = PHOTO) -> list[list[str]]:
    """Fill each class name into each template: `[["a photo of a alarm clock"], ...]`.

    Args:
        class_names: C names in the order of the labels. Underscores become spaces; the tokenizer handles case.
        templates: one template or an ensemble of T; each has one `{}` for the name.

    Returns:
        C lists of T prompts.

    Raises:
        ValueError: if there is no class, a name is empty, or a template does not have exactly one `{}`.
    """
    templates = [templates] if isinstance(templates, str) else list(templates)
    if not templates or not class_names:
        raise ValueError(f"got {len(class_names)} class names and {len(templates)} templates: both must be there")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"templates must have exactly one {{}} each, got {template!r}")
    spoken = [name.replace("_", " ").strip() for name in class_names]
    if not all(spoken):
        raise ValueError(f"class_names must not be empty, got {class_names[spoken.index('')]!r}")
    return [[template.replace("{}", name) for template in templates] for name in spoken]


def prompt_order(class_names: Sequence[str], class_order: Literal["folder", "lowercase"]) -> list[str]:
    """Return the class names in the order in which their prompts are matched with the labels.

    The released code wrote DomainNet's prompts in the order of the lower-case names, but the labels follow the order of
    the folders, where the three names with a capital T come first. Only 33 of the 345 prompts then match their label.

    Args:
        class_names: names in the order of the labels.
        class_order: "folder" keeps this order, "lowercase" reproduces the released code's mistake.
    """
    return sorted(class_names, key=str.lower) if class_order == "lowercase" else list(class_names)
