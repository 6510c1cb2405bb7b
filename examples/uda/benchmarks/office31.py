"""Office-31: 31 office objects from a web shop, a DSLR camera and a webcam; 6 tasks (Table II)."""

from examples.uda.benchmarks.image_folder import ImageFolderBenchmark

NAMES = """
    back_pack bike bike_helmet bookcase bottle calculator desk_chair desk_lamp desktop_computer file_cabinet
    headphones keyboard laptop_computer letter_tray mobile_phone monitor mouse mug paper_notebook pen phone printer
    projector punchers ring_binder ruler scissors speaker stapler tape_dispenser trash_can
"""

OFFICE31 = ImageFolderBenchmark(
    name="office31",
    title="Office-31",
    domains={"A": "amazon/images", "D": "dslr/images", "W": "webcam/images"},
    tasks=(("A", "D"), ("A", "W"), ("D", "A"), ("D", "W"), ("W", "A"), ("W", "D")),
    classes=tuple(NAMES.split()),
    spoken={"back_pack": "backpack"},
    images={"A": (2817,), "D": (498,), "W": (795,)},
    layout="""\
  amazon/images/back_pack/*.jpg, ... (31 class folders, back_pack to trash_can)
  dslr/images/...
  webcam/images/...""",
    download="Download the Office-31 images from https://faculty.cc.gatech.edu/~judy/domainadapt/ and unpack them.",
)
