"""Where in a model an operation is called, from the call stack."""

import sys
from pathlib import Path
from types import FrameType

import torch
from torch import nn

_OURS = str(Path(__file__).parent.parent)
_TORCH = str(Path(torch.__file__).parent)
_CALLER = str(Path(__file__).with_name("model_passes.py"))  # calls the model: frames beyond it are not the model's
_BETWEEN = ("_tensor.py", "overrides.py", "module.py")  # of torch: between a tensor and what asks it


def module_path(modules: dict[int, str]) -> str:
    """Name and class of the innermost module whose code is running; `modules` are the names by id."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if (path := _owner_of(frame, modules)) is not None:
            return path
        frame = frame.f_back
    return "the model's forward"


def decorated_by(context: type, modules: dict[int, str]) -> str | None:
    """Name and class of the innermost module of which a method that is running is decorated by a context of torch."""
    frame: FrameType | None = sys._getframe(1)
    inner = frame
    while frame is not None:
        factory = frame.f_locals.get("ctx_factory") if frame.f_code.co_name == "decorate_context" else None
        if inner is not None and isinstance(getattr(factory, "__self__", None), context):
            return _owner_of(inner, modules)
        frame, inner = frame.f_back, frame
    return None


def _owner_of(frame: FrameType, modules: dict[int, str]) -> str | None:
    """Name and class of the module whose method a frame is of."""
    owner = frame.f_locals.get("self") if "self" in frame.f_code.co_varnames[:1] else None
    if not isinstance(owner, nn.Module) or id(owner) not in modules:
        return None
    return f"{modules[id(owner)] or 'the model'} ({type(owner).__name__})"


def place_of_decision() -> tuple[str, str]:
    """(the line that decides, as it is called on any machine; the same with its file, for messages), from the stack.

    The innermost line of the model's own code; one of torch's where the model is all torch's.
    """
    frame: FrameType | None = sys._getframe(1)
    of_torch: FrameType | None = None
    while frame is not None:
        file = frame.f_code.co_filename
        if file == _CALLER:
            break
        if file.startswith(_TORCH):
            is_between = Path(file).name in _BETWEEN
            of_torch = of_torch or (None if is_between else frame)
        elif not file.startswith(_OURS):
            return _called(frame)
        frame = frame.f_back
    return _called(of_torch) if of_torch is not None else ("the model", "the model")


def _called(frame: FrameType) -> tuple[str, str]:
    path, line, function = Path(frame.f_code.co_filename), frame.f_lineno, frame.f_code.co_name
    return f"{path.name}, line {line} ({function})", f"{path}, line {line} ({function})"
