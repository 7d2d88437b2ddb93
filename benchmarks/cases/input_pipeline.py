"""Times the input pipeline alone: crops of images into batches.

    python -m benchmarks.run input_pipeline [--side 32] [--size tiny]

The table also has the time of the pipeline relative to a training step. Random crops, resized to the networks' size and
half of them flipped. Ours on the device inside the step, or on the host with images decoded ahead
(`device_data_limit_mb=0`); PyTorch's one by one through Pillow, as the authors have it, or all at once on the device.
The sides draw other random numbers, so only the mean brightness is compared.
"""

from functools import partial

import numpy as np

from benchmarks import cdl_sizes, timing, torch_peers

DEVICE, HOST = "ours, on the device", "ours, on the host"


def arguments(parser) -> None:
    """Adds the case's options."""
    parser.add_argument("--size", choices=cdl_sizes.SIZES, default="tiny")
    parser.add_argument("--side", type=int, default=32, help="of the stored images, in pixels")
    parser.add_argument("--batches", type=int, default=4, help="in each round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=0, help="processes of PyTorch's loader")


def measure(options) -> dict:
    """Prints the table; returns its figures."""
    torch = torch_peers.start()
    import jax

    from benchmarks import fake_data
    from benchmarks.training_state import TrainingState
    from cdl_jax.data.transforms import augment

    config = cdl_sizes.config(options.size, "l2p", "kd")
    config.augment.update(train="random_resized_crop", flip=True, test="resize")
    batch, size = config.train.batch_size, config.student.image_size
    data = fake_data.noise_stream(options.side, 1, 1, options.batches * batch, batch)
    learning = TrainingState(config, data)
    source, key = learning.steps.train_loader, jax.random.key(0)
    prepared = [item for item, _ in learning.batches(0, options.batches)]
    read = jax.jit(
        lambda data, item, key: augment.transform_train(source.read(data, item)[0], key, config.augment, size)
    )
    host_config = config.copy_and_resolve_references()
    host_config.device_data_limit_mb = 0
    host = TrainingState(host_config, data)

    def on_device():
        return [read(source.data, item, key) for item in prepared]

    def on_host():
        phase = host.phases[0]
        items = host.steps.train_batches(host.task, phase, 0, 0)
        return [item["images"] for item, _ in zip(items, range(options.batches), strict=False)]

    from benchmarks.torch_peers import loaders

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = torch.from_numpy(np.ascontiguousarray(data.train.images.transpose(0, 3, 1, 2))).to(device)
    labels = torch.from_numpy(data.train.labels).to(device)

    def one_by_one():
        loader = loaders.one_by_one(
            data.train.images, data.train.labels, "random_resized_crop", size, batch, True, options.workers
        )
        return [images.to(device) for images, _ in loader]

    def at_once():
        batches = loaders.on_device(images, labels, "random_resized_crop", size, batch)
        return [images for images, _ in batches]

    ways = {DEVICE: on_device, HOST: on_host, "authors": one_by_one, "tuned": at_once}
    means = {name: _mean(way()) for name, way in ways.items()}
    differences = timing.loss_differences(means, DEVICE)
    timing.check_equal("the mean brightness", differences, dict.fromkeys(ways, 0.02))
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    timed = {name: partial(_seconds, way, options.batches, synchronize) for name, way in ways.items()}
    found = timing.compare(timing.alternate(timed, options.rounds), DEVICE)
    step = _step(learning, options)
    head = ("crops", "ms a batch (quartiles)", "ratio", "of our student's step")
    rows = [
        (name, f"{one['median']:.1f} ({one['q1']:.1f}-{one['q3']:.1f})", f"{one['ratio']:.2f}",
         f"{100 * one['median'] / step:.0f} %")
        for name, one in found.items()
    ]  # fmt: skip
    print(timing.markdown(head, rows))
    print(f"\nThe step, crops on the device included, takes {step:.0f} ms; a batch has {batch} images.")
    return {"size": options.size, "side": options.side, "batch": batch, "ms": found, "step_ms": step}


def _mean(batches):
    """Of all pixels, in [0, 1]."""
    arrays = [np.asarray(batch.cpu() if hasattr(batch, "cpu") else batch) for batch in batches]
    return float(np.mean([array.mean() / (255 if array.dtype == np.uint8 else 1) for array in arrays]))


def _seconds(way, count, synchronize):
    """Milliseconds a batch."""
    import jax

    start = timing.now()
    jax.block_until_ready([batch for batch in way() if isinstance(batch, jax.Array)])
    synchronize()
    return 1e3 * (timing.now() - start) / count


def _step(learning, options):
    """Milliseconds of our student's step."""
    batches = learning.batches(1, options.batches)
    learning.seconds(1, batches)
    return 1e3 * min(learning.seconds(1, batches) for _ in range(3)) / options.batches
