"""A run on a Ray whose workers have a pretended GPU, and this process, which begins it, none.

    python tests/gpu/ray_with_gpus.py [SETTING ...]

Prints what the run says of itself, or why it is refused, as JSON.
"""

import json
import sys
from pathlib import Path

import ray
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pipeline
from pipeline.messages.errors import UserError


def main(settings: list[str]) -> dict[str, object]:
    assert not torch.cuda.is_available()
    ray.init(
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
    try:
        found = pipeline.run([*settings, "cluster=address", "cluster.address=auto", "engine.device=cuda"])
    except UserError as error:
        return {"refused": str(error)}
    return {"store": found.store, "complete": found.complete}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1:])) + "\n")
