"""What composing needs of Hydra beyond its documented interface, in one place.

`compose`: Hydra's public functions (`initialize`, `compose`) set up one configuration for the whole process and would
    replace that of a Hydra application that calls us. The loader beneath them (`hydra._internal`) needs two settings of
    the process alone, which are put back: the version whose behaviour is asked for (`VersionBase`), and what the
    `ConfigStore` knows (it has no way to forget). Where these go, `pipeline.run` and every command fail at once; take
    `hydra.compose` then, and refuse to run within a Hydra application.
    OmegaConf (`omegaconf._utils`) takes its loader of YAML from a function, which is replaced by one whose loader has
    bounds. Where that goes, tests fail, and aliases in a file of --config-dir may fill the memory.
`override_keys`, `value_of`, `can_read`, `is_quoted`, `is_sweep`, `sweep_values`: the parser of overrides
    (`hydra.core.override_parser`), and how it keeps what is in quotes. Where it goes, `--config-from`, `--multirun` and
    settings with quotes, escapes or lists fail; the documented grammar of overrides is what to parse by hand.
"""

import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.version import VersionBase
from omegaconf import DictConfig, _utils, open_dict

from pipeline.config import expansion

_alone = threading.Lock()


def compose(folder: str, overrides: Sequence[str], nodes: Sequence[tuple[str | None, str, Any]]) -> DictConfig:
    """config.yaml of a folder under some overrides.

    Args:
        folder: of the YAML files.
        overrides: in Hydra's syntax.
        nodes: (group, name, node) of configurations that are in no file.

    Raises:
        HydraException, OmegaConfBaseException: an override that cannot be used.
    """
    with _alone, _behaviour("1.3"), _known(nodes), _bounded_yaml():
        loader = ConfigLoaderImpl(create_config_search_path(folder))
        composed = loader.load_configuration("config", list(overrides), run_mode=RunMode.RUN, from_shell=False)
    with open_dict(composed):
        del composed["hydra"]
    return composed


def override_keys(overrides: Sequence[str]) -> list[str]:
    """What each override sets or chooses. Raises HydraException where one cannot be read."""
    return [each.key_or_group for each in OverridesParser.create().parse_overrides(list(overrides))]


def value_of(text: str) -> Any:
    """The value that a text is in Hydra's grammar; None also where it cannot be read."""
    try:
        return OverridesParser.create().parse_override(f"x={text}").value()
    except HydraException:
        return None


def can_read(override: str) -> bool:
    """Whether an override is one in Hydra's grammar, with a single value."""
    try:
        return not OverridesParser.create().parse_override(override).is_sweep_override()
    except HydraException:
        return False


def sweep_values(override: str, most: int) -> list[str] | None:
    """The values of a sweep as they are written in an override, so many at most; None: it is none, or cannot be read.

    Raises:
        ValueError: a sweep whose values only one of Hydra's own sweepers knows.
    """
    if not is_sweep(override):
        return None
    try:
        return list(itertools.islice(OverridesParser.create().parse_override(override).sweep_string_iterator(), most))
    except HydraException as error:
        raise ValueError(str(error)) from error


def is_sweep(override: str) -> bool:
    """Whether an override is one in Hydra's grammar, with several values."""
    try:
        return OverridesParser.create().parse_override(override).is_sweep_override()
    except HydraException:
        return False


def is_quoted(text: str) -> bool:
    """Whether the whole of a text is one in Hydra's quotes."""
    try:
        return isinstance(OverridesParser.create().parse_override(f"x={text}")._value, QuotedString)
    except HydraException:
        return False


@contextlib.contextmanager
def _behaviour(of: str) -> Iterator[None]:
    """Have Hydra behave as in this version."""
    base: Any = VersionBase.instance()
    before = base.version_base
    try:
        version.setbase(of)
        yield
    finally:
        base.version_base = before


@contextlib.contextmanager
def _bounded_yaml() -> Iterator[None]:
    """Have OmegaConf read YAML within bounds."""
    before = _utils.get_yaml_loader

    def loader() -> Any:
        class Loader(before()):  # type: ignore[misc]
            def get_single_node(self) -> Any:
                expansion.require_bounded_file(self.stream, self.name)
                if (node := super().get_single_node()) is not None:
                    expansion.require_bounded_yaml(node, self.name)
                return node

        return Loader

    _utils.get_yaml_loader = loader
    try:
        yield
    finally:
        _utils.get_yaml_loader = before


@contextlib.contextmanager
def _known(nodes: Sequence[tuple[str | None, str, Any]]) -> Iterator[None]:
    """Have Hydra know some configurations."""
    store = ConfigStore.instance()
    try:
        for group, name, node in nodes:
            store.store(group=group, name=name, node=node)
        yield
    finally:
        for group, name, _ in nodes:
            (store.repo if group is None else store.repo.get(group, {})).pop(f"{name}.yaml", None)
