"""Runs an experiment.

    python -m cdl_jax.main --config FILE[:key=value,...] --workdir DIR [--config.section.key=value ...]

--mode=train      (default) trains, or goes on where the same command was stopped, or prints a finished run's results
--mode=eval       evaluates the checkpoint after --task=T (default: the last) and compares it with the stored row
--mode=analyze    writes analysis.json from the checkpoints, and the report anew with a section "Mechanism": how far the
                  student drifts from its teacher of then, accuracy without prompts, without the scheme's part and
                  with other weights of two heads, which prompts were chosen, how alike the networks' layers see test
                  pictures (linear CKA), and where these lie in the plane (t-SNE, if scikit-learn is there; also in
                  features_<network>.svg)
--mode=describe   tasks, parameters, operations and memory of a step, resolved config; trains nothing
--distributed=off|auto|HOST:PORT,NUM_PROCESSES,PROCESS_ID   several processes; auto asks SLURM or the cloud

Exit code 0: done. 2: a mistake in the command, the data or the working directory, a full disk, or a loss that is no
number, told in one line. 143, 130: ended by SIGTERM or SIGINT with everything saved.
"""

import errno
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

_MODES = ("train", "eval", "analyze", "describe")
# What a disk does to a run: full, over a quota, a file too large for it, read-only, broken, or no longer there.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)
_FLAGS = ("config", "workdir", "mode", "task", "distributed")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    argv = sys.argv if argv is None else ["cdl_jax", *argv]
    if any(word in ("--help", "-h", "-help") for word in argv[1:]):
        print(__doc__.strip())
        return 0
    from cdl_jax.errors import UserError

    try:
        options = _parse(argv)
        return _run(options)
    except UserError as error:
        print("cdl_jax: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        print(f"cdl_jax: {error.filename or 'a file'} cannot be written: {error.strerror}; the same command goes on "
              "from the last checkpoint once that is mended", file=sys.stderr)  # fmt: skip
        return 2
    except KeyboardInterrupt:
        print("cdl_jax: interrupted", file=sys.stderr)
        return 130


def _parse(argv):
    """The flags' values.

    Raises:
      UserError: a flag or a config key is wrong.
    """
    from absl import flags

    from cdl_jax import config
    from cdl_jax.errors import UserError
    from cdl_jax.names import nearest

    file = _config_flag(argv)
    path = file.split(":")[0]
    if not Path(path).is_file():
        raise UserError(f"config file {path} does not exist: name one of configs/*.py")
    known = config.flatten(_flags()([argv[0], f"--config={file}"]).config)
    for word in argv[1:]:
        key = word.removeprefix("--config.").split("=")[0]
        if word.startswith("--config.") and key not in known:
            raise UserError(f"unknown key config.{key}: {nearest(key, known)}")
    try:
        values = _flags()(argv)
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"unknown flag --{error.flagname}: {nearest(error.flagname, _FLAGS)}") from None
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(str(error)) from None
    config.check_numbers(values.config)
    for key, value in config.flatten(values.config).items():
        if isinstance(value, list) and any(isinstance(one, int | float) for one in known[key] or ()):
            if any(isinstance(one, str) for one in value):
                raise UserError(f"config.{key}={tuple(value)} must be numbers")
    if values.rest:
        raise UserError(f"unexpected argument {values.rest[0]!r}: flags start with --")
    if values.mode not in _MODES:
        raise UserError(f"--mode={values.mode}: {nearest(values.mode, _MODES)}")
    if values.workdir is None and values.mode != "describe":
        raise UserError("--workdir is missing: name the directory of the run")
    return values


def _flags():
    """A function from a command line to the flags' values; it leaves absl's global flags alone."""
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_string("mode", "train", "", flag_values=values)
    flags.DEFINE_integer("task", None, "", flag_values=values)
    flags.DEFINE_string("distributed", "off", "", flag_values=values)
    config_flags.DEFINE_config_file("config", None, "", lock_config=True, flag_values=values)

    def parse(argv):
        sys.argv = argv  # where ml_collections looks for overrides
        rest = values(argv)[1:]
        return SimpleNamespace(rest=rest, **{name: values[name].value for name in _FLAGS})

    return parse


def _config_flag(argv):
    """The value of --config; looked at before absl does, whose answer to a mistake in it spans many lines."""
    from cdl_jax.errors import UserError

    for word, after in zip(argv[1:], [*argv[2:], ""], strict=True):
        if word in ("--config", "-config"):
            return after
        if word.startswith(("--config=", "-config=")):
            return word.split("=", 1)[1]
    raise UserError("--config is missing: name one of configs/*.py")


def _run(options):
    from cdl_jax import compilation, host_memory, paths, sharding, workdir
    from cdl_jax import config as configs
    from cdl_jax.program import Program

    config = options.config
    configs.check(config)
    host_memory.keep()
    compilation.keep(config.compilation_cache)
    if options.mode == "describe":
        from cdl_jax.describe import describe, plan

        data, note = plan(config.data, configs.seeds_of(config)[0])
        print(note + describe(Program(config, data)))
        return 0
    folder = paths.resolve(options.workdir, "--workdir")
    resolved = config.to_dict()
    if options.mode == "analyze":
        return _analyze(config, folder, options.distributed)
    if options.mode == "eval":
        sharding.start(options.distributed)
        return _evaluate(config, folder, options.task)

    import jax

    from cdl_jax import interruption, report, run

    try:
        with interruption.listening(alone=options.distributed == "off") as listener:
            sharding.start(options.distributed)
            primary = jax.process_index() == 0
            with workdir.locked(folder) if primary else nullcontext():
                workdir.check_config(folder, resolved)
                workdir.check_seeds(folder, config.seeds)
                seeds = run.train(_program(config), folder, listener)
    except interruption.Interrupted as stop:
        print(f"cdl_jax: {stop}", file=sys.stderr)
        return 128 + stop.number
    if primary:
        print(report.summary(seeds))
        for own in workdir.seed_folders(folder, config.seeds):
            if config.log.report:
                print(f"report: {own / 'report.html'}")
    return 0


def _program(config):
    from cdl_jax import config as configs
    from cdl_jax.data import stream
    from cdl_jax.program import Program

    return Program(config, stream.load(config.data, configs.seeds_of(config)[0]))


def _stored_run(config, folder):
    """The program of the run in `folder`.

    Raises:
      UserError: there is none, or it is of another config.
    """
    from cdl_jax import workdir
    from cdl_jax.errors import UserError

    if not (folder / "config.json").exists():
        raise UserError(f"--workdir {folder} holds no run: train one with the same command and --mode=train")
    workdir.check_config(folder, config.to_dict())
    return _program(config)


def _analyze(config, folder, distributed):
    from cdl_jax import analysis, mechanism
    from cdl_jax.errors import UserError

    if distributed != "off":
        raise UserError(f"--distributed={distributed}: --mode=analyze works in one process, leave it out")
    content = analysis.analyze(_stored_run(config, folder), folder)
    analysis.write(folder, content)
    print(mechanism.summary(content))
    print(f"report: {folder / 'report.html'}")
    return 0


def _evaluate(config, folder, task):
    from cdl_jax import run

    result = run.evaluate(_stored_run(config, folder), folder, task)
    same = True
    for network, rows in result["networks"].items():
        shown = " ".join(f"{value:.2f}" for value in rows["now"])
        same &= rows["now"] == rows["stored"]
        print(f"{network} after task {result['task']}: {shown}")
    print("equal to the run's accuracy matrix" if same else "NOT equal to the run's accuracy matrix")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
