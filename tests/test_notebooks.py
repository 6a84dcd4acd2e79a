"""The notebooks: they run, and what is committed is the whole output of one run or none."""

import importlib
import json
import pathlib
import re

import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
# More than 20 s each on two cores, most of it compiling.
SLOW = ("02_fit_transition_prior", "03_learning_dynamics")
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|tmp|root|home)/")

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture
def run_notebooks(monkeypatch, request):
    monkeypatch.syspath_prepend(request.config.rootpath / "experiments")
    return importlib.import_module("run_notebooks")


def code_cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def write_notebook(path, sources, small="size = 1"):
    """Writes a notebook whose first cell holds the parameters."""
    nbformat = importlib.import_module("nbformat")
    cells = [nbformat.v4.new_code_cell(source, id=f"cell-{index}") for index, source in enumerate(sources)]
    cells[0].metadata["tags"] = ["parameters"]
    metadata = {"dps_jax": {"small": small}} if small is not None else {}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == [
        "01_filter_tour",
        "02_fit_transition_prior",
        "03_learning_dynamics",
    ]


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] if path.stem in SLOW else []) for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_notebook_runs_at_small_sizes(path, run_notebooks):
    before = path.read_bytes()
    notebook = run_notebooks.execute(path, is_small=True)
    assert path.read_bytes() == before
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    figures = [output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(figures) >= 4
    streams = "".join(output.text for cell in cells for output in cell.outputs if output.output_type == "stream")
    assert "Warning" not in streams
    assert not re.search(r"\bnan\b", streams)


@every_notebook
def test_notebook_holds_the_outputs_of_one_run_or_none(path):
    cells = code_cells(path)
    counts = [cell["execution_count"] for cell in cells]
    is_executed = counts == [*range(1, len(cells) + 1)]
    assert is_executed or counts == [None] * len(cells)
    assert any(cell["outputs"] for cell in cells) == is_executed
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]


@every_notebook
def test_notebook_is_small_and_names_no_machine(path):
    assert path.stat().st_size < 1_000_000
    for cell in code_cells(path):
        assert not MACHINE_PATH.search(cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"]))
        for output in cell["outputs"]:
            text = json.dumps({**output, "data": {**output.get("data", {}), "image/png": ""}})
            assert not MACHINE_PATH.search(text), text


@every_notebook
def test_small_parameters_are_those_of_the_notebook(path):
    notebook = json.loads(path.read_text())
    (cell,) = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    names = lambda source: re.findall(r"^(\w+) =", source, re.MULTILINE)
    assert names(notebook["metadata"]["dps_jax"]["small"]) == names("".join(cell["source"]))
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


def test_failures_name_notebook_and_cell(run_notebooks, tmp_path, capsys):
    path = tmp_path / "9_broken.ipynb"
    write_notebook(path, ["size = 100", "print(size)", "# Divides\n1 / (size - 1)"])
    before = path.read_bytes()
    with pytest.raises(run_notebooks.NotebookError, match=r"9_broken\.ipynb, cell 2 \('# Divides'\), In \[3\].*"):
        run_notebooks.main(run_notebooks.Config(folder=tmp_path, small=True))
    assert path.read_bytes() == before
    seconds = run_notebooks.main(run_notebooks.Config(folder=tmp_path))
    assert list(seconds) == ["9_broken"]
    assert "9_broken.ipynb: written" in capsys.readouterr().out
    assert [cell["execution_count"] for cell in code_cells(path)] == [1, 2, 3]
    assert code_cells(path)[1]["outputs"][0]["text"] == ["100\n"]


def test_notebooks_without_small_parameters_are_refused(run_notebooks, tmp_path):
    path = tmp_path / "8_plain.ipynb"
    write_notebook(path, ["size = 100"], small=None)
    with pytest.raises(ValueError, match=r"8_plain\.ipynb: expected small parameters in the metadata dps_jax\.small"):
        run_notebooks.execute(path, is_small=True)
    with pytest.raises(ValueError, match=r"only: expected the start of one of 8_plain\.ipynb, got '7'"):
        run_notebooks.main(run_notebooks.Config(folder=tmp_path, only=("7",)))
    path.write_text("no notebook")
    with pytest.raises(ValueError, match=r"8_plain\.ipynb: "):
        run_notebooks.execute(path)
