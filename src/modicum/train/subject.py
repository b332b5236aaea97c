"""What is trained from the start: a language model of a config, or a module with batches and an objective."""

from __future__ import annotations

import inspect
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.core.errors import DataError, ModelError, ModicumError, SettingError, listed, quoted
from modicum.data.forward import described
from modicum.data.splits import Batch, Splits, from_batches, from_text
from modicum.export import load
from modicum.measure.subject import require_positions
from modicum.models.copying import copied
from modicum.models.located import locate
from modicum.models.open import model_class, open_model, read_config
from modicum.models.quiet import hushed
from modicum.sweep.modes import seeded
from modicum.sweep.stage import seed_of
from modicum.train.loop import joined, single
from modicum.train.objectives import Objective, next_token

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass
class Subject:
    """A model before training. ``fresh`` makes it anew, the same each time; ``save`` writes it with its dense weights as others open it."""

    name: str
    fresh: Callable[[], nn.Module]
    splits: Splits
    objective: Objective = next_token
    config: Any = None
    directory: Path | None = None
    notes: list[str] = field(default_factory=list)

    def example(self) -> Batch:
        """A row as the module itself is given it. Raises ``DataError`` and ``SettingError`` where the objective cannot be learnt by."""
        row = single(self.splits.calibration)[0]
        if self.config is not None:
            return row
        module = self.fresh()
        for parameter in module.parameters():
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
        return _met(module, row, self.objective)

    def opened(self, module: nn.Module, folder: Path) -> nn.Module | Path:
        """The module as what is opened to write it: of a language model the folder of its dense checkpoint, with its tokenizer."""
        if self.config is None:
            return module
        shutil.rmtree(folder, ignore_errors=True)
        with hushed():
            module.save_pretrained(folder)  # type: ignore[operator]
        if self.directory is not None:
            _tokenizer(self.directory).save_pretrained(folder)
        return folder

    def loaded(self, final: Path) -> nn.Module:
        """What was written, as a working module by its target's own loader."""
        if self.config is not None and (final / "modicum.json").exists() is False:
            from modicum.export.loaded import loaded

            return loaded(type(self.fresh()), final)
        return load(final, into=None if self.config is not None else self.fresh())


def of_module(module: nn.Module, data: Iterable[Any], objective: Objective, seed: int) -> Subject:
    """Any module, which stays as it is; batches are divided as everywhere."""
    return Subject(type(module).__name__, lambda: copied(module, apart=True).eval(), from_batches(data, seed), objective)


def _met(module: nn.Module, row: Batch, objective: Objective) -> Batch:
    """What the objective calls the module with on a row: labels, say, are none of it; the row where it calls none but parts."""
    seen: list[Batch] = []

    def see(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        if named:
            said = inspect.signature(module.forward).bind(*given, **named).arguments
            seen.append({name: value for name, value in said.items() if isinstance(value, torch.Tensor)})
        else:
            seen.append(tuple(value for value in given if isinstance(value, torch.Tensor)))

    with module.register_forward_pre_hook(see, with_kwargs=True):
        try:
            found: Any = objective(module, row)
        except ModicumError:
            raise
        except Exception as error:  # whatever a caller's code raises
            raise DataError(
                f"objective: must take the module and a row, {described(row)}, raises {type(error).__name__}: {quoted(error)}. Check it and the data."
            ) from error
    _require_losses(found, 1)
    if not found[0].requires_grad:
        raise SettingError("objective: must give a loss that has a gradient, gives one without. Leave out detach, item and no_grad.")
    if not found[1]:
        raise DataError("data: a row must have a token to learn, has none. Check the labels.")
    met = seen[0] if seen and len(seen[0]) else row
    try:
        with torch.no_grad():
            found = objective(module, joined([row, row], 2)[0])
    except Exception:  # rows that cannot stand side by side may well be computed one at a time
        return met
    _require_losses(found, 2)
    return met


def _require_losses(found: Any, rows: int) -> None:
    """Raise ``SettingError`` where an objective gives something else of so many rows than a loss for each, and a number of tokens."""
    pair = isinstance(found, tuple | list) and len(found) == 2
    if not (pair and isinstance(found[0], torch.Tensor) and isinstance(found[1], int) and not isinstance(found[1], bool)):
        kinds = " and ".join(type(each).__name__ for each in found) if pair else type(found).__name__
        raise SettingError(f"objective: must give a tensor of the loss of each row, and a number of tokens, gives {kinds}.")
    if found[1] < 0:
        raise SettingError(f"objective: must give a number of tokens of at least 1 beside the losses, gives {found[1]}.")
    if found[0].shape != (rows,):
        given = f"a tensor of the shape {list(found[0].shape)}" if found[0].ndim else "one number for all"
        raise SettingError(
            f"objective: must give one loss for each row, shape [rows], of {rows} {'rows' if rows > 1 else 'row'} gives {given}. "
            "Sum over what is in a row, and leave out means over rows."
        )


def of_config(
    source: str | Path, data: str | Path | None, *, tokenizer: str | Path | None, tokens: int, samples: int, test_samples: int,
    text_column: str | None, seed: int, batch: int,
) -> Subject:  # fmt: skip
    """A causal language model of a config: a file, a folder with one, ``demo`` or a Hugging Face id, whose weights are not read.

    Raises ``ModelError`` for a config that Transformers does not know, ``DataError`` for a tokenizer that does not suit it.
    """
    directory, config = _config(source)
    notes = []
    if getattr(config, "quantization_config", None) is not None:  # tells of weights that are not read
        notes.append(f"{source}: its config tells of quantized weights, which are not read; that part is left out.")
        del config.quantization_config
    cls = _class(config, str(source))
    home = locate(tokenizer) if tokenizer is not None else directory
    words = _tokenizer(home)
    _require_vocabulary(words, config, str(source))
    splits = from_text(
        data, words, samples=samples, tokens=tokens, seed=seed, batch=batch, test_samples=test_samples, text_column=text_column
    )
    if tokens < 2:
        raise SettingError(f"tokens: a sequence must have one to tell from those before it, 2 at least, got {tokens}.")
    fresh = lambda: built(cls, config, str(source), seed)
    subject = Subject(str(source), fresh, splits, config=config, directory=home, notes=notes)
    require_positions(open_model(fresh()), tokens)
    _require_causal(fresh(), str(source))
    return subject


def built(cls: Any, config: Any, who: str, seed: int) -> nn.Module:
    """A model of a config with random weights, by the class's own rules. Raises ``ModelError`` where it cannot be built."""
    import copy

    dtype = getattr(config, "dtype", None) or torch.float32
    if dtype not in _DTYPES:
        raise ModelError(f"{who}: its dtype must be one that weights are trained in ({listed(map(str, _DTYPES))}), is {dtype}.")
    try:
        with seeded(seed_of(seed, "beginning")), hushed():
            return cls(copy.deepcopy(config)).to(dtype).eval()
    except Exception as error:  # whatever a class raises at numbers it was not made for
        raise ModelError(f"{who}: {cls.__name__} cannot be built from it ({quoted(error)}). Check the config.") from None


def _config(source: str | Path) -> tuple[Path, Any]:
    """The folder that a config lies in, and the config."""
    path = Path(source)
    if not path.is_file():
        directory = locate(source)
        return directory, read_config(directory)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(path, Path(folder) / "config.json")
        try:
            return path.parent, read_config(Path(folder))
        except ModelError as error:
            raise ModelError(str(error).replace(str(Path(folder) / "config.json"), str(path)).replace(folder, str(path))) from None


def _class(config: Any, who: str) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if getattr(config, "architectures", None):
        return model_class(config, who)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"{who}: must be the config of a causal language model, is one of {config.model_type!r}.")
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def _require_causal(module: nn.Module, who: str) -> None:
    """Raise ``ModelError`` where a later token changes what is said of an earlier one: such a model would be shown what it is to tell."""
    ids = torch.zeros(1, 4, dtype=torch.long)
    other = ids.index_fill(1, torch.tensor([3]), 1)
    try:
        with torch.no_grad(), hushed():
            one, two = (module(input_ids=each).logits[:, :-1].float() for each in (ids, other))
    except Exception as error:  # whatever a forward raises at numbers it was not made for
        raise ModelError(f"{who}: the model that it tells of cannot be run ({quoted(error)}). Check the config.") from None
    if not torch.allclose(one, two, rtol=1e-3, atol=1e-4):
        raise ModelError(f"{who}: must be causal, but a later token changes what is said of those before it. Set is_decoder in the config.")


def _tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    if not any((directory / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")):
        raise DataError(f"{directory}: must hold a tokenizer, holds none. Pass --tokenizer DIR, or demo for the one in the package.")
    try:
        with hushed():
            return AutoTokenizer.from_pretrained(directory)
    except Exception as error:  # whatever a tokenizer raises
        raise DataError(f"{directory}: its tokenizer cannot be read ({quoted(error)}). Pass --tokenizer DIR.") from None


def _require_vocabulary(tokenizer: Any, config: Any, who: str) -> None:
    size = getattr(config.get_text_config() if hasattr(config, "get_text_config") else config, "vocab_size", None)
    if isinstance(size, int) and len(tokenizer) > size:
        raise DataError(f"{who}: must have a vocab_size of at least the {len(tokenizer)} tokens of the tokenizer, has {size}.")
