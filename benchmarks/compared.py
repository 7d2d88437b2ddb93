"""Both sides of the CDL cases: JAX and PyTorch.

Both start from the same weights and take the same batches.
"""

from dataclasses import replace

import numpy as np

from benchmarks import cdl_sizes, fake_data, timing
from benchmarks.torch_peers.torch_variants import VARIANTS
from benchmarks.training_state import TrainingState

OURS = "ours"
CHECKED = 3  # steps whose mean losses must agree
# Relative tolerances of a loss: both sides in float32, and one side in bfloat16.
EXACT, ROUGH = 1e-4, 3e-2


class JaxSide:
    """cdl_jax."""

    def __init__(self, config, data):
        self.learning = TrainingState(config, data)
        self.prepared = {}

    def compile(self, phase: int) -> float:
        """Compiles the step of a phase; returns the seconds."""
        start = timing.now()
        self.learning.compile(phase)
        return timing.now() - start

    def rows(self, phase: int, steps: int):
        """Prepares the next batches for `seconds`.

        Returns:
            Rows of the batches, int32 `[steps, batch]`.
        """
        self.prepared[phase] = self.learning.batches(phase, steps)
        return np.stack([np.asarray(item["rows"]) for item, _ in self.prepared[phase]])

    def seconds(self, phase: int, steps: int) -> float:
        return self.learning.seconds(phase, self.prepared[phase][:steps])

    def loss(self, phase: int) -> float:
        return float(self.learning.loss(phase))


class TorchSide:
    """A PyTorch program in a variant of `torch_peers.torch_variants`."""

    def __init__(self, config, data, variables, variant):
        import torch

        from benchmarks.torch_peers.cdl import CDL

        self.torch, self.split = torch, data.train
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.module = CDL(config, variables, data.num_tasks, variant, self.device)
        task = data.tasks[0]
        self.module.begin(task.index, task.first, task.end)
        self.batches, self.losses = {}, {0: [], 1: []}

    def prepare(self, phase: int, rows) -> None:
        """Puts the batches of `rows` on the device, in the layout of the network."""
        self.batches[phase] = [self.placed(self.split.images[r], self.split.labels[r]) for r in rows]

    def placed(self, images, labels):
        """Puts images and labels on the device.

        Args:
            images: uint8 `[batch, size, size, 3]`.
            labels: integers `[batch]`.

        Returns:
            (float32 `[batch, 3, size, size]` in [0, 1], int64 `[batch]`).
        """
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
        """Evaluates a split.

        Returns:
            (logits `[2, images, classes]` of teacher and student, seconds).
        """
        start, found = timing.now(), []
        for first in range(0, len(test), batch):
            rows = slice(first, first + batch)
            images, labels = self.placed(test.images[rows], test.labels[rows])
            logits = self.torch.stack(self.module.logits(images))
            (logits[:, :, : self.module.place[2]].argmax(dim=2) == labels).sum(dim=1).tolist()
            found.append(logits.float().cpu().numpy())
        return np.concatenate(found, axis=1), timing.now() - start

    def loss(self, phase: int) -> float:
        """Returns the mean loss of all steps of a phase."""
        return float(self.torch.stack(self.losses[phase]).mean())


def use_bfloat16(precision: str) -> bool:
    """Returns whether to compute in bfloat16.

    Otherwise every product is computed in float32.

    Args:
        precision: "float32", "bfloat16" or "auto", which means bfloat16 on an accelerator.
    """
    import jax

    bfloat16 = precision == "bfloat16" or (precision == "auto" and jax.default_backend() != "cpu")
    if not bfloat16:
        jax.config.update("jax_default_matmul_precision", "highest")
    return bfloat16


def both_sides(size: str, learner: str, scheme: str, variants, bfloat16: bool, train: int = 8, test: int = 2):
    """Builds both sides with the same weights.

    Args:
        size: key of `cdl_sizes.SIZES`.
        variants: names of `torch_variants.VARIANTS`.
        bfloat16: whether all but "authors" compute in bfloat16.
        train: number of training images of each class.
        test: number of test images of each class.

    Returns:
        (JaxSide, {variant: TorchSide}, config).
    """
    config = cdl_sizes.config(size, learner, scheme, bfloat16)
    data = fake_data.noise_stream(config.student.image_size, cdl_sizes.TASKS, 10, train, test)
    ours = JaxSide(config, data)
    variables = ours.learning.variables()
    kinds = [replace(VARIANTS[name], bfloat16=bfloat16 and name != "authors") for name in variants]
    return ours, {kind.name: TorchSide(config, data, variables, kind) for kind in kinds}, config


def tolerances(variants, bfloat16: bool) -> dict[str, float]:
    """Returns the relative tolerance between the losses of each variant and ours."""
    return dict.fromkeys(variants, ROUGH if bfloat16 else EXACT)


def check_same_losses(
    ours: JaxSide, peers, phase: int, steps: int, bfloat16: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Prepares the batches of a phase and compares the mean losses of `CHECKED` steps.

    Returns:
        (relative difference of each variant's loss to ours, seconds of each side's first steps with compilation).

    Raises:
        UserError: the difference of a loss is above its tolerance.
    """
    rows = ours.rows(phase, max(steps, CHECKED))
    first = {OURS: ours.compile(phase) + ours.seconds(phase, CHECKED)}
    for name, peer in peers.items():
        peer.prepare(phase, rows)
        first[name] = peer.seconds(phase, CHECKED)
    losses = {OURS: ours.loss(phase), **{name: peer.loss(phase) for name, peer in peers.items()}}
    differences = timing.loss_differences(losses, OURS)
    differences.pop(OURS)
    timing.check_equal(f"the loss of phase {phase}", differences, tolerances(peers, bfloat16))
    return differences, first
