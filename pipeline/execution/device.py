"""The device that computes: its name, its kind, which numbers it has."""

import contextlib
import os
import platform
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch

from dlshap_core.errors import is_out_of_memory
from dlshap_core.rules.operators import has_triton
from pipeline.messages.errors import DeviceBrokenError, UserError
from pipeline.messages.secrets import one_line
from pipeline.planning.plan import Plan


@dataclass(frozen=True)
class Machine:
    """Where the run is computed.

    Attributes:
        device: its name (cpu, cuda, ...).
        kind: see `device_kind`.
        elsewhere: calls a function where the device is and returns what that returns; None where this process has it.
    """

    device: str
    kind: str
    elsewhere: Callable[[Callable[[], Any]], Any] | None = None

    @classmethod
    def here(cls, device: str) -> Self:
        """This one; `device` as in engine.device. Raises UserError for a GPU that is not there."""
        found = resolve_device(device)
        return cls(found, device_kind(found))

    def __str__(self) -> str:
        """For people: what it is, and where."""
        return f"{self.kind} of {'this machine' if self.elsewhere is None else 'a node of the cluster'}"

    @property
    def device_here(self) -> str:
        """The same, or the CPU where other machines compute and this one has no GPU."""
        return self.device if self.device == "cpu" or torch.cuda.is_available() else "cpu"


def resolve_device(device: str) -> str:
    """cpu, cuda or cuda:<number> for engine.device, on this machine.

    Raises:
        UserError: a GPU that is not there.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        number = int(device.partition(":")[2] or 0)
        if not torch.cuda.is_available():
            raise UserError(f"engine.device={device}, but torch finds no GPU here; use engine.device=cpu or auto")
        if number >= torch.cuda.device_count():
            raise UserError(f"engine.device={device}, but there are {torch.cuda.device_count()} GPUs, counted from 0")
    return device


def require_numbers(dtype: str, device: str) -> None:
    """Raise UserError for numbers that a device does not have."""
    if dtype == "tf32" and not device.startswith("cuda"):
        raise UserError(f"engine.dtype=tf32 is for NVIDIA GPUs, and the device is {device}; use engine.dtype=float32")


def device_kind(device: str) -> str:
    """What decides the last bits of a result: the model of the GPU and whether rules are fused there, or the vector
    instructions of the CPU."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device) + ("" if has_triton(torch.device(device)) else " without Triton")
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def kind_problem(plan: Plan, mixed_devices: bool) -> str | None:
    """The error where this machine's device is of another kind than the plan's, unless kinds may be mixed."""
    kind = device_kind(plan.device)
    if mixed_devices or kind == plan.device_kind:
        return None
    return (
        f"this worker computes on {kind} and the run was planned on {plan.device_kind}; they may differ in the last "
        f"bits: use nodes of one kind, or cluster.mixed_devices=allow from the start"
    )


def computes(device: str) -> bool:
    """Whether a device still computes: after some errors of CUDA nothing does, for as long as the process lives."""
    if not device.startswith("cuda"):
        return True
    try:
        return bool((torch.ones(1, device=device) + 1).item() == 2)
    except Exception as error:  # noqa: BLE001 - whatever it is, nothing was computed
        return is_out_of_memory(error)


@contextlib.contextmanager
def noticed_if_broken(device: str) -> Iterator[None]:
    """Within this context an error by which a device has ceased to compute is raised as that, and laid to nothing
    else.

    Raises:
        DeviceBrokenError: in its place.
    """
    try:
        yield
    except DeviceBrokenError:
        raise
    except Exception as error:
        if computes(device):
            raise
        raise DeviceBrokenError(
            f"{device_name(device)} failed and computes nothing any more in this process: {one_line(error)}"
        ) from error


def device_name(device: str) -> str:
    """What tells a device of this machine from others: the machine's name, and the GPU that this process may see."""
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"{device} of {socket.gethostname()}" + (f" (CUDA_VISIBLE_DEVICES={gpus})" if gpus else "")


def shards_in_flight(device: str) -> int:
    """Shards that a worker has at hand: while one is on the device, another is read or written by the processor.

    On a CPU both would take the same cores.
    """
    return 2 if device.startswith("cuda") else 1
