"""Every export there is: those of this package, and those of installed packages."""

import importlib
import pkgutil

import pipeline.exports
from pipeline.analysis.next_steps import Step
from pipeline.config.registry import plugin_points
from pipeline.exports.base import Export
from pipeline.messages.errors import UserError
from pipeline.store.reader import Store

GROUP = "dlshap.exports"  # of entry points


def exports() -> dict[str, Export]:
    """The exports by name; UserError where an installed package gives no Export, or one with the name of another."""
    names = [each.name for each in pkgutil.iter_modules(pipeline.exports.__path__)]
    modules = [importlib.import_module(f"pipeline.exports.{name}") for name in names]
    found = [(module.__name__, module.EXPORT) for module in modules if hasattr(module, "EXPORT")]
    for point in plugin_points("exports"):
        try:
            found.append((point.value, point.load()))
        except (ImportError, AttributeError) as error:
            raise UserError(f"the entry point {point.name} of {GROUP} cannot be loaded: {error}") from error
    by_name: dict[str, Export] = {}
    for where, export in found:
        if not isinstance(export, Export):
            raise UserError(f"{where} of {GROUP} is a {type(export).__name__}; expected a pipeline.exports.base.Export")
        if export.name in by_name:
            raise UserError(f"{where}: there is an export {export.name!r} already; uninstall one of the packages")
        by_name[export.name] = export
    return by_name


def export_steps(store: Store, target: str) -> list[Step]:
    """The exports of one target of a store that a report names."""
    return [step for export in exports().values() for step in export.steps(store, target)]
