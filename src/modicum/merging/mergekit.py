"""Files of mergekit read as plans: methods that both have, under the semantics of that tool, and in words what means something else here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modicum.core.errors import SettingError, near, quoted
from modicum.merging.plan import Entry, Expert, Plan, Weight, aligned, layer_range, mixture_of, number, text, weight_of
from modicum.merging.plan import whole as whole_models

# Its methods as options here; settings of a whole merge are put in by their names.
_METHODS = {
    "linear": ("average", {}),
    "slerp": ("slerp", {}),
    "multislerp": ("multislerp", {}),
    "karcher": ("karcher", {}),
    "model_stock": ("model_stock", {}),
    "passthrough": ("passthrough", {"scale": "scale"}),
    "task_arithmetic": ("task_arithmetic", {"lambda": "scale"}),
    "ties": ("ties compat=mergekit", {"density": "density", "lambda": "scale"}),
    "dare_linear": ("dare compat=mergekit", {"density": "density", "lambda": "scale"}),
    "dare_ties": ("dare vote=true compat=mergekit", {"density": "density", "lambda": "scale"}),
    "della": ("della", {"density": "density", "epsilon": "window", "lambda": "scale"}),
    "breadcrumbs": ("breadcrumbs", {"density": "density", "gamma": "gamma", "lambda": "scale"}),
    "breadcrumbs_ties": ("breadcrumbs vote=true", {"density": "density", "gamma": "gamma", "lambda": "scale"}),
    "sce": ("sce compat=mergekit", {"select_topk": "select"}),
}
_DEFAULTS = {"density": "1.0", "epsilon": "0.15", "gamma": "0.01", "select_topk": "1.0"}
_IGNORED = {"int8_mask": None, "weight": None, "t": None, "filter_wise": "false", "normalize_weights": "true"}
# Whether the sum is divided by the weights where the file does not say.
_NORMALIZED = {"linear": True, "ties": True, "della": True}
_KNOWN = {"merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype", "tokenizer_source"}
_GATES = {
    "hidden": "hidden", "hidden_avg": "hidden", "hidden_last": "hidden", "cheap_embed": "embedding", "random": "random",
    "uniform_random": "random",
}  # fmt: skip
_DIFFERS = {
    "dare_linear": "random numbers are others: the mask is not that of mergekit",
    "dare_ties": "random numbers are others: the mask is not that of mergekit",
    "della": "random numbers are others, and each entry is divided by its own probability instead of by a norm",
    "slerp": "angles beyond the threshold are told in float64",
    "model_stock": "a mean cosine below 0 gives the base",
    "breadcrumbs": "gamma holds where density does not leave room for it",
    "breadcrumbs_ties": "gamma holds where density does not leave room for it; an entry whose changes cancel out is the base's",
}


def converted(body: Mapping[str, Any], who: str) -> Plan:
    """The plan of mergekit's file. Raises ``SettingError`` for a method or a setting that is not had here."""
    name = text(body["merge_method"], f"{who}: merge_method")
    if name not in _METHODS:
        raise SettingError(f"{who}: merge_method {quoted(repr(name), 60)} is not had here. {near(name, _METHODS)}")
    if unknown := sorted(set(body) - _KNOWN):
        raise SettingError(f"{who}: {quoted(repr(unknown[0]), 60)} is not understood here. {near(unknown[0], _KNOWN)}")
    base = None if body.get("base_model") is None else _model(body["base_model"], who)
    whole = _table(body.get("parameters"), f"{who}: parameters")
    notes = [f"mergekit: {_DIFFERS[name]}"] if name in _DIFFERS else []
    option, settings = _METHODS[name]
    said: dict[str, set[str]] = {}
    slices, models = [], []
    for each in _items(body.get("slices"), f"{who}: slices"):
        part = _table(each, f"{who}: slice")
        inner = {**whole, **_table(part.get("parameters"), f"{who}: parameters")}
        entries = [_entry(one, inner, who, said) for one in _items(part.get("sources"), f"{who}: sources")]
        slices.append(aligned(entries, who))
    models = list(whole_models([_entry(one, whole, who, said) for one in _items(body.get("models"), f"{who}: models")], who))
    for key, value in whole.items():
        if not isinstance(value, list | dict) and not any(key in values for values in said):
            said.setdefault(key, set()).add(str(value))
    option += _settings(name, settings, said, whole, who)
    if bool(models) == bool(slices):
        raise SettingError(f"{who}: must have models or slices.")
    first = models[0].model if models else slices[0][0].model
    if base is None and name not in ("linear", "karcher", "multislerp", "passthrough"):
        raise SettingError(f"{who}: base_model must be said for {name}, is not.")
    t = whole.get("t")
    if name == "slerp" and t is not None:
        weight = _gradient(t, f"{who}: t")
        models = [Entry(each.model, weight, each.minus, each.layers) for each in models]
        slices = [tuple(Entry(each.model, weight, each.minus, each.layers) for each in part) for part in slices]
    if name != "linear" and name != "karcher" and name != "passthrough" and base is not None:
        models = [each for each in models if each.model != base]
    if "int8_mask" in whole:
        notes.append("mergekit: int8_mask changes nothing here")
    dtype = body.get("out_dtype") or body.get("dtype")
    if dtype is not None:
        notes.append(f"mergekit: dtype {dtype} is what is stored; sums are in float32 or wider whatever it is")
    return Plan(
        base or first, option, tuple(models), tuple(slices), None if dtype is None else text(dtype, f"{who}: dtype"), 0,
        None if body.get("tokenizer_source") is None else _tokenizer(body["tokenizer_source"], who), tuple(notes),
    )  # fmt: skip


def mixed(body: Mapping[str, Any], who: str) -> Plan:
    """The plan of its file for a mixture. Raises ``SettingError`` for what is not had here."""
    known = {"base_model", "experts", "gate_mode", "dtype", "experts_per_token"}
    if unknown := sorted(set(body) - known):
        raise SettingError(f"{who}: {quoted(repr(unknown[0]), 60)} is not had here of a mixture. {near(unknown[0], known)}")
    mode = text(body.get("gate_mode", "hidden"), f"{who}: gate_mode")
    gate = _GATES.get(mode)
    if gate is None:
        raise SettingError(f"{who}: gate_mode must be {', '.join(_GATES)}, is {quoted(repr(mode))}.")
    experts = []
    for each in _items(body["experts"], f"{who}: experts"):
        one = _table(each, f"{who}: expert")
        if more := sorted(set(one) - {"source_model", "positive_prompts", "negative_prompts"}):
            raise SettingError(f"{who}: {quoted(repr(more[0]), 60)} of an expert is not had here. Leave it out.")
        lines = lambda key, one=one: tuple(text(line, f"{who}: {key}") for line in _items(one.get(key), f"{who}: {key}"))
        experts.append(Expert(_model(one.get("source_model"), who), lines("positive_prompts"), lines("negative_prompts")))
    notes = (
        "mergekit: gates are made of what each gate meets, the mean over all tokens of the prompts, and without what they have in common",
    )
    dtype = None if body.get("dtype") is None else text(body["dtype"], f"{who}: dtype")
    return mixture_of(who, experts, _model(body["base_model"], who), gate, body.get("experts_per_token", "2"), dtype, 0, notes)


def _settings(name: str, settings: Mapping[str, str], said: Mapping[str, set[str]], whole: Mapping[str, Any], who: str) -> str:
    words = []
    normalized = str(whole.get("normalize", _NORMALIZED.get(name, False))).lower() == "true"
    if normalized != _NORMALIZED.get(name, False):
        if name not in ("dare_linear", "dare_ties"):
            raise SettingError(f"{who}: normalize {str(normalized).lower()} is not had for {name} here. Leave it out.")
        words.append("mean=true")
    if "rescale" in whole and (str(whole["rescale"]).lower() == "true") != (name in ("dare_linear", "dare_ties", "della")):
        raise SettingError(f"{who}: rescale {whole['rescale']} is not had for {name} here. Leave it out.")
    for key, ours in settings.items():
        values = said.get(key, set())
        if len(values) > 1:
            raise SettingError(f"{who}: {key} must be one for all models here, is {', '.join(sorted(values))}.")
        value = next(iter(values), str(whole.get(key, _DEFAULTS.get(key, ""))))
        if value:
            words.append(f"{ours}={number(value, f'{who}: {key}'):g}")
    for key in {*whole, *said} - {*settings, "normalize", "rescale"}:
        if key not in _IGNORED:
            raise SettingError(f"{who}: {quoted(repr(key), 60)} is no setting of {name} here.")
        wanted = _IGNORED[key]
        if wanted is not None and str(whole.get(key)).lower() != wanted:
            raise SettingError(f"{who}: {key} must be {wanted} here, is {whole.get(key)}.")
    return "".join(f" {word}" for word in words)


def _entry(value: Any, whole: Mapping[str, Any], who: str, said: dict[str, set[str]]) -> Entry:
    body = _table(value, f"{who}: model")
    own = _table(body.get("parameters"), f"{who}: parameters")
    for key, each in own.items():
        if key != "weight":
            said.setdefault(key, set()).add(str(each))
    weight = own.get("weight", whole.get("weight"))
    layers = None if body.get("layer_range") is None else layer_range(body["layer_range"], f"{who}: layer_range")
    return Entry(_model(body.get("model"), who), None if weight is None else _gradient(weight, f"{who}: weight"), None, layers)


def _gradient(value: Any, who: str) -> Weight:
    """A number, a gradient, or a list of filters, of which the first whose text is in a tensor's name counts."""
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        table = []
        for each in value:
            body = _table(each, who)
            filter_ = body.get("filter")
            table.append((f"*{filter_}*" if filter_ not in (None, "*") else "*", weight_of(body.get("value"), who)))
        return tuple(table)
    return weight_of(value, who)


def _model(value: Any, who: str) -> str:
    found = text(value.get("model", value) if isinstance(value, dict) else value, f"{who}: model")
    if "+" in found:
        raise SettingError(f"{who}: {quoted(found)} names an adapter on a model; write the adapter's folder as a model on the base.")
    return found


def _tokenizer(value: Any, who: str) -> str:
    found = text(value, f"{who}: tokenizer_source")
    return found.removeprefix("model:")


def _table(value: Any, who: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SettingError(f"{who}: must be a table, is {quoted(repr(value), 60)}.")
    return value


def _items(value: Any, who: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise SettingError(f"{who}: must be a list, is {quoted(repr(value), 60)}.")
    return value
