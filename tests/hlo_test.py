"""Counts of an HLO text, written by hand in the form of XLA's own."""

import pytest

from tests import hlo

TEXT = """HloModule jit_f, is_scheduled=true

%fused_gather (p0: f32[1000,2], p1: s32[8,1]) -> f32[8,2] {
  %p0 = f32[1000,2]{1,0} parameter(0)
  %p1 = s32[8,1]{1,0} parameter(1)
  ROOT %gather.1 = f32[8,2]{1,0} gather(%p0, %p1), offset_dims={1}, slice_sizes={1,2}
}

%fused_dot (p0.1: f16[16,32], p1.1: f16[32,64]) -> f16[16,64] {
  %p0.1 = f16[16,32]{1,0} parameter(0)
  %p1.1 = f16[32,64]{1,0} parameter(1)
  ROOT %dot.1 = f16[16,64]{1,0} dot(%p0.1, %p1.1), lhs_contracting_dims={1}
}

%body (s: (f32[8])) -> (f32[8]) {
  %s = (f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%s), index=0
  %negated = f32[8]{0} negate(%x)
  ROOT %t = (f32[8]{0}) tuple(%negated)
}

%test (s.1: (f32[8])) -> pred[] {
  %s.1 = (f32[8]{0}) parameter(0)
  ROOT %c = pred[] constant(true)
}

%zeros (s.2: (f32[8])) -> (f32[8]) {
  ROOT %s.2 = (f32[8]{0}) parameter(0)
}

ENTRY %main (a: f16[16,32], b: f16[32,64], table: f32[1000,2], rows: s32[8,1]) -> f16[16,64] {
  %a = f16[16,32]{1,0} parameter(0)
  %b = f16[32,64]{1,0} parameter(1)
  %table = f32[1000,2]{1,0} parameter(2)
  %rows = s32[8,1]{1,0} parameter(3)
  %looked = f32[8,2]{1,0} fusion(%table, %rows), kind=kLoop, calls=%fused_gather
  %start = (f32[8]{0}) tuple(%looked)
  %loop = (f32[8]{0}) while(%start), condition=%test, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %chosen = (f32[8]{0}) conditional(%rows, %loop, %loop), branch_computations={%zeros, %body}
  ROOT %product = f16[16,64]{1,0} fusion(%a, %b), kind=kCustom, calls=%fused_dot, metadata={op_name="jit(f)/dot"}
}
"""  # noqa: E501


def test_products_count_at_the_rate_of_their_format():
    product = hlo.kernels(hlo.parse(TEXT), 0)[-1]
    assert product.flops == {"half": 2.0 * 16 * 64 * 32}
    assert product.bytes == 2 * (16 * 32 + 32 * 64 + 16 * 64)
    assert product.source == "jit(f)/dot"


def test_of_a_table_only_what_is_looked_up_counts():
    looked = hlo.kernels(hlo.parse(TEXT), 0)[0]
    assert looked.bytes == 8 * 32 + 8 * 4 + 8 * 2 * 4, "a sector for each row, indices, the result"


@pytest.mark.parametrize(("branch", "launches"), [(-2, 7), (-1, 8)])
def test_loops_and_the_chosen_branch_count(branch, launches):
    kernels = hlo.kernels(hlo.parse(TEXT), branch)
    assert sum(kernel.times for kernel in kernels) == launches


def test_a_kernel_takes_the_longer_of_arithmetic_and_traffic():
    product = hlo.kernels(hlo.parse(TEXT), 0)[-1]
    slow, fast = hlo.Rates(1e3, 1e3, 1e3, 1e9), hlo.Rates(1e15, 1e3, 1e3, 1e3)
    assert product.seconds(slow) == pytest.approx(2.0 * 16 * 64 * 32 / 1e3)
    assert product.seconds(fast) == pytest.approx(product.bytes / 1e3)
