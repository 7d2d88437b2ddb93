"""Four peers of OKDDip as whole networks: one after another, one a device, and stacked under vmap.

    python -m benchmarks.peers [--rounds 9] [--steps 5] [--batch 32] [--out FILE.json]

The network is that of configs/okddip_glyph.py, a small ResNet for pictures of 32 pixels. All three ways start from the
same weights and take the same batches; their losses must be equal within 1e-5, relative, over the first steps before
anything is timed. Told are medians over the rounds, in each of which the ways take turns in another order.

Without accelerators the devices are simulated by one processor, whose cores the looped step uses already: there the
second way shows what spreading costs, not what it gains.
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

PEERS = 4
# Before jax is imported; without effect where there are other devices.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={PEERS}".strip()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from cdl_jax import trainer, workdir  # noqa: E402
from cdl_jax.data import stream  # noqa: E402
from cdl_jax.models.cnn import apply  # noqa: E402
from cdl_jax.models.peer_networks import Networks, Seen  # noqa: E402
from cdl_jax.program import Program  # noqa: E402
from configs import okddip_glyph  # noqa: E402

LOOPED, SPREAD, STACKED = "looped over, one device", f"one a device, {PEERS} devices", "stacked under vmap, one device"
CHECKED = 3  # steps whose losses must agree


@dataclass(frozen=True)
class Stacked:
    """`Networks` with the variables of all peers as one tree, its leaves stacked along a first axis."""

    looped: Networks

    @property
    def names(self):
        return self.looped.names

    def init(self, key, images):
        """Variables `{"peers": tree}` that equal those of `Networks`."""
        each = self.looped.init(key, images).values()
        return {"peers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)}

    def __call__(self, variables, images, train, key) -> Seen:
        """See `Networks.__call__`."""
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(self.names)))
        (logits, out), stats = jax.vmap(lambda network, key: apply(self.looped.backbone, network, images, train, key))(
            variables["peers"], keys
        )
        return Seen(tuple(logits), tuple(out["features"]), stats={"peers": stats})


class Way:
    """One of the ways, about to learn."""

    def __init__(self, batch, spread=False, stacked=False):
        config = okddip_glyph.get_config("method=okddip,base=network")
        config.okddip.num_branches = PEERS
        config.train.batch_size = batch
        config.devices = config.peer_devices = PEERS if spread else 1
        self.program = Program(config, stream.load(config.data))
        if stacked:
            self.program.method = replace(self.program.method, peers=Stacked(self.program.method.peers))
        self.program.place_data()
        self.task, self.number = self.program.stream.tasks[0], 0
        live, self.frozen = self.program.initial_variables()
        self.state = self.program.task_state(live, self.frozen)
        self.compiled = self.program.train_step(0, self.state, self.frozen)

    def items(self, steps):
        """So many next batches, on the device."""
        (phase,) = self.program.method.phases
        epoch, step = divmod(self.number, self.program.steps(self.task, phase))
        items, self.per_epoch, _ = self.program.train_batches(self.task, phase, 0, epoch, step)
        return jax.block_until_ready([item for item, _ in zip(items, range(steps), strict=False)])

    def seconds(self, steps):
        """Of so many steps; the state goes on."""
        items = self.items(steps)
        start = time.perf_counter()
        for item in items:
            epoch, at = divmod(self.number, self.per_epoch)
            place = trainer.position(self.task, epoch=epoch, step=at, steps=self.per_epoch)
            data, seed = self.program.train_source.data, self.program.seed
            self.state = self.compiled(self.state, self.frozen, data, item, place, seed)
            self.number += 1
        jax.block_until_ready(self.state.live)
        return time.perf_counter() - start

    def loss(self):
        """Mean over the steps so far."""
        sums = jax.device_get(self.state.sums[0])
        return float(sums["loss"] / sums["steps"])


def check(ways: dict[str, Way]) -> dict[str, float]:
    """The largest relative difference of a loss to the looped one's, of each way.

    Raises:
      AssertionError: it is above 1e-5.
    """
    apart = dict.fromkeys(ways, 0.0)
    for _ in range(CHECKED):
        for way in ways.values():
            way.seconds(1)
        wanted = ways[LOOPED].loss()
        apart = {name: max(apart[name], abs(way.loss() - wanted) / wanted) for name, way in ways.items()}
    assert max(apart.values()) <= 1e-5, f"losses differ: {apart}"
    return apart


def measure(ways: dict[str, Way], rounds: int, steps: int) -> dict[str, float]:
    """Median milliseconds of a step of each way."""
    times = {name: [] for name in ways}
    for number in range(rounds):
        order = list(ways)[number % len(ways) :] + list(ways)[: number % len(ways)]
        for name in order:
            times[name].append(1e3 * ways[name].seconds(steps) / steps)
    return {name: statistics.median(values) for name, values in times.items()}


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=5, help="steps of each way in a round")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--out", type=Path, help="file for the figures as JSON")
    options = parser.parse_args()
    ways = {
        LOOPED: Way(options.batch),
        SPREAD: Way(options.batch, spread=True),
        STACKED: Way(options.batch, stacked=True),
    }
    apart = check(ways)
    medians = measure(ways, options.rounds, options.steps)
    print("| peers | a step | ratio to the loop | losses apart |\n|---|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {median:.1f} ms | {median / medians[LOOPED]:.2f} | {apart[name]:.0e} |", flush=True)
    simulated = jax.devices()[0].platform == "cpu"
    if simulated:
        print(f"\nThe {PEERS} devices are simulated by one processor: its row shows the cost of spreading, not a gain.")
    if options.out:
        machine = {"device": jax.devices()[0].device_kind, "cores": os.cpu_count(), "versions": workdir.versions()}
        found = {
            name: {"ms": median, "ratio": median / medians[LOOPED], "losses_apart": apart[name]}
            for name, median in medians.items()
        }
        told = {"rounds": options.rounds, "steps": options.steps, "batch": options.batch, "medians": found}
        options.out.write_text(json.dumps({**machine, "simulated_devices": simulated, **told}, indent=1) + "\n")


if __name__ == "__main__":
    main()
