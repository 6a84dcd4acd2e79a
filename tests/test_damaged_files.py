"""Every kind of file, damaged in twenty ways: the content as it was, or an error that names the file and a remedy."""

import functools
import gzip
import json

import jax
import numpy as np
import pytest

from dps_jax import TransitionPrior
from dps_jax.models import _weights
from dps_jax.traces import read_trace, write_trace
from dps_jax.traces.panel import read_panel, write_panel
from tests.models import cases
from tests.traces.test_format import random_trace
from tests.traces.test_panel import random_panel


def write_log(path):
    rows = [{"step": row // 4, "input": f"{row % 3}?", "acc": row % 2} for row in range(24)]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode(), mtime=0))


FILES = {
    "trace.npz": (lambda path: write_trace(path, random_trace(40)), read_trace),
    "trace.csv": (lambda path: write_trace(path, random_trace(40)), read_trace),
    "trace.parquet": (lambda path: write_trace(path, random_trace(40)), read_trace),
    "log.jsonl.gz": (write_log, read_trace),
    "panel.npz": (lambda path: write_panel(path, random_panel()), read_panel),
    "prior.json": (lambda path: TransitionPrior([0.2, 0.8], np.ones((2, 2))).save(path), TransitionPrior.load),
    "model.safetensors": (lambda path: _weights.save(cases.decoder(), path), lambda path: _weights.load(path)[1]),
}
# What no reader may take for a file.
LOSSES = {
    "empty": lambda content: b"",
    "blank": lambda content: b" \n\n",
    "half": lambda content: content[: len(content) // 2] + b"'",
    "a tenth": lambda content: content[: len(content) // 10],
    "zeros": lambda content: bytes(len(content)),
    "backwards": lambda content: content[::-1],
    "other bytes": lambda content: np.random.default_rng(0).bytes(len(content)),
    "text": lambda content: b"nonsense\n",
    "nested": lambda content: b"[" * 100_000,
    "nested object": lambda content: b'{"round":' * 100_000,
}
FLIPS = range(10)


@pytest.fixture(scope="module")
def content_of(tmp_path_factory):
    """The content of a file of one kind, by its name."""

    @functools.cache
    def content(name):
        if name.endswith(".parquet"):
            pytest.importorskip("pyarrow")
        path = tmp_path_factory.mktemp("whole") / name
        FILES[name][0](path)
        return path.read_bytes()

    return content


def refusal(path, read, content):
    """Returns what the refusal of a content says, None if there is none."""
    path.write_bytes(content)
    try:
        read(path)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", FILES)
def test_damage_is_refused_with_the_name_of_the_file(content_of, name, tmp_path):
    path, (_, read) = tmp_path / name, FILES[name]
    assert refusal(path, read, content_of(name)) is None
    for damage, change in LOSSES.items():
        message = refusal(path, read, change(content_of(name)))
        assert message is not None, damage
        assert name in message, (damage, message)
        assert "; " in message, (damage, message)  # a remedy
        assert "unsafely" not in message
        assert len(message) < 1000, damage
    rng = np.random.default_rng(1)
    for _ in FLIPS:
        place, content = int(rng.integers(len(content_of(name)))), bytearray(content_of(name))
        content[place] ^= 1 << int(rng.integers(8))
        # Another digit or weight is as good as the one that was there.
        message = refusal(path, read, bytes(content))
        assert message is None or name in message, (place, message)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_and_a_folder_in_its_place_are_named(name, tmp_path):
    path, (_, read) = tmp_path / name, FILES[name]
    with pytest.raises((ValueError, OSError), match=name):
        read(path)
    path.mkdir()
    with pytest.raises((ValueError, OSError), match=name):
        read(path)


@pytest.mark.parametrize("name", ["trace.npz", "panel.npz"])
def test_arrays_that_claim_terabytes_or_hold_objects_are_refused(content_of, name, tmp_path):
    import io
    import zipfile

    path, (_, read) = tmp_path / name, FILES[name]
    for shape, kind, message in (
        ((10**12,), "<f8", r"a header of '.*' that claims 8,000,000,000,000 bytes where there are 8"),
        ((1,), "|O", r"Python objects in '.*', which are not read"),
    ):
        with zipfile.ZipFile(io.BytesIO(content_of(name))) as whole, zipfile.ZipFile(path, "w") as archive:
            for entry in whole.namelist():
                header = io.BytesIO()
                described = {"descr": kind, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(header, described)
                archive.writestr(entry, header.getvalue() + bytes(8))
        with pytest.raises(ValueError, match=f"{name}: expected .*, got {message}"):
            read(path)


def test_weights_are_compared_before_anything_is_built(tmp_path, monkeypatch):
    """A file of a kilobyte says that it is a model of a billion tokens or layers."""
    from safetensors.numpy import save_file

    monkeypatch.setattr(_weights, "Decoder", lambda *_, **__: pytest.fail("was built"))
    path = tmp_path / "model.safetensors"
    shapes = {name: (1,) * len(shape) for name, shape in _weights.shapes_of(cases.config()).items()}
    for field in ("vocab_size", "num_layers", "hidden_size"):
        fields = json.dumps(cases.config().__dict__ | {field: 10**9})
        save_file(
            jax.tree.map(np.ones, shapes, is_leaf=lambda leaf: isinstance(leaf, tuple)),
            path,
            {"dps_jax_config": fields},
        )
        with pytest.raises(ValueError, match=r"model\.safetensors: tensors.*: expected .*; write it again"):
            _weights.load(path)
