"""All that is asked of a GPU, within one budget of seconds: first whether values are right, then what they take.

Floor, engine and tangermeme compute with the same number types, each at its own best batch size; models whose values
are wrong are not timed. Every section has its share of the budget: it is cut short where that is spent, and left out
where nothing is left, which the figures say. Sections, in order:

device    what the GPU itself can do: copies, products by number type, the time to launch a kernel
values    the engine against float64 on the CPU and against tangermeme where that is exact; the same bits again under
          deterministic algorithms, as runs have them; how often a steady batch waits for the device
speed     engine / floor and tangermeme / engine, and both with references drawn inside the measured time
memory    at the peak of equal batches
busy      the share of the time in which a kernel runs, and the kernels that take most of it
settings  the engine without Triton, under deterministic algorithms, and with cuDNN's search
dtypes    what reduced numbers do to attributions, and the time they save
capacity  the largest batch and the longest sequence that fit
"""

import contextlib
import os
import signal
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, supported_activities

from benchmarks import contenders, dtypes
from benchmarks.contenders import Run
from benchmarks.engine import Case, best_sizes, disagreement, draw, figure, main_contenders, print_figure
from benchmarks.models import LONG, SUBJECTS, Subject, build
from benchmarks.options import Options
from benchmarks.timing import interleaved, ratio, timed
from dlshap_core import attribute
from dlshap_core.batch_size import auto_batch_size, pairs_that_fit, peak, split_evenly
from dlshap_core.engine import memory_of_pair
from dlshap_core.errors import let_go
from dlshap_core.rules import operators

Found = dict[str, Any]
MODELS, QUICK_MODELS = ("bpnet64", "bpnet512", "deepsea", "splice", "transformer", "danq"), ("bpnet64", "transformer")
N_REFERENCES = 20
BUDGET_S, QUICK_BUDGET_S, LEAST_S = 480.0, 120.0, 3.0  # with the start of the process under nine minutes
TIMED_S = 0.25  # of one call of the engine, about
N_SEQUENCES, N_QUICK, N_MEMORY = (4, 128), 4, 32  # of a call: by its time between these; with --quick; for memory
LONGEST, QUICK_LONGEST = 1 << 23, 1 << 12  # bases that are tried
TANGERMEME_IS_EXACT = ("bpnet64", "bpnet256", "bpnet512", "splice")
# Largest difference relative to the largest attribution. Where places compete in max-pooling, others win by rounding.
TOLERANCE = {"float64": 1e-9, "float32": 1e-3}
TOLERANCE_OF_MAXIMA = {"float64": 1e-9, "float32": 0.1}


class OutOfTime(BaseException):
    """The section's share of the budget is spent. No Exception, which what is measured might handle."""


def run(options: Options) -> Iterator[tuple[str, Found]]:
    """Figures of one section after the other, printed as they come; SystemExit at the end where values are wrong."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic algorithms; read once
    budget_s = options.total_s or (QUICK_BUDGET_S if options.quick else BUDGET_S)
    models = options.models or (QUICK_MODELS if options.quick else MODELS)
    peers = tuple(peer for peer in options.peers if peer == "tangermeme")  # captum takes one sequence at a time
    options = replace(options, models=models, peers=peers)
    options, wrong = replace(options, total_s=budget_s), list[str]()
    ends = time.monotonic() + budget_s
    for name, (section, most) in SECTIONS.items():
        found: Found = {}
        within(min(most * budget_s, ends - time.monotonic()), name, partial(section, options, found), found)
        if name == "values":
            wrong = [model for model in models if found.get(model, {}).get("wrong")]
            options = replace(options, models=tuple(model for model in models if model not in wrong))
            if unknown := [model for model in options.models if model not in found]:
                found["not_checked"] = unknown
                print(f"  not checked: {', '.join(unknown)}")
        yield name, found
    if wrong:
        raise SystemExit(f"values are wrong, and these models were not timed: {', '.join(wrong)}")


def within(seconds: float, name: str, section: Callable[[], None], found: Found) -> None:
    """Run a section for so many seconds at most; what it found by then stays, beside the reason why it ended."""
    if seconds < LEAST_S:
        found["left_out"] = f"{max(seconds, 0):.0f} s left of the budget"
        print(f" {name}: left out, {found['left_out']}")
        return
    print(f" {name}, {seconds:.0f} s at most", flush=True)
    started = time.monotonic()
    before = signal.signal(signal.SIGALRM, _out_of_time)
    signal.setitimer(signal.ITIMER_REAL, seconds, 10.0)  # again: a callback of C may have lost the first
    try:
        section()
    except OutOfTime:
        found["cut_short"] = f"after {seconds:.0f} s"
        print(f"  cut short after {seconds:.0f} s")
    except Exception as error:  # noqa: BLE001  the other sections have their figures
        found["error"] = f"{type(error).__name__}: {error}"
        print(f"  failed: {found['error'][:400]}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    found["seconds"] = round(time.monotonic() - started, 1)
    torch.cuda.empty_cache()


def _out_of_time(*_: object) -> None:
    raise OutOfTime


def for_each(options: Options, found: Found, figures: Callable[[str, Options], Found]) -> None:
    """Figures of one model after the other, printed; one that fails keeps none of the others from theirs."""
    for name in options.models:
        try:
            found[name] = figures(name, options)
        except Exception as error:  # noqa: BLE001  whatever it is, it is in the figures
            let_go(error)
            found[name] = {"error": f"{type(error).__name__}: {error}"[:400]}
        print(f"  {name}: " + ", ".join(f"{key} {value}" for key, value in found[name].items()), flush=True)
        torch.cuda.empty_cache()


# --- the device --------------------------------------------------------------------------------------------------


def device(options: Options, found: Found) -> None:
    """Rates of the GPU itself, medians of five."""
    on, n, width = options.device, 1 << (20 if options.quick else 28), 256 if options.quick else 8192
    free, memory = torch.cuda.mem_get_info(on)
    found |= {"memory_gib": round(memory / 2**30, 1), "free_gib": round(free / 2**30, 1)}
    found["triton"] = operators.has_triton(torch.device(options.device))
    source, target = torch.zeros(n, device=on), torch.zeros(n, device=on)
    found["copy_tb_per_s"] = _round(8 * n / median_s(lambda: target.copy_(source), on) / 1e12)
    for label, given in {"float64": {"dtype": torch.float64}, **dtypes.DTYPES}.items():
        few = width // 4 if label == "float64" else width  # slow on many GPUs
        a, b = torch.randn(2, few, few, device=on).to(given["dtype"])
        with tf32(label == "tf32"):
            found[f"{label}_tflop_per_s"] = _round(2 * few**3 / median_s(lambda a=a, b=b: a @ b, on) / 1e12)
    small = torch.zeros(16, device=on)
    found["launch_us"] = _round(1e4 * median_s(lambda: [small.add_(1) for _ in range(100)], on))
    print("  " + ", ".join(f"{name} {value}" for name, value in found.items()))


def median_s(function: Callable[[], object], on: torch.device) -> float:
    """Seconds of a call, the median of five after two that warm up."""
    for _ in range(2):
        function()
    return statistics.median(timed(function, on).wall_s[0] for _ in range(5))


@contextlib.contextmanager
def tf32(is_allowed: bool) -> Iterator[None]:
    """Within this context products of float32 outside the engine may be rounded so."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = is_allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


# --- values ------------------------------------------------------------------------------------------------------


def values(options: Options, found: Found) -> None:
    """Differences from float64 on the CPU and from tangermeme, relative to the largest attribution, by model."""
    for_each(options, found, of_model)
    for each in found.values():
        if "error" in each:
            each["wrong"] = [each["error"]]


def of_model(name: str, options: Options) -> Found:
    """Values of one model; `wrong` has a line for each that is not right."""
    subject, on = SUBJECTS[name], options.device
    X, references = draw(4, subject.quick_length, 5, torch.device("cpu"))
    model = build(subject, subject.quick_length, 1, torch.device("cpu"))
    exact = attribute(model, X, references, device="cpu", dtype=torch.float64, batch_size=10).hypothetical
    model, result, wrong = model.to(on), Found(), list[str]()
    tolerance = TOLERANCE_OF_MAXIMA if subject.has_max_pooling else TOLERANCE
    for label, given in {"float64": {"dtype": torch.float64}, **dtypes.DTYPES}.items():
        differences = []
        for size in (4, 10):  # part of a sequence's references, and two sequences
            with deterministic():
                once, again = (
                    attribute(model, X, references, device=on, batch_size=size, **given).hypothetical for _ in range(2)
                )
            differences.append(disagreement(once.double(), exact))
            if not torch.equal(once, again):
                wrong.append(f"{label}: other bits each time in batches of {size}")
        result[label] = max(differences)
        if not result[label] <= tolerance.get(label, float("inf")):  # nor is NaN
            wrong.append(f"{label}: {result[label]} from float64")
    if "tangermeme" in options.peers:
        theirs = contenders.tangermeme(model, X, references, [0])(10)
        assert theirs is not None
        result["tangermeme"] = disagreement(theirs.double(), exact)
        if name in TANGERMEME_IS_EXACT and not result["tangermeme"] <= tolerance["float32"]:
            wrong.append(f"tangermeme: {result['tangermeme']} from float64")
    result["waits_a_batch"] = waits(model, X, references, on)
    return result | ({"wrong": wrong} if wrong else {})


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Within this context torch's algorithms are those of runs."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def waits(model: torch.nn.Module, X: Tensor, references: Tensor, on: torch.device) -> float:
    """Operations of a batch after the first that make the processor wait for the GPU."""
    counts = []
    for n in (2, 4):
        many = [x.repeat(n, *[1] * (x.ndim - 1)) for x in (X, references)]
        call = partial(attribute, model, *many, device=on, batch_size=2 * references.shape[1])
        call()
        with contextlib.ExitStack() as stack:
            caught = stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            stack.callback(torch.cuda.set_sync_debug_mode, torch.cuda.get_sync_debug_mode())
            torch.cuda.set_sync_debug_mode("warn")
            call()
        counts.append(sum("synchroniz" in str(each.message) for each in caught))
    return (counts[1] - counts[0]) / 4  # of which the second call has four more


# --- times -------------------------------------------------------------------------------------------------------


def speed(options: Options, found: Found) -> None:
    """Figures as of the suite `engine`, one target and 20 references; references drawn within two of the contenders."""
    figures = dict[str, Found]()
    for_each(options, found, partial(of_contenders, figures))
    found |= {name: {**found[name], **figures[name]} for name in figures}


def of_contenders(figures: dict[str, Found], name: str, options: Options) -> Found:
    """Pairs a second of each contender, and the engine's time with the batch size that `auto` gives over that with its
    best one; the rest goes into `figures`."""
    case = fitted_case(name, options)
    asked = replace(options, budget_s=options.total_s * 0.4 / len(options.models) / 5)
    sizes = best_sizes(case, asked)
    figures[name] = figure(case, SUBJECTS[name], sizes, asked)
    pairs = len(case.X) * N_REFERENCES
    print_figure(f"{name} {case.X.shape[-1]} bp, 1 target, {N_REFERENCES} references", figures[name])
    call, auto = main_contenders(case, asked)["engine"], auto_batch_size(case.X.shape[-1], N_REFERENCES, "cuda")
    turns = {"best": partial(call, sizes["engine"]), "auto": partial(call, min(auto, pairs))}
    samples = interleaved(turns, options.device, asked.budget_s / 2)
    rates = {key: pairs / of["wall_quartiles_s"][1] for key, of in figures[name]["contenders"].items()}
    return {"pairs_per_s": {key: _round(rate) for key, rate in rates.items()}} | {
        "batch_size=auto / best": ratio(samples["auto"], samples["best"])["wall"]
    }


def fitted_case(name: str, options: Options) -> Case:
    """As many sequences as the engine takes about TIMED_S for, so that slow GPUs stay within the budget."""
    subject = SUBJECTS[name]
    length = subject.quick_length if options.quick else subject.length
    model, n = build(subject, length, 1, options.device), N_QUICK
    if not options.quick:
        X, references = draw(N_SEQUENCES[0], length, N_REFERENCES, options.device)
        call = contenders.engine(model, X, references, [0])
        seconds = [timed(lambda: call(X.shape[0] * N_REFERENCES), options.device).wall_s[0] for _ in range(3)][-1]
        n = min(max(int(TIMED_S / seconds * X.shape[0]), N_SEQUENCES[0]), N_SEQUENCES[1])
    return Case(model, *draw(n, length, N_REFERENCES, options.device), [0])


def plain_case(name: str, options: Options) -> tuple[Case, int]:
    """Sequences of a batch as runs have it, at most N_MEMORY of them, with the pairs of that batch."""
    subject = SUBJECTS[name]
    length = subject.quick_length if options.quick else subject.length
    pairs = min(auto_batch_size(length, N_REFERENCES, "cuda"), N_MEMORY * N_REFERENCES)
    n = N_QUICK if options.quick else max(1, pairs // N_REFERENCES)
    model = build(subject, length, 1, options.device)
    return Case(model, *draw(n, length, N_REFERENCES, options.device), [0]), n * N_REFERENCES


def memory(options: Options, found: Found) -> None:
    """MiB for each pair at the peak of a batch, beyond model and data, by model and contender."""
    for_each(options, found, mib_a_pair)


def mib_a_pair(name: str, options: Options) -> Found:
    """Of each contender, and the pairs of the batch."""
    case, pairs = plain_case(name, options)
    result: Found = {"pairs": pairs}
    for contender, call in main_contenders(case, options).items():
        taken = peak(lambda call=call: call(pairs), str(options.device))
        result[contender] = _round(taken / pairs / 2**20)
    return result


def busy(options: Options, found: Found) -> None:
    """Time of kernels, from torch's profiler, over that of the same call without it, by model and contender."""
    if ProfilerActivity.CUDA not in supported_activities():
        found["left_out"] = "this build of torch does not profile GPUs"
        print(f"  {found['left_out']}")
        return
    for_each(options, found, kernels)


def kernels(name: str, options: Options) -> Found:
    """Of calls of four batches, by contender."""
    case, pairs = plain_case(name, options)
    X, references = (x.repeat(4, *[1] * (x.ndim - 1)) for x in (case.X, case.references))
    runs = main_contenders(Case(case.model, X, references, case.targets), options)
    return {"pairs": pairs, **{key: of_kernels(call, pairs, 4, options) for key, call in runs.items()}}


def of_kernels(call: Run, pairs: int, batches: int, options: Options) -> Found:
    """Of a call of so many batches of so many pairs."""
    wall_s = median_s(lambda: call(pairs), options.device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call(pairs)
        torch.cuda.synchronize(options.device)
    events = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
    device_us = sum(event.self_device_time_total for event in events)
    dearest = sorted(events, key=lambda event: -event.self_device_time_total)[:8]
    return {
        "busy": _round(device_us / 1e6 / wall_s),
        "kernels_a_batch": round(sum(event.count for event in events) / batches),
        "ms_a_batch": _round(1e3 * wall_s / batches),
        "dearest": {event.key[:60]: _round(event.self_device_time_total / max(device_us, 1e-9)) for event in dearest},
    }


def settings(options: Options, found: Found) -> None:
    """Times of the engine beside those with its usual settings, by model."""
    for_each(options, found, beside_usual)


def beside_usual(name: str, options: Options) -> Found:
    """Ratios of times, by setting."""
    case, pairs = plain_case(name, options)
    call = contenders.engine(case.model, case.X, case.references, case.targets)
    ways: dict[str, Callable[[], Any]] = {
        "usual": contextlib.nullcontext,
        "deterministic": deterministic,
        "cudnn.benchmark": lambda: torch.backends.cudnn.flags(benchmark=True, allow_tf32=options.allow_tf32),
    }
    if operators.has_triton(torch.device(options.device)):
        ways["without Triton"] = lambda: mock.patch.object(operators, "has_triton", lambda _: False)

    def once(way: Callable[[], Any]) -> None:
        with way():
            call(pairs)

    turns = {key: partial(once, way) for key, way in ways.items()}
    for turn in turns.values():
        turn()
    samples = interleaved(turns, options.device, 2.0)
    return {key: ratio(taken, samples["usual"])["wall"] for key, taken in samples.items() if key != "usual"}


def number_types(options: Options, found: Found) -> None:
    """The suite `dtypes` on the GPU; without names of models that of trained ones too, where they are at hand."""
    chosen = tuple(name for name in options.models if name in dtypes.MODELS)
    asked = replace(options, models=chosen, budget_s=3.0 if options.quick else 12.0)
    for name, case in [*dtypes.cases(asked), *([] if options.quick else dtypes.trained_cases(options.device))]:
        found[name] = dtypes.of_case(name, case, asked)


# --- capacity ----------------------------------------------------------------------------------------------------


def capacity(options: Options, found: Found) -> None:
    """The largest batch and the longest sequence that the memory takes."""
    for_each(options, found, largest_batch)
    models = {"an Enformer-like model": LONG, **({} if options.quick else {"bpnet64": SUBJECTS["bpnet64"]})}
    for name, subject in models.items():
        for way in ("kept", "computed again"):
            found[f"length, {name}, {way}"] = longest(subject, way == "computed again", options)
            print(f"  length, {name}, activations {way}: {found[f'length, {name}, {way}']}", flush=True)


def largest_batch(name: str, options: Options) -> Found:
    """Pairs that fit as runs find it out, and whether a batch of as many (ten thousand at most) ran."""
    subject, on = SUBJECTS[name], options.device
    length = subject.quick_length if options.quick else subject.length
    model = build(subject, length, 1, on)

    def call(n: int) -> None:
        n_sequences, k = split_evenly(n, N_REFERENCES)
        X, references = (x.expand(n_sequences, *x.shape[1:]) for x in draw(1, length, k, on))
        attribute(model, X, references, batch_size=n_sequences * k, device=on)

    fit = pairs_that_fit(call, str(on))
    assert fit is not None
    most = 200 if options.quick else 10_000
    tried = max(1, min(fit, most) // N_REFERENCES * N_REFERENCES)
    try:
        call(tried)
    except torch.OutOfMemoryError as error:
        return {"fit": fit, "ran": f"not {tried}: {str(error).splitlines()[0]}"}
    return {"fit": fit, "ran": tried}


def longest(subject: Subject, again: bool, options: Options) -> Found:
    """Doubles the bases of one pair while it fits; `again` computes modules again on the way back."""
    on, length, result = options.device, subject.quick_length, Found(bases=None)
    while length <= (QUICK_LONGEST if options.quick else LONGEST):
        model = build(subject, length, 1, on)
        X, references = draw(1, length, 1, on)
        try:
            names = memory_of_pair(model, X, device=on).names if again else ()
            if again and not names:
                return {"left_out": "nothing is saved"}
            call = partial(attribute, model, X, references, batch_size=1, device=on, split=names)
            started = time.perf_counter()
            taken = peak(call, str(on))
        except torch.OutOfMemoryError as error:
            let_go(error)
            return {**result, "not": length}
        finally:
            torch.cuda.empty_cache()
        seconds = _round(time.perf_counter() - started)
        result = {"bases": length, "mib": round(taken / 2**20), "seconds": seconds}
        length *= 2
    return {**result, "not": f"longer ones than {length // 2:,} bases are not tried"}


def _round(value: float) -> float:
    return float(f"{value:.3g}")


# Sections in their order, and the share of the budget that each may take.
SECTIONS: dict[str, tuple[Callable[[Options, Found], None], float]] = {
    "device": (device, 0.05),
    "values": (values, 0.25),
    "speed": (speed, 0.4),
    "memory": (memory, 0.1),
    "busy": (busy, 0.1),
    "settings": (settings, 0.1),
    "dtypes": (number_types, 0.15),
    "capacity": (capacity, 0.2),
}
