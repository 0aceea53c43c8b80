"""A whole model of a file as the engine takes it: (N, 4, L) one-hot, and other inputs, to outputs as Keras has them."""

from collections import namedtuple
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pipeline.models.keras_files.architecture import Shape
from pipeline.models.keras_files.axes import to_keras, to_torch
from pipeline.models.keras_files.layers.dense import Embedding
from pipeline.models.keras_files.network import Network

_N_BASES = 4
_NONE = (-1, -1)  # no axes of a one-hot sequence


class KerasModel(nn.Module):
    """One-hot (N, 4, L) or tokens (N, L), then the other inputs in order -> one output, or a named tuple of several.

    Outputs have the axes that they have in Keras, (N, positions, features), but for `channels_first`: then they are
    (N, features, positions), as heads of profiles take them.
    """

    def __init__(
        self,
        network: Network,
        inputs: Sequence[tuple[str, Shape | None]],
        names: Sequence[str],
        channels_first: bool = False,
        sequence: str | None = None,
        has_channels: bool = False,
    ) -> None:
        """Args:
        network: the layers.
        inputs: name and shape without the batch, as Keras has it, of each.
        names: of the outputs.
        channels_first: whether outputs are returned so.
        sequence: the input that it is; None: the first that can be.
        has_channels: whether it has more than those of the bases.

        Raises:
            ValueError: no input is a sequence.
        """
        super().__init__()
        self.network, self.channels_first = network, channels_first
        self.names = [name for name, _ in inputs]
        self.shapes = [shape for _, shape in inputs]
        embedded = _embedded(network)
        axes = [_one_hot_axes(shape, has_channels) for shape in self.shapes]
        self.sequence = _sequence_input(self.names, self.shapes, axes, [*embedded], sequence)
        self.axes = axes[self.sequence]
        self.n_tokens: int | None = None  # that the sequence goes into an embedding of
        if self.axes == _NONE:
            self.n_tokens = min(len(embedding.weight) for embedding in embedded[self.sequence])
        self.output_names = tuple(names)

    @property
    def length(self) -> int | None:
        """Of the sequence, in bases; None: any."""
        shape = self.shapes[self.sequence]
        return None if shape is None else shape[0 if self.axes == _NONE else self.axes[1]]

    @property
    def n_channels(self) -> int | None:
        """Of one-hot sequences; None: of tokens, or not known."""
        shape = self.shapes[self.sequence]
        return None if shape is None or self.axes == _NONE else shape[self.axes[0]]

    def forward(self, x: Tensor, *others: Tensor) -> Any:
        """Outputs for one-hot sequences (N, 4, L), or tokens (N, L)."""
        if self.length not in (None, x.shape[-1]):
            raise ValueError(f"{x.shape[-1]} bases where its file says {self.length}")
        if self.n_channels not in (None, x.shape[1]):
            raise ValueError(
                f"{x.shape[1]} channels where its file says {self.n_channels}; what lies behind the bases is given by "
                f"model.channels, such as model.channels=[arg_0]"
            )
        names = [name for index, name in enumerate(self.names) if index != self.sequence]
        if len(others) != len(names):
            raise ValueError(
                f"the model takes {len(names)} extra inputs beside the sequence ({', '.join(names) or 'none'}), and "
                f"{len(others)} are given; name them in this order: dataset.args=[{','.join(names)}]"
            )
        shapes = [shape for index, shape in enumerate(self.shapes) if index != self.sequence]
        inputs = [_held(other, shape) for other, shape in zip(others, shapes, strict=True)]
        inputs.insert(self.sequence, self._placed(x))
        found = self.network(*inputs)
        if not isinstance(found, tuple):
            return self._returned(found)
        return outputs_type(self.output_names)(*map(self._returned, found))

    def _returned(self, found: Tensor) -> Tensor:
        return found if self.channels_first else to_keras(found)

    def _placed(self, x: Tensor) -> Tensor:
        """One-hot (N, 4, L) with the axes of the input."""
        bases, positions = self.axes
        if self.axes == _NONE or (self.axes == (1, 0) and len(self.shapes[self.sequence] or (0, 0)) == 2):
            return x
        n_axes = len(self.shapes[self.sequence] or ())
        x = x if bases < positions else x.transpose(1, 2)
        for axis in range(n_axes):
            if axis not in (bases, positions):
                x = x.unsqueeze(axis + 1)
        return to_torch(x)


def _held(x: Tensor, shape: Shape | None) -> Tensor:
    """An input beside the sequence with its features at axis 1, as tracks are given, or last, as Keras takes it."""
    if shape is None or len(shape) < 2 or not _fits(tuple(x.shape[1:]), shape):
        return x
    return to_torch(x)


def _fits(found: tuple[int, ...], shape: Shape) -> bool:
    return len(found) == len(shape) and all(b in (None, a) for a, b in zip(found, shape, strict=True))


def outputs_type(names: Sequence[str]) -> Any:
    """A named tuple; a name that Python does not allow is replaced by its number."""
    return namedtuple("Outputs", [name.replace("-", "_").replace(" ", "_") for name in names], rename=True)


def _one_hot_axes(shape: Shape | None, has_channels: bool) -> tuple[int, int]:
    """Which axes of an input, without the batch, have the bases and the positions; others have one place."""
    if shape is None:
        return 1, 0
    found = [
        (bases, positions)
        for bases in reversed(range(len(shape)))
        for positions in range(len(shape))
        if bases != positions and _are_channels(shape[bases], shape[positions], has_channels) and shape[positions] != 1
        if all(size == 1 for axis, size in enumerate(shape) if axis not in (bases, positions))
    ]
    return found[0] if found else _NONE


def _are_channels(size: int | None, length: int | None, has_more: bool) -> bool:
    """Whether an axis has the bases, and perhaps further channels."""
    if not has_more or size is None:
        return size == _N_BASES
    return size > _N_BASES and (length is None or length > size)


def _embedded(network: Network) -> dict[int, list[Embedding]]:
    """The inputs that go into embeddings alone, and these."""
    found = {}
    for index, place in enumerate(network.inputs):
        takers = [network.layers[step.layer] for step in network.steps if place in step.args]
        if takers and all(isinstance(taker, Embedding) for taker in takers):
            found[index] = [taker for taker in takers if isinstance(taker, Embedding)]
    return found


def _sequence_input(
    names: Sequence[str],
    shapes: Sequence[Shape | None],
    axes: Sequence[tuple[int, int]],
    embedded: Sequence[int],
    name: str | None,
) -> int:
    """The first input that is a one-hot sequence, or one of tokens; the one of this name, where one is given."""
    for index, shape in enumerate(shapes):
        is_sequence = axes[index] != _NONE or (index in embedded and len(shape or ()) == 1)
        if is_sequence and name in (None, names[index]):
            return index
    listed = ", ".join(
        f"{name}: ({', '.join(['N', *('any' if size is None else str(size) for size in shape or ())])})"
        for name, shape in zip(names, shapes, strict=True)
    )
    wanted = "no input" if name is None else f"model.input={name}: no such input"
    raise ValueError(
        f"{wanted} is a one-hot sequence; there are {listed}, and expected is one of (N, length, 4), or of "
        f"(N, length, 5) and more with model.channels, such as 'dataset.args=[track.bw]' 'model.channels=[arg_0]'"
    )
