"""The wheel is complete, works in an environment of its own and offline, and importing Vitrail is light."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from vitrail.deployment.engines import ENGINES

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# The ways out of the process that Python code has; looking up a name counts too.
OFFLINE = """
import socket
def refuse(*arguments, **options):
    raise AssertionError(f"the network was used: {arguments}")
socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
"""


def run(arguments, folder, **environment):
    """A command in `folder`, which is also its home; its output and errors are shown where it fails."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(argument) for argument in arguments], cwd=folder, capture_output=True, text=True,
        env={**kept, "HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1", **environment},
    )  # fmt: skip
    assert done.returncode == 0, f"{arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    target = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", target], ROOT)
    (built,) = target.glob("*.whl")
    return built


def test_the_wheel_is_complete(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = next(name for name in names if name.endswith(".dist-info/METADATA")).removesuffix("METADATA")
        assert "License-Expression: Apache-2.0" in archive.read(f"{info}METADATA").decode()
        assert "vitrail = vitrail.cli:main" in archive.read(f"{info}entry_points.txt").decode()
    sources = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*") if path.is_file()}
    sources = {name for name in sources if "__pycache__" not in name}
    assert "vitrail/data/fashion-mini.npz" in sources
    assert sources <= names and f"{info}licenses/LICENSE" in names
    assert not {name for name in names if not name.startswith(("vitrail/", info))}


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment with the wheel and without network; dependencies are this one's, its editable Vitrail is not."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", place / "bin" / "python", "install", "--quiet", "--no-deps"]
    run([*pip, "--no-index", "--disable-pip-version-check", wheel], place)
    (site,) = place.glob("lib/python*/site-packages")
    # A plain path line: .pth files inside that folder, such as the editable install's, are not followed.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\nimport offline\n")
    (site / "offline.py").write_text(OFFLINE)
    return place


def plan_of(place, folder):
    """Runs `vitrail demo --plan` of an environment in an empty folder, which stays empty."""
    location = run([place / "bin" / "python", "-c", "import vitrail; print(vitrail.__file__)"], folder)
    assert Path(location.strip()).is_relative_to(place)
    plan = run([place / "bin" / "vitrail", "demo", "--plan"], folder)
    assert not list(folder.iterdir())
    return plan


def test_the_installed_wheel_plans_the_demo_offline(installed, tmp_path):
    with pytest.raises(AssertionError, match="the network was used"):
        run([installed / "bin" / "python", "-c", "import urllib.request as r; r.urlopen('http://localhost')"], tmp_path)
    plan = plan_of(installed, tmp_path)
    assert "fashion-mini" in plan and "10 classes" in plan and "runs/demo" in plan


def test_the_wheel_with_its_own_dependencies(wheel, tmp_path):
    """The real thing: what `pip install vitrail` would do in an environment that has nothing."""
    if "VITRAIL_REQUIRE_PACKAGES" not in os.environ:
        pytest.skip("installs everything anew from the network; set VITRAIL_REQUIRE_PACKAGES=1, as .ci/run does")
    place, folder = tmp_path / "environment", tmp_path / "empty"
    folder.mkdir()
    venv.create(place, with_pip=True)
    pip = [place / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        run([*pip, "torch==2.13.0", wheel], tmp_path, HOME=os.environ["HOME"])
        assert "fashion-mini" in plan_of(place, folder)
    finally:
        shutil.rmtree(place)  # about a gigabyte, which pytest would keep


def imported():
    """Third-party modules of the package: name -> the files that import it, and whether on import of the file."""
    found = {}
    for path in (ROOT / "src" / "vitrail").rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"vitrail", "__future__"}:
                found.setdefault(name, set()).add((path.name, node in tree.body))
    return found


ENGINE_HOMES = {f"{engine.home.rpartition('.')[2]}.py" for engine in ENGINES.values()}  # imported where one is opened


def names_of(requirements):
    return {re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-") for requirement in requirements}


def test_every_import_is_a_declared_dependency():
    core = names_of(PROJECT["dependencies"])
    users = {name: packages for name, packages in PROJECT["optional-dependencies"].items() if name != "dev"}
    optional = set().union(*map(names_of, users.values()))
    providers = metadata.packages_distributions()
    assert {"torch", "PIL"} <= set(imported())
    for module, places in imported().items():
        (package,) = {name.lower().replace("_", "-") for name in providers.get(module, [module])}
        at_once = any(top for name, top in places if name not in ENGINE_HOMES)
        assert package in core or (package in optional and not at_once), f"{module} is imported by {sorted(places)}"


def test_dependencies_are_those_of_the_house():
    page = (ROOT / "docs" / "house.md").read_text()
    core, extras = re.search(r"^Core: (.*?)\. Extras: (.*?)\.\n", page, re.DOTALL | re.MULTILINE).groups()
    core = re.sub(r"\(.*?\)", "", core, flags=re.DOTALL)  # versions and remarks
    assert names_of(PROJECT["dependencies"]) == names_of(re.split(r",\s+", core))
    listed = dict(re.findall(r"`(\w+)` \((.*?)\)", extras, re.DOTALL)) | {"ray": "ray", "sklearn": "scikit-learn"}
    declared = {name: names_of(packages) for name, packages in PROJECT["optional-dependencies"].items()}
    assert declared.keys() == listed.keys()
    for name in listed.keys() - {"dev"}:  # the page's list of `dev` is open
        assert declared[name] == names_of(re.split(r",\s+", listed[name])), name


@pytest.mark.parametrize(
    "code", ["import vitrail", "from vitrail.cli import main; main(['--help'])"], ids=["import", "help"]
)
def test_importing_and_help_are_light(code, tmp_path):
    probe = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr, flush=True))\n" + code
    done = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "vitrail" in loaded and not loaded & {"torch", "numpy", "matplotlib", "PIL", "safetensors", "einops"}
