"""Models ready to be attributed: weights loaded without running code from files, output selected, head applied.

A model may be several, its folds: the same architecture with other weights, of which the mean is attributed.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dlshap_core.heads import head as make_head
from pipeline.config.schema import AUTO, Config, ModelConfig
from pipeline.messages.errors import UserError
from pipeline.messages.progress import LOG
from pipeline.models.adapted import ADAPTERS, adapted
from pipeline.models.allocations import is_to_be_tried
from pipeline.models.checkpoint import checkpoint_path
from pipeline.models.code import Code, code_of
from pipeline.models.family import ModelFamily, Raw
from pipeline.models.fitting import require_usable
from pipeline.models.folds import file_names, fold_labels, fold_paths, require_alike
from pipeline.models.hashing import files_by_content, name_of, settings_hashes, state_of, weights_hash
from pipeline.models.keras_files.files import is_keras
from pipeline.models.outputs import SelectedOutput, WithHead
from pipeline.models.shells import family_of
from pipeline.models.target_names import Asked, places, read_names
from pipeline.planning.fingerprint import differences

_NAMES_KEPT = 20
_OF_ATTRIBUTES = "what modules keep in attributes must be the same whenever the model is made"


@dataclass(frozen=True)
class LoadedModel:
    """A model as the engine takes it, and what identifies it.

    Attributes:
        folds: one module, or one for each fold; eval, on the CPU, float32, output selection and head applied:
            (N, 4, L), and extra inputs if any -> (N, T).
        labels: of the folds: the names of their files, or numbers.
        weights_hash: sha256 of the weights of all folds, in order; in hexadecimal.
        code: what runs on them.
        description: what the store says of the model; see `load_model`.
        notes: lines for the user about what they may not expect.
        target_names: of all targets, where the person gives some; see target_names.py.
    """

    folds: tuple[nn.Module, ...]
    labels: tuple[str, ...]
    weights_hash: str
    code: Code
    description: dict[str, Any]
    notes: tuple[str, ...] = ()
    target_names: tuple[str, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """What the values depend on, as plain values: the same on every machine that loads the same model."""
        return {
            "name": self.description["name"],
            "head": self.description["head"],
            "output": self.description["output"],
            **{f"init.{name}": files_by_content(value) for name, value in self.description["init"].items()},
            "weights": self.weights_hash,
            **{f"settings.{name}": sha256 for name, sha256 in self.code.settings.items()},
            **{f"code.{name}": sha256 for name, sha256 in self.code.hashes.items()},
        }

    @property
    def sources(self) -> dict[str, str]:
        """Where parts of `identity` come from, a file or an attribute, by the fingerprint's fields."""
        return {
            **{f"model.code.{name}": file for name, file in self.code.files.items()},
            **dict.fromkeys((f"model.settings.{name}" for name in self.code.settings), _OF_ATTRIBUTES),
        }

    def differences(self, fingerprint: Mapping[str, Any]) -> list[str]:
        """A phrase for each way in which this is not the model of a run's fingerprint. Where a run mixes devices, each
        computes its own constants."""
        left_out = ("model.settings.",) if fingerprint.get("machine.device") == "any" else ()
        here = {f"model.{key}": value for key, value in self.identity.items()}
        planned, found = (
            {key: value for key, value in each.items() if key.startswith("model.") and not key.startswith(left_out)}
            for each in (fingerprint, here)
        )
        return differences(planned, found, self.sources)

    def asked(self, targets: Sequence[int | str] | str) -> Asked:
        """`engine.targets` as places of the model's targets; see `target_names.places`. Several heads have names."""
        heads = str(self.description["head"]).split(",")
        return places(targets, self.target_names or (heads if len(heads) > 1 else ()))

    @property
    def module(self) -> nn.Module:
        """The first fold, which is like the others in all but its weights."""
        return self.folds[0]


def bare(module: nn.Module) -> nn.Module:
    """The user's own module within a fold of a `LoadedModel`."""
    while isinstance(module, (WithHead, SelectedOutput, *ADAPTERS)):
        module = module.model
    return module


def load_model(model: ModelConfig) -> LoadedModel:
    """The model that a configuration describes.

    Raises:
        UserError: a ValueError; a checkpoint that is missing, damaged, not trusted or does not fit, folds that differ
            in more than their weights, a target that cannot be made, an unknown head.
    """
    assert isinstance(model, ModelFamily)  # see require_chosen
    paths = fold_paths(model.checkpoint)
    raws = [_usable(raw, model) for raw in model.read_folds(paths)]
    modules = [raw.module for raw in raws]
    require_alike(modules, paths)
    folds = [finished(module, model) for module in modules]
    for fold, raw in zip(folds, raws, strict=True):
        if raw.is_described and raw.path is not None:
            is_to_be_tried(fold, raw.path)
    settings = [settings_hashes(module) for module in modules] if not model.has_own_code else []
    if any(other != settings[0] for other in settings):
        raise UserError(
            "model.checkpoint: the folds have weights of the same shapes and differ in settings (trimming?)"
        )
    hashes = [weights_hash(module) for module in modules]
    return LoadedModel(
        folds=tuple(folds),
        labels=fold_labels(raw.path for raw in raws),
        weights_hash=hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
        code=code_of(*folds, target=model.target),
        description={
            "name": model.name,
            "head": ",".join(model.heads),
            "output": model.output_text,
            "checkpoint": file_names([raw.path for raw in raws]),
            "target": name_of(type(modules[0])),
            "trust_pickle": any(raw.trusted for raw in raws),  # whether it was needed
            "init": raws[0].init,
            "prefix": raws[0].fitted.prefix,
            "left_out": _brief(sorted({name for raw in raws for name in raw.fitted.left_out})),
            "stored_as": sorted({kind for raw in raws for kind in raw.fitted.stored_as}),
            "input_layout": model.input_layout,
            "bases": model.bases,
            "input": model.described_input(),
            **model.described(),
        },
        notes=(*_of_pattern(model, paths), *dict.fromkeys(note for raw in raws for note in _notes(raw))),
    )


def require_chosen(config: Config) -> None:
    """Raises UserError where nobody chose a model, which only the example's input has by itself."""
    checkpoint, dataset = config.model.checkpoint, config.dataset.name
    if config.model.name != AUTO:
        return
    if checkpoint is None:
        raise UserError(
            f"dataset={dataset} needs a model; add model=bpnet model.checkpoint=..., or model=module "
            f"model._target_=package.Class model.checkpoint=..."
        )
    path = checkpoint_path(fold_paths(checkpoint)[0], folders=True)
    if not path.is_dir() and (family := family_of(path)) is not None:
        raise UserError(f"model.checkpoint={checkpoint} is a whole model of bpnet-lite; add model={family}")
    if not path.is_dir() and is_keras(path):
        raise UserError(
            f"model.checkpoint={checkpoint} is a file of Keras; add model=keras (of chrombpnet: model=chrombpnet)"
        )
    raise UserError(
        f"model.checkpoint={checkpoint} needs its model; add model=bpnet, model=chrombpnet or model=keras, or "
        f"model=module model._target_=package.Class"
    )


def load_chosen(config: Config) -> LoadedModel:
    """The model of a run, with a line on the terminal for each of its notes.

    Raises:
        UserError: no model is chosen, or it cannot be loaded.
    """
    require_chosen(config)
    model, dataset = config.model, config.dataset.name
    names = read_names(model.target_names)
    if names:
        places(config.targets, names)  # before the weights are read
    loaded = replace(load_model(model), target_names=names)
    loaded.asked(config.targets)
    if model.name == "example" and model.checkpoint is None and dataset != "example":
        line = (
            f"model=example is a toy network for the motifs of dataset=example; it knows nothing about the sequences "
            f"of dataset={dataset}"
        )
        loaded = replace(loaded, notes=(line, *loaded.notes))
    for line in loaded.notes:
        LOG.info(line)
    return loaded


def _of_pattern(model: ModelConfig, paths: Sequence[str | None]) -> list[str]:
    """Which files a pattern stands for."""
    if not isinstance(model.checkpoint, str) or len(paths) == 1:
        return []
    names = _brief([Path(str(path)).name for path in paths])
    return [f"model.checkpoint={model.checkpoint}: {len(paths)} files, whose mean is attributed: {', '.join(names)}"]


def _notes(raw: Raw) -> list[str]:
    """Lines about a checkpoint that the user may not expect."""
    lines = raw.fitted.all_notes(raw.path)
    if not raw.trusted:
        return list(lines)
    warning = (
        f"WARNING: {raw.path} was read as a pickle, which runs whatever code is in it, as model.trust_pickle=true "
        f"allows; the store says so"
    )
    return [warning, *lines]


def finished(raw: nn.Module, model: ModelConfig) -> nn.Module:
    """The module with its input adapted, its output selected and its head applied."""
    selected = SelectedOutput(adapted(raw, model), model.output_text, model.heads != ["none"])
    return (WithHead(selected, _head(model.heads)) if selected.is_for_head else selected).eval()


def _usable(raw: Raw, model: ModelFamily) -> Raw:
    """The bare module of one fold, ready for inference: eval, on the CPU, float32."""
    origin = raw.path or f"model._target_={model.target}"
    require_usable(state_of(raw.module), origin)
    raw.module.to(device="cpu", dtype=torch.float32).eval().requires_grad_(False)
    if "float64" in raw.fitted.stored_as:
        require_usable(state_of(raw.module), f"{origin}, made float32")
    return raw


def _brief(names: list[str]) -> list[str]:
    return names if len(names) <= _NAMES_KEPT else [*names[:_NAMES_KEPT], f"and {len(names) - _NAMES_KEPT} more"]


def _head(names: Sequence[str]) -> nn.Module:
    try:
        return make_head(*names)
    except ValueError as error:
        raise UserError(f"model.head={','.join(names)}: {error}") from None
