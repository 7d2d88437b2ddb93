"""A whole run in PyTorch, from the command to the accuracies.

    python -m benchmarks.torch_peers.whole FOLDER VARIANT

The run has all tasks, both phases, and tests on all tasks seen so far. FOLDER has `config.json`, the resolved config of
our run, and `variables.npz`, what its networks start from. The mean accuracies after each task go to `acc.csv` and
`acc_s.csv`, those after the last, by task, to the standard output.
"""

import json
import os
import sys
from pathlib import Path

import ml_collections
import numpy as np
import torch

from benchmarks.torch_peers import loaders
from benchmarks.torch_peers.cdl import CDL
from benchmarks.torch_peers.torch_variants import VARIANTS
from cdl_jax.data import stream


def main(folder: Path, name: str):
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config = ml_collections.ConfigDict(json.loads((folder / "config.json").read_text()))
    variables = nested(np.load(folder / "variables.npz"))
    torch.manual_seed(config.seed)
    np.random.seed(config.seed)
    data, variant = stream.load(config.data, config.seed), VARIANTS[name]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for network in ("teacher", "student"):
        variables[network].setdefault("state", {}).setdefault("prompts", {})
    networks = CDL(config, variables, data.num_tasks, variant, device)
    train, test = (Images(split, device) for split in (data.train, data.test))
    seen = []
    for task in data.tasks:
        networks.begin(task.index, task.first, task.end)
        for phase in range(2):
            for epoch in range(config.train.epochs):
                rate(networks.optimizers[phase], config, epoch)
                for images, labels in batches(config, train, task.train, variant, device):
                    networks.step(phase, images, labels)
        accuracy = [tested(config, networks, test, old.test, variant, device) for old in data.tasks[: task.index + 1]]
        seen.append(np.mean(accuracy, axis=0))
        for file, means in zip(("acc.csv", "acc_s.csv"), zip(*seen, strict=True), strict=True):
            (folder / file).write_text("".join(f"{mean:.2f}\n" for mean in means))
    print(json.dumps([float(student) for _, student in accuracy]))


def nested(arrays) -> dict:
    """Returns arrays of names with slashes as nested dicts.

    flax has this function, but its import would load jax into a command without jax.
    """
    tree = {}
    for name in arrays.files:
        *parts, last = name.split("/")
        inside = tree
        for part in parts:
            inside = inside.setdefault(part, {})
        inside[last] = arrays[name]
    return tree


class Images:
    """A split, where the host and, at the first need, where the device has it."""

    def __init__(self, split, device):
        self.images, self.labels, self.device, self._placed = split.images, split.labels, device, None

    def placed(self, rows):
        """(uint8 `[n, 3, height, width]`, labels) of these rows, on the device."""
        if self._placed is None:
            split = torch.from_numpy(np.ascontiguousarray(self.images.transpose(0, 3, 1, 2)))
            self._placed = split.to(self.device), torch.from_numpy(self.labels.astype(np.int64)).to(self.device)
        rows = torch.as_tensor(rows.astype(np.int64), device=self.device)
        return tuple(part[rows] for part in self._placed)


def rate(optimizer, config, epoch):
    """CDL's cosine, see `cdl_jax.optim.cdl_cosine`."""
    angle = 99 * np.pi / (200 * max(config.train.epochs - 1, 1))
    for group in optimizer.param_groups:
        group["lr"] = config.optim.learning_rate * float(np.cos(angle * max(epoch - 1, 0)))


def batches(config, split, rows, variant, device):
    """An epoch of training batches on the device."""
    size, kind, count = config.student.image_size, config.augment.train, config.train.batch_size
    if not variant.watched:
        yield from loaders.on_device(*split.placed(rows), kind, size, count)
        return
    loader = loaders.one_by_one(split.images[rows], split.labels[rows], kind, size, count, True)
    for images, labels in loader:
        yield images.to(device), labels.to(device)


def tested(config, networks, split, rows, variant, device):
    """Returns the accuracy in percent of teacher and student on the images of `rows`.

    Predictions are over the classes seen so far.
    """
    _, _, end = networks.place
    right, count, size = [0, 0], config.eval.batch_size, config.student.image_size
    if variant.watched:
        loader = loaders.one_by_one(split.images[rows], split.labels[rows], "none", size, count, False)
    else:
        images, labels = split.placed(rows)
        loader = zip((images.float() / 255).split(count), labels.split(count), strict=True)
    for images, labels in loader:
        labels = labels.to(device)
        for i, logits in enumerate(networks.logits(images.to(device))):
            right[i] += int((logits[:, :end].argmax(dim=1) == labels).sum())
    return [100 * value / len(rows) for value in right]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
