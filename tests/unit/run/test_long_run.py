"""Memory, files and threads of a run do not grow from task to task."""

import concurrent.futures.thread
import gc
import os
import sys
import threading

import jax
import pytest

from benchmarks.cases import long_run
from cdl_jax.data import stream
from cdl_jax.run import loop, workdir
from cdl_jax.runtime import tensorstore_leak
from cdl_jax.runtime.signals import SignalHandler
from cdl_jax.training.experiment import Experiment

TASKS, WARM = 16, 8


def threads():
    """Returns the number of threads; a pool, which grows under load, counts as one."""
    pool_of = concurrent.futures.thread._threads_queues
    return len({pool_of.get(thread, thread) for thread in threading.enumerate()})


def test_a_thread_pool_counts_once_and_two_pools_twice():
    before = threads()
    with concurrent.futures.ThreadPoolExecutor(3) as one, concurrent.futures.ThreadPoolExecutor(3) as other:
        everybody_here = threading.Barrier(4)
        waiting = [one.submit(everybody_here.wait) for _ in range(3)]
        assert threads() == before + 1
        other.submit(len, "").result()
        assert threads() == before + 2
        everybody_here.wait()
        assert all(future.exception() is None for future in waiting)


@pytest.fixture(scope="module")
def looks(tmp_path_factory):
    """Returns measures of this process after each task of a run.

    A checkpoint follows every third step, and each task.
    """
    folder, seen, save = tmp_path_factory.mktemp("long"), [], loop.Checkpoints.save_task

    def saved(self, task, variables, record):
        save(self, task, variables, record)
        gc.collect()
        arrays = jax.live_arrays()
        seen.append(
            {
                "blocks": sys.getallocatedblocks(),
                "numbers": len(jax.tree.leaves(record)),
                "arrays": len(arrays),
                "bytes": sum(array.nbytes for array in arrays),
                "files": len(os.listdir("/proc/self/fd")),
                "threads": threads(),
            }
        )

    long_run.noise_file(folder / "noise.npz", TASKS)
    config = long_run.configured(folder / "noise.npz", TASKS)
    config.log.report = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Checkpoints, "save_task", saved)
        with workdir.locked(folder / "run"):
            loop.train(Experiment.build(config, stream.load(config.data)), folder / "run", SignalHandler())
    return seen


def test_arrays_files_and_threads_do_not_grow(looks):
    early, late = looks[WARM : (WARM + TASKS) // 2], looks[(WARM + TASKS) // 2 :]
    for name in ("arrays", "bytes", "files", "threads"):
        least, most = ([f(look[name] for look in part) for part in (early, late)] for f in (min, max))
        assert least[1] <= least[0] and most[1] <= max(look[name] for look in looks[: len(looks) - len(late)]), name


def test_python_memory_grows_by_the_record_only(looks):
    first, last = looks[WARM], looks[-1]
    numbers = last["numbers"] - first["numbers"]
    assert numbers > 2 * (TASKS - WARM)
    assert last["blocks"] - first["blocks"] < numbers + 100 * (TASKS - 1 - WARM)


def test_a_specification_is_computed_once():
    import tensorstore

    spec = {"driver": "file", "path": "/tmp/somewhere/"}
    tensorstore_leak.memoize_spec_json()
    tensorstore_leak.memoize_spec_json()
    spec_class = tensorstore.KvStore.Spec
    assert spec_class(spec).to_json() == spec
    complete = spec_class(spec).to_json(include_defaults=True)
    assert complete.items() > spec.items() and "file_io_locking" in complete
    spec_class(spec).to_json()["path"] = "changed"
    assert spec_class(spec).to_json() == spec
    for number in range(500):
        spec_class({**spec, "path": f"/{number}/"}).to_json()
    assert len(spec_class.to_json.cache) <= 100
    gc.collect()
    blocks = sys.getallocatedblocks()
    for _ in range(500):
        spec_class(spec).to_json()
        tensorstore.experimental_collect_matching_metrics("/tensorstore/")
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 200
