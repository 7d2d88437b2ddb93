"""Reads data sets that TensorFlow Datasets prepared as array_record.

The data sets are read without TensorFlow and without downloads.
"""

from collections.abc import Sequence
from typing import Any

from cdl_jax.errors import UserError
from cdl_jax.runtime import paths


def builder(name: str, path: str) -> Any:
    """Returns the tfds builder of a data set.

    Args:
      name: of the set in tfds.
      path: the data_dir, or the prepared folder itself; empty: tfds' default data_dir.

    Raises:
      UserError: tensorflow_datasets is not installed, or has no such set.
    """
    tfds, folder = _library(), paths.resolve(path, "data.path") if path else None
    try:
        if folder and (folder / "dataset_info.json").is_file():
            return tfds.builder_from_directory(folder)
        return tfds.builder(name, data_dir=str(folder) if folder else None, file_format="array_record")
    except Exception as error:  # tfds fails in many ways, from absent code to damaged metadata
        raise UserError(
            f"tfds set {name!r}: {_first_line(error)}; see tensorflow.org/datasets/catalog for the names"
        ) from None


def records(builder: Any, split: str, undecoded: Sequence[str] = ()) -> Sequence[dict[str, Any]]:
    """Returns the examples of a split in their stored order, by index.

    Args:
      builder: of `builder`.
      split: in tfds' syntax, such as "test[:80%]".
      undecoded: names of features that stay encoded bytes.

    Raises:
      UserError: the set is not prepared as array_record; the message has the command that prepares it.
    """
    tfds = _library()
    decoders = {name: tfds.decode.SkipDecoding() for name in undecoded} or None
    try:
        return builder.as_data_source(split=split, decoders=decoders)
    except Exception as error:
        data_dir = str(builder.data_path).split(f"/{builder.name}/")[0]
        raise UserError(
            f"tfds set {builder.name!r}, split {split!r}, is not ready in {builder.data_path} ({_first_line(error)}); "
            'prepare it once where TensorFlow is installed: python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder('{builder.name}', data_dir='{data_dir}', "
            "file_format='array_record').download_and_prepare()\""
        ) from None


def _library():
    try:
        import tensorflow_datasets
    except ModuleNotFoundError as error:
        raise UserError(
            f"this data source needs {error.name}: pip install tensorflow-datasets importlib_resources"
        ) from None
    return tensorflow_datasets


def _first_line(error):
    """Returns the first line of an error, at most 160 characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".:")[:160]
