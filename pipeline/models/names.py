"""Names of weights: which in a file is which in a module.

Training frameworks put prefixes before names and parts into them, torch renamed the weights of weight and spectral
norm, and a person's wrapper adds an attribute of its own. What is tried, until all names and shapes fit: the names as
they are, a prefix taken off, one added (in place of another), all that once more without the parts of wrappers and with
the newer names of norms, and last without `module` anywhere.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module"})
COUNTER = "num_batches_tracked"  # of batch norm: what torch before 0.4.1 did not write, and inference does not read
Spelled = dict[str, str]  # a name as it is compared -> as it is


@dataclass(frozen=True)
class Match:
    """How names of a file fit those of a module.

    Attributes:
        sources: the name in the file of each in the module that is there.
        removed: the prefix taken off the names of the file.
        added: the prefix put before them.
        left_out: names of the file without `removed`.
        is_respelled: whether names are compared without parts of wrappers, or as newer torch has them.
    """

    sources: dict[str, str]
    removed: str = ""
    added: str = ""
    left_out: tuple[str, ...] = ()
    is_respelled: bool = False

    def renamed(self, versions: Mapping[str, Any]) -> dict[str, Any]:
        """The versions of a file's modules, by the names in the module that is loaded."""
        return {self._module_name(name): version for name, version in versions.items()}

    def _module_name(self, name: str) -> str:
        within = f"{without_wrappers(name) if self.is_respelled else name}." if name else ""
        return (self.added + within.removeprefix(self.removed)).removesuffix(".")


class Expected:
    """The names of a module's state dict, and which of them may be missing from a file."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.values = dict(state)
        self.twins: dict[str, list[str]] = {}  # names of the same parameter
        by_place: dict[object, list[str]] = {}
        for name, values in state.items():
            if isinstance(values, Tensor) and not is_lazy(values) and values.numel():
                by_place.setdefault(place(values), []).append(name)
        for names in by_place.values():
            self.twins |= dict.fromkeys(names, names)

    def is_missing(self, name: str, found: Mapping[str, str]) -> bool:
        """Whether a name is neither found, nor another of the same parameter, nor may be left out."""
        if name in found or name.rpartition(".")[2] == COUNTER:
            return False
        return not any(twin in found for twin in self.twins.get(name, ()))

    def prefixes(self) -> list[str]:
        """Those that all names share: "", "net.", "net.inner.", ..."""
        names = [name for name in self.values if self.twins.get(name, [name])[0] == name]
        parts = [name.split(".")[:-1] for name in names]
        shared = 0
        while parts and all(len(each) > shared and each[shared] == parts[0][shared] for each in parts):
            shared += 1
        return ["".join(f"{part}." for part in parts[0][:n]) for n in range(shared + 1)] if parts else [""]


def place(values: Tensor) -> tuple[object, ...]:
    """Where the values of a tensor lie: the same for two names of one parameter."""
    return (values.data_ptr(), values.shape, values.stride(), values.dtype) if not values.is_meta else (id(values),)


def matches(expected: Expected, state: Mapping[str, Any]) -> list[Match]:
    """Every way in which all names and shapes fit, of the plainest kind in which there is one."""
    for spell in (_as_they_are, _canonical, _without_module):
        theirs, ours = spell(list(state)), spell(list(expected.values))
        if theirs is None or ours is None:
            continue
        for candidates in _candidates(expected, ours, theirs):
            found = [match for each in candidates if (match := _match(expected, state, ours, theirs, *each, spell))]
            if found:
                return list({tuple(match.sources.items()): match for match in reversed(found)}.values())[::-1]
    return []


def _candidates(expected: Expected, ours: Spelled, theirs: Spelled) -> Iterator[list[tuple[str, str]]]:
    """Prefixes to take off and to add, in the order of what is tried."""
    yield [("", "")]
    added, *others = _shared(expected, ours)
    yield [(removed, added) for removed in _removable(expected, ours, theirs, added) if removed]
    yield [(removed, other) for other in others for removed in _removable(expected, ours, theirs, other)]


def _shared(expected: Expected, ours: Spelled) -> list[str]:
    return Expected({name: expected.values[ours[name]] for name in ours}).prefixes()


def _removable(expected: Expected, ours: Spelled, theirs: Spelled, added: str) -> list[str]:
    """The prefixes under which a file has the first name of a module, or another of the same parameter."""
    first = next((name for name in ours if name.rpartition(".")[2] != COUNTER), None)
    if first is None:
        return []
    same = {first, *(name for name in ours if ours[name] in expected.twins.get(ours[first], ()))}
    inner = [name.removeprefix(added) for name in ours if name in same and name.startswith(added)]
    return list(dict.fromkeys(prefix for name in inner for prefix in find_prefix(theirs, name)))


def _match(
    expected: Expected,
    state: Mapping[str, Any],
    ours: Spelled,
    theirs: Spelled,
    removed: str,
    added: str,
    spell: Callable[[Sequence[str]], Spelled | None],
) -> Match | None:
    sources: dict[str, str] = {}
    for name, own in ours.items():
        source = theirs.get(removed + name.removeprefix(added)) if name.startswith(added) else None
        if source is None:
            continue
        if not is_same_shape(expected.values[own], state[source]):
            return None
        sources[own] = source
    if any(expected.is_missing(name, sources) for name in expected.values):
        return None
    left_out = tuple(source for name, source in theirs.items() if not name.startswith(removed))
    if len(sources) + len(left_out) != len(theirs):
        return None  # a name under the prefix is not expected
    return Match(sources, removed, added, left_out, spell is not _as_they_are)


def find_prefix(state: Mapping[str, Any], name: str) -> list[str]:
    """The prefixes, each empty or with a dot at its end, under which a state dict has this name."""
    found = [known.removesuffix(name) for known in state if known.endswith(name)]
    return [prefix for prefix in found if prefix == "" or prefix.endswith(".")]


def is_same_shape(expected: Any, values: Any) -> bool:
    """Whether a value of a file can be that of a module; torch takes one number for a scalar."""
    if not isinstance(expected, Tensor) or is_lazy(expected):
        return True
    if not isinstance(values, Tensor):
        return False
    return values.shape == expected.shape or (expected.ndim == 0 and values.shape == (1,))


def without_wrappers(name: str) -> str:
    """A name without the parts that torch's and Lightning's wrappers of modules put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _spelled(names: Sequence[str], spelled: Sequence[str]) -> Spelled | None:
    """None where two names would be one."""
    found = dict(zip(spelled, names, strict=True))
    return found if len(found) == len(names) else None


def _as_they_are(names: Sequence[str]) -> Spelled | None:
    return _spelled(names, names)


def _canonical(names: Sequence[str]) -> Spelled | None:
    """Without parts of wrappers, and the weights of norms as newer torch names them."""
    return _spelled(names, _with_newer_norms([without_wrappers(name) for name in names]))


def _without_module(names: Sequence[str]) -> Spelled | None:
    """The same, without parts `module` (of DataParallel, and of DDP within a model)."""
    bare = [".".join(part for part in without_wrappers(name).split(".") if part != "module") for name in names]
    return _spelled(names, _with_newer_norms(bare))


def _with_newer_norms(names: Sequence[str]) -> list[str]:
    """`weight_g` and `weight_v` (weight norm), and `weight_orig`, `weight_u` and `weight_v` (spectral norm), under the
    names of `torch.nn.utils.parametrizations`: the numbers are the same."""
    known, newer = set(names), {}
    for name in names:
        module, dot, last = name.rpartition(".")
        for suffixes in (_WEIGHT_NORM, _SPECTRAL_NORM):
            for own in suffixes:
                base = last.removesuffix(own)
                if last.endswith(own) and all(f"{module}{dot}{base}{other}" in known for other in suffixes):
                    newer[name] = f"{module}{dot}parametrizations.{base}.{suffixes[own]}"
    return [newer.get(name, name) for name in names]


_WEIGHT_NORM = {"_g": "original0", "_v": "original1"}
_SPECTRAL_NORM = {"_orig": "original", "_u": "0._u", "_v": "0._v"}
