"""DomainNet: 345 classes in six styles; 30 tasks, trained and tested on whole domain folders (Table VI)."""

from examples.uda.benchmarks.domainnet_classes import CLASSES
from examples.uda.benchmarks.image_folder import ImageFolderBenchmark

DOMAINS = {
    "clp": "clipart",
    "inf": "infograph",
    "pnt": "painting",
    "qdr": "quickdraw",
    "rel": "real",
    "skt": "sketch",
}

DOMAINNET = ImageFolderBenchmark(
    name="domainnet",
    title="DomainNet",
    domains=DOMAINS,
    tasks=tuple((source, target) for source in DOMAINS for target in DOMAINS if source != target),
    classes=CLASSES,
    # First the images that the official train and test lists of the cleaned version name (586,575), then those of the
    # original version, as its paper's table gives them (596,006).
    images={
        "clp": (48_129, 48_833),
        "inf": (51_605, 53_201),
        "pnt": (72_266, 75_759),
        "qdr": (172_500,),
        "rel": (172_947, 175_327),
        "skt": (69_128, 70_386),
    },
    layout="""\
  clipart/aircraft_carrier/*.jpg, ... (345 class folders, The_Eiffel_Tower to zigzag)
  infograph/...
  painting/...
  quickdraw/... (*.png)
  real/...
  sketch/...""",
    download=(
        "Download the six archives of the cleaned version from https://ai.bu.edu/M3SDA/ and unpack them. The train and "
        "test lists are not needed: the paper trains and tests on whole domains."
    ),
)
