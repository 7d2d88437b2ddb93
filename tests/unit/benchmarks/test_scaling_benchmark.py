"""The arithmetic of what is sent between devices."""

import json
from pathlib import Path

import pytest

from benchmarks import kernels
from benchmarks.cases import scaling

PROGRAM = """
  %all-reduce.1 = f32[10,384]{1,0} all-reduce(%a), channel_id=1, replica_groups={{0,1}}
  %all-reduce.2 = (f32[100]{0}, s32[]) all-reduce(%b, %c), channel_id=2
  %all-gather.3 = bf16[768,3072]{1,0} all-gather(%d), dimensions={1}
  %get = f32[100]{0} get-tuple-element(%all-reduce.2), index=0
  %all-gather.4 = pred[16]{0} all-gather(%e), dimensions={0}
"""


def test_collectives_are_counted_with_the_bytes_of_their_results():
    assert scaling.collectives(PROGRAM) == {
        "all-reduce": (2, 4 * 3840 + 4 * 100 + 4),
        "all-gather": (2, 2 * 768 * 3072 + 16),
    }


def test_efficiency_is_the_share_of_computing():
    cluster = scaling.Cluster(flops=1e12, host=8, links=(1e9, 1e8), latency=1e-3)
    sent = {"all-reduce": (3, 500_000), "all-gather": (1, 1_000_000)}
    assert scaling.efficiency(1e12, sent, 1, 1, cluster) == 1
    # One second of work; 2 MB pass, of which 7/8 within the host; four times a millisecond.
    assert scaling.efficiency(1e12, sent, 8, 1, cluster) == pytest.approx(1 / (1 + 2e6 * 7 / 8 / 1e9 + 4e-3))
    assert scaling.efficiency(1e12, sent, 16, 1, cluster) == pytest.approx(1 / (1 + 2e6 * 15 / 16 / 1e8 + 4e-3))
    # Weights in parts on four devices of a host: their megabyte stays there.
    seconds = 1e6 * 15 / 16 / 1e8 + 1e6 * 3 / 4 / 1e9 + 4e-3
    assert scaling.efficiency(1e12, sent, 16, 4, cluster) == pytest.approx(1 / (1 + seconds))


def test_waiting_is_what_no_kernel_runs_beside():
    card = kernels.Card("c", peak=1e12, bandwidth=1e9, link=1e9, products=1.0, copies=1.0, latency=0.0)
    events = [
        kernels.Collective("a", "all-gather", 8_000_000, 8),  # 7 ms
        kernels.Kernel("k", "", "rest", bytes=3_000_000),  # 3 ms
        kernels.End("a"),
        kernels.Kernel("l", "", "rest", bytes=5_000_000),
        kernels.Collective("b", "all-reduce", 1_000_000, 2),  # 1 ms
        kernels.End("b"),
    ]
    found = scaling.waiting(events, card)
    assert found["sent"] == {"all-gather": (1, 8_000_000), "all-reduce": (1, 1_000_000)}
    seconds = [found[part] for part in ("kernels", "collectives", "waiting")]
    assert seconds == pytest.approx([8e-3, 8e-3, 4e-3 + 1e-3])


def test_the_page_has_the_table_of_the_stored_figures():
    docs = Path(__file__).parents[3] / "docs"
    stored = json.loads((docs / "results" / "benchmarks" / "scaling_h200_b_s.json").read_text())
    table = scaling.described_table(stored["rows"])
    assert len(table.splitlines()) == 2 + 4 and table in (docs / "maintainers" / "scaling.md").read_text()
