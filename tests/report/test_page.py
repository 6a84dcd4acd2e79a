import dataclasses
import html.parser
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from dps_jax import report, text, traces
from dps_jax.report import _html, _page
from dps_jax.training import _config as configs
from dps_jax.training import _options, _text_prompts
from tests.report import made
from tests.training import text_runs

# What a browser would fetch, and what a script could.
LOADS = (
    r"\bsrc\s*=|href\s*=\s*\"[^#]|url\(|@import|fetch\(|XMLHttpRequest|WebSocket|sendBeacon|\bimport\(|<link|<iframe"
)
EVIL = "<script>alert('1')</script> & \"<b>bold</b>"


class Parsed(html.parser.HTMLParser):
    """A page as a browser reads it: its elements, which have to be closed in order, and its text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text, self.attributes = [], [], "", []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("br", "input", "meta"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + "\n"


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    learner = configs.LearnerConfig(learning_rate=0.0125)
    selector = configs.SelectorConfig(method="dps")
    return [made.run(folder, "one"), made.run(folder, "other", learner=learner, selector=selector)]


@pytest.fixture(scope="module")
def page_of_two(two_runs):
    return report.page(two_runs)


@pytest.fixture
def quick(monkeypatch):
    """Leaves the replay out, which most tests are not about."""

    def refuse(run):
        raise ValueError("left out")

    monkeypatch.setattr(_page._predictions, "predict", refuse)


def test_the_page_of_two_runs_has_all_parts(page_of_two):
    parsed = Parsed(page_of_two)
    for words in (
        "one",
        "other",
        "learner.learning_rate",
        "0.0125",
        "selector.method",
        "Held-out accuracy by rollouts",
    ):
        assert words in parsed.text
    for words in ("Calibration of P(0 < m < G)", "Predicted and observed solve states", "Seconds per phase of a round"):
        assert words in parsed.text
    assert "12.5 % → 46.7 % ± 1.0 %" in parsed.text
    assert "with a wrong reference" in parsed.text
    assert "2 summands of 2 digits" in parsed.text
    assert "unfinished" not in parsed.text
    ids = [value for name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {"predictions", "prompts", "prompts-0", "prompts-1"} <= set(ids)


def test_rows_have_a_cell_under_each_head(page_of_two):
    for found in re.findall(r"<table.*?</table>", page_of_two, re.DOTALL):
        head, *rows = re.findall(r"<tr.*?</tr>", found, re.DOTALL)
        assert {len(re.findall(r"<t[hd][ >]", row)) for row in rows} == {len(re.findall(r"<th[ >]", head))}


def test_nothing_is_loaded(page_of_two):
    assert not re.findall(LOADS, page_of_two)
    assert "http" not in page_of_two
    assert page_of_two.count("<script>") == 1


def test_the_same_files_give_the_same_page(two_runs, page_of_two):
    assert report.page(two_runs) == page_of_two


def test_drawings_have_names_and_readings(page_of_two):
    drawings = re.findall(r"<svg[^>]*>", page_of_two)
    assert len(drawings) > 20
    assert all('role="img"' in drawing for drawing in drawings)
    assert all("aria-label" in drawing for drawing in drawings if "strip" not in drawing)
    readings = re.findall(r'data-readings="([^"]*)"', page_of_two)
    for found in map(json.loads, map(html.unescape, readings)):
        assert all(len(curve["x"]) == len(curve["y"]) for curve in found["series"])
    assert not re.findall(r"[ML\"]nan|nan ", page_of_two)


def test_runs_of_one_name_are_called_by_their_paths(tmp_path, quick):
    runs = [made.run(tmp_path / part, "run") for part in ("a", "b")]
    page = report.page(runs)
    assert all(str(run) in page for run in runs)


def test_unfinished_runs_are_called_so(tmp_path, quick):
    folder = made.run(tmp_path, num_rounds=30, num_done=7, num_traced=4)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"round": 7, "rollo')
    (folder / "run.lock").write_text(json.dumps({"process": 2**30, "host": __import__("socket").gethostname()}))
    page = Parsed(report.page([folder])).text
    assert "run is unfinished: 7 of 30 rounds are done, and its process has ended" in page
    assert "the trace ends with round 3, the metrics with 6" in page
    assert "26.7 % ± 1.0 % (after 6 rounds)" in page


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    page = Parsed(report.page([made.run(tmp_path, num_done=0)])).text
    assert "0 of 12 rounds are done" in page
    assert "There is no trace yet" in page


def test_a_method_that_cannot_be_built_is_a_note(tmp_path):
    folder = made.run(tmp_path, selector=configs.SelectorConfig(method="dps"))
    saved = json.loads((folder / "config.json").read_text())
    saved["selector"]["prior"] = str(tmp_path / "gone.json")
    (folder / "config.json").write_text(json.dumps(saved))
    assert "The method could not be replayed" in report.page([folder])


def damage(name, content):
    def apply(folder):
        (folder / name).write_bytes(content)

    return apply


def cut(name):
    def apply(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:-40])

    return apply


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"config\.json: expected the options of a run, got none"),
        (damage("config.json", b"{"), r"config\.json: expected the options of a run"),
        (damage("config.json", b"{}"), r"config\.json: expected the options of a run, got other JSON; put it back"),
        (damage("metrics.jsonl", b"nonsense\n{}\n"), r"metrics\.jsonl: expected a JSON object .* in line 1"),
        (
            damage("metrics.jsonl", b'{"round": 0, "loss": "low"}\n'),
            r"metrics\.jsonl: expected a number or null as 'loss'",
        ),
        (damage("metrics.jsonl", b'{"round": 0, "confusion": [1]}\n'), r"metrics\.jsonl: expected counts \[3, 3\]"),
        (damage("summary.json", b"["), r"summary\.json: expected the results of a run"),
        (cut("trace.npz"), r"trace\.npz: expected .* damaged file"),
        (cut("prompts.npz"), r"prompts\.npz: expected groups .* damaged file .*; remove it"),
        (
            lambda folder: made.write_logs(folder, 3, groups=np.arange(9)),
            r"trace\.npz: .*; take trace and prompts\.npz",
        ),
    ],
)
def test_damage_is_an_error_that_names_the_file(tmp_path, harm, message, quick):
    folder = made.run(tmp_path)
    harm(folder)
    with pytest.raises(ValueError, match=message) as caught:
        report.page([folder])
    assert "\n" not in str(caught.value)


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected the folder of a run or a trace, got nothing there"):
        report.page([tmp_path / "nothing"])
    with pytest.raises(ValueError, match="runs: expected at least one"):
        report.page([])
    with pytest.raises(ValueError, match="runs: expected a list"):
        report.page("runs/train")  # pyright: ignore[reportArgumentType]
    empty = tmp_path / "empty.csv"
    empty.write_text("round,prompt_id,successes,count\n")
    with pytest.raises(ValueError, match=r"empty\.csv: expected a trace with at least one row"):
        report.page([empty])


@pytest.mark.parametrize("suffix", ["npz", "csv"])
def test_a_trace_alone_has_the_part_without_metrics(tmp_path, suffix):
    path = tmp_path / f"log.{suffix}"
    trace = made.trace(10)
    traces.write_trace(path, trace._replace(prompt_ids=trace.prompt_ids * 1000 + 7, rounds=trace.rounds * 10))
    page = Parsed(report.page([path])).text
    assert "The trace identifies prompts by numbers and has no texts." in page
    assert "Predictions of binomial_hmm. A trace does not name a method; " in page
    assert "Held-out accuracy by" not in page
    assert "Stuck:" in page
    assert "7007" in page


def test_texts_of_a_log_are_escaped(tmp_path, quick):
    path = tmp_path / "log.jsonl"
    rows = [
        {"step": step, "prompt": f"{EVIL} {index}", "reward": float(index == 1)}
        for step in range(4)
        for index in range(3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = report.page([path])
    parsed = Parsed(page)
    assert f"{EVIL} 0" in parsed.text
    assert parsed.tags.count("script") == 1
    assert "b" not in parsed.tags or "<b>bold" not in page


def test_names_and_options_are_escaped(tmp_path, quick):
    folder = made.run(tmp_path, "a<b>&'")
    saved = json.loads((folder / "config.json").read_text())
    saved["model"]["weights"] = EVIL
    (folder / "config.json").write_text(json.dumps(saved))
    parsed = Parsed(report.page([folder]))
    assert parsed.tags.count("script") == 1
    assert "a<b>&'" in parsed.text
    assert EVIL in parsed.text


def test_elements_escape_text_and_attributes():
    assert _html.tag("p", "<&", ["a", _html.tag("b", 1)], title='"', hidden=True, id=None) == (
        '<p title="&quot;" hidden>&lt;&amp;a<b>1</b></p>'
    )


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    model, data = text_runs.make_model(folder / "model"), text_runs.make_sums(folder / "sums.jsonl")
    data.write_text(data.read_text().replace("#", "<i>#"))
    config = text_runs.tiny(model, data, folder)
    config.folder.mkdir()
    _options.write(config, [], None)
    train, _ = _text_prompts.read_prompts(config, text.load_tokenizer(model), "")
    names = [_text_prompts.group_of(question) for question in train.questions]
    made.write_logs(config.folder, 4, groups=np.array([sorted(set(names)).index(name) for name in names]))
    return config, train


def test_a_run_on_a_data_file_has_its_texts_and_groups(text_run, quick):
    config, train = text_run
    parsed = Parsed(report.page([config.folder]))
    shown = [question.messages[-1]["content"] for question in train.questions]
    assert any(words in parsed.text for words in shown)
    assert "i>#" in parsed.text
    assert "small" in parsed.text
    assert "large" in parsed.text


def test_without_the_data_file_there_are_ids_and_the_reason(text_run, quick, tmp_path):
    config, _ = text_run
    saved = json.loads((config.folder / "config.json").read_text())
    for data in (tmp_path / "gone.jsonl", text_runs.make_sums(tmp_path / "other.jsonl", 30)):
        (config.folder / "config.json").write_text(json.dumps(saved | {"data": str(data)}))
        page = report.page([config.folder])
        assert "The texts of the prompts could not be read" in page
        assert data.name in page
    _options.write(dataclasses.replace(config), [], None)


def test_write_replaces_a_file_and_reports(tmp_path, quick):
    lines = []
    path = report.write([made.run(tmp_path)], tmp_path / "page.html", progress=lines.append)
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert [line.partition(" ")[0] for line in lines] == ["reading", "run:", "run:"]


def test_a_long_run_stays_small(tmp_path, quick):
    path = tmp_path / "long.npz"
    rng = np.random.default_rng(0)
    rounds = np.repeat(np.arange(1000), 64)
    ids = rng.integers(0, 20_000, rounds.size)
    traces.write_trace(path, traces.Trace(rounds, ids, rng.integers(0, 9, rounds.size), np.full(rounds.size, 8)))
    assert len(report.page([path]).encode()) < 500_000


def test_the_command_writes_a_page_or_a_line(tmp_path):
    def command(*words):
        program = [sys.executable, "-m", "dps_jax.report", *map(str, words)]
        return subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, check=False)

    path = tmp_path / "log.csv"
    traces.write_trace(path, made.trace(3))
    done = command(path, "--out", "page.html")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("wrote page.html (")
    assert done.stderr.splitlines()[0] == f"reading {path}"
    assert command(path, "--out", "page.html").returncode == 0
    other = tmp_path / "other.html"
    other.write_text("<html>mine</html>")
    for words, message in (
        ((tmp_path / "gone",), "error: .*gone: expected the folder of a run or a trace"),
        ((path, "--out", "page.txt"), r"error: out: expected a file that ends in \.html"),
        ((path, "--out", other), r"error: out: expected a new file or an earlier report, got .*other\.html"),
    ):
        failed = command(*words)
        assert failed.returncode == 1
        assert re.search(message, failed.stderr)
        assert "Traceback" not in failed.stderr
    assert other.read_text() == "<html>mine</html>"
