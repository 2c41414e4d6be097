"""Cost of measuring every channel of ResNet-20 on CIFAR-10: full masked forwards, exact replay, adaptive replay.

    python scripts/benchmark_measuring.py [--images 512] [--threads 2]

Prints seconds (interleaved, in one process), forward-MACs, the largest difference to full forwards and the Spearman
correlation of the adaptive damages with the exact ones.
"""

import argparse
import json
import sys
import time

import numpy as np
import torch
from scipy.stats import spearmanr

from autolabel.oracles import RemovalOracle
from compress import ClassificationTask, analyze
from compress.gates import gated_module
from compress.replay import Replay
from experiments.data import load_cifar10, make_batches
from experiments.models import load_resnet_cifar


def main() -> None:
    """Measure, and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--relative-error", type=float, default=0.3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    part = load_cifar10().label
    batches = make_batches(part, options.batch)[: options.images // options.batch]
    task, model = ClassificationTask(), load_resnet_cifar(20).eval()
    structure = analyze(model, task.inputs(batches[0]))
    rows = np.arange(structure.n_removable)
    exact, adaptive = RemovalOracle(), RemovalOracle(options.relative_error)
    replays = {name: Replay(structure, task, batches) for name in ("exact", "adaptive")}
    module = gated_module(structure)
    module.eval()
    seconds = dict.fromkeys(("naive", "exact", "adaptive"), 0.0)
    damage = {name: np.zeros(len(rows)) for name in seconds}
    macs = dict.fromkeys(("exact", "adaptive"), 0.0)
    for group in structure.units.groups:
        members = np.flatnonzero(structure.units.group[: len(rows)] == group)
        for name, oracle in (("exact", exact), ("adaptive", adaptive)):
            start = time.perf_counter()
            for measurement, row in zip(oracle.measure(structure, replays[name], members), members, strict=True):
                damage[name][row] = measurement.damage
                macs[name] += measurement.forward_macs
            seconds[name] += time.perf_counter() - start
        start = time.perf_counter()
        for row in members:
            gates = torch.ones(1, len(rows))
            gates[0, row] = 0
            module.gates = gates
            with torch.no_grad():
                losses = [task.loss(module(*task.inputs(b)), b).double().numpy() - d
                          for b, d in zip(batches, replays["exact"].dense, strict=True)]  # fmt: skip
            damage["naive"][row] = np.concatenate(losses).mean()
        seconds["naive"] += time.perf_counter() - start
        sys.stderr.write(f"{group}: { ({k: round(v, 1) for k, v in seconds.items()}) }\n")
    naive_macs = replays["exact"].full_macs * replays["exact"].n_examples * len(rows)
    result = {
        "units": len(rows), "images": replays["exact"].n_examples, "threads": options.threads,
        "seconds": {k: round(v, 1) for k, v in seconds.items()},
        "speedup_exact": round(seconds["naive"] / seconds["exact"], 2),
        "speedup_adaptive": round(seconds["naive"] / seconds["adaptive"], 2),
        "macs_ratio_exact": round(naive_macs / macs["exact"], 2),
        "macs_ratio_adaptive": round(naive_macs / macs["adaptive"], 2),
        "largest_difference_exact": float(np.abs(damage["exact"] - damage["naive"]).max()),
        "spearman_adaptive": round(float(spearmanr(damage["exact"], damage["adaptive"]).statistic), 4),
    }  # fmt: skip
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
