"""Both sides of the CDL cases: our program and its PyTorch peers, from the same weights and on the same batches."""

from dataclasses import replace

import numpy as np

from benchmarks import cdl_sizes, fake_data, timing
from benchmarks.torch_peers.torch_variants import KNOWN
from benchmarks.training_state import Learning

OURS = "ours"
CHECKED = 3  # steps whose mean losses must agree
# Relative. A loss of float32 networks, and where one of both computes in bfloat16.
EXACT, ROUGH = 1e-4, 3e-2


class Ours:
    """Our program."""

    def __init__(self, config, data):
        self.learning = Learning(config, data)
        self.prepared = {}

    def compile(self, phase: int) -> float:
        """Seconds that it takes."""
        start = timing.now()
        self.learning.compile(phase)
        return timing.now() - start

    def rows(self, phase: int, steps: int):
        """Rows of the next batches, which `seconds` then takes, `[steps, batch]`."""
        self.prepared[phase] = self.learning.batches(phase, steps)
        return np.stack([np.asarray(item["rows"]) for item, _ in self.prepared[phase]])

    def seconds(self, phase: int, steps: int) -> float:
        return self.learning.seconds(phase, self.prepared[phase][:steps])

    def loss(self, phase: int) -> float:
        return float(self.learning.loss(phase))


class Peer:
    """A PyTorch peer in a manner of `torch_peers.torch_variants`."""

    def __init__(self, config, data, variables, manner):
        import torch

        from benchmarks.torch_peers.cdl import CDL

        self.torch, self.split = torch, data.train
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.module = CDL(config, variables, data.num_tasks, manner, self.device)
        task = data.tasks[0]
        self.module.begin(task.index, task.first, task.end)
        self.batches, self.losses = {}, {0: [], 1: []}

    def prepare(self, phase: int, rows) -> None:
        """Puts the batches of these rows on the device, as the network takes them."""
        self.batches[phase] = [self.placed(self.split.images[r], self.split.labels[r]) for r in rows]

    def placed(self, images, labels):
        """(uint8 `[batch, size, size, 3]` as float32 `[batch, 3, size, size]` in [0, 1], labels), on the device."""
        images = self.torch.as_tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(self.device)
        return images.float() / 255, self.torch.as_tensor(labels.astype(np.int64)).to(self.device)

    def seconds(self, phase: int, steps: int) -> float:
        start = timing.now()
        for images, labels in self.batches[phase][:steps]:
            self.losses[phase].append(self.module.step(phase, images, labels).clone())
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()
        return timing.now() - start

    def evaluate(self, test, batch: int):
        """(logits `[2, images, classes]` of teacher and student for a split, seconds)."""
        start, found = timing.now(), []
        for first in range(0, len(test), batch):
            rows = slice(first, first + batch)
            images, labels = self.placed(test.images[rows], test.labels[rows])
            logits = self.torch.stack(self.module.logits(images))
            (logits[:, :, : self.module.place[2]].argmax(dim=2) == labels).sum(dim=1).tolist()
            found.append(logits.float().cpu().numpy())
        return np.concatenate(found, axis=1), timing.now() - start

    def loss(self, phase: int) -> float:
        """Mean over the steps so far."""
        return float(self.torch.stack(self.losses[phase]).mean())


def precision(asked: str) -> bool:
    """Whether the work is done in bfloat16: "auto" says so on an accelerator. float32 is float32 in every product."""
    import jax

    bfloat16 = asked == "bfloat16" or (asked == "auto" and jax.default_backend() != "cpu")
    if not bfloat16:
        jax.config.update("jax_default_matmul_precision", "highest")
    return bfloat16


def both(size: str, learner: str, scheme: str, manners, bfloat16: bool, train: int = 8, test: int = 2):
    """(Ours, {manner: Peer}, config), all with the same weights; `train` and `test` pictures a class."""
    config = cdl_sizes.config(size, learner, scheme, bfloat16)
    data = fake_data.noise(config.student.image_size, cdl_sizes.TASKS, 10, train, test)
    ours = Ours(config, data)
    variables = ours.learning.variables()
    kinds = [replace(KNOWN[name], bfloat16=bfloat16 and name != "authors") for name in manners]
    return ours, {kind.name: Peer(config, data, variables, kind) for kind in kinds}, config


def tolerances(manners, bfloat16: bool) -> dict[str, float]:
    """How far the losses of each manner may be from ours."""
    return dict.fromkeys(manners, ROUGH if bfloat16 else EXACT)


def agree(ours: Ours, peers, phase: int, steps: int, bfloat16: bool) -> tuple[dict[str, float], dict[str, float]]:
    """Prepares a phase's batches and takes `CHECKED` steps on every side.

    Returns:
      (how far each peer's mean loss is from ours, seconds of each side's first step, compilation included).

    Raises:
      UserError: a loss is too far from ours.
    """
    rows = ours.rows(phase, max(steps, CHECKED))
    first = {OURS: ours.compile(phase) + ours.seconds(phase, CHECKED)}
    for name, peer in peers.items():
        peer.prepare(phase, rows)
        first[name] = peer.seconds(phase, CHECKED)
    losses = {OURS: ours.loss(phase), **{name: peer.loss(phase) for name, peer in peers.items()}}
    differences = timing.apart(losses, OURS)
    differences.pop(OURS)
    timing.check_equal(f"the loss of phase {phase}", differences, tolerances(peers, bfloat16))
    return differences, first
