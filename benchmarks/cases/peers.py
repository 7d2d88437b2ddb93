"""Four peers of OKDDip as separate networks: looped, one a device, and stacked.

    python -m benchmarks.run peers [--rounds 9] [--steps 5] [--batch 32] [--out FILE.json]

Looped peers run one after another, stacked peers under vmap. The network is that of configs/okddip_glyph.py, a small
ResNet for images of 32 pixels. All three ways start from the same weights and take the same batches; their losses must
be equal within 1e-5, relative, over the first steps before anything is timed. The table has medians over the rounds, in
each of which the ways take turns in another order.

Without accelerators the devices are simulated by one processor, whose cores the looped step uses already: there the
second way shows what spreading costs, not what it gains.
"""

import os
from dataclasses import dataclass, replace
from functools import partial

PEERS = 4
# Before jax is imported; without effect where there are other devices.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={PEERS}".strip()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from benchmarks import timing  # noqa: E402
from benchmarks.training_state import TrainingState  # noqa: E402
from cdl_jax.models.modules.conv import apply  # noqa: E402
from cdl_jax.models.peers.networks import PeerNetworks, PeerOutputs  # noqa: E402
from configs import okddip_glyph  # noqa: E402

LOOPED, SPREAD, STACKED = "looped over, one device", f"one a device, {PEERS} devices", "stacked under vmap, one device"
CHECKED = 3  # steps whose losses must agree


@dataclass(frozen=True)
class Stacked:
    """`PeerNetworks` with the variables of all peers as one tree.

    The leaves of the tree are stacked along a first axis.
    """

    looped: PeerNetworks

    @property
    def names(self):
        return self.looped.names

    def init(self, key, images):
        """Variables `{"peers": tree}` that equal those of `PeerNetworks`."""
        each = self.looped.init(key, images).values()
        return {"peers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)}

    def __call__(self, variables, images, train, key) -> PeerOutputs:
        """See `Networks.__call__`."""
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(self.names)))
        (logits, out), stats = jax.vmap(lambda network, key: apply(self.looped.backbone, network, images, train, key))(
            variables["peers"], keys
        )
        return PeerOutputs(tuple(logits), tuple(out["features"]), stats={"peers": stats})


def way(batch: int, spread: bool = False, stacked: bool = False) -> TrainingState:
    """One of the ways, about to learn."""
    config = okddip_glyph.get_config("method=okddip,base=network")
    config.okddip.num_branches = PEERS
    config.train.batch_size = batch
    config.devices = config.peer_devices = PEERS if spread else 1
    return TrainingState(config, change=_stacked if stacked else None)


def _stacked(method):
    return replace(method, peers=Stacked(method.peers))


def arguments(parser) -> None:
    """Adds the case's options."""
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=5, help="steps of each way in a round")
    parser.add_argument("--batch", type=int, default=32)


def measure(options) -> dict:
    """Prints the table; returns its figures.

    Raises:
      UserError: the losses of the ways differ.
    """
    ways = {
        LOOPED: way(options.batch),
        SPREAD: way(options.batch, spread=True),
        STACKED: way(options.batch, stacked=True),
    }
    differences = dict.fromkeys(ways, 0.0)
    for _ in range(CHECKED):
        for one in ways.values():
            one.seconds(0, 1)
        now = timing.loss_differences({name: float(one.loss(0)) for name, one in ways.items()}, LOOPED)
        differences = {name: max(differences[name], now[name]) for name in ways}
    timing.check_equal("the loss", differences, dict.fromkeys(ways, 1e-5))
    timed = timing.alternate(
        {n: lambda one=one: 1e3 * one.seconds(0, options.steps) / options.steps for n, one in ways.items()},
        options.rounds,
    )
    found = timing.compare(timed, LOOPED)
    rows = [
        (name, f"{one['median']:.1f} ms", f"{one['ratio']:.2f}", f"{differences[name]:.0e}")
        for name, one in found.items()
    ]
    print(timing.markdown(("peers", "a step", "ratio to the loop", "max loss diff"), rows))
    simulated = jax.devices()[0].platform == "cpu"
    if simulated:
        print(f"\nThe {PEERS} devices are simulated by one processor: its row shows the cost of spreading, not a gain.")
    figures = {"batch": options.batch, "simulated_devices": simulated, "loss_differences": differences}
    return {**figures, "ms": found}
