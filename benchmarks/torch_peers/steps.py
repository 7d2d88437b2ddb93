"""A PyTorch peer of a method with one phase.

It has the losses, the optimizers, and the variant of a step.
"""

import numpy as np
import torch

from benchmarks import timing
from benchmarks.torch_peers.torch_variants import Variant, compiled


class Steps:
    """One peer.

    module: has `loss(*batch) -> (scalar, logits [batch, classes])` and `groups() -> [(optimizer, parameters to clip)]`,
    and `clip`, the bound on the norm of each group's gradients, 0 for none.
    """

    def __init__(self, module, variant: Variant, device):
        self.module, self.variant, self.device = module.to(device), variant, device
        if variant.compiled and device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        if variant.compiled:
            self.module.to(memory_format=torch.channels_last)
        self.loss_of = compiled(module.loss, variant, device)
        self.groups, self.losses, self.batches = module.groups(variant.compiled), [], []

    def prepare(self, batches) -> None:
        """Puts batches on the device.

        A batch is a tuple of uint8 `[..., height, width, 3]` and int `[...]` arrays.
        """
        self.batches = [tuple(self._placed(part) for part in batch) for batch in batches]

    def _placed(self, part):
        if part.dtype != np.uint8:
            return torch.as_tensor(part.astype(np.int64)).to(self.device)
        images = torch.as_tensor(np.ascontiguousarray(np.moveaxis(part, -1, -3))).to(self.device).float() / 255
        if self.variant.compiled and images.ndim == 4:
            return images.contiguous(memory_format=torch.channels_last)
        return images

    def seconds(self, steps: int) -> float:
        """Trains on the first `steps` batches; returns the seconds."""
        start = timing.now()
        for batch in self.batches[:steps]:
            self.losses.append(self._step(batch).clone())
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return timing.now() - start

    def _step(self, batch):
        loss, logits = self.loss_of(*batch)
        for optimizer, _ in self.groups:
            optimizer.zero_grad()
        loss.backward()
        for optimizer, clipped in self.groups:
            if self.module.clip:
                torch.nn.utils.clip_grad_norm_(clipped, self.module.clip)
            optimizer.step()
        if self.variant.watched:
            (logits.argmax(dim=1) == batch[1].reshape(-1)[: len(logits)]).float().mean().item()
        return loss.detach()

    def loss(self) -> float:
        """Mean over the steps so far."""
        return float(torch.stack(self.losses).mean())

    def flops(self) -> float:
        """Returns the operations of a step, as torch counts them.

        These are products and convolutions, forward and backward.
        """
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            self.module.loss(*self.batches[0])[0].backward()
        self.module.zero_grad()
        return float(counter.get_total_flops())
