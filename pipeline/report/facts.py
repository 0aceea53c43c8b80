"""What a store says of the run that filled it, as lines of tables; a fact that a store does not hold is left out."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from pipeline.messages.progress import duration
from pipeline.messages.visible import LONGEST_LINE, brief
from pipeline.messages.words import counted, some
from pipeline.planning.convergence import not_judged, over_relative
from pipeline.report.formatting import count, number
from pipeline.store.reader import Store

Fact = tuple[str, str]  # what, and its value
N_NAMED = 8  # files, folds or targets


def run_facts(store: Store) -> dict[str, list[Fact]]:
    """Groups of facts: model, input, references, computation, and what was chosen where there was a choice."""
    facts = {
        "Model": _model(store),
        "Input": _input(store),
        "References": _references(store),
        "Computation": _computation(store.attrs),
        "Notes": [("note", str(line)) for line in store.attrs.get("notes", [])],
    }
    return {group: lines for group, lines in facts.items() if lines}


def _model(store: Store) -> list[Fact]:
    attrs, plan = store.attrs, store.plan
    model, prints = attrs.get("model", {}), attrs.get("fingerprint", {})
    checkpoint = model.get("checkpoint")
    files = checkpoint if isinstance(checkpoint, list) else [checkpoint]
    several = len(plan.folds) > 1
    targets = [
        label if name == label else f"{label}: {name}"
        for label, name in zip(store.targets, store.target_names, strict=True)
    ]
    return _present(
        ("class", model.get("target")),
        ("weights", some([PurePath(str(file)).name for file in files if file is not None], N_NAMED)),
        ("folds", f"{len(plan.folds)}, their mean is attributed: {some(plan.folds, N_NAMED)}" if several else None),
        ("SHA-256 of the weights", prints.get("model.weights")),
        *((f"SHA-256 of {key[11:]}", sha256) for key, sha256 in prints.items() if key.startswith("model.code.")),
        ("head", attrs.get("head")),
        ("output", model.get("output")),
        ("bias", _bias(model)),
        ("bases of its channels", model.get("bases") if model.get("bases") != "ACGT" else None),
        ("axes of its input", model.get("input_layout") if model.get("input_layout") != "ncl" else None),
        *((f"model.{name}", str(value)) for name, value in (model.get("input") or {}).items()),
        ("targets", some(targets, N_NAMED)),
        ("strands", "both, averaged in the forward frame" if plan.reverse_complement else None),
        ("pickle", "trusted: loading it could run code" if model.get("trust_pickle") else None),
    )


def _bias(model: Mapping[str, Any]) -> str | None:
    """Of a ChromBPNet that is explained with its bias, where that came from."""
    if not model.get("with_bias"):
        return None
    given = model.get("bias")
    files = given if isinstance(given, list) else [given] if given else []
    return "included" + (f": {some([PurePath(str(file)).name for file in files], N_NAMED)}" if files else "")


def _input(store: Store) -> list[Fact]:
    attrs = store.attrs
    given = attrs.get("dataset", {})
    names = {"path": "file", "loci": "loci", "genome": "genome"}
    files = [(text, PurePath(str(given[key])).name) for key, text in names.items() if given.get(key)]
    said = ("kind", "path", "loci", "genome", "left_out", "length")
    others = [(key.replace("_", " "), _text(value)) for key, value in given.items() if _is_plain(key, value, said)]
    return _present(
        ("form", given.get("kind")),
        *files,
        ("sequences", f"{counted_many(len(store), 'row')} of {count(int(store.codes.shape[1]))} bp"),
        *others,
        ("left out", _left_out(given)),
        ("SHA-256", attrs.get("fingerprint", {}).get("input.sha256")),
    )


def _is_plain(key: str, value: Any, said: tuple[str, ...]) -> bool:
    return key not in said and not key.startswith("n_") and isinstance(value, str | int | float | list) and value != []


def _text(value: Any) -> str:
    return ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)


def _left_out(given: Mapping[str, Any]) -> str:
    n_bad, named = int(given.get("n_left_out", 0)), given.get("left_out", [])
    if not n_bad:
        return "nothing"
    return f"{counted_many(n_bad, 'row')} of the input that could not be used: {'; '.join(str(x) for x in named)}" + (
        "; ..." if n_bad > len(named) else ""
    )


def _references(store: Store) -> list[Fact]:
    attrs, plan = store.attrs, store.plan
    config = attrs.get("config", {}).get("references", {})
    name, n = str(plan.references.get("name", "")), plan.n_references
    is_shuffled = config.get("n_shuffles") is not None and name != "genomic"
    settings = {key: value for key, value in config.items() if key not in ("name", "n_shuffles") and value}
    seeds = f"{plan.random_state} to {plan.random_state + n - 1}, one for each" if is_shuffled else None
    return _present(
        ("kind", name.replace("_", " ")),
        ("of each sequence", count(n)),
        ("seed", plan.seed),
        ("seeds of numpy", seeds),
        *[(key, _text(value)) for key, value in settings.items()],
    )


def _computation(attrs: Mapping[str, Any]) -> list[Fact]:
    plan, versions, hardware = attrs.get("plan", {}), attrs.get("versions", {}), attrs.get("hardware", {})
    seconds = attrs.get("run", {}).get("shard_seconds")
    return _present(
        ("device", f"{plan.get('device')} ({attrs.get('device')})"),
        ("numbers", plan.get("dtype")),
        ("pairs in a batch", attrs.get("batch_size")),
        ("threads of an actor", plan.get("threads")),
        ("time on shards", None if seconds is None else f"{duration(seconds)}, all actors together"),
        ("bit for bit repeatable", "yes" if attrs.get("bit_identical") and plan.get("deterministic") else "no"),
        ("planned on", f"{hardware.get('platform')}, {hardware.get('cpus')} CPUs" if hardware else None),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    )


def counted_many(n: int, noun: str) -> str:
    """1 row, 2,000 rows."""
    return counted(n, noun).replace(str(n), count(n), 1)


def _present(*facts: tuple[str, Any]) -> list[Fact]:
    return [(what, brief(str(value), LONGEST_LINE)) for what, value in facts if value not in (None, "", [])]


def verdict(store: Store) -> tuple[str, str]:
    """Whether contributions add up: good, bad or unknown, and a sentence."""
    attrs = store.attrs
    found = attrs.get("run", {}).get("deltas")
    if found is None:
        return "unknown", "The run has not finished, so its convergence deltas have not been checked."
    if not found["judged"]:
        return "unknown", (
            f"The head {found['head']} does not sum to the difference of predictions by design: the convergence deltas "
            "are recorded, not judged."
        )
    largest = f"the largest convergence delta is {number(found['largest'], 2)}, at {found['worst']}"
    if attrs["convergence"] == "passed":
        return "good", f"Contributions add up to the difference of predictions: {largest}{not_judged(found)}."
    over = f"{found['share_over']:.2%} of all pairs are over {found['threshold']:g}{over_relative(found)}"
    return "bad", f"Contributions do not add up everywhere: {largest}; {over}."
