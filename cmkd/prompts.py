"""Prompts: the sentences from which a text encoder makes the class embeddings (Sec. III.A, IV.A)."""

from collections.abc import Sequence
from typing import Final, Literal

PHOTO: Final = "a photo of a {}"
"""Sec. III.A and Fig. 3; the released code's, except on Office-Home and digits."""
PHOTO_WITHOUT_ARTICLE: Final = "a photo of {}"
"""Sec. IV.A."""
IMAGE: Final = "an image of a {}"
"""The released code's on Office-Home."""
DIGIT: Final = "a photo of the number: {}"
"""Sec. IV.A, digits."""
DIGIT_QUOTED: Final = 'a photo of the number: "{}"'
"""The released code's on digits."""

ENSEMBLE: Final = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""The seven templates that CLIP's authors picked out of their eighty for ImageNet; not used by the paper."""


def build_prompts(class_names: Sequence[str], templates: str | Sequence[str] = PHOTO) -> list[list[str]]:
    """Fill each class's name into each template: `[["a photo of a alarm clock"], ...]`.

    Args:
        class_names: C names in the order of the labels. Underscores become spaces; case is left to the tokenizer.
        templates: one template or an ensemble of T; each has one `{}` where the name goes.

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
    """Put class names in the order in which their prompts stand beside the labels.

    The released code wrote DomainNet's prompts in the order of the lower-case names, while labels count the folders,
    where the three names with a capital T come first: 33 of the 345 prompts then stand at their own label.

    Args:
        class_names: names in the order of the labels.
        class_order: "folder" leaves them so, "lowercase" repeats the released code's slip.
    """
    return sorted(class_names, key=str.lower) if class_order == "lowercase" else list(class_names)
