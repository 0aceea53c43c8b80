"""A run on a Ray whose workers have a pretended GPU, and this process, which begins it, none.

    python tests/gpu/ray_with_gpus.py [SETTING ...]

Prints what the run, an audit and a plan say, or why the run is refused, as JSON.
"""

import json
import sys
from pathlib import Path

import ray
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pipeline
from pipeline.config.compose import compose_config
from pipeline.execution.audit import audit_config
from pipeline.execution.cost_estimate import estimate_config
from pipeline.messages.errors import UserError


def main(settings: list[str]) -> dict[str, object]:
    assert not torch.cuda.is_available()
    ray.init(
        "local",
        num_cpus=2,
        num_gpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 << 20,
        runtime_env={
            "worker_process_setup_hook": "tests.gpu.pretended_gpu.reset",
            "env_vars": {"PYTHONPATH": sys.path[0]},
        },
    )
    overrides = [*settings, "cluster=address", "cluster.address=auto", "engine.device=cuda"]
    try:
        found = pipeline.run(overrides)
    except UserError as error:
        return {"refused": str(error)}
    config = compose_config([*overrides, f"store.path={found.store}.planned"])
    audited, device = audit_config(config)
    return {
        "store": found.store,
        "complete": found.complete,
        "planned_on": estimate_config(config).device,
        "audited_on": device,
        "operations": [operation.operation for operation in audited.operations],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1:])) + "\n")
