"""CDL in PyTorch: a teacher's and a student's step in a given variant.

The weights are those of a run of ours. Schemes: `kd` and `kd_token` (variant "dcdl"). Optimizer: Adam at the run's
rate.
"""

from contextlib import nullcontext

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.torch_peers.pools import POOLS, Head, halves
from benchmarks.torch_peers.torch_variants import Variant, compiled
from benchmarks.torch_peers.vit import Prompt, ViT


class Network(nn.Module):
    """Backbone, pool and head of one of the two networks."""

    def __init__(self, options, learner, variables, tasks, variant: Variant):
        super().__init__()
        self.backbone = ViT(options, variables["backbone"], variant.fused_attention)
        self.pool = POOLS[learner.name](learner, variables["prompts"], variables["state"]["prompts"], tasks)
        self.head = Head(variables["head"])
        self.variant = variant
        if variant.freeze:
            self.backbone.requires_grad_(False)
        if variant.bfloat16:
            for module in self.backbone.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    module.to(torch.bfloat16)

    def forward(self, images, query, task, train, extra=None):
        """(tokens `[batch, tokens, dim]`, logits `[batch, classes]`, the pool's loss)."""
        prompts, loss = self.pool(query, task, train)
        token, suffixes = extra or (None, {})
        for layer, suffix in suffixes.items():
            prompts[layer] = prompts.get(layer, Prompt())._replace(suffix=suffix)
        tokens = self.backbone(images, prompts, token, self.variant.correlation)
        return tokens, self.head(tokens[:, 0].float()), loss


class KDToken(nn.Module):
    """The distillation token, the prompts of later blocks, and the second head.

    The token lies behind the patches, the prompts behind the keys.
    """

    def __init__(self, params):
        super().__init__()
        names = [name for name in params if name.startswith("prompts_")]
        self.layers = {int(name.removeprefix("prompts_")): name for name in names}
        self.rows = nn.ParameterDict({name: torch.tensor(params[name]) for name in ("token", *names)})
        self.head = Head(params["head"])

    def extra(self, count: int):
        """Returns (the token of `count` images, {layer: suffix})."""
        each = {layer: halves(self.rows[name].expand(count, -1, -1)) for layer, name in self.layers.items()}
        return self.rows["token"].expand(count, -1, -1), each


class CDL(nn.Module):
    """Two networks at the task `(index, first, end)`.

    config: of the run. variables: all of it, as NumPy arrays. tasks: of the stream.
    """

    phases = ("teacher", "student")

    def __init__(self, config, variables, tasks: int, variant: Variant, device):
        super().__init__()
        self.variant, self.options, self.place = variant, config.distill, (0, 0, 0)
        self.teacher, self.student = (
            Network(config[name], config.learner, variables[name], tasks, variant) for name in self.phases
        )
        self.scheme = KDToken(variables["distill"]["params"]) if config.distill.name == "kd_token" else None
        self.to(device)
        self.device, self.rate = device, config.optim.learning_rate
        losses = (self.teacher_loss, self.student_loss)
        self.losses = [compiled(loss, variant, device) for loss in losses]
        self.predict = compiled(self._predict, variant, device)

    def begin(self, task: int, first: int, end: int):
        """Starts a task with fresh optimizers."""
        self.place = (task, first, end)
        parts = [[self.teacher.pool, self.teacher.head], [self.student.pool, self.student.head, self.scheme]]
        trained = [[p for part in own if part is not None for p in part.parameters()] for own in parts]
        self.optimizers = [torch.optim.Adam(own, self.rate, fused=self.variant.compiled) for own in trained]

    def step(self, phase: int, images, labels):
        """Takes one step; returns the loss.

        Args:
            phase: index of the phase.
            images: `[batch, 3, size, size]`.
            labels: `[batch]`.
        """
        with self._autocast():
            loss, logits = self.losses[phase](images, labels)
        self.optimizers[phase].zero_grad()
        loss.backward()
        self.optimizers[phase].step()
        if self.variant.watched:
            _, first, end = self.place
            (logits[:, first:end].argmax(dim=1) == labels - first).float().mean().item()
        return loss.detach()

    def teacher_loss(self, images, labels):
        """(cross-entropy over the current classes plus the pool's loss, logits)."""
        task, _, _ = self.place
        _, logits, pool = self.teacher(images, self._query(images), task, True)
        return self._cross_entropy(logits, labels) + pool, logits.detach()

    def student_loss(self, images, labels):
        """Returns (loss, logits) of the student.

        The loss is the sum of `(1 - alpha)` cross-entropy, `alpha T^2` divergence and the pool's loss.
        """
        task, first, end = self.place
        query = self._query(images)
        with torch.no_grad():
            self.teacher.pool.teaching = True
            query_of_teacher = query if self.variant.query_once else self._query(images)
            _, teacher_logits, _ = self.teacher(images, query_of_teacher, task, False)
            self.teacher.pool.teaching = False
        extra = None if self.scheme is None else self.scheme.extra(len(images))
        tokens, logits, pool = self.student(images, query, task, True, extra)
        taught = logits if self.scheme is None else self.scheme.head(tokens[:, -1].float())
        alpha, temperature = self.options.alpha, self.options.temperature
        ours, theirs = (F.log_softmax(z[:, first:end] / temperature, dim=1) for z in (taught, teacher_logits))
        divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        total = (1 - alpha) * self._cross_entropy(logits, labels) + alpha * temperature**2 * divergence + pool
        return total, logits.detach()

    def _cross_entropy(self, logits, labels):
        _, first, end = self.place
        return F.cross_entropy(logits[:, first:end], labels - first)

    def _query(self, images):
        with torch.no_grad():
            return self.student.backbone(images)[:, 0].float()

    @torch.no_grad()
    def logits(self, images):
        """(teacher's, student's) `[batch, classes]` at test time."""
        with self._autocast():
            return self.predict(images)

    def _predict(self, images):
        task, _, _ = self.place
        query = self._query(images)
        query_of_teacher = query if self.variant.query_once else self._query(images)
        _, teacher_logits, _ = self.teacher(images, query_of_teacher, task, False)
        extra = None if self.scheme is None else self.scheme.extra(len(images))
        tokens, logits, _ = self.student(images, query, task, False, extra)
        if self.scheme is not None:
            alpha = self.options.alpha
            logits = (1 - alpha) * logits + alpha * self.scheme.head(tokens[:, -1].float())
        return teacher_logits, logits

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16) if self.variant.bfloat16 else nullcontext()
