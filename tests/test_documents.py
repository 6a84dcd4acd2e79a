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
    # A symbolic link is a page of the site; its links start from where its file is.
    pages = [path for path in (ROOT / "docs").glob("*.md") if not path.is_symlink()]
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *pages):
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


# The pages that are checked below, by path from the root; patterns of pathlib.
PAGES_WITHOUT_MEASUREMENTS = (
    "docs/arena-studies.md",
    "docs/benchmarks.md",
    "docs/laboratory.md",
    "docs/predictors.md",
    "docs/priors.md",
    "docs/reliability.md",
    "docs/terms.md",
    "docs/when-selection-pays.md",
)
# Numbers with these units are measurements, if nothing else is known; so are those with an error.
MEASURED = re.compile(
    r"(?:(?<![\w^])\d[\d,.]*|(?<![\w^])\.\d+)(?:"
    r"\s?(?:ns|µs|us|ms|s|seconds?|minutes?|hours?|KiB|MiB|GiB|[KMG]B(?:/s)?|tokens/s|[GT]FLOP/s|times (?:as|the))\b"
    r"|\s?(?:%|per cent\b)|x(?!\w)|\s±\s\d)"
)
# The first cell of the head of a table whose numbers are settings.
TABLES_OF_SETTINGS = ("mix", "option")
# Exact phrases that may stand outside of marked sections, by page, each with its reason.
ALLOWED = {
    "docs/arena-studies.md": {"95 % interval": "the level of an interval"},
    "docs/benchmarks.md": {"30 % of them observed": "a setting, `observed_share` of bench_priors.py"},
    "docs/priors.md": {
        "90 % intervals contain it in 90 % of the simulations": "the level of an interval, and what it means",
        '"90 % intervals hold"': "the name of a column",
    },
    "docs/terms.md": {"95 % interval": "the level of an interval"},
    "docs/when-selection-pays.md": {"95 % intervals": "the level of an interval"},
}


def without_results(text):
    """Returns a page without code, marked sections and tables of settings."""
    text = re.sub(r"<!-- ([\w-]+):begin -->.*?<!-- \1:end -->", "", text, flags=re.DOTALL)
    text = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.DOTALL | re.MULTILINE)
    heads = "|".join(map(re.escape, TABLES_OF_SETTINGS))
    text = re.sub(rf"^\| (?:{heads}) \|.*\n\|[-:| ]+\n(?:\|.*\n)*", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`]*`", "`code`", text)


def measurements(text, allowed=()):
    """Returns the numbers with a unit of a page that stand outside of marked sections, each with its surroundings."""
    text = re.sub(r"\s+", " ", without_results(text))
    for phrase in allowed:
        text = text.replace(phrase, "")
    return [text[max(0, match.start() - 60) : match.end() + 20] for match in MEASURED.finditer(text)]


@pytest.mark.parametrize("pattern", PAGES_WITHOUT_MEASUREMENTS)
def test_measured_numbers_are_written_by_scripts(pattern):
    pages = sorted(ROOT.glob(pattern))
    assert pages
    for path in pages:
        name = path.relative_to(ROOT).as_posix()
        assert measurements(path.read_text(), ALLOWED.get(name, {})) == [], name


def test_allowed_phrases_are_there():
    for name, phrases in ALLOWED.items():
        text = re.sub(r"\s+", " ", without_results((ROOT / name).read_text()))
        for phrase in phrases:
            assert phrase in text, (name, phrase)


def test_measurements_are_found():
    for text in ("takes .25 s", "in 3 minutes", "1.4 to 4 ms more", "2.3x", "0.076 ± 0.070", "11 %", "5 times as many"):
        assert measurements(f"It {text} here.") != [], text
    settings = (
        "N = 2,400 and 3x3 steps of 32 prompts, a 1024 x 1024 matrix\n\n| mix | share |\n|---|---|\n| a | 80 % |\n"
    )
    fenced = "```\nsleep 3 s\n```\n<!-- a:begin -->\n3 ms\n<!-- a:end -->\n"
    assert measurements(settings + fenced) == []
