"""A GGUF file opened as a model: its weights are read one at a time, its config and tokenizer stand in a folder of their own meanwhile."""

from __future__ import annotations

import atexit
import copy
import shutil
import tempfile
from pathlib import Path

from modicum.core.errors import ModelError
from modicum.export.gguf.architectures import Architecture
from modicum.export.gguf.importing import described, require_allowed
from modicum.export.gguf.loading import naming_of
from modicum.export.gguf.reader import GgufFile
from modicum.export.gguf.settings import row_of_file
from modicum.export.gguf.tensors import GgufTensors
from modicum.models.model import Model
from modicum.models.open import of_shards, skeleton


def open_gguf(path: Path, *, allow_quantized_source: bool = False) -> Model:
    """The model in a file. What it holds rounded to blocks is refused unless that is allowed, and told. Raises ``ModelError``."""
    file = GgufFile(path)
    row: Architecture = row_of_file(file)
    require_allowed(file, allow_quantized_source)
    cls, config, tokenizer = described(file, row)
    folder = Path(tempfile.mkdtemp(prefix="modicum-gguf-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except Exception as error:  # whatever a library makes of texts from elsewhere
        raise ModelError(f"{path}: its config and tokenizer must be such that they can be written, are not ({error}).") from None
    module = skeleton(cls, copy.deepcopy(config), stored=len(file.tensors))
    tensors = GgufTensors(file, module, naming_of(file, config, row), folder)
    return of_shards(cls, config, tensors, name=str(path), directory=folder)
