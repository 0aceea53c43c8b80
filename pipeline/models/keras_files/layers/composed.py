"""Making modules from a layer's weights."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from pipeline.models.keras_files.layer import Layer


def composed(**parts: nn.Module | None) -> nn.Module:
    """Modules one after the other, without those that do nothing; the only one by itself."""
    kept = OrderedDict((name, part) for name, part in parts.items() if part and not isinstance(part, nn.Identity))
    if len(kept) == 1:
        return next(iter(kept.values()))
    return nn.Sequential(kept) if kept else nn.Identity()


def require_shape(layer: Layer, name: str, values: Tensor, shape: Sequence[int | None]) -> None:
    """Raises LayerError where a tensor is not of the shape that the settings say; None is any size."""
    fits = values.ndim == len(shape) and all(
        size in (None, found) for size, found in zip(shape, values.shape, strict=True)
    )
    if not fits:
        shown = ", ".join("any" if size is None else str(size) for size in shape)
        raise layer.error(f"its {name} has the shape {tuple(values.shape)}; its settings say ({shown})")


def parameters(layer: Layer, module: nn.Module, **values: Tensor | None) -> None:
    """Put a layer's weights into a module. Raises LayerError where a shape does not fit."""
    for name, tensor in values.items():
        if tensor is None:
            continue
        wanted = getattr(module, name)
        require_shape(layer, name, tensor, wanted.shape)
        wanted.data = tensor.contiguous()
