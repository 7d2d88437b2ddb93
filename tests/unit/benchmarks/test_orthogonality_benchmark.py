"""The benchmark of VkD's projection: few steps, and figures in the documentation."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cases import orthogonality
from cdl_jax.report import comparison_plots

RESULTS = Path(__file__).parents[3] / "docs" / "results"


def test_the_reference_projector_vanishes_after_one_step():
    start, end, norms = orthogonality.train("householder", "float32", True, 3, 8, 4)
    assert norms == pytest.approx([2, 0, 0, 0], abs=1e-5)  # four orthonormal columns
    assert np.linalg.norm(start) == pytest.approx(2, abs=1e-5) and not np.any(end)


def test_rounded_numbers_still_give_an_orthonormal_weight():
    start, end, norms = orthogonality.train("householder", "bfloat16", False, 40, 8, 4)
    assert norms == pytest.approx([2] * 41, abs=1e-5)
    assert np.abs(end.T @ end - np.eye(4)).max() < 1e-5
    assert np.linalg.norm(end - start) > 0.02


def test_the_documents_show_the_stored_figures():
    found = json.loads((RESULTS / "orthogonality.json").read_text())
    assert found["steps"] == 10_000
    assert orthogonality.table(found) in (RESULTS / "vkd.md").read_text()
    drawn = comparison_plots.line_plot(found["norms"], "optimizer steps", "Frobenius norm of the projection")
    assert drawn == (RESULTS / "vkd_collapse.svg").read_text()
