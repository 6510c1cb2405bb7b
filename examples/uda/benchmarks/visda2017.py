"""VisDA-2017: 12 classes, rendered 3D models to photographs; 1 task, scored by the mean over classes (Table V)."""

from examples.uda.benchmarks.image_folder import ImageFolderBenchmark

VISDA2017 = ImageFolderBenchmark(
    name="visda2017",
    title="VisDA-2017",
    domains={"synthetic": "train", "real": "validation"},
    tasks=(("synthetic", "real"),),
    classes=(
        "aeroplane",
        "bicycle",
        "bus",
        "car",
        "horse",
        "knife",
        "motorcycle",
        "person",
        "plant",
        "skateboard",
        "train",
        "truck",
    ),
    images={"synthetic": (152_397,), "real": (55_388,)},
    metric="mean_per_class",
    layout="""\
  train/aeroplane/*.png, ... (12 class folders, aeroplane to truck)
  validation/aeroplane/*.jpg, ...""",
    download=(
        "Download train.tar and validation.tar of the classification challenge, as linked from "
        "https://ai.bu.edu/visda-2017/ and https://github.com/VisionLearningGroup/taskcv-2017-public, and unpack both."
    ),
)
