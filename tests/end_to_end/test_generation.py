"""A GAN in the task loop, by the command line.

The tests cover training, samples, evaluation, resume, two devices and bad input.
"""

import json
import signal

import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.command import last_weights, matrices, results, run, run_in_process
from tests.end_to_end.test_resume import kill_at_line

CONFIG = "tests/end_to_end/tiny_gan.py"
ARGUMENTS = ("--config", CONFIG)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    run_in_process(*ARGUMENTS, "--workdir", workdir, "--config.log.report=True")
    return workdir


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_measures_its_generator_and_the_smallest_distance_is_the_best(uninterrupted):
    content, name = results(uninterrupted), "glyph_mini_student"
    assert (content["metric"], content["lower_is_better"]) == (f"fd_{name}", True)
    assert content["setting"] == "vkd (our reading: replaced), whiten each"
    ((distance,),) = matrices(uninterrupted)["generator"]
    epoch_distances = [line[f"generator/fd_{name}"] for line in lines(uninterrupted) if "headline" in line]
    assert len(epoch_distances) == 3 and epoch_distances[-1] == distance
    assert content["best"]["0"]["value"] == min(epoch_distances)
    assert content["best"]["0"]["epochs"] == 1 + int(np.argmin(epoch_distances))
    (numbers,) = content["extra_metrics"]
    assert 0 < numbers[f"generator/fd_{name}_training"] < distance  # real images are nearer to real ones
    assert 0 <= numbers["generator/class_accuracy"] <= 100 and numbers["generator/within_class_variance"] > 0
    shares = [numbers[f"generator/{part}_called_real"] for part in ("training", "test")]
    assert all(0 <= share <= 100 for share in shares)
    losses = [line for line in lines(uninterrupted) if "loss" in line]
    assert {"hinge_real", "hinge_fake", "lecam", "vkd", "generator_loss"} <= losses[0].keys()
    assert [line["learning_rate"] for line in losses] == pytest.approx([2e-4] * 6)
    # 64 images, 16 a step.
    assert losses[-1]["step"] == 12


def test_sheets_show_the_same_noise_and_change_over_time(uninterrupted):
    sheets = [np.asarray(Image.open(path)) for path in sorted((uninterrupted / "samples").iterdir())]
    assert [path.name for path in sorted((uninterrupted / "samples").iterdir())][-1] == "step_00000012.png"
    assert len(sheets) == 3 and sheets[0].shape == (4 * 8, 2 * 8, 3)  # four classes, two samples of each
    assert (sheets[0] != sheets[-1]).any()
    page = (uninterrupted / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 3 and "step_00000012" in page


def test_evaluation_of_the_checkpoint_equals_the_run(uninterrupted):
    out, _ = run_in_process(*ARGUMENTS, "--workdir", uninterrupted, "--mode=eval")
    assert "equal to the run's fd_glyph_mini_student matrix" in out and "NOT" not in out
    assert "generator/class_accuracy" in out


def test_other_modes_refuse_a_generator_in_one_line(uninterrupted, tmp_path):
    for mode in (["--mode=analyze"], ["--mode=export", "--output", tmp_path], ["--mode=eval", "--on=test"]):
        _, err = run_in_process(*ARGUMENTS, "--workdir", uninterrupted, *mode, expect=2)
        assert "generat" in err.splitlines()[-1]


def test_a_killed_run_ends_with_the_same_bits(uninterrupted, tmp_path):
    process, _ = kill_at_line(tmp_path, 4, signal.SIGKILL, ARGUMENTS)
    assert process.returncode == -signal.SIGKILL
    run_in_process(*ARGUMENTS, "--workdir", tmp_path)
    assert matrices(tmp_path) == matrices(uninterrupted)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()
    ours, wanted = last_weights(tmp_path, 0), last_weights(uninterrupted, 0)
    # Vectors of spectral norms, running statistics, LeCam's averages and the number of iterations are among them.
    for part in ("spectral", "batch_stats", "score_means", "iterations"):
        assert any(part in name for name in wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_two_devices_equal_one(uninterrupted, tmp_path):
    run(*ARGUMENTS, "--workdir", tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=2")
    losses = [[line["loss"] for line in lines(workdir) if "loss" in line] for workdir in (tmp_path, uninterrupted)]
    np.testing.assert_allclose(*losses, rtol=1e-3)
    np.testing.assert_allclose(matrices(tmp_path)["generator"], matrices(uninterrupted)["generator"], rtol=1e-3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.train.batch_size=128"], "larger than the 64 training images"),
        (["--config.train.batch_size=15"], "gan.d_steps=2 equal batches"),
        (["--config.teacher.weights="], "name its file or run in config.teacher.weights"),
        (["--config.teacher.weights=package:glyph_mini_student"], "is the teacher"),
        (["--config.gan.image_size=48"], "must be a power of two"),
        (["--config.gan.policy=flip"], "no part 'flip'"),
        (["--config.augment.mean=()", "--config.augment.std=()"], "pixels are in [-1, 1]"),
        (["--config.gan.generated=15"], "must be a multiple of gan.generation_batch=8"),
        (["--config.gan.kd_terms=('aggregated',)"], "leave gan.kd_terms"),
        (["--config.gan.vkd=none", "--config.gan.kd_terms=('correlated',)"], "needs gan.text_features"),
        (["--config.gan.vkd_norm=layer", "--config.gan.vkd_scope=joint"], "belongs to a whitening"),
        (["--config.data.num_tasks=2"], "learns all classes at once"),
        (["--config.measuring.weights=missing.npz"], "config.measuring.weights='missing.npz'"),
        (["--config.gan.score=True"], "does not fit the model"),
        (["--config.optim.accumulate=2"], "optim.accumulate"),
        (["--config.device_data_limit_mb=0"], "needs all images on the device"),
    ],
)
def test_bad_input_gets_one_line(flags, message, tmp_path):
    _, err = run_in_process(*ARGUMENTS, "--workdir", tmp_path, *flags, expect=2)
    assert message in err.splitlines()[-1]


def test_each_seed_of_one_program_is_the_run_that_it_is_alone(uninterrupted, tmp_path):
    # The class order is the config's, so both seeds learn the four classes of `uninterrupted`, whose seed is 0.
    run_in_process(*ARGUMENTS, "--workdir", tmp_path, "--config.seeds=(0,3)")
    together, alone = (
        [[line["loss"] for line in lines(folder) if "loss" in line] for folder in folders]
        for folders in ((tmp_path / "seed_0", tmp_path / "seed_3"), (uninterrupted,))
    )
    np.testing.assert_allclose(together[0], alone[0], rtol=1e-3)
    assert np.abs(np.subtract(*together)).max() > 0.01
    distances = [matrices(folder)["generator"] for folder in (tmp_path / "seed_0", uninterrupted)]
    np.testing.assert_allclose(*distances, rtol=1e-3)
    assert len(list((tmp_path / "seed_3" / "samples").iterdir())) == 3
