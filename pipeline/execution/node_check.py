"""Whether a node of a cluster can work on a run, asked before the first shard."""

import importlib.metadata
import uuid
from pathlib import Path

import torch

from pipeline.config import limits
from pipeline.config.settings import settings_of
from pipeline.config.validate import model_from_dict
from pipeline.execution.device import kind_problem
from pipeline.execution.versions import installed_code
from pipeline.execution.work import WorkSpec
from pipeline.messages.errors import UserError
from pipeline.models import own_modules
from pipeline.models.folds import fold_paths
from pipeline.models.load import load_model
from pipeline.store.run_directory import RunDirectory
from pipeline.store.schema import ROOT


def node_problems(work: WorkSpec) -> list[str]:
    """What keeps this machine from working on a run, one phrase each; nothing where all is well."""
    problems, plan = [], work.plan
    here = {"dlshap": importlib.metadata.version("dlshap"), "torch": torch.__version__, "code": installed_code()}
    planned = {name: plan.fingerprint[f"machine.{name}"] for name in here}
    problems += [
        f"it has {library} {here[library]} where the run was planned with {planned[library]}"
        for library in ("dlshap", "torch")
        if here[library] != planned[library]
    ]
    if not problems and here["code"] != planned["code"]:
        problems.append("its dlshap has other source files than the one that planned the run, of the same version")
    if plan.device == "cpu" and (problem := kind_problem(plan, work.mixed_devices)) is not None:
        problems.append(problem)
    directory, key = RunDirectory(work.store, work.options), f"partial/check-{uuid.uuid4().hex}"
    try:
        directory.store.read(ROOT)
        directory.run.write(key, b"")
        directory.run.delete(key)
    except FileNotFoundError:
        problems.append(f"the store {work.store} is not there; put it where every node finds it")
    except OSError as error:
        problems.append(f"the store {work.store} cannot be used: {error}")
    own_modules.search(*work.search)
    model = model_from_dict(work.model)
    named = [each for each in settings_of(model, "model.") if each.is_file]
    of_model = [path for each in named for path in fold_paths(each.value, each.key)]
    files = [path for path in [*of_model, plan.references.get("path")] if path]
    problems += [f"{path} is not there" for path in files if not Path(path).exists()]
    if not problems:
        try:
            with limits.using(work.limits):
                problems += load_model(model).differences(plan.fingerprint)
        except UserError as error:
            problems.append(str(error))
    return problems
