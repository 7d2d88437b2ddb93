"""The folder of an export."""

import pytest

from cdl_jax.errors import UserError
from cdl_jax.run import export


def test_an_export_replaces_no_other_files(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("mine")
    with pytest.raises(UserError, match="has files that are no export"):
        export.export(None, tmp_path)
    assert readme.read_text() == "mine"


def test_an_export_into_a_file_is_refused_before_work(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "served"):
        with pytest.raises(UserError, match="file is not a folder: choose another folder"):
            export.export(None, folder)
