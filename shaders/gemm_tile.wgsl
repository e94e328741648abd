// C[M,N] (+)= alpha op(A) op(B), row-major, for GPUs: tiles through workgroup memory into registers.
//   nn: A[M,K] B[K,N]    nt: A[M,K] B[N,K]    tn: A[K,M] B[K,N];  batched by element strides.
// Bindings: 0 A, 1 B, 2 C, 3 bias f32[N] (bias, bias_gelu) or pre[M,N] (dgelu), 4 pre[M,N] (bias_gelu writes it).
//
// A workgroup of (BM/TM)(BN/TN) invocations makes BM x BN of C, an invocation TM x TN of it in blocks of 4 x 4 that lie BM/(TM/4) and
// BN/(TN/4) apart, so that neighbours read neighbouring vectors. Each step takes BK of K: both operands lie K-major in workgroup memory
// (row kk holds op(A)[m0.., kk], four to a vector, one vector of padding), so the inner loop reads (TM + TN)/4 vectors for TM TN
// multiply-adds. An operand that is contiguous along K is transposed in registers, a 4 x 4 block at a time; one contiguous the other
// way is copied. UNROLL rows are spelled out, as checked loops are not unrolled by every driver. The next step's global loads are issued before the arithmetic of this one.
// A block or vector is the unit of loading; units are dealt to invocations, A's from the front and B's from the back, so that where
// there are fewer than invocations the two halves load at the same time.
//
// Edges: addresses are clamped into the matrix, elements of A past the end of K are zero, stores are guarded.
// VA, VB, VC = 4 promise that rows (leading dimension, batch stride, extent along the row) are multiples of four elements.
// Workgroup memory: 16 BK ((BM + BN)/4 + 2) bytes. Moved: M N K (1/BM + 1/BN) elements read, M N written.
{% set WG = (BM // TM) * (BN // TN) %}
{% set AM = BM // 4 %}
{% set BN4 = BN // 4 %}
{% set K4 = BK // 4 %}
{% set MQ = TM // 4 %}
{% set NQ = TN // 4 %}
{% set XYZW = ["x", "y", "z", "w"] %}
{% set A_BLOCK = LAYOUT != "tn" %}
{% set B_BLOCK = LAYOUT == "nt" %}
{# units to load, and units an invocation loads #}
{% set UA = AM * K4 if A_BLOCK else AM * BK %}
{% set UB = BN4 * K4 if B_BLOCK else BN4 * BK %}
{% set LA = (UA + WG - 1) // WG %}
{% set LB = (UB + WG - 1) // WG %}
{% set NA = 4 if A_BLOCK else 1 %}
{% set NB = 4 if B_BLOCK else 1 %}
{% include "shared/gemm.wgsl" %}
var<workgroup> tile_a: array<vec4<f32>, {{ BK * (AM + 1) }}>;
var<workgroup> tile_b: array<vec4<f32>, {{ BK * (BN4 + 1) }}>;
{# Four elements along a row of memory from (row, col), clamped; tail_row or tail_col says which of the two is K where the tail of K
   must read as zero. #}
{% macro fetch(name, vec, base, ld, row, rows, col, cols, tail_row, tail_col) %}
{% if vec == 4 %}
{% set got = "vec4<f32>(" ~ name ~ "[(" ~ base ~ " + min(" ~ row ~ ", " ~ rows ~ " - 1u) * " ~ ld ~ " + min(" ~ col ~ ", " ~ cols ~ " - 4u)) / 4u])" %}
{% if tail_row or tail_col %}
select(vec4<f32>(), {{ got }}, {{ (row ~ " < k1") if tail_row else (col ~ " < k1") }})
{%- else %}
{{ got }}
{%- endif %}
{% else %}
vec4<f32>(
{% for j in range(4) %}
{% set got = "f32(" ~ name ~ "[" ~ base ~ " + min(" ~ row ~ ", " ~ rows ~ " - 1u) * " ~ ld ~ " + min(" ~ col ~ " + " ~ j ~ "u, " ~ cols ~ " - 1u)])" %}
{% if tail_row or tail_col %}
      select(0.0, {{ got }}, {{ (row ~ " < k1") if tail_row else (col ~ " + " ~ j ~ "u < k1") }}){{ ")" if loop.last else "," }}
{% else %}
      {{ got }}{{ ")" if loop.last else "," }}
{% endif %}
{% endfor %}
{%- endif %}
{% endmacro %}

{% macro fetch_all() %}
{% for u in range(LA) %}
{% if UA % WG != 0 %}
    if (t + {{ u * WG }}u < {{ UA }}u) {
{% else %}
    {
{% endif %}
      let e = t + {{ u * WG }}u;
{% for i in range(NA) %}
{% if A_BLOCK %}
      let row{{ i }} = m0 + (e / {{ K4 }}u) * 4u + {{ i }}u;
      let col{{ i }} = k + (e % {{ K4 }}u) * 4u;
      fa{{ u }}_{{ i }} = {{ fetch("mat_a", VA, "base_a", "p.lda", "row" ~ i, "p.m", "col" ~ i, "p.k", false, true) | trim }};
{% else %}
      let row{{ i }} = k + e / {{ AM }}u;
      let col{{ i }} = m0 + (e % {{ AM }}u) * 4u;
      fa{{ u }}_{{ i }} = {{ fetch("mat_a", VA, "base_a", "p.lda", "row" ~ i, "p.k", "col" ~ i, "p.m", true, false) | trim }};
{% endif %}
{% endfor %}
    }
{% endfor %}
{% for u in range(LB) %}
{% if UB % WG != 0 %}
    if (tb + {{ u * WG }}u < {{ UB }}u) {
{% else %}
    {
{% endif %}
      let e = tb + {{ u * WG }}u;
{% for i in range(NB) %}
{% if B_BLOCK %}
      let row{{ i }} = n0 + (e / {{ K4 }}u) * 4u + {{ i }}u;
      let col{{ i }} = k + (e % {{ K4 }}u) * 4u;
      fb{{ u }}_{{ i }} = {{ fetch("mat_b", VB, "base_b", "p.ldb", "row" ~ i, "p.n", "col" ~ i, "p.k", false, false) | trim }};
{% else %}
      let row{{ i }} = k + e / {{ BN4 }}u;
      let col{{ i }} = n0 + (e % {{ BN4 }}u) * 4u;
      fb{{ u }}_{{ i }} = {{ fetch("mat_b", VB, "base_b", "p.ldb", "row" ~ i, "p.k", "col" ~ i, "p.n", false, false) | trim }};
{% endif %}
{% endfor %}
    }
{% endfor %}
{% endmacro %}
{% macro keep(name, reg, u, id, units, block, across) %}
{% if units % WG != 0 %}
    if ({{ id }} + {{ u * WG }}u < {{ units }}u) {
{% else %}
    {
{% endif %}
      let e = {{ id }} + {{ u * WG }}u;
{% if block %}
{% for j in range(4) %}
      {{ name }}[((e % {{ K4 }}u) * 4u + {{ j }}u) * {{ across + 1 }}u + e / {{ K4 }}u] = vec4<f32>({% for i in range(4) %}{{ reg }}{{ u }}_{{ i }}.{{ XYZW[j] }}{{ ", " if not loop.last }}{% endfor %});
{% endfor %}
{% else %}
      {{ name }}[(e / {{ across }}u) * {{ across + 1 }}u + e % {{ across }}u] = {{ reg }}{{ u }}_0;
{% endif %}
    }
{% endmacro %}

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let tile = tile_of(wg);
  if (tile.x >= p.tiles_m) { return; }
  let m0 = tile.x * {{ BM }}u;
  let n0 = tile.y * {{ BN }}u;
  let batch = wg.z / p.splits;
  let k0 = p.k_begin + (wg.z % p.splits) * p.k_split;
  let k1 = min(k0 + p.k_split, p.k);
  let base_a = batch * p.stride_a;
  let base_b = batch * p.stride_b;
  let tb = {{ WG - 1 }}u - t;
  let tx = t % {{ BN // TN }}u;
  let ty = t / {{ BN // TN }}u;
{% for u in range(LA) %}
{% for i in range(NA) %}
  var fa{{ u }}_{{ i }} = vec4<f32>();
{% endfor %}
{% endfor %}
{% for u in range(LB) %}
{% for i in range(NB) %}
  var fb{{ u }}_{{ i }} = vec4<f32>();
{% endfor %}
{% endfor %}
{% for i in range(TM) %}
{% for q in range(NQ) %}
  var c{{ i }}_{{ q }} = vec4<f32>();
{% endfor %}
{% endfor %}
  {
    let k = k0;
{{ fetch_all() }}
  }
  for (var next = k0 + {{ BK }}u; next < k1 + {{ BK }}u; next += {{ BK }}u) {
{% for u in range(LA) %}
{{ keep("tile_a", "fa", u, "t", UA, A_BLOCK, AM) }}
{% endfor %}
{% for u in range(LB) %}
{{ keep("tile_b", "fb", u, "tb", UB, B_BLOCK, BN4) }}
{% endfor %}
    workgroupBarrier();
    if (next < k1) {
      let k = next;
{{ fetch_all() }}
    }
    for (var kb = 0u; kb < {{ BK }}u; kb += {{ UNROLL }}u) {
{% for v in range(UNROLL) %}
    {
      let kk = kb + {{ v }}u;
{% for q in range(MQ) %}
      let x{{ q }} = tile_a[kk * {{ AM + 1 }}u + {{ q * (BM // TM) }}u + ty];
{% endfor %}
{% for q in range(NQ) %}
      let y{{ q }} = tile_b[kk * {{ BN4 + 1 }}u + {{ q * (BN // TN) }}u + tx];
{% endfor %}
{% for i in range(TM) %}
{% for q in range(NQ) %}
      c{{ i }}_{{ q }} = fma(vec4<f32>(x{{ i // 4 }}.{{ XYZW[i % 4] }}), y{{ q }}, c{{ i }}_{{ q }});
{% endfor %}
{% endfor %}
    }
{% endfor %}
    }
    workgroupBarrier();
  }
{% for i in range(TM) %}
{% for q in range(NQ) %}
  finish4(wg.z, m0 + ({{ i // 4 * (BM // TM) }}u + ty) * 4u + {{ i % 4 }}u, n0 + ({{ q * (BN // TN) }}u + tx) * 4u, c{{ i }}_{{ q }});
{% endfor %}
{% endfor %}
}
