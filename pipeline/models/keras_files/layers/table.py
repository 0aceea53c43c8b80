"""Every layer of Keras that can be read, by the name of its class: the weights that it has, and what makes it a module.

Adding a layer is one function in this package and one line here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn

from pipeline.models.keras_files.layer import Layer, Variable, own
from pipeline.models.keras_files.layers import (
    activations,
    attention,
    basenji,
    convolutions,
    crested,
    dense,
    merges,
    normalizations,
    operations,
    pooling,
    recurrent,
    shapes,
)
from pipeline.models.keras_files.layers.activations import Weights


@dataclass(frozen=True)
class Converter:
    """How a layer is read.

    Attributes:
        make: the module, of the layer and of its weights by their names.
        variables: the weights that it has, in the order in which Keras has them.
    """

    make: Callable[[Layer, Weights], nn.Module]
    variables: Callable[[Layer], Iterator[Variable]] = lambda _: iter(())


def _with_bias(*names: str) -> Callable[[Layer], Iterator[Variable]]:
    return lambda layer: own(*names, *(["bias"] if layer.flag("use_bias", True) else []))


def _scaled(*untrained: str) -> Callable[[Layer], Iterator[Variable]]:
    """Of a normalisation: its factors and offsets, where it has them, and statistics."""

    def variables(layer: Layer) -> Iterator[Variable]:
        scale, center = layer.flag("scale", True), layer.flag("center", True)
        return own(*["gamma"] * scale, *["beta"] * center, *untrained, untrained=untrained)

    return variables


def _of_attention(layer: Layer) -> Iterator[Variable]:
    return own(*["scale"] * layer.flag("use_scale", layer.kind == "AdditiveAttention"))


def _reshape(layer: Layer) -> nn.Module:
    """Of the layer, or of the operation, whose shape has the batch too."""
    return (operations.OPERATIONS["Reshape"] if "newshape" in layer.config else shapes.reshape)(layer, {})


TABLE: dict[str, Converter] = {
    **{f"Conv{n}D": Converter(convolutions.convolution(n), _with_bias("kernel")) for n in (1, 2)},
    **{f"Conv{n}DTranspose": Converter(convolutions.transposed(n), _with_bias("kernel")) for n in (1, 2)},
    **{
        f"SeparableConv{n}D": Converter(convolutions.separable(n), _with_bias("depthwise_kernel", "pointwise_kernel"))
        for n in (1, 2)
    },
    **{f"DepthwiseConv{n}D": Converter(convolutions.depthwise(n), _with_bias("kernel")) for n in (1, 2)},
    "Dense": Converter(dense.dense, _with_bias("kernel")),
    "Embedding": Converter(dense.embedding, lambda _: own("embeddings")),
    "BatchNormalization": Converter(normalizations.batch_norm, _scaled("moving_mean", "moving_variance")),
    "LayerNormalization": Converter(normalizations.layer_norm, _scaled()),
    "RMSNormalization": Converter(normalizations.rms_norm, lambda _: own("scale")),
    "GroupNormalization": Converter(normalizations.group_norm, _scaled()),
    **{
        name: Converter(lambda layer, _: activations.ACTIVATION_LAYERS[layer.kind](layer))
        for name in activations.ACTIVATION_LAYERS
    },
    "PReLU": Converter(activations.prelu, lambda _: own("alpha")),
    **{f"MaxPooling{n}D": Converter(pooling.max_pool(n)) for n in (1, 2)},
    **{f"AveragePooling{n}D": Converter(pooling.mean_pool(n)) for n in (1, 2)},
    **{f"GlobalMaxPooling{n}D": Converter(pooling.global_pool(False)) for n in (1, 2)},
    **{f"GlobalAveragePooling{n}D": Converter(pooling.global_pool(True)) for n in (1, 2)},
    **{f"Cropping{n}D": Converter(pooling.crop(n)) for n in (1, 2)},
    **{f"ZeroPadding{n}D": Converter(pooling.zeros(n)) for n in (1, 2)},
    **{f"UpSampling{n}D": Converter(pooling.upsample(n)) for n in (1, 2)},
    "Flatten": Converter(shapes.flatten),
    "Permute": Converter(shapes.permute),
    "RepeatVector": Converter(shapes.repeat_vector),
    "Rescaling": Converter(shapes.rescale),
    **{name: Converter(merges.merge) for name in merges.OPERATIONS},
    "Concatenate": Converter(merges.concatenate),
    "Dot": Converter(merges.dot),
    **{name: Converter(recurrent.recurrent, recurrent.recurrent_variables) for name in recurrent.KINDS},
    "Bidirectional": Converter(recurrent.bidirectional, recurrent.bidirectional_variables),
    "MultiHeadAttention": Converter(attention.multi_head_attention, attention.multi_head_variables),
    "Attention": Converter(attention.attention, _of_attention),
    "AdditiveAttention": Converter(attention.attention, _of_attention),
    "crested>AttentionPool1D": Converter(crested.attention_pool, crested.pool_variables),
    "crested>MultiheadAttention": Converter(crested.relative_attention, crested.relative_variables),
    **{name: Converter(make) for name, make in operations.OPERATIONS.items() if name != "Reshape"},
    "Reshape": Converter(lambda layer, _: _reshape(layer)),
    # At random while training, if at all.
    **{
        name: Converter(lambda *_: nn.Identity())
        for name in (
            "Identity",
            "Dropout",
            "SpatialDropout1D",
            "SpatialDropout2D",
            "GaussianDropout",
            "GaussianNoise",
            "AlphaDropout",
            "ActivityRegularization",
            "StochasticShift",
        )
    },
    "StochasticReverseComplement": Converter(lambda *_: basenji.Unturned()),
    **{name: Converter(lambda *_: basenji.First()) for name in ("SwitchReverse", "SwitchReverseTriu")},
}
