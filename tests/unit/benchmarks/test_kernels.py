"""Kernels, their operations and their bytes, in the text of a compiled program."""

import dataclasses

import pytest

from benchmarks import described, kernels, run
from benchmarks.cases import aot
from benchmarks.kernels import Card

# As XLA prints it, shortened. The weights have float32, the activations 16 bits.
PROGRAM = """HloModule jit_step, is_scheduled=true

%gemm (param_0: bf16[100,64], param_1: bf16[64,256]) -> bf16[100,256] {
  %param_0 = bf16[100,64]{1,0} parameter(0)
  %param_1 = bf16[64,256]{1,0} parameter(1)
  ROOT %dot.1 = bf16[100,256]{1,0} dot(%param_0, %param_1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%outer_gemm (p.0: bf16[100,64], p.1: bf16[64,256]) -> bf16[100,256] {
  %p.0 = bf16[100,64]{1,0} parameter(0)
  %p.1 = bf16[64,256]{1,0} parameter(1)
  ROOT %inner = bf16[100,256]{1,0} fusion(%p.0, %p.1), kind=kCustom, calls=%gemm
}

%cast (p.2: f32[64,256]) -> bf16[64,256] {
  %p.2 = f32[64,256]{1,0} parameter(0)
  ROOT %convert = bf16[64,256]{1,0} convert(%p.2)
}

%split (p.3: bf16[100,256]) -> bf16[100,32] {
  %p.3 = bf16[100,256]{1,0} parameter(0)
  ROOT %slice = bf16[100,32]{1,0} slice(%p.3), slice={[0:100], [64:96]}
}

%body (p.4: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %p.4 = (s32[], f32[8,8]{1,0}) parameter(0)
  %item = f32[8,8]{1,0} get-tuple-element(%p.4), index=1
  %i = s32[] get-tuple-element(%p.4), index=0
  %scores = f32[8,8]{1,0} dot(%item, %item), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="x"}
  ROOT %t = (s32[], f32[8,8]{1,0}) tuple(%i, %scores)
}

ENTRY %main (x: bf16[100,64], w: f32[64,256], q: bf16[2,6,4,8], k: bf16[2,10,4,8]) -> bf16[100,32] {
  %x = bf16[100,64]{1,0} parameter(0), metadata={op_name="x"}
  %w = f32[64,256]{1,0} parameter(1)
  %q = bf16[2,6,4,8]{3,2,1,0} parameter(2)
  %k = bf16[2,10,4,8]{3,2,1,0} parameter(3)
  %w16 = bf16[64,256]{1,0} fusion(%w), kind=kLoop, calls=%cast, metadata={op_name="jit(step)/ViT/block_0/mlp/fc1/convert_element_type"}
  %hidden = bf16[100,256]{1,0} fusion(%x, %w16), kind=kCustom, calls=%outer_gemm, metadata={op_name="jit(step)/jvp(ViT)/block_0/mlp/fc1/dot_general"}
  %view = bf16[25600]{0} bitcast(%hidden)
  %fmha = (bf16[2,4,6,8]{3,1,2,0}, u8[0]{0}) custom-call(%q, %k, %k, /*index=3*/%q), custom_call_target="__cudnn$fmhaSoftmax", metadata={op_name="jit(step)/jvp(ViT)/block_0/attn/dot_product_attention_fwd"}
  %back = (bf16[2,4,6,8]{3,1,2,0}, u8[0]{0}) custom-call(%q, %k, %k), custom_call_target="__cudnn$fmhaSoftmaxBackward", metadata={op_name="jit(step)/transpose(jvp(ViT))/block_0/attn/dot_product_attention_bwd"}
  %blas = (bf16[100,256]{1,0}, s8[64]{0}) custom-call(%x, %w16), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %start = (s32[], f32[8,8]{1,0}) tuple(%x, %w)
  %loop = (s32[], f32[8,8]{1,0}) while(%start), condition=%cast, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %out = bf16[100,32]{1,0} fusion(%hidden), kind=kLoop, calls=%split, metadata={op_name="jit(step)/ViT/block_0/attn/split"}
}
"""  # noqa: E501


def test_kernels_have_the_operations_of_their_products_and_the_bytes_that_they_move():
    found = {kernel.name: kernel for kernel in kernels.kernels(PROGRAM)}
    weight, hidden, query = 64 * 256, 100 * 256, 2 * 6 * 4 * 8
    key = 2 * 10 * 4 * 8
    assert {name: (kernel.bytes, kernel.flops, kernel.wide_flops) for name, kernel in found.items()} == {
        "w16": (6 * weight, 0, 0),
        "hidden": (2 * (100 * 64 + weight + hidden), 2 * 100 * 64 * 256, 0),
        "fmha": (2 * (2 * query + 2 * key + query), 4 * 2 * 4 * 6 * 10 * 8, 0),
        "back": (2 * (query + 2 * key + query), 10 * 2 * 4 * 6 * 10 * 8, 0),
        "blas": (2 * (100 * 64 + weight + hidden) + 64, 2 * 100 * 64 * 256, 0),
        "convert": (6 * weight, 0, 0),  # the loop's condition here
        "scores": (4 * 3 * 64, 0, 2 * 8**3),
        "out": (2 * 2 * 100 * 32, 0, 0),  # of the 256 columns 32 are read
    }
    assert [kernel.name for kernel in kernels.kernels(PROGRAM)].count("scores") == 3


def test_kernels_belong_to_the_part_of_what_they_compute():
    parts = {kernel.name: kernel.part for kernel in kernels.kernels(PROGRAM)}
    assert [parts[name] for name in ("w16", "hidden", "fmha", "back", "out")] == [
        "casts of weights",
        "dense layers",
        "attention: products",
        "attention: products",
        "attention: softmax, layout",
    ]
    assert set(parts.values()) <= set(kernels.PARTS)


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("jit(step)/transpose(jvp(ViT))/block_3/mlp/mul", "GELU"),
        ("jit(step)/transpose(jvp(ViT))/block_3/norm2/mul", "norms, residual sums"),
        ("jit(step)/jvp(ViT)/block_3/add", "norms, residual sums"),
        ("jit(step)/jvp(ViT)/block_3/attn/proj/add", "biases"),
        ("jit(step)/jvp(L2P)/top_k", "rest"),
        ("", "rest"),
    ],
)
def test_parts_of_elementwise_kernels(path, part):
    assert kernels._part(path, False) == part


def test_time_of_a_kernel_is_that_of_its_operations_or_of_its_bytes():
    card = Card("none", peak=1e12, bandwidth=1e10, products=0.5, copies=0.5)
    bound_by_bytes = kernels.Kernel("a", "", "rest", bytes=5_000_000, flops=1e6)
    assert bound_by_bytes.seconds(card) == pytest.approx(1e-3)
    assert kernels.Kernel("b", "", "rest", bytes=1, flops=1e9, wide_flops=2e9).seconds(card) == pytest.approx(1e-2)


def test_figures_of_a_step_are_sums_over_its_kernels():
    card = Card("none", peak=1e15, bandwidth=1e9, products=1.0, copies=1.0)  # bytes alone count
    found = aot.summarize(PROGRAM, card, batch=10)
    all_bytes = sum(kernel.bytes for kernel in kernels.kernels(PROGRAM))
    assert found["sum"]["ms"] == pytest.approx(all_bytes / 1e6) and found["sum"]["kernels"] == 12
    assert found["sum"]["ms"] == pytest.approx(sum(part["ms"] for part in found["parts"].values()))
    assert found["images_per_second"] == pytest.approx(10 / (all_bytes / 1e9))
    least = found["sum"]["gflop"] * 1e9 / 1e15
    assert found["share"] == pytest.approx(least / (all_bytes / 1e9))
    text = aot.table({**found, "memory": {"held": 2**20, "work": 3 * 2**20}})
    assert "memory: 1 MiB held, 3 MiB at work" in text and text.splitlines()[0].count("modelled") == 4


def test_cards_have_the_bandwidth_of_their_descriptions():
    for name, card in kernels.CARDS.items():
        assert f"memory_bandwidth: {card.bandwidth:.0f}\n" in card.description, name
    assert [kernels.CARDS[name].capability for name in ("h200", "h100", "a100")] == [(9, 0), (9, 0), (8, 0)]


def test_config_of_a_step_has_random_weights_and_the_changed_keys():
    config = aot.make_config("configs/cdl.py:student=vit_b16", ["student.depth=3", "learner.deep=False"], 64)
    assert (config.student.dim, config.student.depth, config.teacher.dim) == (768, 3, 1024)
    assert config.learner.deep is False and config.train.batch_size == 64
    assert config.teacher.weights == config.student.weights == "random"


def test_a_missing_compiler_and_unknown_keys_are_refused_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(described.importlib.util, "find_spec", lambda name: None)
    for command, message in (
        (
            ["aot"],
            "benchmarks: a described card needs XLA's compiler for CUDA: pip install -r requirements-gpu.txt",
        ),
        (["aot", "--set", "student.width=3"], "benchmarks: a described card needs"),
    ):
        with pytest.raises(SystemExit) as end:
            run.main(command)
        error = capsys.readouterr().err.strip()
        assert end.value.code == 2 and error.startswith(message) and "\n" not in error
    with pytest.raises(aot.UserError, match="aot --set student.width=3: no config key 'student.width'"):
        aot.make_config("configs/cdl.py", ["student.width=3"], 64)


# Two gathers, one of them beside a kernel, and a sum that nothing runs beside.
EXCHANGES = """HloModule jit_step, is_scheduled=true

ENTRY %main (w: bf16[1000,125], v: f32[500], x: f32[1000000]) -> f32[1000000] {
  %w = bf16[1000,125]{1,0} parameter(0)
  %v = f32[500]{0} parameter(1)
  %x = f32[1000000]{0} parameter(2)
  %first = ((bf16[1000,125]{1,0}, f32[500]{0}), (bf16[1000,1000]{1,0}, f32[4000]{0})) all-gather-start(%w, %v), dimensions={1}
  %gathered = (bf16[1000,1000]{1,0}, f32[4000]{0}) all-gather-done(%first)
  %second = ((bf16[1000,125]{1,0}), (bf16[1000,1000]{1,0})) all-gather-start(%w), dimensions={1}
  %copy = f32[1000000]{0} copy(%x)
  %again = (bf16[1000,1000]{1,0}) all-gather-done(%second)
  %parts = ((f32[1000000]{0}), (f32[125000]{0})) reduce-scatter-start(%copy), dimensions={0}
  %scattered = (f32[125000]{0}) reduce-scatter-done(%parts)
  ROOT %sum = f32[1000000]{0} all-reduce(%copy)
}
"""  # noqa: E501


def test_a_program_for_several_cards_has_its_collectives_in_order():
    events = kernels.schedule(EXCHANGES, devices=8)
    exchanges = [(e.kind, e.bytes, e.devices) for e in events if isinstance(e, kernels.Collective)]
    gathered = 2_000_000 + 4 * 4000
    assert exchanges == [
        ("all-gather", gathered, 8),
        ("all-gather", 2_000_000, 8),
        ("reduce-scatter", 4_000_000, 8),
        ("all-reduce", 4_000_000, 8),
    ]
    assert [type(event).__name__ for event in events] == ["Collective", "End", "Collective", "Kernel"] + [
        "End",
        *["Collective", "End"] * 2,
    ]


def test_a_card_waits_for_collectives_that_last_longer_than_the_kernels_beside_them():
    card = Card("slow", peak=1e12, bandwidth=1e9, link=1e9, products=1.0, copies=1.0, latency=1e-3)
    # 7/8 of the first gather's bytes and a millisecond; the second is hidden by the copy of 8 ms; then 7/8 of 4 MB, and
    # a sum of it, which passes twice.
    expected = 1e-3 + 7 / 8 * 2_016_000e-9 + (1e-3 + 7 / 8 * 4e-3) + (1e-3 + 2 * 7 / 8 * 4e-3)
    assert kernels.waiting_seconds(kernels.schedule(EXCHANGES, 8), card) == pytest.approx(expected)
    slower = dataclasses.replace(card, link=1e8)
    hidden = 8e-3  # of the second gather, 1 + 17.5 ms
    expected = 4e-3 + 7 / 8 * (2_016_000 + 2_000_000 + 3 * 4_000_000) * 1e-8 - hidden
    assert kernels.waiting_seconds(kernels.schedule(EXCHANGES, 8), slower) == pytest.approx(expected)
    assert kernels.waiting_seconds(kernels.schedule(PROGRAM), card) == 0
