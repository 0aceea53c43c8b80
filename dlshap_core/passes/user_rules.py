"""Rules users carry over: functions of (module, grad_input, grad_output) for whole modules, keyed by module class.

Such a rule finds `module.input` and `module.output` holding the sequence half and the reference half concatenated along
axis 0, and returns a tuple with the replacement for grad_input. It is given a shallow copy of the module, so the model
is not touched. The module call is caught by torch's global forward hooks, which are only there while user rules are in
use.
"""

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from dlshap_core.passes.recorder import ForwardPass
from dlshap_core.rules.call import Call, is_varying
from dlshap_core.rules.gradients import pull_back
from dlshap_core.torch_private import innermost_mode

UserRule = Callable[[nn.Module, tuple[Tensor | None, ...], tuple[Tensor, ...]], tuple[Tensor | None, ...]]

_ONE_TENSOR = "a user's rule is for modules that take one tensor by position first and return one tensor"
_active = threading.local()


@contextlib.contextmanager
def user_rules_active(rules: dict[type[nn.Module], UserRule] | None) -> Iterator[None]:
    """Apply user rules to the modules of exactly these classes called in this thread."""
    if not rules:
        yield
        return
    _active.rules, _active.open = rules, []
    handles = [register_module_forward_pre_hook(_enter), register_module_forward_hook(_leave, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        del _active.rules, _active.open


def _current_pass() -> ForwardPass | None:
    return innermost_mode(ForwardPass)


def _enter(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Before a module runs: let a module with a user rule run unseen."""
    forward = _current_pass()
    if (
        forward is None
        or type(module) not in getattr(_active, "rules", {})
        or (args and not any(map(is_varying, args)))
    ):
        return
    if not args or not is_varying(args[0]):
        forward.refuse(type(module).__name__, _ONE_TENSOR)
    suspension = forward.suspended()
    suspension.__enter__()
    # Cloned, as the module may work in place.
    _active.open.append((module, suspension, args[0].detach().clone()))


def _leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """After a module ran: put the user's rule in place of what flowed through it."""
    opened = getattr(_active, "open", [])
    if not opened or opened[-1][0] is not module:
        return None
    _, suspension, value = opened.pop()
    suspension.__exit__(None, None, None)
    forward = _current_pass()
    if forward is None or forward.is_suspended:
        return None
    if not isinstance(output, Tensor):
        forward.refuse(type(module).__name__, _ONE_TENSOR)
    if not output.requires_grad:
        return None
    name = type(module).__name__
    call = Call(module, name, False, args, {}, [args[0]])
    forward.is_complete = False  # a user's rule is the user's affair
    if not forward.replaying:
        forward.record(call, [value])
        return None
    (observed,) = forward.observed(call, [value])
    rule = _active.rules[type(module)]
    return pull_back(args[0], output, _pullback(module, rule, observed, value, args[1:]))


def _pullback(
    module: nn.Module, rule: UserRule, observed: Tensor, reference: Tensor, others: tuple[Any, ...]
) -> Callable[[Tensor], Tensor]:
    """What the rule makes of a gradient: run the module on both halves, call the rule, keep the first half."""
    both = torch.cat([observed, reference])
    n_rows = observed.shape[0]

    def pullback(gradient: Tensor) -> Tensor:
        twin = copy.copy(module)
        with torch.enable_grad():
            inputs = both.clone().requires_grad_()
            outputs = twin(inputs.clone(), *others)
            gradients = torch.cat([gradient, gradient])
            (input_gradient,) = torch.autograd.grad(outputs, inputs, gradients)
        twin.input, twin.output = both, outputs.detach()
        with torch.no_grad():
            (replaced, *_) = rule(twin, (input_gradient,), (gradients,))
        assert replaced is not None
        return replaced[:n_rows]

    return pullback
