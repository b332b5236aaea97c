"""Opening a model: the demo, a directory, a Hugging Face id, or a module from Python."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.core.errors import ModelError, quoted
from modicum.core.files import read_json, require_inside
from modicum.core.tensorfile import Shards
from modicum.models.copying import bare, compiled, copied, uncompile
from modicum.models.dequantized.view import Dequantized, format_of
from modicum.models.extra import extra_states
from modicum.models.located import IMPORTED, instead, locate
from modicum.models.model import Model
from modicum.models.plain import FLOATS, settle_dtype
from modicum.models.settled import Settled, computed_weights, settle
from modicum.models.structure import find_blocks, find_units
from modicum.models.weights import CheckpointWeights, Weights, require_finite, skeleton_parameters

# Counts in a config that somebody builds a list of, and the most there can be: a larger one would fill the memory before a weight is read.
_COUNTS = re.compile(r"(layers?|depths?|labels|experts|stages|blocks|heads)$")
_MOST = 100_000


def open_model(
    source: str | Path | nn.Module | Model, *, allow_pickle: bool = False, trust_remote_code: bool = False,
    allow_quantized_source: bool = False, settled: bool = True,
) -> Model:  # fmt: skip
    """Open ``demo``, a directory, a Hugging Face id or a ``torch.nn.Module``.

    A directory's weights are read lazily from its safetensors shards. Weights that a module computes (``weight_norm``, masks, parametrizations)
    are ``settled``: in modules of our own their effective values stand in their place. Weights that are quantized already are read as the dense
    ones that they stand for, which only ``allow_quantized_source`` lets happen. Raises ``ModelError`` for what cannot be opened: no config,
    missing or lying shards, pickled weights without ``allow_pickle``, NaN or Inf.
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, nn.Module):
        return _from_module(source, settled)
    if not isinstance(source, str | Path):
        raise ModelError(f"model: must be a directory, an id, demo or a module, is {_told(source)}.")
    directory = locate(source)
    config = read_config(directory, trust_remote_code)
    quantized = _quantized(config, directory, str(source), allow_quantized_source)
    cls = model_class(config, str(source))
    if allow_pickle and not list(directory.glob("*.safetensors")):
        return _from_pickle(cls, config, directory, str(source))
    shards = Shards(directory) if quantized is None else Dequantized(directory, quantized, getattr(config, "dtype", None))
    return of_shards(cls, config, shards, name=str(source), directory=directory, trust_remote_code=trust_remote_code)


def of_shards(cls: type[nn.Module], config: Any, shards: Shards, *, name: str, directory: Path, trust_remote_code: bool = False) -> Model:
    """The model of a class whose weights are read from ``shards``; other files of it are in ``directory``. Raises ``ModelError``."""
    try:
        settle_dtype(config, shards)
        module = skeleton(cls, config, stored=len(shards.names()))
        weights = CheckpointWeights(module, shards)
        weights.load_buffers()
        adopted = _settle(module, weights)
    except BaseException:
        shards.close()
        raise
    model = _assembled(module, weights, adopted, name=name, directory=directory, trust_remote_code=trust_remote_code)
    model.notes += [*_imported(directory), *shards.notes(), *weights.notes]
    if weights.ignored:
        size = sum(shards.entry(key).nbytes for key in weights.ignored)
        model.notes.append(
            f"{len(weights.ignored)} tensors of the checkpoint ({size} bytes), among them {weights.ignored[0]}, are left out: Transformers has no "
            "place for them in this class (layers that predict several tokens, for instance)"
        )
    if weights.unused:
        model.notes.append(f"{len(weights.unused)} tensors of the checkpoint are not part of the model, among them {weights.unused[0]}")
    return model


def _quantized(config: Any, directory: Path, name: str, allowed: bool) -> Any:
    """What a config says of how its weights are quantized, which it no longer says then; None where they are not. Raises ``ModelError``."""
    said = getattr(config, "quantization_config", None)
    if said is None:
        return None
    format = format_of(directory, said)
    if not allowed:
        raise ModelError(
            f"{name}: its weights are quantized already ({format.name}), and what is made of them loses twice. Start from the original, or pass "
            "--allow-quantized-source."
        )
    del config.quantization_config
    return said


def _imported(directory: Path) -> Iterator[str]:
    """What an import says of weights that it made of others. Raises ``ModelError``."""
    path = directory / IMPORTED
    if not path.is_file():
        return
    try:
        body = read_json(path)
        types = ", ".join(str(type) for type in body["quantized"])
        if types:
            yield f"the original's weights were rounded before: {quoted(str(body['source']))} holds them as {quoted(types)}"
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: must say what was imported ({quoted(error)}). Import it again.") from None


def _settle(module: nn.Module, weights: CheckpointWeights) -> Settled:
    """Settle what the class computes, of values that are read for that; they are let go again."""
    sources = {id(source) for each in computed_weights(module) for source in each.sources}
    names = [name for name in weights.names if id(weights.parameter(name)) in sources]
    weights.load(names)
    settled = settle(module)
    weights.adopt({name: module.get_parameter(name).detach() for name in settled.computed})
    weights.release(name for name in names if name in weights.names)
    return settled


def _told(source: Any) -> str:
    """What came in a model's place, and what to do."""
    what = type(source).__name__
    if isinstance(source, type):
        return f"the class {source.__name__}. Build a model of it, or load one"
    if isinstance(getattr(source, "model", None), nn.Module):
        return f"a {what}, which holds one. Pass its .model, and with data= batches as that is called with them"
    if isinstance(source, Mapping) and any(isinstance(value, torch.Tensor) for value in source.values()):
        return f"a {what} of weights alone, which does not say what is done with them. Load them into their module, and pass that"
    return f"a {what}. Pass one of those"


def read_config(directory: Path, trust_remote_code: bool = False) -> Any:
    """Transformers' config of a directory. Raises ``ModelError``; remote code runs only where it is trusted."""
    from transformers import AutoConfig

    path = directory / "config.json"
    if not path.exists():
        raise ModelError(f"{directory}: must hold config.json, does not. {instead(directory)}")
    require_inside(directory)
    try:
        raw = read_json(path)
        if not isinstance(raw, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise ModelError(f"{path}: must be a JSON object ({error}).") from None
    if not trust_remote_code and (_foreign_code(raw) or _foreign_code(_tokenizer_config(directory))):
        raise ModelError(f"{directory}: wants to run code of its own. Pass --trust-remote-code if you trust it.")
    check_counts(raw, path)
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(f"{path}: is not a config that Transformers knows ({quoted(error)}).") from None


def check_counts(raw: Any, path: Path | str) -> None:
    """Raise ``ModelError`` where a config asks for more layers, heads or experts than there can be."""
    for name, value in _entries(raw):
        if _COUNTS.search(str(name)) and isinstance(value, int | float) and not abs(value) <= _MOST:
            raise ModelError(f"{path}: {quoted(str(name))} must be at most {_MOST}, is {quoted(repr(value))}. Check the config.")


def _tokenizer_config(directory: Path) -> Any:
    """What stands in ``tokenizer_config.json``; nothing where it cannot be read: nobody can take code from there then."""
    try:
        return read_json(directory / "tokenizer_config.json")
    except ValueError:
        return None


def _foreign_code(raw: Any) -> bool:
    """Whether a config names code to fetch: classes of its own, or kernels of a hub repository."""
    return any(
        bool(value) if name == "auto_map" else name.endswith("_implementation") and "/" in str(value) for name, value in _entries(raw)
    )


def _entries(raw: Any) -> Iterator[tuple[str, Any]]:
    """Every name and value in a JSON value, at any depth; of a list, its items under the list's name."""
    waiting: list[tuple[str, Any]] = [("", raw)]
    while waiting:
        name, value = waiting.pop()
        yield name, value
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(name, item) for item in value]


def model_class(config: Any, who: str) -> type[nn.Module]:
    """The class named by the config, in Transformers. Raises ``ModelError``."""
    import transformers

    named = getattr(config, "architectures", None)
    for name in named if isinstance(named, list) else []:
        cls = getattr(transformers, name, None) if isinstance(name, str) else None
        if isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel):
            return cls
    raise ModelError(f"{who}: config.json must name a class of Transformers in 'architectures', names {quoted(repr(named))}.")


def skeleton(cls: type[nn.Module], config: Any, *, stored: int | None = None) -> nn.Module:
    """The model without its weights: parameters on ``meta``, buffers real.

    Raises ``ModelError`` where the class cannot be built from the config, and where it has far more parameters than the ``stored`` tensors.
    """
    default = torch.get_default_dtype()
    try:
        with torch.random.fork_rng():
            with skeleton_parameters(None if stored is None else 1000 + 100 * stored):
                torch.set_default_dtype(next((said for said in FLOATS if said == getattr(config, "dtype", None)), default))
                module = cls(config)
                module.tie_weights(recompute_mapping=False)  # type: ignore[operator]
            torch.set_default_dtype(torch.float32)
            _fill_buffers(module)
    except ModelError:
        raise
    except Exception as error:  # whatever a class raises at numbers it was not made for
        raise ModelError(f"{cls.__name__}: cannot be built from its config ({quoted(error)}). Check the config.") from None
    finally:
        torch.set_default_dtype(default)
    return module.eval()


def _fill_buffers(module: Any) -> None:
    """Buffers that are not stored, computed as Transformers does once a model is loaded: in float32, then put in the buffer's dtype."""
    for part in module.modules():
        if getattr(part, "_is_hf_initialized", False) and part._non_persistent_buffers_set:
            part._is_hf_initialized = False
    module.initialize_weights()


def _from_module(source: nn.Module, settled: bool = True) -> Model:
    _check_module(source)
    computed = [each.name for each in computed_weights(source)]
    inferred = any(value.is_inference() for value in (*source.parameters(), *source.buffers()))
    module = apart(source) if compiled(source) or computed or inferred else source
    found = settle(module) if settled else Settled(left=dict.fromkeys(computed, "the model's output depends on more than its value here"))
    model = _assembled(module, Weights(module), found, name=type(bare(source)).__name__)
    for part, why in extra_states(module)[2].items():
        model.notes.append(
            f"extra state of {part or 'the module'}: is not written, {why}; load into a module that has it. Numbers, text, tensors, lists and dicts "
            "of them are written"
        )
    for name in model.weights.names:
        value = model.weights.held(name)
        if value.device.type == "meta":
            raise ModelError(f"{model.name}: {name} must hold a value, is on the meta device. Load the weights first.")
        require_finite(name, value)
    return model


def _check_module(module: nn.Module) -> None:
    """Raise ``ModelError`` for a module that cannot be worked on: nothing to compress, or not built yet."""
    who = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError(
            f"{who}: must be a module in Python, is TorchScript, whose layers cannot be met one by one. Give the module it was made of."
        )
    _require_shapes(module)
    if rounded := [name for name, part in module.named_modules() if ".quantized" in type(part).__module__]:
        raise ModelError(f"{who}: must not be quantized already, its layer {rounded[0]} is. Start from the module before it was.")
    if not any(parameter.numel() for parameter in module.parameters()):
        raise ModelError(f"{who}: must have parameters, has none. There is nothing to compress.")


def _require_shapes(module: nn.Module) -> None:
    if lazy := [name for name, value in (*module.named_parameters(), *module.named_buffers()) if nn.parameter.is_lazy(value)]:
        raise ModelError(
            f"{type(module).__name__}: {lazy[0]} must have a shape, has none before its module's first call. Run it on a batch first."
        )


def apart(source: nn.Module) -> nn.Module:
    """The same in modules of our own, none of them compiled: whatever a forward or a run leaves in them, the caller's stay as they are.

    Parameters are shared, which nobody writes to; those of embeddings that shorten what they look up are copied, and those that were made in
    inference mode, through which nothing can be differentiated.
    """
    source = bare(source)
    _require_shapes(source)
    written = {id(part.weight) for part in source.modules() if getattr(part, "max_norm", None) is not None}
    shared = {id(tensor): tensor for tensor in source.parameters() if id(tensor) not in written and not tensor.is_inference()}
    return uncompile(copied(source, known=shared)).eval()


def _from_pickle(cls: Any, config: Any, directory: Path, name: str) -> Model:
    found = [*directory.glob("pytorch_model*.bin"), *directory.glob("*.pt"), *directory.glob("*.pth")]
    files = sorted(path for path in found if path.is_file())
    if not files:
        raise ModelError(f"{directory}: must hold weights (*.safetensors or *.bin), holds none.")
    state: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            state |= torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ModelError(f"{file}: must be a pickle of tensors alone, is not ({quoted(error)}).") from None
    if strange := [name for name, value in state.items() if not isinstance(name, str) or not isinstance(value, torch.Tensor)]:
        raise ModelError(f"{directory}: its pickled weights must be tensors by name, {quoted(repr(strange[0]))} is none.")
    try:
        module, report = cls.from_pretrained(None, config=config, state_dict=state, output_loading_info=True)
    except Exception as error:
        raise ModelError(f"{directory}: its pickled weights must suit the config, do not ({quoted(error)}).") from None
    if report["missing_keys"] or report["mismatched_keys"]:
        raise ModelError(f"{directory}: its pickled weights must fill the model, {sorted(report['missing_keys'])[:3]} are missing.")
    model = _from_module(module.eval())
    model.name, model.directory = name, directory
    model.notes.append("weights came from a pickle and are held in memory")
    return model


def _assembled(module: nn.Module, weights: Weights, settled: Settled, **more: Any) -> Model:
    units = {name: replace(unit, pruned=name in settled.pruned) for name, unit in find_units(module, weights).items()}
    model = Model(module, weights, find_blocks(module, weights), units, settled=settled, **more)
    model.notes += settled.notes()
    return model
