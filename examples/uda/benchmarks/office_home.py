"""Office-Home: 65 everyday objects as art, clip art, product pictures and photographs; 12 tasks (Table I)."""

from examples.uda.benchmarks.image_folder import ImageFolderBenchmark

NAMES = """
    Alarm_Clock Backpack Batteries Bed Bike Bottle Bucket Calculator Calendar Candles Chair Clipboards Computer Couch
    Curtains Desk_Lamp Drill Eraser Exit_Sign Fan File_Cabinet Flipflops Flowers Folder Fork Glasses Hammer Helmet
    Kettle Keyboard Knives Lamp_Shade Laptop Marker Monitor Mop Mouse Mug Notebook Oven Pan Paper_Clip Pen Pencil
    Postit_Notes Printer Push_Pin Radio Refrigerator Ruler Scissors Screwdriver Shelf Sink Sneakers Soda Speaker Spoon
    TV Table Telephone ToothBrush Toys Trash_Can Webcam
"""
CLASSES = tuple(NAMES.split())
DOMAINS = {"Ar": "Art", "Cl": "Clipart", "Pr": "Product", "Re": "Real World"}

OFFICE_HOME = ImageFolderBenchmark(
    name="office_home",
    title="Office-Home",
    domains=DOMAINS,
    tasks=tuple((source, target) for source in DOMAINS for target in DOMAINS if source != target),
    classes=CLASSES,
    images={"Ar": (2427,), "Cl": (4365,), "Pr": (4439,), "Re": (4357,)},
    layout="""\
  Art/Alarm_Clock/*.jpg, ... (65 class folders, Alarm_Clock to Webcam)
  Clipart/...
  Product/...
  Real World/... (with a blank)""",
    download=(
        "Download OfficeHomeDataset_10072016.zip from https://www.hemanthdv.org/officeHomeDataset.html and unpack it."
    ),
)
