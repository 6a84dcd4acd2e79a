"""README, CONTRIBUTING and the pages of docs/: their snippets run, and what they name exists."""

import ast
import functools
import importlib
import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from dps_jax import selectors, tasks, traces
from tests.text import folders

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
# CHANGELOG.md has the names of the releases that it is about.
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if not p.is_symlink())]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Folders that a page has the reader download.


def _write_run():
    """Writes the trace of a simulated run to the folder that the page on priors names."""
    folder = pathlib.Path("runs/first")
    folder.mkdir(parents=True)
    run = traces.simulate_learners(np.random.default_rng(0), num_prompts=100, num_rounds=20, batch_size=20)
    traces.write_trace(folder / "trace.npz", run.trace)


# Folders that a page has the reader download, or write by a command.
PREPARE = {
    "docs/text.md": lambda: folders.write("Qwen3-0.6B", folders.template("qwen3")),
    "docs/priors.md": _write_run,
}

BLOCK = re.compile(r"^( *)```([\w-]*)(.*)\n((?:.*\n)*?)\1```$", re.MULTILINE)
PACKAGES = ("grading", "hmm", "integrations", "models", "predictors", "priors", "rl", "selectors", "tasks", "text")
PACKAGES += ("traces", "training", "types")
# Options of the programs of others.
FOREIGN_OPTIONS = {
    "--custom-config-path",  # slime
    "--data-source-path",
    "--local-dir",  # hf
    "--no-deps",  # pip
    "--rollout-all-samples-process-path",
}


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(path, *languages):
    """Returns the fenced blocks of a page in these languages; of each, what follows the language, and its text."""
    found = BLOCK.findall(path.read_text())
    return [
        (title, re.sub(rf"^{indent}", "", text, flags=re.MULTILINE))
        for indent, language, title, text in found
        if language in languages
    ]


def inline_codes(path):
    """Returns what stands between single backticks, outside blocks."""
    return re.findall(r"(?<!`)`([^`]+)`(?!`)", BLOCK.sub("", path.read_text()))


SNIPPETS = [snippet for _, snippet in blocks(README, "python")]


def test_readme_has_snippets():
    assert len(SNIPPETS) == 2


@pytest.mark.parametrize("index", range(len(SNIPPETS)))
def test_readme_snippet_runs(index, capsys):
    exec(compile(SNIPPETS[index], f"README snippet {index}", "exec"), {})


@pytest.fixture
def registries():
    """Methods and tasks that a snippet registers are gone after it."""
    known = [(registry, dict(registry)) for registry in (selectors.SELECTORS, tasks.TASKS)]
    yield
    for registry, before in known:
        registry.clear()
        registry.update(before)


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("path", [path for path in PAGES if path != README and blocks(path, "python")], ids=name_of)
def test_snippets_run_one_after_another(path, tmp_path, monkeypatch, capsys):
    """A block with a title is a file of this name; the others are run in one namespace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    PREPARE.get(name_of(path), lambda: None)()
    names = {}
    for index, (title, snippet) in enumerate(blocks(path, "python")):
        if title:
            (tmp_path / re.fullmatch(r' title="([\w.]+)"', title)[1]).write_text(snippet)
        else:
            exec(compile(snippet, f"{name_of(path)} snippet {index}", "exec"), names)


def resolve(name):
    """Returns the object of a dotted name, public in each of its parts.

    Raises:
      AttributeError: if there is none.
    """
    parts = name.split(".")
    value = importlib.import_module(parts[0])
    for depth, part in enumerate(parts[1:], start=2):
        if part.startswith("_") and not part.endswith("__"):
            raise AttributeError(f"{name}: {part} is private")
        is_module = hasattr(value, "__path__")
        if is_module and importlib.util.find_spec(".".join(parts[:depth])) is not None:
            value = importlib.import_module(".".join(parts[:depth]))
        elif hasattr(value, "__file__") and part in getattr(value, "_CLASSES", ()):  # made when its framework is there
            return None
        elif hasattr(value, "__file__") and part not in (*getattr(value, "__all__", ()), "__version__"):
            raise AttributeError(f"{name}: {part} is not in __all__ of {value.__name__}")
        elif part in getattr(value, "__annotations__", ()):  # a field without a default
            return None
        else:
            value = getattr(value, part)
    return value


def missing(names):
    """Returns those that are no public names, with the reason."""
    found = []
    for name in sorted(set(names)):
        try:
            resolve(name)
        except AttributeError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_dotted_names_are_public(path):
    text = path.read_text()
    names = re.findall(r"(?<![\w./])dps_jax(?:\.[A-Za-z_]\w*)+", text)
    # In inline code `selectors.dps` is short for dps_jax.selectors.dps; `text.md` is a file.
    short = rf"(?<![\w./\"'-])((?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+)(?![\w/-])"
    found = [name for code in inline_codes(path) for name in re.findall(short, code)]
    names += [f"dps_jax.{name}" for name in found]
    # Files, and NAME for one of several names.
    assert missing(name for name in names if not re.search(r"\.(?:md|py|json|npz|npy|NAME)$", name)) == []


def used_names(sources):
    """Returns the dotted names that programs, of which each goes on from the one before, take from dps_jax."""
    modules, names = {}, []
    for source in sources:
        nodes = list(ast.walk(ast.parse(source)))
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dps_jax":
                modules |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        attributes = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
        names += [f"{modules[node.value.id]}.{node.attr}" for node in attributes if node.value.id in modules]
    return [*modules.values(), *names]


@pytest.mark.parametrize("path", [path for path in PAGES if blocks(path, "py")], ids=name_of)
def test_snippets_that_are_not_run_are_python_with_names_that_exist(path):
    assert missing(used_names(snippet for _, snippet in blocks(path, "py", "python"))) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_names_in_notebooks_are_public(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    assert missing(used_names(re.sub(r"^[%!].*", "", source, flags=re.MULTILINE) for source in sources)) == []


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_paths_exist(path):
    pattern = r"(?<![\w./-])((?:experiments|tests|notebooks|docs|dps_jax)/[\w./-]*[\w/])"
    found = re.findall(pattern, path.read_text())
    # Source files by their path in the package, such as `hmm/filtering.py`.
    short = re.compile(rf"(?:{'|'.join(PACKAGES)})/[\w/]+\.py")
    found += [f"dps_jax/{code}" for code in inline_codes(path) if short.fullmatch(code)]
    assert [path for path in found if not any(ROOT.glob(path.rstrip("/").replace("NAME", "*")))] == []


@functools.cache
def known_options():
    """Returns the options of every script and command, by its name."""
    scripts = [*(ROOT / "experiments").glob("[a-z]*.py"), *(ROOT / "experiments/integrations").glob("[a-z]*.py")]
    commands = [*map(name_of, scripts), "dps_jax", "dps_jax.advise", "dps_jax.next_prompts", "dps_jax.report"]
    program = [sys.executable, ROOT / "tests" / "options_program.py", *commands]
    return json.loads(subprocess.run(program, capture_output=True, check=True, cwd=ROOT).stdout)


def shown_options(path):
    """Returns pairs of a command and an option that stands behind it in code; options by themselves have no command."""
    codes = [*inline_codes(path), *(text for _, text in blocks(path, "", "bash", "sh", "console", "text"))]
    for line in "\n".join(codes).replace("\\\n", " ").splitlines():
        line = line.partition("  #")[0]
        command = re.search(r"(experiments/[\w/]+\.py|(?<=python -m )dps_jax\.\w+)", line)
        options = re.findall(r"(?<![\w-])--[a-z][\w.-]*", line if command is None else line[command.end() :])
        if command is not None or re.match(r"--[a-z]", line):
            yield from ((command and command[0], option) for option in options)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_options_exist(path):
    known, missing_options = known_options(), []
    everything = {option for options in known.values() for option in options} | FOREIGN_OPTIONS
    for command, option in shown_options(path):
        if option not in (everything if command is None else known[command]):
            missing_options.append((command, option))
    assert missing_options == []


def test_make_targets_of_the_documents_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = {
        target for path in PAGES for target in re.findall(r"(?:`|^)make ([a-z-]+)", path.read_text(), re.MULTILINE)
    }
    assert {"test", "bench", "lint"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_links_between_documents_lead_somewhere():
    for path in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", BLOCK.sub("", path.read_text())):
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
PAGES_WITHOUT_MEASUREMENTS = ("README.md", "CONTRIBUTING.md", "docs/*.md", "docs/[!h]*/*.md")
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
    "README.md": {"the weights (90 MB)": "the size of a download, as in the Makefile"},
    "docs/arena-studies.md": {"95 % interval": "the level of an interval"},
    "docs/benchmarks.md": {"30 % of the prompts are observed": "a setting, `observed_share` of bench_priors.py"},
    "docs/guides/choose.md": {"with 95 % intervals": "the level of an interval"},
    "docs/grading.md": {
        "50% is equal to 0.5": "an example of answers",
        "by default 4 GiB": "a default, `memory_limit_gib`",
        "by default 5 seconds": "a default, `time_limit_s`",
        "by default 60 seconds": "a default, `batch_limit_s`",
        "about 20 ms of work": "a setting, `_MESSAGE_S`",
    },
    "docs/large-runs.md": {
        "for 100 seconds": "a default of jax.distributed",
        "128 MiB per device": "a setting of attention and logits",
        "more than 1.5 GiB of a device": "a setting of `models.Decoder`",
    },
    "docs/models.md": {"1.2 times the size of the file": "a limit that a test checks"},
    "docs/report.md": {"95 % intervals": "the level of an interval"},
    "docs/training.md": {
        "45 % are sums of two num": "a default of the task",
        "45 % are sums of three n": "a default of the task",
    },
    "docs/priors.md": {
        "90 % intervals contain it in 90 % of the simulations": "the level of an interval, and what it means",
        '"coverage of 90 % intervals"': "the name of a column",
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


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_no_section_that_a_script_writes_is_empty(path):
    empty = re.findall(r"<!-- ([\w-]+):begin -->\s*<!-- \1:end -->", path.read_text())
    assert empty == []
