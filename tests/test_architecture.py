"""The tree is the diagram: imports point downwards, files stay small, and README's tree is the one on the disk."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "vitrail"

# docs/house.md; a module may import from its own row's folder and from lower rows only.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"commands", "sklearn"},
    {"recipes", "experiments"},
    {"report"},
    {"training", "evaluation", "inspection", "deployment"},
    {"objectives", "tasks"},
    {"checkpoints", "data"},
    {"model"},
    {
        "images",
        "decoding",
        "preprocessing",
        "predictor",
        "statistics",
        "errors",
        "configuration",
        "files",
        "canvas",
        "nearest",
        "memory",
        "cores",
    },
]
HEIGHT = {name: -row for row, names in enumerate(LAYERS) for name in names}
LEAVES = LAYERS[-1]


def imports(path: Path) -> set[str]:
    """First part below `vitrail` of everything a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "vitrail":
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names if alias.name in HEIGHT}
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("vitrail.")}
    return found


def test_imports_point_downwards():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        home = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if home == "__init__":
            continue
        for target in imports(path) - {home}:
            if HEIGHT[target] >= HEIGHT[home] and not {home, target} <= LEAVES:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {target}")
    assert not wrong


def test_leaves_are_free_of_torch():
    for name in LEAVES:
        tree = ast.parse((PACKAGE / f"{name}.py").read_text())
        names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not [module for module in names if module.split(".")[0] == "torch"], name


def test_folders_are_one_level_deep_and_have_no_attic():
    for path in PACKAGE.rglob("*"):
        parts = path.relative_to(PACKAGE).parts
        if "__pycache__" in parts:
            continue
        assert len(parts) <= 2, path
        assert not {part.removesuffix(".py") for part in parts} & {"utils", "common", "base", "misc", "helpers"}, path


def test_files_and_functions_fit():
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "tests").glob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        text = path.read_text()
        assert text.count("\n") <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno <= 66, f"{path}: {node.name}"


def test_modules_take_few_arguments():
    for path in (PACKAGE / "model").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                count = len(node.args.args) + len(node.args.kwonlyargs) - 1
                assert count <= 7, f"{path.name}:{node.lineno} takes {count}"


def test_readme_tree_is_the_tree_on_disk():
    """Every entry of the README's tree exists, and every module of the package is in it, with a caption."""
    block = re.search(r"```\n(src/vitrail/\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block, "README.md shows the tree"
    listed, folder = {}, ""
    for line in block[1].splitlines()[1:]:
        match = re.match(r"^( +)(\S+)\s{2,}(\S.*)$", line)
        assert match, f"an entry and its caption: {line!r}"
        folder = match[2] if match[2].endswith("/") else folder if len(match[1]) > 2 else ""
        listed[folder + match[2] if folder and not match[2].endswith("/") else match[2]] = match[3]
    on_disk = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    on_disk |= {path.name + "/" for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert set(listed) == on_disk
