"""The tests on every Python that is supported, and on the oldest dependencies: `nox`, or `nox -s oldest`."""

import nox

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
PACKAGES = ["tests/rst", "tests/cmkd", "tests/properties"]
NEED_EXTRAS = [
    "interop",
    "cli/test_convert_formats.py",
    "operations/test_combine.py",
    "live/test_hub.py",
    "mixed/test_batch.py",
]
CORE = ["tests/rst", "tests/properties", *(f"--ignore=tests/rst/{place}" for place in NEED_EXTRAS)]

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True


@nox.session(python=PYTHONS)
def newest(session: nox.Session) -> None:
    """The newest release of every dependency, extras included."""
    session.install(".[all,dev]")
    session.run("python", "-m", "pytest", "-n", "2", "--dist", "worksteal", *(session.posargs or PACKAGES))


@nox.session(python=PYTHONS[0])
def oldest(session: nox.Session) -> None:
    """The oldest release of every core dependency that pyproject.toml admits, without extras."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    oldest_core = [requirement.replace(">=", "==", 1) for requirement in project["dependencies"]]
    session.install(*oldest_core, *project["optional-dependencies"]["dev"])
    session.install("--no-deps", ".")
    session.run("python", "-m", "pytest", "-n", "2", "--dist", "worksteal", *(session.posargs or CORE))
