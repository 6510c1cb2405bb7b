"""Generated scenes, written once for all tests of this folder."""

import pytest

from examples.segmentation.generated_scenes import write_scenes


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """The root of the three data sets, a few scenes each."""
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, train=10, val=3)
    return root
