// C[M,N] (+)= alpha op(A) op(B), row-major, on cooperative matrices: T x T x T products of f16 with f32 sums, by whole subgroups.
//   nn: A[M,K] B[K,N]    nt: A[M,K] B[N,K]    tn: A[K,M] B[K,N];  batched by element strides.
// Bindings: 0 A, 1 B, 2 C, 3 bias f32[N] (bias, bias_gelu) or pre[M,N] (dgelu), 4 pre[M,N] (bias_gelu writes it).
// f32 operands (TA, TB) are rounded to f16 on the way in.
//
// WM x WN subgroups of S make BM x BN of C; each holds (BM/WM/T)(BN/WN/T) sums. Each step copies BK of K of both operands to workgroup
// memory the way they lie in memory, rows padded by 8 elements; which way they lie is said when a matrix is loaded from there. The
// copying is where edges are dealt with (addresses clamped, A zero past the end of K), and the next step's global loads are issued
// before this one's products. Results leave through workgroup memory, T rows at a time, because only there can stores be guarded and
// the epilogue see its row and column.
// VS = 4 stages vectors of four, which SPIR-V can load a matrix from (the pitch is then counted in vectors) and Metal cannot (VS = 1).
// VA, VB, VC = 4 promise that rows (leading dimension, batch stride, extent along the row) are multiples of four elements.
// Only for devices whose subgroups all have S lanes, and where T x T x T with f16 in and f32 out is listed.
// Moved: M N K (1/BM + 1/BN) elements read, M N written.
enable wgpu_cooperative_matrix;
{% set SGS = WM * WN %}
{% set WG = SGS * S %}
{% set MT = BM // WM // T %}
{% set NT = BN // WN // T %}
{% set A_K = LAYOUT != "tn" %}
{% set B_K = LAYOUT == "nt" %}
{# columns and rows of the staged operands #}
{% set CA = BK if A_K else BM %}
{% set RA = BM if A_K else BK %}
{% set CB = BK if B_K else BN %}
{% set RB = BN if B_K else BK %}
{% set PA = CA + 8 %}
{% set PB = CB + 8 %}
{% set UA = RA * CA // 4 %}
{% set UB = RB * CB // 4 %}
{% set LA = (UA + WG - 1) // WG %}
{% set LB = (UB + WG - 1) // WG %}
{% set MAT = "coop_mat" ~ T ~ "x" ~ T %}
{% set XYZW = ["x", "y", "z", "w"] %}
{% include "shared/gemm.wgsl" %}
var<workgroup> tile_a: array<{{ "vec4<f16>" if VS == 4 else "f16" }}, {{ RA * PA // VS }}>;
var<workgroup> tile_b: array<{{ "vec4<f16>" if VS == 4 else "f16" }}, {{ RB * PB // VS }}>;
var<workgroup> tile_c: array<f32, {{ SGS * T * NT * T }}>;

{# Loads unit u of an operand, four elements along a row of memory. #}
{% macro fetch(reg, u, id, units, columns, name, vec, base, ld, row0, rows, col0, cols, k_is_row, zero) %}
{% if units % WG != 0 %}
    if ({{ id }} + {{ u * WG }}u < {{ units }}u) {
{% else %}
    {
{% endif %}
      let e = {{ id }} + {{ u * WG }}u;
      let row = {{ row0 }} + e / {{ columns // 4 }}u;
      let col = {{ col0 }} + (e % {{ columns // 4 }}u) * 4u;
      let at = {{ base }} + min(row, {{ rows }} - 1u) * {{ ld }};
{% if vec == 4 %}
      {{ reg }}{{ u }} = vec4<f16>({{ name }}[(at + min(col, {{ cols }} - 4u)) / 4u]);
{% else %}
      {{ reg }}{{ u }} = vec4<f16>({% for j in range(4) %}f16({{ name }}[at + min(col + {{ j }}u, {{ cols }} - 1u)]){{ ", " if not loop.last }}{% endfor %});
{% endif %}
{% if zero and k_is_row %}
      if (row >= k1) { {{ reg }}{{ u }} = vec4<f16>(); }
{% elif zero %}
      {{ reg }}{{ u }} = select(vec4<f16>(), {{ reg }}{{ u }}, vec4<u32>(col, col + 1u, col + 2u, col + 3u) < vec4<u32>(k1));
{% endif %}
    }
{% endmacro %}
{% macro fetch_all() %}
{% for u in range(LA) %}
{% if A_K %}
{{ fetch("fa", u, "t", UA, CA, "mat_a", VA, "base_a", "p.lda", "m0", "p.m", "k", "p.k", false, true) }}
{% else %}
{{ fetch("fa", u, "t", UA, CA, "mat_a", VA, "base_a", "p.lda", "k", "p.k", "m0", "p.m", true, true) }}
{% endif %}
{% endfor %}
{% for u in range(LB) %}
{% if B_K %}
{{ fetch("fb", u, "tb", UB, CB, "mat_b", VB, "base_b", "p.ldb", "n0", "p.n", "k", "p.k", false, false) }}
{% else %}
{{ fetch("fb", u, "tb", UB, CB, "mat_b", VB, "base_b", "p.ldb", "k", "p.k", "n0", "p.n", true, false) }}
{% endif %}
{% endfor %}
{% endmacro %}
{% macro keep(name, reg, u, id, units, columns, pitch) %}
{% if units % WG != 0 %}
    if ({{ id }} + {{ u * WG }}u < {{ units }}u) {
{% else %}
    {
{% endif %}
      let e = {{ id }} + {{ u * WG }}u;
      let at = e / {{ columns // 4 }}u * {{ pitch // VS }}u + (e % {{ columns // 4 }}u) * {{ 4 // VS }}u;
{% if VS == 4 %}
      {{ name }}[at] = {{ reg }}{{ u }};
{% else %}
{% for j in range(4) %}
      {{ name }}[at + {{ j }}u] = {{ reg }}{{ u }}.{{ XYZW[j] }};
{% endfor %}
{% endif %}
    }
{% endmacro %}

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) t: u32,
        @builtin(subgroup_id) sg: u32, @builtin(subgroup_invocation_id) lane: u32) {
  let tile = tile_of(wg);
  // No early return past the last tile: naga wants control flow around matrix operations without one. Such a workgroup stores nothing.
  let m0 = tile.x * {{ BM }}u;
  let n0 = tile.y * {{ BN }}u;
  let batch = wg.z / p.splits;
  let k0 = p.k_begin + (wg.z % p.splits) * p.k_split;
  let k1 = min(k0 + p.k_split, p.k);
  let base_a = batch * p.stride_a;
  let base_b = batch * p.stride_b;
  let tb = {{ WG - 1 }}u - t;
  let sm = sg / {{ WN }}u * {{ MT * T }}u;
  let sn = sg % {{ WN }}u * {{ NT * T }}u;
{% for u in range(LA) %}
  var fa{{ u }} = vec4<f16>();
{% endfor %}
{% for u in range(LB) %}
  var fb{{ u }} = vec4<f16>();
{% endfor %}
{% for i in range(MT) %}
{% for j in range(NT) %}
  var c{{ i }}_{{ j }} = {{ MAT }}<f32, C>();
{% endfor %}
{% endfor %}
  {
    let k = k0;
{{ fetch_all() }}
  }
  for (var next = k0 + {{ BK }}u; next < k1 + {{ BK }}u; next += {{ BK }}u) {
{% for u in range(LA) %}
{{ keep("tile_a", "fa", u, "t", UA, CA, PA) }}
{% endfor %}
{% for u in range(LB) %}
{{ keep("tile_b", "fb", u, "tb", UB, CB, PB) }}
{% endfor %}
    workgroupBarrier();
    if (next < k1) {
      let k = next;
{{ fetch_all() }}
    }
    for (var kb = 0u; kb < {{ BK }}u; kb += {{ UNROLL * T }}u) {
{% for v in range(UNROLL) %}
    {
      let kk = kb + {{ v * T }}u;
{% for i in range(MT) %}
{% if A_K %}
      let x{{ i }} = coopLoadT<{{ MAT }}<f16, A>>(&tile_a[((sm + {{ i * T }}u) * {{ PA }}u + kk) / {{ VS }}u], {{ PA // VS }}u);
{% else %}
      let x{{ i }} = coopLoad<{{ MAT }}<f16, A>>(&tile_a[(kk * {{ PA }}u + {{ i * T }}u + sm) / {{ VS }}u], {{ PA // VS }}u);
{% endif %}
{% endfor %}
{% for j in range(NT) %}
{% if B_K %}
      let y{{ j }} = coopLoad<{{ MAT }}<f16, B>>(&tile_b[((sn + {{ j * T }}u) * {{ PB }}u + kk) / {{ VS }}u], {{ PB // VS }}u);
{% else %}
      let y{{ j }} = coopLoadT<{{ MAT }}<f16, B>>(&tile_b[(kk * {{ PB }}u + {{ j * T }}u + sn) / {{ VS }}u], {{ PB // VS }}u);
{% endif %}
{% endfor %}
{% for i in range(MT) %}
{% for j in range(NT) %}
      c{{ i }}_{{ j }} = coopMultiplyAdd(x{{ i }}, y{{ j }}, c{{ i }}_{{ j }});
{% endfor %}
{% endfor %}
    }
{% endfor %}
    }
    workgroupBarrier();
  }
{# naga 30 does not emit expressions written inside coopStoreT, hence the lets. #}
  let pitch = {{ NT * T }}u;
  let out0 = sg * {{ T * NT * T }}u;
{% for i in range(MT) %}
{% for j in range(NT) %}
  {
    let o = out0 + {{ j * T }}u;
    coopStoreT(c{{ i }}_{{ j }}, &tile_c[o], pitch);
  }
{% endfor %}
  workgroupBarrier();
  for (var e = lane; e < {{ T * NT * T // 4 }}u; e += {{ S }}u) {
    let r = e / {{ NT * T // 4 }}u;
    let c = (e % {{ NT * T // 4 }}u) * 4u;
    let o = out0 + r * {{ NT * T }}u + c;
    finish4(wg.z, m0 + sm + {{ i * T }}u + r, n0 + sn + c, vec4<f32>(tile_c[o], tile_c[o + 1u], tile_c[o + 2u], tile_c[o + 3u]));
  }
  workgroupBarrier();
{% endfor %}
}
