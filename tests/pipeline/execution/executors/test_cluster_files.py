"""The files that start clusters: each by the validator of what reads it, each validator with errors planted for it to
find, and what they run, on this machine."""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config

import pipeline
from pipeline.config.compose import compose_config
from tests.pipeline.conftest import Inputs, values
from tests.pipeline.execution.executors.test_cluster_scripts import (
    BIN,
    ROOT,
    SCRIPTS,
    free_ports,
    head,
    processes_with,
    settings,
    short_folder,
)

__all__ = ["head", "short_folder"]  # fixtures

DOCKERFILE = (SCRIPTS / "Dockerfile").read_text()
RAY_FILES = [SCRIPTS / "ray" / "aws.yaml", SCRIPTS / "ray" / "gcp.yaml"]


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def planted(config: Any, path: str, value: Any) -> Any:
    """A copy with another value at a path such as spec/items/0/name."""
    config = copy.deepcopy(config)
    *above, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    inner = config
    for part in above:
        inner = inner[part]
    inner[last] = value
    return config


# --- the image ------------------------------------------------------------------------------------------------------


def instructions(text: str) -> list[tuple[str, str]]:
    """Those of a Dockerfile, in order, with continued lines joined."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", lines)
    return [(line.split(None, 1)[0].upper(), line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def faults_of_image(text: str, ignored: str) -> Iterator[str]:
    """What is wrong with a Dockerfile, beyond what a builder finds."""
    found = instructions(text)
    last_stage = found[max(i for i, (name, _) in enumerate(found) if name == "FROM") :]
    users = [rest for name, rest in last_stage if name == "USER"]
    if not users or users[-1].split(":")[0] in ("root", "0"):
        yield "runs as root"
    if any(name == "ADD" for name, _ in found):
        yield "ADD"
    for name, rest in found:
        base = (
            re.search(r"(?:^|BASE=)(\S+/)?[\w.-]+(:\S+)?$", rest)
            if name == "ARG" and rest.startswith("BASE=")
            else None
        )
        if base and (not base[2] or base[2] == ":latest"):
            yield f"a base without a version: {rest}"
        if name == "RUN" and "apt-get install" in rest:
            if rest.count("apt-get install") != rest.count("--no-install-recommends"):
                yield "recommended packages"
            if "rm -rf /var/lib/apt/lists/*" not in rest:
                yield "lists of apt are left"
        if name == "COPY" and not rest.startswith("--from="):
            for source in rest.split()[:-1]:
                if f"!{source}" not in ignored.splitlines():
                    yield f"{source} is not let in by .dockerignore"
                if not (ROOT / source).exists():
                    yield f"{source} is not there"
    if ignored.splitlines()[1] != "*":
        yield ".dockerignore lets everything in"


IGNORED = (ROOT / ".dockerignore").read_text()


def test_the_image_has_no_faults() -> None:
    assert list(faults_of_image(DOCKERFILE, IGNORED)) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("USER 1000:1000", "USER root", "runs as root"),
        ("USER 1000:1000", "", "runs as root"),
        ("COPY conf conf", "ADD conf conf", "ADD"),
        ("ARG BASE=python:3.11-slim-bookworm", "ARG BASE=python", "a base without a version: BASE=python"),
        (" --no-install-recommends ca", " ca", "recommended packages"),
        ("COPY conf conf", "COPY weights.pt weights.pt", "weights.pt is not let in by .dockerignore"),
    ],
)
def test_faults_of_an_image_are_found(old: str, new: str, fault: str) -> None:
    assert old in DOCKERFILE
    assert fault in list(faults_of_image(DOCKERFILE.replace(old, new), IGNORED))


def test_an_image_gets_nothing_that_was_not_listed() -> None:
    assert ".dockerignore lets everything in" in list(faults_of_image(DOCKERFILE, IGNORED.replace("\n*\n", "\n")))


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_hadolint_finds_nothing_in_the_dockerfile_and_what_is_planted(tmp_path: Path) -> None:
    assert subprocess.run(["hadolint", SCRIPTS / "Dockerfile"]).returncode == 0
    bad = tmp_path / "Dockerfile"
    bad.write_text(DOCKERFILE.replace("WORKDIR /src", "WORKDIR src"))
    assert "DL3000" in subprocess.run(["hadolint", bad], capture_output=True, text=True).stdout


def pins(name: str) -> dict[str, str]:
    """The lines of a lock, by the package."""
    lines = (ROOT / name).read_text().splitlines()
    return {line.partition("==")[0]: line for line in lines if not line.startswith("#")}


def test_the_runtime_lock_is_what_a_run_needs_and_nothing_for_tests() -> None:
    runtime, whole = pins("requirements-runtime.lock"), pins("requirements.lock")
    assert {name: whole[name] for name in runtime} == runtime
    assert needed("dlshap", {"jobs", "exports", "report"}) - {"dlshap"} <= set(runtime)
    assert not {"pytest", "tangermeme", "captum", "keras", "moto", "ruff", "mypy", "hypothesis"} & set(runtime)


def needed(name: str, extras: set[str]) -> set[str]:
    """What an installed package needs in turn, as far as it is in the lock: torch's own for GPUs are not."""
    found: dict[str, set[str]] = {}
    todo = [(name, extras)]
    while todo:
        name, extras = todo.pop()
        if name in found and extras <= found[name]:
            continue
        found[name] = found.get(name, set()) | extras
        for each in map(Requirement, importlib.metadata.requires(name) or []):
            own = re.sub(r"[-_.]+", "-", each.name).lower()
            holds = each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in {"", *found[name]})
            if holds and (own in pins("requirements.lock") or own == "dlshap"):
                todo.append((own, set(each.extras)))
    return set(found)


def image_builder() -> str | None:
    """A program that can build images here."""
    for name in "docker", "buildah":
        if shutil.which(name) and subprocess.run([name, "info"], capture_output=True).returncode == 0:
            return name
    return None


@contextlib.contextmanager
def in_image(program: str, folder: Path) -> Iterator[list[str]]:
    """The words before a command that runs in the image with this folder as /work; it is built first."""
    more = shlex.split(os.environ.get("DLSHAP_IMAGE_BUILD", ""))  # such as --build-arg TORCH_BUILD=+cpu
    build = [program, "build", "-q", *more, "-f", str(SCRIPTS / "Dockerfile"), str(ROOT)]
    image = subprocess.run(build, check=True, stdout=subprocess.PIPE, text=True, timeout=3600).stdout.split()[-1]
    given = ["--user", f"{os.getuid()}", "--env", "HOME=/tmp", "--volume", f"{folder}:/work"]
    if program == "docker":
        yield [program, "run", "--rm", *given, image]
        return
    container = subprocess.run([program, "from", image], check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield [program, "run", *given, container, "--"]
    finally:
        subprocess.run([program, "rm", container], check=True, capture_output=True)


@pytest.mark.slow
def test_the_example_gives_the_same_values_in_the_image(tmp_path: Path) -> None:
    if (program := image_builder()) is None:
        pytest.skip("neither docker nor buildah works here")
    command = ["dlshap", "run", "cluster=none", "references.n_shuffles=2"]
    with in_image(program, tmp_path) as within:
        subprocess.run([*within, *command, "store.path=/work/within.zarr"], check=True, timeout=1800)
    pipeline.run([*command[2:], f"store.path={tmp_path}/outside.zarr"])
    assert values(tmp_path / "within.zarr") == values(tmp_path / "outside.zarr")


# --- ray up ---------------------------------------------------------------------------------------------------------


def valid(config: Any) -> Any:
    """A configuration of `ray up`, completed as Ray does it. Raises what Ray raises."""
    completed = prepare_config(copy.deepcopy(config))
    validate_config(completed)
    return completed


@pytest.mark.parametrize("path", RAY_FILES, ids=lambda path: path.stem)
def test_ray_takes_its_cluster_files(path: Path) -> None:
    (config,) = documents(path)
    completed = valid(config)
    head, workers = completed["available_node_types"]["head"], completed["available_node_types"]["spot-gpu"]
    assert completed["head_node_type"] == "head"
    assert head["resources"]["CPU"] == 0
    assert "SPOT" in str(workers["node_config"]).upper()
    assert "SPOT" not in str(head["node_config"]).upper()
    assert (workers["min_workers"], workers["max_workers"]) == (0, completed["max_workers"])
    assert completed["setup_commands"] == []  # those of Ray's defaults would install another Ray
    assert any("--num-cpus=0" in command for command in completed["head_start_ray_commands"])
    assert "--env=RAY_AUTH_MODE=token" in completed["docker"]["run_options"]


@pytest.mark.parametrize("path", RAY_FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    ("at", "value"),
    [
        ("max_wokers", 3),
        ("docker/imagee", "x"),
        ("max_workers", "many"),
        ("head_node_type", "haed"),
        ("available_node_types/spot-gpu/max_worker", 4),
        ("available_node_types/spot-gpu/resources/GPU", "one"),
    ],
)
def test_ray_finds_a_wrong_field(path: Path, at: str, value: Any) -> None:
    (config,) = documents(path)
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        valid(planted(config, at, value))


# --- Kubernetes -----------------------------------------------------------------------------------------------------

RAYJOB = SCRIPTS / "kuberay" / "rayjob.yaml"


def strict(schema: Any) -> Any:
    """A schema of Kubernetes as `kubectl --validate=strict` has it: unknown fields are errors."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    own = {key: strict(value) for key, value in schema.items()}
    if "properties" in own and not own.get("x-kubernetes-preserve-unknown-fields"):
        own.setdefault("additionalProperties", False)
    return own


@pytest.fixture(scope="module")
def rayjob_schema() -> Any:
    if (path := os.environ.get("DLSHAP_KUBERAY_CRD")) is None:
        pytest.skip("DLSHAP_KUBERAY_CRD names no ray.io_rayjobs.yaml of ray-project/kuberay (config/crd/bases)")
    (definition,) = documents(Path(path))
    (version,) = (each for each in definition["spec"]["versions"] if each["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft7Validator(schema)


def test_kuberay_takes_the_job(rayjob_schema: Any) -> None:
    assert list(rayjob_schema.iter_errors(documents(RAYJOB)[1])) == []


WORKERS = "spec/rayClusterSpec/workerGroupSpecs/0"


@pytest.mark.parametrize(
    ("at", "value"),
    [
        ("spec/shutdownAfterJobFinish", True),
        ("spec/backoffLimit", "many"),
        ("spec/submitterConfig/backofLimit", 3),
        ("spec/rayClusterSpec/authOptions/mode", "tokens"),
        (f"{WORKERS}/maxReplica", 3),
        (f"{WORKERS}/template/spec/tolerations/0/operators", "Exists"),
        (f"{WORKERS}/template/spec/containers/0/envfrom", []),
    ],
)
def test_kuberays_schema_finds_a_wrong_field(rayjob_schema: Any, at: str, value: Any) -> None:
    assert list(rayjob_schema.iter_errors(planted(documents(RAYJOB)[1], at, value)))


def faults_of_job(job: Any, settings: Any) -> Iterator[str]:
    """What a schema does not know."""
    cluster = job["spec"]["rayClusterSpec"]
    workers = cluster["workerGroupSpecs"]
    pods = [cluster["headGroupSpec"]["template"]["spec"], *(group["template"]["spec"] for group in workers)]
    if cluster["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        yield "the head works"
    if not cluster.get("enableInTreeAutoscaling"):
        yield "nothing asks for workers"
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "no token"
    if not job["spec"].get("shutdownAfterJobFinishes"):
        yield "the cluster stays"
    if cluster["rayVersion"] != pins("requirements-runtime.lock")["ray"].split()[0].partition("==")[2]:
        yield "another Ray than the image's"
    for pod in pods:
        (container,) = pod["containers"]
        mounted, there = {each["name"] for each in container["volumeMounts"]}, {each["name"] for each in pod["volumes"]}
        if not container.get("envFrom"):
            yield f"{container['name']} has no credentials"
        if not mounted <= there:
            yield f"{container['name']} mounts what is not there"
        if pod["terminationGracePeriodSeconds"] < 30:
            yield f"{container['name']} cannot stop in good order"
        if {"configMap": {"name": settings["metadata"]["name"]}, "name": "settings"} not in pod["volumes"]:
            yield f"{container['name']} has no settings"
    most = int(re.findall(r"cluster\.max_actors=(\d+)", job["spec"]["entrypoint"])[0])
    if most > sum(group["maxReplicas"] for group in workers):
        yield "more actors than nodes"


def test_the_job_has_no_faults() -> None:
    settings, job = documents(RAYJOB)
    assert list(faults_of_job(job, settings)) == []


@pytest.mark.parametrize(
    ("at", "value", "fault"),
    [
        ("spec/rayClusterSpec/headGroupSpec/rayStartParams/num-cpus", "2", "the head works"),
        ("spec/rayClusterSpec/authOptions/mode", "disabled", "no token"),
        ("spec/rayClusterSpec/rayVersion", "2.9.0", "another Ray than the image's"),
        (f"{WORKERS}/template/spec/containers/0/envFrom", [], "ray-worker has no credentials"),
        (f"{WORKERS}/template/spec/volumes", [], "ray-worker mounts what is not there"),
        (f"{WORKERS}/maxReplicas", 4, "more actors than nodes"),
        ("spec/shutdownAfterJobFinishes", False, "the cluster stays"),
    ],
)
def test_faults_of_a_job_are_found(at: str, value: Any, fault: str) -> None:
    settings, job = documents(RAYJOB)
    assert fault in list(faults_of_job(planted(job, at, value), settings))


def entrypoint(folder: Path) -> list[str]:
    """The words of the job's command, with its settings in this folder."""
    words = shlex.split(documents(RAYJOB)[1]["spec"]["entrypoint"])
    return [str(folder) if word == "/etc/dlshap" else word for word in words]


def test_the_settings_of_the_job_are_settings(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "job.yaml").write_text(documents(RAYJOB)[0]["data"]["job.yaml"])
    words = entrypoint(tmp_path)
    assert words[:4] == ["dlshap", "run", "--config-dir", str(tmp_path)]
    config = compose_config(words[4:], str(tmp_path))
    assert (config.model.name, config.dataset.name, config.engine.device) == ("bpnet", "loci", "cuda")
    assert config.store.path.startswith("s3://")


@pytest.mark.slow
@pytest.mark.ray
def test_the_command_of_the_job_fills_the_store(
    head: dict[str, str], inputs: Inputs, finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "job.yaml").write_text("# @package _global_\nseed: 0\n")
    store = tmp_path / "job.zarr"
    submit = [BIN / "ray", "job", "submit", "--", *entrypoint(tmp_path), "engine.device=cpu", *settings(inputs, store)]
    job = subprocess.run(submit, env=head, capture_output=True, text=True, timeout=300)
    assert job.returncode == 0, job.stdout + job.stderr
    assert values(store) == values(finished)


# --- scripts of shells ----------------------------------------------------------------------------------------------


def shell_scripts() -> dict[str, str]:
    """Texts of bash that schedulers run."""
    task = documents(SKYPILOT)[0]["run"]
    return {path.name: path.read_text() for path in SCRIPTS.glob("*.sbatch")} | {"run": f"#!/usr/bin/env bash\n{task}"}


NAMES = ("slurm.sbatch", "array.sbatch", "run")
SHELLCHECK = pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")


def complaints(command: list[str], text: str, folder: Path) -> str:
    """What a checker of shell scripts says of one; "" where it finds nothing."""
    (folder / "script").write_text(text)
    done = subprocess.run([*command, folder / "script"], capture_output=True, text=True)
    assert bool(done.returncode) == bool(done.stdout + done.stderr)
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_bash_takes_the_scripts_and_finds_wrong_ones(name: str, tmp_path: Path) -> None:
    text = shell_scripts()[name]
    assert complaints(["bash", "-n"], text, tmp_path) == ""
    for old, new in {"; then": "; than", "\nfor ": "\nfor for ", " || true)": " || true"}.items():
        if old in text:
            assert "syntax error" in complaints(["bash", "-n"], text.replace(old, new, 1), tmp_path), new


@SHELLCHECK
@pytest.mark.parametrize("name", NAMES)
def test_shellcheck_finds_nothing_in_the_scripts_and_what_is_planted(name: str, tmp_path: Path) -> None:
    text, command = shell_scripts()[name], ["shellcheck", "--exclude=SC2154"]  # variables that the scheduler sets
    assert complaints(command, text, tmp_path) == ""
    for line, code in {
        "rm -r $1/*": "SC2086",
        "unused=1": "SC2034",
        "if [ $# = 1 ] && true; then fi": "SC1048",
    }.items():
        assert code in complaints(command, f"{text}\n{line}\n", tmp_path)


# --- SkyPilot -------------------------------------------------------------------------------------------------------

SKYPILOT = SCRIPTS / "skypilot.yaml"
SKY_SCHEMA = {  # of what the file uses, after SkyPilot's documentation of its YAML
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "num_nodes", "resources", "run"],
    "properties": {
        "name": {"type": "string"},
        "num_nodes": {"type": "integer", "minimum": 1},
        "run": {"type": "string"},
        "envs": {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
        "secrets": {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
        "file_mounts": {"type": "object"},
        "resources": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "image_id": {"type": "string", "pattern": "^docker:"},
                "accelerators": {"type": "string"},
                "use_spot": {"const": True},
                "job_recovery": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["recover_on_exit_codes"],
                    "properties": {"recover_on_exit_codes": {"const": [75]}},
                },
            },
        },
    },
}


def test_the_task_of_skypilot_is_one() -> None:
    jsonschema.validate(documents(SKYPILOT)[0], SKY_SCHEMA)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        ("num_node", 4),
        ("resources/use_spots", True),
        ("resources/job_recovery/recover_on_exit_code", 75),
        ("num_nodes", "4"),
    ],
)
def test_a_wrong_field_of_the_task_is_found(at: str, value: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(planted(documents(SKYPILOT)[0], at, value), SKY_SCHEMA)


PARSES = """
import sys, yaml
from sky.task import Task
for path in sys.argv[1:]:
    try:
        Task.from_yaml_config(yaml.safe_load(open(path)))
    except Exception as error:
        print("wrong:", type(error).__name__)
    else:
        print("taken")
"""


@pytest.mark.slow
@pytest.mark.skipif("DLSHAP_SKY_PYTHON" not in os.environ, reason="DLSHAP_SKY_PYTHON names no Python with skypilot")
def test_skypilot_takes_the_task_and_finds_wrong_fields(tmp_path: Path) -> None:
    (task,) = documents(SKYPILOT)
    wrong = {
        "num_node": 4,
        "resources/use_spots": True,
        "resources/accelerators": "L4:one",
        "resources/job_recovery": {"recover_on_exit_codes": ["many"]},
    }
    files = []
    for number, each in enumerate([task, *(planted(task, at, value) for at, value in wrong.items())]):
        files.append(tmp_path / f"{number}.yaml")
        files[-1].write_text(yaml.safe_dump(each))
    command = [os.environ["DLSHAP_SKY_PYTHON"], "-c", PARSES, *files]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.partition(":")[0] for line in said] == ["taken", *["wrong"] * len(wrong)], said


def start_rank(rank: int, n: int, folder: Path, port: int, words: list[str], path: str) -> subprocess.Popen[str]:
    """A rank of the task on this machine, with Ray's files in a short folder."""
    script = folder / "run.sh"
    script.write_text(documents(SKYPILOT)[0]["run"])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SKYPILOT_"))} | {
        "SKYPILOT_NODE_RANK": str(rank),
        "SKYPILOT_NUM_NODES": str(n),
        "SKYPILOT_NODE_IPS": "\n".join(["127.0.0.1"] * n),
        "SKYPILOT_NUM_GPUS_PER_NODE": "0",
        "DLSHAP_RAY_PORT": str(port),
        "DLSHAP_RAY_TOKEN": "0" * 64,
        "DLSHAP_SETTINGS": " ".join(words),
        "RAY_TMPDIR": str(folder / "ray"),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "LOG": str(folder / "log"),
        "PATH": path,
    }
    return subprocess.Popen(
        ["bash", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


FAKE_RAY = """#!/usr/bin/env bash
if [ "$1" = status ]; then # a node that has started
    grep -q '^ray start' "$LOG" 2> /dev/null && echo " 1 node_0"
    exit
fi
trap 'echo "ray stopped" >> "$LOG"; exit 1' TERM
echo "ray $*" >> "$LOG"
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize("code", [0, 1, 2, 75])
def test_the_head_of_the_task_ends_with_the_code_of_the_run(short_folder: Path, code: int) -> None:
    for name, text in {"ray": FAKE_RAY, "dlshap": f'#!/bin/sh\necho "dlshap $*" >> "$LOG"\nexit {code}\n'}.items():
        (short_folder / name).write_text(text)
        (short_folder / name).chmod(0o755)
    words = ["model=bpnet", "store.path=s3://b/x.zarr"]
    rank = start_rank(0, 1, short_folder, 7777, words, f"{short_folder}:{os.environ['PATH']}")
    said, _ = rank.communicate(timeout=60)
    assert rank.returncode == code, said
    log = (short_folder / "log").read_text().splitlines()
    assert "dlshap run cluster=address cluster.address=127.0.0.1:7777 model=bpnet store.path=s3://b/x.zarr" in log
    assert "--head --node-ip-address=127.0.0.1 --port=7777" in log[0]
    assert log[-1] == "ray stopped"


@pytest.mark.slow
@pytest.mark.ray
def test_two_ranks_of_the_task_fill_the_store(
    short_folder: Path, inputs: Inputs, finished: Path, tmp_path: Path
) -> None:
    store, (port,) = tmp_path / "sky.zarr", free_ports(1)
    path = f"{BIN}:{os.environ['PATH']}"
    words = [*settings(inputs, store), "engine.device=cpu"]
    ranks = [start_rank(rank, 2, short_folder, port, words, path) for rank in (1, 0)]
    said = [rank.communicate(timeout=400)[0] for rank in reversed(ranks)]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert values(store) == values(finished)
    assert not processes_with(str(short_folder))
