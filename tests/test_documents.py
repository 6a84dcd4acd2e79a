import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_readme_has_snippets():
    assert len(SNIPPETS) == 2


@pytest.mark.parametrize("index", range(len(SNIPPETS)))
def test_readme_snippet_runs(index, capsys):
    exec(compile(SNIPPETS[index], f"README snippet {index}", "exec"), {})


def test_make_targets_of_the_documents_exist():
    makefile = (ROOT / "Makefile").read_text()
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    targets = {
        target for path in documents for target in re.findall(r"(?:`|^)make ([a-z-]+)", path.read_text(), re.MULTILINE)
    }
    assert {"test", "bench", "lint"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_links_between_documents_lead_somewhere():
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            assert target.startswith("https://") or (path.parent / target).exists(), f"{path.name}: {target}"


def docstrings(path):
    """Returns the docstrings of a file, each with where it is."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            yield f"{path.name}: {getattr(node, 'name', 'module')}", ast.get_docstring(node) or ""


def test_axis_letters_of_docstrings_are_listed():
    table = (ROOT / "docs" / "terms.md").read_text().partition("## Axis letters")[2]
    letters = re.findall(r"^\| ([A-Z]) \|", table, re.MULTILINE)
    assert len(letters) == len(set(letters))
    used = set()
    for path in sorted((ROOT / "dps_jax").rglob("*.py")):
        for place, text in docstrings(path):
            axes = [axis.strip() for shape in re.findall(r"\[([^\[\]]*)\]", text) for axis in shape.split(",")]
            found = {axis[0] for axis in axes if re.fullmatch(r"[A-Z]( [-+*/] \w+)?", axis)}
            assert found <= set(letters), place
            used |= found
    assert used == set(letters)
