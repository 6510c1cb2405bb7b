"""The wheel and the sdist: built from a clean copy, with the two packages and nothing else in them."""

import email
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("rst", "cmkd")
WITH_IT = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")

pytest.importorskip("build", reason="the extra dev brings it")
pytest.importorskip("twine", reason="the extra dev brings it")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, built without a network from a copy that has litter in it."""
    copy = tmp_path_factory.mktemp("copy")
    for name in WITH_IT:
        shutil.copy(ROOT / name, copy)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.pyc"))
    for name in ("tests/test_x.py", "examples/__init__.py", "benchmarks/__init__.py", "outputs/weights.pt", ".ci/run"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("")
    out = copy / "dist"
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out)]
    built = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    return out


def sources() -> set[str]:
    """What of the packages must be shipped."""
    kept = (".py", ".typed", ".html", ".css")
    paths = (path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.suffix in kept)
    return {path.relative_to(ROOT).as_posix() for path in paths if "__pycache__" not in path.parts}


def members(dist: Path) -> Iterator[tuple[str, set[str]]]:
    """Files of the wheel without its metadata, and of the sdist without its own."""
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        yield "wheel", names
    with tarfile.open(sdist) as archive:
        files = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
        yield "sdist", {name for name in files if ".egg-info/" not in name}


@pytest.mark.slow
def test_the_packages_and_nothing_else(dist: Path) -> None:
    found = dict(members(dist))
    assert found["wheel"] == sources()
    assert found["sdist"] == sources() | {*WITH_IT, "PKG-INFO", "setup.cfg"}
    assert "rst/report/templates/page.html" in found["wheel"]


@pytest.mark.slow
def test_the_metadata_is_what_an_index_accepts(dist: Path) -> None:
    files = [str(path) for path in sorted(dist.iterdir())]
    command = [sys.executable, "-m", "twine", "check", "--strict", *files]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        fields = email.message_from_bytes(archive.read(metadata))
        scripts = archive.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    assert fields["License-Expression"] == "Apache-2.0"
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "rst = rst.cli:main" in scripts
    needed = [line for line in fields.get_all("Requires-Dist") or [] if "extra ==" not in line]
    assert {Requirement(line).name for line in needed} == {
        "torch", "safetensors", "numpy", "blake3", "pcodec", "typer", "rich", "jinja2", "filelock"
    }  # fmt: skip


@pytest.mark.slow
def test_the_wheel_works_where_it_is_unpacked(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import torch, rst, cmkd; from rst.cli import main; "
        "assert all('site' in module.__file__ for module in (rst, cmkd)); "
        "rst.export({'w': torch.zeros(3)}, {'w': torch.ones(3)}).save('d.safetensors'); "
        "raise SystemExit(main(['inspect', 'd.safetensors', '--html', 'page.html']))"
    )
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "", "HOME": str(tmp_path)}
    command = [sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")
