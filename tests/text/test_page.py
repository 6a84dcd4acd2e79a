"""The snippets of docs/text.md, one after the other, in a folder with a tiny tokenizer in place of a model's."""

import pathlib
import re
import subprocess
import sys

import numpy as np

from tests.text import folders

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "text.md"


def test_snippets_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folders.write("Qwen3-0.6B", folders.template("qwen3"))
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(snippets) == 6
    names = {}
    for index, snippet in enumerate(snippets):
        exec(compile(snippet, f"docs/text.md snippet {index}", "exec"), names)
    printed = capsys.readouterr().out
    assert "6 1 {'level': 1}\n<|im_start|>user\nWhat is 12 + 30?\nPut the answer in \\boxed{}.<|im_end|>" in printed
    assert "Your answer is graded. 1 point if the number in \\boxed{} is right" in printed
    assert names["tokens"].dtype == np.int32
    assert names["tokens"].shape[1] == names["buckets"][0]
    assert names["is_token"][:, -1].all()


def test_optional_libraries_are_imported_only_when_used():
    names = ("tokenizers", "jinja2", "pyarrow")
    program = f"import sys, dps_jax.text\nprint([name for name in {names} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
