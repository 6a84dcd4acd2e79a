"""Imports point down only."""

import ast
import pathlib

import dps_jax

PACKAGE = pathlib.Path(dps_jax.__file__).parent
LAYERS = [
    {"_documented", "_cli"},
    {"types", "_checks", "_exact", "_files"},
    {"_npz", "_json"},
    {"hmm"},
    {"predictors"},
    {"selectors"},
    {"traces", "tasks", "models", "text", "grading"},
    {"viz"},
    {"prompt_selector", "priors", "advise"},
    {"rl"},
    {"training"},
    {"integrations"},
    {"next_prompts", "report"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
SIDE_BY_SIDE = {"rl": {"predictors", "selectors"}, "predictors": {"models"}}


def imported_parts(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dps_jax"):
            parts = node.module.split(".")[1:2] or [alias.name for alias in node.names]
            yield from parts
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("dps_jax."))


def test_imports_point_down():
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if part in ("__init__", "__main__"):
            continue
        assert part in RANK, f"{path}: which layer does it belong to?"
        for imported in imported_parts(path):
            assert imported == part or RANK[imported] < RANK[part], f"{path} imports {imported}"
            assert imported not in SIDE_BY_SIDE.get(part, ()), f"{path} imports {imported}"


def test_numpyro_stays_in_priors():
    for path in PACKAGE.rglob("*.py"):
        if "priors" not in path.parts:
            imported = [line for line in path.read_text().splitlines() if "import" in line.split("#")[0]]
            assert not [line for line in imported if "numpyro" in line], path
