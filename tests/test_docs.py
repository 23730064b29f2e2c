"""What the pages say is true: their snippets run, their commands parse, their links lead somewhere, their lists are whole."""

import ast
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from PIL import Image

import tiny
from vitrail import errors
from vitrail.checkpoints.arrays import CheckpointError
from vitrail.cli import app

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
SOURCES = sorted((ROOT / "src" / "vitrail").rglob("*.py"))
BLOCK = re.compile(r"(?:^<!-- not run: (?P<reason>.*?) -->\n+)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
MOST_NOT_RUN = 1  # the sketch of the house page; more is a decision, made here


def blocks(page, *languages):
    """(first line, why it is not run or None, text) of a page's fenced blocks."""
    text = PAGES[page].read_text()
    for match in BLOCK.finditer(text):
        if match["language"] in languages:
            yield text.count("\n", 0, match.start("text")) + 1, match["reason"], match["text"]


@pytest.fixture(scope="module")
def workplace(pictures, tmp_path_factory):
    """A folder as the pages assume it: a finished run in runs/demo, pictures in class folders, and a picture."""
    place = tmp_path_factory.mktemp("docs")
    tiny.tiny(pictures, place / "runs" / "demo")
    (place / "photos").symlink_to(pictures)
    Image.radial_gradient("L").resize((60, 40)).save(place / "shoe.png")
    return place


@pytest.mark.parametrize("page", [page for page in PAGES if None in {why for _, why, _ in blocks(page, "python")}])
def test_python_blocks_run(page, workplace, monkeypatch):
    """In order and in one namespace, as a reader would type them."""
    monkeypatch.chdir(workplace)
    namespace = {"__name__": "__page__"}
    for line, reason, text in blocks(page, "python"):
        if reason is None:
            exec(compile("\n" * (line - 1) + text, page, "exec"), namespace)


def test_few_blocks_are_not_run():
    skipped = [(page, line) for page in PAGES for line, reason, _ in blocks(page, "python") if reason is not None]
    assert len(skipped) <= MOST_NOT_RUN, skipped


def commands(page):
    """Every `vitrail ...` of a page's shell blocks, as words; comments, pipes and redirections end a command."""
    typed = [(line, text) for line, _, block in blocks(page, "bash", "sh") for text in block.splitlines()]
    for line, _, block in blocks(page, "console"):
        typed += [(line, text.removeprefix("$ ")) for text in block.splitlines() if text.startswith("$ ")]
    for line, text in typed:
        lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        while "vitrail" in words:
            words = words[words.index("vitrail") + 1 :]
            end = next((index for index, word in enumerate(words) if set(word) <= set("|&;<>()")), len(words))
            yield line, words[:end]
            words = words[end:]


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page):
    """Verbs, flags and the types of their values exist; nothing is executed."""
    for line, words in commands(page):
        try:
            _, bound, *_ = app.parse_args(words, exit_on_error=False, print_error=False)
            files = bound.arguments.get("files", [])  # the one argument that takes what begins with a hyphen
            assert not [name for name in files if name.startswith("--")], "a flag that predict does not know"
        except Exception as error:
            pytest.fail(f"{page}, block at line {line}: vitrail {shlex.join(words)}: {error}")


def test_the_readme_opens_with_the_two_commands():
    first = next(blocks("README.md", "console", "bash"))[2]
    assert re.findall(r"make (\w+)", first) == ["demo", "test"]


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page):
    targets = re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"(?:`|^\$ )make (\w+)", PAGES[page].read_text(), re.M)) <= set(targets)


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    place = ROOT / page
    for target in re.findall(r"\]\((?!\w+:)([^)#\s]+)", place.read_text()):
        assert (place.parent / target).exists(), target


def table_of_errors():
    rows = re.findall(r"^\| (VT\d{3}) \| (.+?) \| (.+?) \| (\d+) \|$", PAGES["docs/errors.md"].read_text(), re.M)
    assert len({code for code, *_ in rows}) == len(rows)
    return {code: (happened, fix, int(status)) for code, happened, fix, status in rows}


def raised():
    """Every code of the sources with the exit status of the class that carries it."""
    classes = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    classes |= dict.fromkeys(("CheckpointError", "Misfit", "Refused"), CheckpointError)
    found = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            first = node.args[0] if isinstance(node, ast.Call) and node.args else None
            if isinstance(first, ast.Constant) and re.fullmatch(r"VT\d{3}", str(first.value)):
                found.setdefault(first.value, set()).add(classes[node.func.id].exit_status)
    return found


def test_every_error_is_explained_with_its_status():
    mentioned = {code for path in SOURCES for code in re.findall(r"VT\d{3}", path.read_text())}
    table, statuses = table_of_errors(), raised()
    assert set(table) == mentioned == set(statuses)
    assert {code: {status} for code, (*_, status) in table.items()} == statuses
    assert list(table) == sorted(table)


def test_the_changelog_has_one_unreleased_section():
    headings = re.findall(r"^(#{2,3}) (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    first, *others = [title for level, title in headings if level == "##"]
    assert first == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", title) for title in others)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert {title for level, title in headings if level == "###"} <= kinds


def test_ci_runs_what_developers_run():
    script = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"^VITRAIL_REQUIRE_PACKAGES=1 make test$", script, re.M)
    assert re.search(r"^make check$", script, re.M) and "set -euo pipefail" in script
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


def test_no_file_names_the_machine_it_was_written_on():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("not a git checkout, so there is no list of the project's files")
    names = [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]
    assert "README.md" in names
    places = [f"/{folder}/".encode() for folder in ("work", "tmp", "home", "root")]
    assert not [name for name in names if any(place in (ROOT / name).read_bytes() for place in places)]
