"""What the commands show of results, on stdout."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modicum.cli.healing import told as healed
from modicum.cli.printing import print_line, print_picture, print_rows, print_table
from modicum.cli.progress import lasting
from modicum.core.budget import readable
from modicum.core.method import Method

if TYPE_CHECKING:
    from modicum.core.recipe import Recipe
    from modicum.measure import Measured


# Results of runs


def outcome(receipt: Mapping[str, Any], out: Path) -> None:
    """What ``fit`` made: sizes, quality, how it was chosen, coverage, time, and where the report is."""
    sizes, coverage = receipt["bytes"], receipt["coverage"]
    whole = sum(row["reason"] != "vector" for row in coverage["untreated"])
    seconds = sum(stage["seconds"] for stage in receipt["stages"].values())
    after = f"{readable(sizes['original'])} → {readable(sizes['actual'])} ({sizes['actual']} bytes, {sizes['bits_per_weight']:.3f} bpw)"
    allowed = [("allowed", f"{readable(sizes['allowed'])} ({sizes['allowed']} bytes)")] if sizes["allowed"] is not None else []
    budget = [("budget", receipt["request"]["budget"])] if receipt["request"]["budget"] else []
    events = [("events", f"{len(receipt['events'])}, named in the receipt")] if receipt["events"] else []
    rules = [("rules", "; ".join(told))] if (told := receipt["request"].get("set")) else []
    print_table(("", "before", "after", ""), before_and_after(receipt))
    print_rows(
        ("size", after), *budget, *allowed, *rules, *_inputs(receipt), *_quality(receipt["quality"]), *_verdict(receipt),
        *_choice(receipt.get("search") or {}), *_structure(receipt["sites"]), *_taken(receipt["data"]),
        ("coverage", f"{coverage['share']:.1%} of layer bytes treated, layers as they were: {whole}"),
        ("target", f"{receipt['request']['target']}, reloaded and verified"), *_written(receipt["verification"]),
        *_loads(receipt["verification"]), *_healing(receipt), *events,
        ("time", f"{seconds:.1f} s"), ("report", str(out / "report.html")),
    )  # fmt: skip
    print_picture(receipt)


def before_and_after(receipt: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Parameters, multiply-adds and bytes; receipts of earlier versions have no multiply-adds, and some no values."""
    known = {"parameters": receipt.get("values"), "multiply-adds": receipt.get("macs"), "bytes": receipt["bytes"]}
    pairs = {name: (found.get("original"), found.get("actual")) for name, found in known.items() if found}
    return [
        (name, f"{old:,}", f"{new:,}", f"{new / max(1, old):.1%}")
        for name, (old, new) in pairs.items()
        if old is not None and new is not None
    ]


def _inputs(receipt: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How weights take their inputs, where not all as they are."""
    taking = [row["option"].partition("| activations")[2].strip() for row in receipt["sites"] if "| activations" in row["option"]]
    kinds = ", ".join(dict.fromkeys(f"activations {words}".strip() for words in taking))
    return [("inputs", f"rounded to eight bits on {len(taking)} of {len(receipt['sites'])} sites ({kinds})")] if taking else []


def _healing(receipt: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What training after assembly came to."""
    return [("healing", healed(receipt["healing"]))] if receipt.get("healing") else []


def _verdict(receipt: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was lost in plain words; receipts of earlier versions have none."""
    return [("verdict", receipt["verdict"])] if receipt.get("verdict") else []


def _written(verification: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How it writes beside its original, where that was asked."""
    if (found := verification.get("generation")) is None:
        return []
    both = lambda name: " → ".join(f"{found[side][name]['mean']:.1%}" for side in ("original", "compressed"))
    return [("writing", f"foresees {both('agreed')} of the original's own tokens, repeats {both('repeated')} of its runs of four")]


def _loads(verification: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What other ways to load it come to, where that is not the same model."""
    from modicum.fit.card import outcome

    found = {
        name: value for name, value in verification.items() if isinstance(value, Mapping) and value.get("result", "the same") != "the same"
    }
    return [(f"with {name}", outcome(value).replace("**", "")) for name, value in found.items()]


def measurement_facts(measured: Measured) -> dict[str, Any]:
    """What a measurement holds, as a JSON value."""
    from modicum.table.waste import wasted

    found = measured.findings
    kinds: dict[str, Any] = {
        "weights": found.units,
        "coupled cuts": found.cuts,
        "spans of blocks": {"depth": found.spans} if found.spans else {},
    }
    counts = {kind: {"sites": len(sites), "options": sum(map(len, sites.values()))} for kind, sites in kinds.items()}
    facts = {
        "directory": str(measured.directory),
        "found": counts,
        "wasted": wasted(found.units),
        "rank": found.rank,
        "events": found.events,
    }
    return measured.meta | facts


def _wasted(found: Mapping[str, Mapping[str, float]]) -> list[tuple[str, ...]]:
    """Medians over weights, the option of fewest bits first."""
    rows = sorted(found.items(), key=lambda pair: (pair[1]["bits"], pair[1]["wasted"]))
    return [(text, str(one["weights"]), f"{one['bits']:.2f}", f"{one['wasted']:+.2f}") for text, one in rows]


def measurement(measured: Measured) -> None:
    """What ``measure`` found: how much of what, how far predictions can be trusted, time, where it is, and what to do with it."""
    facts, where = measurement_facts(measured), str(measured.directory)
    model = facts["model"]
    print_table(
        ("measured", "sites", "options"), [(kind, *map(str, count.values())) for kind, count in facts["found"].items() if count["sites"]]
    )
    if facts["wasted"]:
        print_table(("option", "weights", "bits per weight", "beyond the Gaussian reference"), _wasted(facts["wasted"]))
    seconds = sum(stage["seconds"] for stage in facts["stages"].values())
    events = [("events", f"{len(facts['events'])}, named in the measurement")] if facts["events"] else []
    print_rows(
        ("model", f"{model['name']}: {model['parameters']} parameters, {readable(model['bytes'])}"), ("targets", ", ".join(facts["targets"])),
        *(_taken(facts["data"]) or [("data", _source(facts["data"]))]),
        ("sequences", f"{facts['settings']['samples']} of {facts['settings']['tokens']} tokens"), *_rank(facts["rank"]), *events,
        ("time", f"{seconds:.1f} s"), ("measurement", where),
        ("next", f"modicum frontier {shlex.quote(where)}, modicum fit --from {shlex.quote(where)} --size {_half(model['bytes'])}"),
    )  # fmt: skip


def frontier(found: Mapping[str, Any], directory: Path) -> None:
    """The frontier where it was measured, and where its picture is."""
    for curve in found["curves"]:
        points = [point for point in curve["points"] if point["chosen"]["measured"]] or curve["points"]
        print_line(f"target {curve['target']}")
        names = ("size", "bpw", "predicted", "measured", "95 % interval", "perplexity", "uniform", "dropped", "cuts")
        print_table(names, [_point(point["chosen"], point["uniform"]) for point in points])
        print_line("")
    print_rows(*_rank(found["rank"]), ("picture", str(directory / "frontier.svg")), ("page", str(directory / "frontier.html")))


def _point(chosen: Mapping[str, Any], uniform: Mapping[str, Any]) -> tuple[str, ...]:
    quality, other = chosen["measured"], uniform["measured"]
    measured = (f"{quality['mean']:.3g}", f"{quality['low']:.3g} to {quality['high']:.3g}") if quality else ("", "")
    perplexity = f"{quality['perplexity']:.3f}" if quality and "perplexity" in quality else ""
    blocks = str(len(chosen["dropped"]["blocks"])) if chosen["dropped"] else ""
    return (
        readable(chosen["bytes"]), f"{chosen['bits_per_weight']:.2f}", f"{chosen['harm']:.3g}", *measured, perplexity,
        f"{other['mean'] if other else uniform['harm']:.3g}", blocks, str(len(chosen["cuts"]) or ""),
    )  # fmt: skip


def evaluation(found: Mapping[str, Any]) -> None:
    """What ``evaluate`` measured."""
    judged = f"{found['quality']['sequences']} sequences of {_source(found['data'])}"
    against = [("reference", found["reference"])] if found["reference"] else []
    print_rows(("model", found["model"]), *against, *_quality(found["quality"]), ("judged on", judged), *computed(found.get("compute")))
    print_rows(*_taken(found["data"]), *_vocabulary(found.get("vocabulary")))
    for row in found.get("tasks", ()):
        print_rows((f"{row['task']} {row['metric']}", task_words(row)))
    for note in found["data"]["notes"]:
        print_rows(("note", note))


def task_words(row: Mapping[str, Any]) -> str:
    """What a model reaches on a task, beside its original, with standard errors."""
    told = lambda value, error: f"{value:.4f}" + (f" ± {error:.4f}" if error is not None else "")
    before = f"{told(row['original'], row['original_error'])} → " if "original" in row else ""
    return before + told(row["value"], row["error"]) + (f", {row['samples']} samples" if row["samples"] else "")


def _vocabulary(trim: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What a trimmed vocabulary costs on the text that was judged."""
    if trim is None:
        return []
    rows = [("vocabulary", f"{trim['tokens']:,} of {trim['of']:,} tokens kept; {trim['changed']:.2%} of the text's tokens changed")]
    if bits := trim.get("bits_per_byte"):
        rows.append(("tokens that went", f"{trim['lost_mass']:.3%} of the original's probability; the divergence is on those that stayed"))
        said = f"{bits['original']:.4f} → {bits['model']:.4f}, {bits['kept tokens']:.4f} of the original with the tokens that stayed"
        rows.append(("bits per byte", f"{said} (the same {trim['bytes']:,} bytes)"))
    return rows


def forecast(value: Mapping[str, Any]) -> None:
    """What a run would do: sizes within reach, work, what would be treated and what not."""
    reach = f"{readable(value['smallest_bytes'])} ({value['smallest_bpw']:.3f} bpw)"
    if value["largest_bytes"] > value["smallest_bytes"]:
        reach += f" to {readable(value['largest_bytes'])}"
    of = f"{value['budget']} " if value.get("budget") else ""
    fits = {
        None: [("budget", f"{of}not checked: {value['why']}")] if value.get("why") else [],
        True: [("budget", f"{of}can be met")],
        False: [("budget", f"{of}cannot be met: {value.get('why') or 'it is below the smallest'}")],
    }[value["fits"]]
    print_rows(
        ("model", f"{value['model']}: {value['parameters']} parameters, {readable(value['original_bytes'])}"),
        ("target", value["target"]), ("within reach", reach), *fits, *computed(value.get("compute")),
        ("calibration", f"{value['calibration_tokens']:,} tokens{_sampled(value.get('data') or {})}"), *_effort(value),
    )  # fmt: skip
    print_table(("treated", "option", "sites", "weights"), _offers(value["sites"]))
    if value["untreated"]:
        print_table(("stays dense", "layers", "bytes", "the largest"), _reasons(value["untreated"]))


def computed(value: Mapping[str, str] | None) -> list[tuple[str, str]]:
    """In which dtypes is computed, and why; what earlier versions wrote does not say."""
    if not value:
        return []
    own = "" if value["forward"] == value["stored"] else f", weights are stored in {value['stored']}"
    apart = "" if value["gradients"] == value["forward"] else f", gradients in {value['gradients']}"
    return [("computed in", f"{value['forward']}{apart}{own}: {value['why']}")]


def _sampled(data: Mapping[str, Any]) -> str:
    """Of what the sequences come, as far as a sample tells."""
    taken = data.get("taken")
    if not taken or "tokens" not in taken:
        return f" of {taken['files']:,} files of {taken['kind']} in {_source(data)}" if taken and "files" in taken else ""
    columns = f" (column {', '.join(taken['columns'])})" if taken.get("columns") else ""
    count = f"{'at least' if taken.get('at_least') else 'about'} {taken['tokens']:,}"
    return f" of {count} in {_source(data)}{columns}"


def _effort(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Memory and time a run would take, and what these figures come from; forecasts of earlier versions have the activations alone."""
    activations = readable(value["activation_bytes"])
    if "seconds" not in value:
        return [("memory", f"activations of up to {activations}")]
    speed = value["operations_per_second"] / 1e9
    search = f", {lasting(value['search_seconds'])} of them to judge plans" if value["search_seconds"] else ""
    work = "making the choice" if value.get("measured") else "measuring and compressing"
    return [
        ("memory", f"up to {readable(value['memory_bytes'])}, {activations} of it activations, which --ram moves to disk"),
        ("time", f"about {lasting(value['seconds'])}{search}: {work} takes {value['work_operations']:.2g} operations, and products of matrices "
                 f"run at {speed:.3g} billion a second here now"),
    ]  # fmt: skip


def _quality(quality: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    rows = []
    if quality and "perplexity" in quality:
        before = f"{quality['perplexity_original']:.3f} → " if "perplexity_original" in quality else ""
        rows.append(("perplexity", f"{before}{quality['perplexity']:.3f}"))
    if quality and "mean" in quality:
        rows.append((quality["metric"], f"{quality['mean']:.5f} (95 % interval {quality['low']:.5f} to {quality['high']:.5f})"))
    outputs = [row for row in (quality or {}).get("outputs", []) if isinstance(row, Mapping)]
    if len(outputs) > 1:
        rows += [(f"of {row['judged']}", f"{row['mean']:.5f} {row['metric']}") for row in outputs]
    elif outputs and not outputs[0]["judged"].endswith(("classes on the last axis", "values")):
        rows.append(("judged", outputs[0]["judged"]))
    return rows


def _source(data: Mapping[str, Any]) -> str:
    return "the text shipped with modicum" if data["source"] == "shipped" else str(data["source"])


def _taken(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was found in the data, and what of it is used; receipts of earlier versions do not say."""
    taken = data.get("taken")
    if not taken:
        return []
    if "documents" not in taken:
        return [("data", f"{_source(data)}: {taken['files']:,} files of {taken['kind']}, {taken['share']:.1%} of them used")]
    columns = f" (column {', '.join(taken['columns'])})" if taken.get("columns") else ""
    return [
        (
            "data",
            f"{_source(data)}: {taken['documents']:,} documents{columns}, {taken['tokens']:,} tokens, {taken['share']:.1%} of them used",
        ),
        *((f"  {each['source']}", f"{each['calibration']:,} sequences to calibrate on") for each in taken.get("sources", [])),
    ]


def _choice(search: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the plan was chosen; nothing where a method or a plan was given."""
    rows = []
    if "allocator" in search:
        hits = f" and {search['hits']} answered from memory" if search.get("hits") else ""
        judged = f", {search['evaluations']} candidates judged{hits}" if search.get("evaluations") else ""
        gain = f", mean divergence {search['start']:.5f} → {search['end']:.5f} on validation sequences" if "start" in search else ""
        rows.append(("choice", f"{search['allocator']}{judged}, {search['seconds']:.1f} s{gain}"))
    if "skipped" in search:
        rows.append(("search", f"left out: {search['skipped']}"))
    if "plain" in search:
        rows.append(("plain option", _plain(search["plain"])))
    return rows + _rank(search.get("rank"))


def _plain(plain: Mapping[str, Any]) -> str:
    """How the choice compares with the best option that is the same on every layer."""
    how = f"on {plain['sequences']} validation sequences" if plain["sequences"] else "by the forecast"
    if "rise" in plain:
        return f"{plain['option']} everywhere keeps the loss in fewer bytes and is taken"
    taken = ": it is taken" if plain["taken"] else ""
    return f"{plain['option']} everywhere loses {plain['lost']:.3g} {how}, the choice {plain['chosen']:.3g}{taken}"


def _rank(rank: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if not rank or rank["spearman"] is None:
        return []
    return [("prediction", f"harm ranks {rank['plans']} random plans with Spearman r = {rank['spearman']:.3f}")]


def _structure(sites: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Blocks left out, and coupled cuts by option."""
    sites = list(sites)
    gone = sum(site["option"] == "dropped" for site in sites)
    rows = [("blocks left out", f"{site['option']}, {gone} choices with them") for site in sites if site["kind"] == "span"]
    cuts = [(site["option"], *site["site"].split("all blocks:")[1:]) for site in sites if site["kind"] == "cut"]
    told = [f"{option} on {f'{kind[0]} of all blocks' if kind else count}" for (option, *kind), count in sorted(Counter(cuts).items())]
    return rows + ([("cuts", ", ".join(told))] if told else [])


def _half(size: int) -> str:
    """A size to begin with: half of another, short."""
    number, unit = readable(size / 2).split()
    return f"{float(number):.3g}{unit}"


def _offers(sites: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Number of sites, and their weights, by kind and option."""
    counts: Counter[tuple[str, str]] = Counter()
    weights: Counter[tuple[str, str]] = Counter()
    for site in sites:
        for option in site["options"]:
            counts[site["kind"], option] += 1
            weights[site["kind"], option] += site["weights"]
    return [(kind, option, str(count), str(weights[kind, option])) for (kind, option), count in counts.items()]


def _reasons(untreated: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Layers left dense, by reason; they come largest first."""
    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in untreated:
        found[row["reason"]].append(row)
    return [(reason, str(len(rows)), readable(sum(row["bytes"] for row in rows)), rows[0]["unit"]) for reason, rows in found.items()]


# Methods


def facts(cls: type[Method] | type[Recipe]) -> dict[str, Any]:
    """What a method says of itself, as a JSON value."""
    paper = dataclasses.asdict(cls.paper) if cls.paper else None
    return {"key": cls.key(), "line": _doc(cls).partition("\n")[0], "needs": needs(cls), "paper": paper}


def needs(cls: type[Method] | type[Recipe]) -> list[str]:
    """What calibration must show a method; nothing of those that it does not make."""
    return sorted(need.value for need in cls.needs) if issubclass(cls, Method) else []


def methods(classes: Iterable[type[Method] | type[Recipe]]) -> None:
    """One line for each method."""
    rows = [facts(cls) for cls in classes]
    table = [(row["key"], row["line"], ", ".join(row["needs"]), str(row["paper"]["year"]) if row["paper"] else "") for row in rows]
    print_table(("method", "what it does", "needs", "year"), table)


def method(cls: type[Method] | type[Recipe]) -> None:
    """All a method says of itself: what it does, its settings, what it needs, its known gaps and its paper."""
    print_line(cls.key())
    print_line(f"\n{_doc(cls)}\n")
    rows = [(field.name, str(field.default), _bounds(field.metadata), field.metadata.get("help", "")) for field in dataclasses.fields(cls)]
    if rows:
        print_table(("setting", "default", "allowed", "what it is"), rows)
    if issubclass(cls, Method):
        print_rows(("needs", ", ".join(needs(cls)) or "no data"))
    print_rows(*((f"gap: {promise}", reason) for promise, reason in cls.known_gaps.items()))
    if cls.paper:
        where = f", arXiv {cls.paper.arxiv}" if cls.paper.arxiv else ""
        print_rows(("paper", f"{cls.paper.title} ({cls.paper.authors.replace(' and ', '; ') or 'unknown'}, {cls.paper.year}{where})"))


def _doc(cls: type) -> str:
    return inspect.getdoc(cls) or ""


def _bounds(metadata: Mapping[str, Any]) -> str:
    if metadata.get("choices") is not None:
        return ", ".join(map(str, metadata["choices"]))
    return "{:,} to {:,}".format(*metadata["between"]) if metadata.get("between") else ""
