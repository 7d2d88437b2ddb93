"""The section of an analysis on the report page, and its summary."""

from cdl_jax.report import analysis_section
from tests.support.stored_runs import ANALYSIS


def test_the_section_shows_cka_and_tsne():
    content = {
        **ANALYSIS,
        "cka": {
            "images": 40,
            "layers": {"teacher": ["block_0", "features"], "student": ["features", "cl", "st"]},
            "pairs": {
                "teacher/student": [[0.11, 0.12, 0.13], [0.76, None, 0.23]],
                "student/student": [[1.0, 0.5, 0.25], [0.5, 1.0, 0.345], [0.25, 0.345, 1.0]],
            },
        },
        "tsne": {
            "classes": ["a < b", "c"],
            "labels": [0, 1, 1],
            "networks": {"student": [[0.0, 1.0], [2.0, 3.0], [1.0, 0.5]]},
            "missing": "",
        },
    }
    text = "".join(analysis_section.html_parts(content))
    assert text.count("<svg") == 3 + 2 + 1
    for shown in ("block_0", "0.76", "0.34", "a &lt; b"):
        assert f"<!-- {shown} -->" in text, shown
    assert "linear centered kernel alignment on 40 test images" in text and "also in features_student.svg" in text
    assert (
        analysis_section.plot_features(content).keys() == {"student"} and analysis_section.plot_features(ANALYSIS) == {}
    )
    assert analysis_section.summary(content).splitlines()[-2:] == [
        "teacher/student: linear CKA of features 0.760",
        "student: linear CKA of both heads 0.345",
    ]
    content["tsne"] = {"classes": [], "labels": [], "networks": {}, "missing": "t-SNE needs a library"}
    assert analysis_section.summary(content).splitlines()[-1] == "features are not drawn: t-SNE needs a library"


def test_the_summary_of_an_analysis():
    assert analysis_section.summary(ANALYSIS).splitlines() == [
        "mean accuracy, %  unchanged  prompts_off  distillation_off",
        "teacher               75.00        30.00             10.00",
        "student               45.00        20.00                 -",
        "student, second_head_weight: 45.00 with 0.5, at best 47.00 with 0.0",
        "teacher/student: KL to the teacher at that task 0.1875 nats after the task, 0.3150 at the end",
    ]
