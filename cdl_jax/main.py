"""Runs an experiment.

    python -m cdl_jax.main --config CONFIG[:key=value,...] [--workdir DIR] [--config.section.key=value ...]

--config CONFIG   a file, or a shipped config by its name: --config quickstart:distill=none
--workdir DIR     directory of the run; default: runs/<config>[-<arguments>]. The same command resumes the run.
                  With a directory that holds a run, --config may be left out: config.json in it has the config.
--fetch           downloads the data set and the weights of the config where they are missing, then goes on
--list            lists configs, methods, learners, schemes, data sources and networks
--version         prints the version

--mode=train      (default) trains; resumes where the same command was stopped; prints a finished run's results
--mode=eval       evaluates the checkpoint after --task=T (default: the last) and compares it with the stored row
--mode=analyze    writes analysis.json from the checkpoints, and the report anew with a section "Mechanism": how far the
                  student drifts from its teacher of then, accuracy without prompts, without the scheme's part and
                  with other weights of two heads, which prompts were chosen, how alike the networks' layers see test
                  images (linear CKA), and where these lie in the plane (t-SNE, if scikit-learn is there; also in
                  features_<network>.svg)
--mode=describe   prints tasks, parameters, operations and memory of a step; with --show_config the resolved config too;
                  trains nothing; published data sets need not be there
--distributed=off|auto|HOST:PORT,NUM_PROCESSES,PROCESS_ID   several processes; auto asks SLURM or the cloud

Exit code 0: done. 2: a mistake in the command, the data or the working directory, no memory or no disk space left, or a
loss that is NaN or infinite, reported in one line. 143, 130, 129, 138: ended by SIGTERM, SIGINT, SIGHUP or SIGUSR1 with
everything saved. 141: stdout was closed by its reader.
"""

import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from cdl_jax import __version__
from cdl_jax.runtime import console

_MODES = ("train", "eval", "analyze", "describe")
_FLAGS = ("config", "workdir", "mode", "task", "distributed", "fetch", "show_config")
_USAGE = """usage: python -m cdl_jax.main --config CONFIG [--workdir DIR] [--config.section.key=value ...]

  python -m cdl_jax.main --config quickstart          a first run, in a minute on a CPU
  python -m cdl_jax.main --config cifar100_l2p --fetch
  python -m cdl_jax.main --workdir runs/quickstart --mode eval

  --list: configs, methods, learners, schemes, data sources, networks    --help: all flags    --version"""


@console.command
def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    from cdl_jax.errors import MissingFileError, UserError

    try:
        code = _main(sys.argv if argv is None else ["cdl_jax", *argv])
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        raise  # `console.command` ends quietly
    except MissingFileError as error:
        _complain(f"{error}; the same command with --fetch gets it and goes on")
    except UserError as error:
        _complain(str(error))
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except Exception as error:
        from cdl_jax.runtime import environment

        console.discard_stdout()
        line = environment.explain_error(error)
        if line is None:
            raise
        _complain(line)
    return 2


def _complain(text):
    print("cdl_jax: " + " ".join(text.split()), file=sys.stderr)


def _main(argv):
    words = argv[1:]
    if not words:
        print(_USAGE, file=sys.stderr)
        return 2
    if any(word in ("--help", "-h", "-help") for word in words):
        print(__doc__.strip())
        return 0
    if "--version" in words:
        print(f"cdl_jax {__version__}")
        return 0
    if "--list" in words:
        from cdl_jax import listing

        print(listing.text())
        return 0
    from cdl_jax.runtime import signals

    # Of several processes that train none ends alone: it would take the others along before they save.
    several = _value(argv, "distributed") not in (None, "off") and _value(argv, "mode") in (None, "train")
    try:
        with signals.handle_signals(alone=not several) as handler:
            return _run(_parse(argv), handler)
    except signals.RunInterrupted as stop:
        _complain(str(stop))
        return 128 + stop.number


def _parse(argv):
    """Returns the flags' values.

    Raises:
      UserError: a flag or a config key is wrong.
    """
    import ml_collections
    from absl import flags

    from cdl_jax import config, config_files
    from cdl_jax.errors import UserError
    from cdl_jax.plugins import did_you_mean

    given, text = argv, _value(argv, "config")
    if text:
        name, _, arguments = text.partition(":")
        path = config_files.find(name)
        loaded = config_files.load(path, arguments)
        if not isinstance(loaded, ml_collections.ConfigDict):
            raise UserError(f"config file {path}: get_config returns {type(loaded).__name__}, not a ConfigDict; begin "
                            "with cdl_jax.config.default(...)")  # fmt: skip
        argv = _without(argv, "config")
    else:
        loaded = _stored_config(_value(argv, "workdir"))
    if source := _value(argv, "config.data.name"):
        loaded = config.with_source(loaded, source)
    known = config.flatten(loaded)
    for word in argv[1:]:
        key = word.removeprefix("--config.").split("=")[0]
        if word.startswith("--config.") and key not in known:
            raise UserError(f"unknown key config.{key}: {did_you_mean(key, known)}")
    try:
        values = _flags(argv, loaded)
    except flags.UnrecognizedFlagError as error:
        flags_known = [*_FLAGS, *(f"config.{key}" for key in known)]
        raise UserError(f"unknown flag --{error.flagname}: {did_you_mean(error.flagname, flags_known)}") from None
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(str(error)) from None
    config.check_keys(values.config)
    config.check_numbers(values.config)
    for key, value in config.flatten(values.config).items():
        if isinstance(value, list) and any(isinstance(one, int | float) for one in known[key] or ()):
            if any(isinstance(one, str) for one in value):
                raise UserError(f"config.{key}={tuple(value)} must be numbers")
    if values.rest:
        raise UserError(f"unexpected argument {values.rest[0]!r}: flags start with --")
    if values.mode not in _MODES:
        raise UserError(f"--mode={values.mode}: {did_you_mean(values.mode, _MODES)}")
    if values.task is not None and values.mode != "eval":
        raise UserError(f"--task={values.task} goes with --mode=eval, not with --mode={values.mode}: leave it out")
    values.chosen = values.workdir is not None
    if not values.chosen and values.mode != "describe":
        values.workdir = default_workdir(path, arguments)
    sys.argv = given
    return values


def default_workdir(path: Path, arguments: str) -> str:
    """Returns the working directory of a run that names none: `runs/<config>[-<arguments>]`.

    Args:
      path: the config file.
      arguments: what follows the colon; commas and slashes become dashes.
    """
    suffix = "-" + arguments.replace(",", "-").replace("/", "-") if arguments else ""
    return f"runs/{path.stem}{suffix}"


def _stored_config(workdir):
    """The config of the run in a directory, as a ConfigDict.

    Raises:
      UserError: no directory is named, or it holds no run.
    """
    import ml_collections

    from cdl_jax import config
    from cdl_jax.errors import UserError
    from cdl_jax.runtime import paths

    remedy = "add --config: a file, or one of python -m cdl_jax.main --list"
    if workdir is None:
        raise UserError(f"--config is missing: {remedy}")
    content = config.read(paths.resolve(workdir, "--workdir"))
    if content is None:
        raise UserError(f"--workdir {workdir} holds no run: {remedy}")
    # A run of an earlier version lacks the options that came later; their defaults are what it did.
    stored = config.with_defaults(content["config"])
    return ml_collections.ConfigDict(config.copy_with_tuples(stored), type_safe=True)


def _flags(argv, config):
    """Returns the flags' values of a command line; absl's global flags stay as they are.

    config: a ConfigDict, which `--config.section.key=value` changes.
    """
    from absl import flags
    from ml_collections import config_flags

    sys.argv = argv  # where ml_collections finds the changes, of a config already when its flag is defined
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_string("mode", "train", "", flag_values=values)
    flags.DEFINE_integer("task", None, "", flag_values=values)
    flags.DEFINE_string("distributed", "off", "", flag_values=values)
    flags.DEFINE_boolean("fetch", False, "", flag_values=values)
    flags.DEFINE_boolean("show_config", False, "", flag_values=values)
    config_flags.DEFINE_config_dict("config", config, "", lock_config=True, flag_values=values)
    rest = values(argv)[1:]
    return SimpleNamespace(rest=rest, **{name: values[name].value for name in _FLAGS})


def _value(argv, flag):
    """The value of a flag, None where it is absent; read before absl, whose errors about it span many lines."""
    for word, after in zip(argv[1:], [*argv[2:], None], strict=False):
        if word in (f"--{flag}", f"-{flag}"):
            return after
        if word.startswith((f"--{flag}=", f"-{flag}=")):
            return word.split("=", 1)[1]
    return None


def _without(argv, flag):
    """Returns the command line without a flag that is in it."""
    for index, word in enumerate(argv[1:], start=1):
        if word in (f"--{flag}", f"-{flag}"):
            return [*argv[:index], *argv[index + 2 :]]
        if word.startswith((f"--{flag}=", f"-{flag}=")):
            return [*argv[:index], *argv[index + 1 :]]
    return list(argv)


def _run(options, handler):
    from cdl_jax import config as configs
    from cdl_jax.errors import UserError
    from cdl_jax.run import workdir
    from cdl_jax.runtime import compilation_cache, distributed, files, malloc, paths
    from cdl_jax.training.program import Program

    config = options.config
    configs.check(config)
    malloc.retain_freed_memory()
    compilation_cache.enable_cache(config.compilation_cache)
    if options.mode != "describe":
        folder = paths.resolve(options.workdir, "--workdir")
        if options.distributed == "off":
            _print_workdir(options, folder)
    if options.fetch:
        if options.distributed != "off":
            raise UserError(
                "--fetch downloads in one process: run it without --distributed first, or use cdl_jax.fetch"
            )
        fetch_missing(config)
    if options.mode == "describe":
        from cdl_jax.run.describe import describe, plan

        distributed.initialize("off")
        data, note = plan(config.data, configs.seeds_of(config)[0])
        print(note + describe(Program(config, data), show_config=options.show_config))
        return 0
    resolved = config.to_dict()
    if options.mode == "analyze":
        return _analyze(config, folder, options)
    if options.mode == "eval":
        _start(options, folder)
        return _evaluate(config, folder, options.task)

    import jax

    from cdl_jax.report import run_page
    from cdl_jax.run import loop

    _start(options, folder)
    primary = jax.process_index() == 0
    with workdir.locked(folder) if primary else nullcontext():
        workdir.check_config(folder, resolved)
        workdir.check_seeds(folder, config.seeds)
        seeds = loop.train(_program(config, folder), folder, handler)
    if primary:
        print(run_page.summary(seeds))
        for own in files.seed_folders(folder, config.seeds):
            if (page := own / "report.html").exists() and config.log.report:
                print(f"report: {page}")
    return 0


def _start(options, folder):
    """Starts jax, and prints a working directory that the command does not name, in the first process only.

    One process prints before jax is loaded, several once they are joined: jax numbers them.
    """
    from cdl_jax.runtime import distributed

    distributed.initialize(options.distributed)
    if options.distributed != "off":
        import jax

        if jax.process_index() == 0:
            _print_workdir(options, folder)


def _print_workdir(options, folder):
    if not options.chosen:
        print(f"workdir: {folder}", flush=True)


def fetch_missing(config) -> None:
    """Downloads the data set and the weights that a config needs, where `cdl_jax.fetch` has them.

    Other mistakes are left to the run, which reports them: a teacher's run in place of a file, a damaged archive.

    Raises:
      UserError: a download failed.
    """
    from cdl_jax import config as configs
    from cdl_jax import fetch
    from cdl_jax.data import stream
    from cdl_jax.errors import MissingFileError, UserError
    from cdl_jax.models import weights

    steps = [partial(stream.load, config.data, configs.seeds_of(config)[0])]
    alone = config.get("distill", {}).get("name") == "none"
    for key, value in configs.flatten(config).items():
        named = key.endswith(".weights") and value not in ("", "random") and not value.startswith("package:")
        if named and not (alone and key == "teacher.weights"):
            steps.append(partial(weights.find, value, key))
    for step in steps:
        try:
            step()
        except MissingFileError as missing:
            fetch.get(missing.fetch_name)
        except UserError:
            pass


def _program(config, folder=None):
    """Returns the program of a config, with the data of the run in `folder` if there is one.

    Raises:
      UserError: the data is missing, damaged, or has changed since the run began.
    """
    from cdl_jax import config as configs
    from cdl_jax.data import stream
    from cdl_jax.run import workdir
    from cdl_jax.training.program import Program

    data = stream.load(config.data, configs.seeds_of(config)[0])
    if folder is not None:
        workdir.check_data(folder, data)
    return Program(config, data)


def _stored_run(config, folder):
    """The program of the run in `folder`.

    Raises:
      UserError: there is none, or it is of another config.
    """
    from cdl_jax.errors import UserError
    from cdl_jax.run import workdir

    if not (folder / "config.json").exists():
        raise UserError(f"--workdir {folder} holds no run: train one with the same command and --mode=train")
    workdir.check_config(folder, config.to_dict())
    return _program(config, folder)


def _analyze(config, folder, options):
    from cdl_jax.errors import UserError
    from cdl_jax.report import analysis_section
    from cdl_jax.run import analysis
    from cdl_jax.runtime import distributed

    if options.distributed != "off":
        raise UserError(f"--distributed={options.distributed}: --mode=analyze works in one process, leave it out")
    distributed.initialize("off")
    content = analysis.analyze(_stored_run(config, folder), folder)
    analysis.write(folder, content)
    print(analysis_section.summary(content))
    print(f"report: {folder / 'report.html'}")
    return 0


def _evaluate(config, folder, task):
    from cdl_jax.run import loop

    result = loop.evaluate(_stored_run(config, folder), folder, task)
    same = True
    for network, rows in result["networks"].items():
        shown = " ".join(f"{value:.2f}" for value in rows["now"])
        same &= rows["now"] == rows["stored"]
        print(f"{network} after task {result['task']}: {shown}")
    print("equal to the run's accuracy matrix" if same else "NOT equal to the run's accuracy matrix")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
