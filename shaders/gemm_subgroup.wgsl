// C[M,N] (+)= alpha op(A) op(B), row-major, for drivers that run a subgroup as one SIMD vector on a CPU core.
//   nn: A[M,K] B[K,N]    nt: A[M,K] B[N,K]    tn: A[K,M] B[K,N];  batched by element strides.
// Bindings: 0 A, 1 B, 2 C, 3 bias f32[N] (bias, bias_gelu) or pre[M,N] (dgelu), 4 pre[M,N] (bias_gelu writes it).
//
// One workgroup is one subgroup of S lanes and makes TM rows by S*TN columns. There a load that differs by lane costs some fifty
// multiply-adds, workgroup memory is no cheaper than a buffer and a barrier spills every register. So neither is used: a lane
// fetches four elements of op(A) at once, all lanes together TM x 4 of them, and constant-lane broadcasts hand them round;
// of op(B) a lane fetches the 4 x TN that it alone needs. 4 TM TN multiply-adds stand against TM/S + TN vector loads.
// Columns of a lane: n0 + 4 (S q + lane) + 0..3 for q < TN/4, in every layout, so C is written four at a time.
//
// Edges: addresses are clamped into the matrix before the loop and stores are guarded, so the loop has no branches. Where K is no
// multiple of 4 (KTAIL) the elements of A past the end are made zero and those of B are any valid ones.
// VA, VB, VC = 4 promise that rows (leading dimension, batch stride, extent along the row) are multiples of four elements.
// Moved: M N K (1/TM + 1/(S TN)) elements read, through the cache mostly; M N written.
{% set TQ = TN // 4 %}
{% set AH = (TM + S - 1) // S %}
{% set R4 = TM // 4 %}
{% set XYZW = ["x", "y", "z", "w"] %}
{% include "shared/gemm.wgsl" %}

@compute @workgroup_size({{ S }})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  let tile = tile_of(wg);
  if (tile.x >= p.tiles_m) { return; }
  let m0 = tile.x * {{ TM }}u;
  let n0 = tile.y * {{ S * TN }}u;
  let batch = wg.z / p.splits;
  let k0 = p.k_begin + (wg.z % p.splits) * p.k_split;
  let k1 = min(k0 + p.k_split, p.k);
  let base_a = batch * p.stride_a;
  let base_b = batch * p.stride_b;
{# Where this lane's share of op(A) begins. #}
{% for h in range(AH) %}
{% if LAYOUT == "tn" %}
  let e{{ h }} = {{ h * S }}u + lane;
  let ka{{ h }} = e{{ h }} / {{ R4 }}u;
{% if VA == 4 %}
  let a{{ h }} = (base_a + min(m0 + (e{{ h }} % {{ R4 }}u) * 4u, p.m - 4u)) / 4u;
{% else %}
  let ra{{ h }} = m0 + (e{{ h }} % {{ R4 }}u) * 4u;
{% for j in range(4) %}
  let a{{ h }}_{{ j }} = base_a + min(ra{{ h }} + {{ j }}u, p.m - 1u);
{% endfor %}
{% endif %}
{% else %}
  let a{{ h }} = (base_a + min(m0 + {{ h * S }}u + lane, p.m - 1u) * p.lda){% if VA == 4 %} / 4u{% endif %};
{% endif %}
{% endfor %}
{# And of op(B). #}
{% for q in range(TQ) %}
  let col{{ q }} = n0 + ({{ q * S }}u + lane) * 4u;
{% if LAYOUT == "nt" %}
{% for j in range(4) %}
  let b{{ q }}_{{ j }} = (base_b + min(col{{ q }} + {{ j }}u, p.n - 1u) * p.ldb){% if VB == 4 %} / 4u{% endif %};
{% endfor %}
{% elif VB == 4 %}
  let b{{ q }} = (base_b + min(col{{ q }}, p.n - 4u)) / 4u;
{% else %}
{% for j in range(4) %}
  let b{{ q }}_{{ j }} = base_b + min(col{{ q }} + {{ j }}u, p.n - 1u);
{% endfor %}
{% endif %}
{% endfor %}
{% for i in range(TM) %}
{% for q in range(TQ) %}
  var c{{ i }}_{{ q }} = vec4<f32>();
{% endfor %}
{% endfor %}
  for (var k = k0; k < k1; k += 4u) {
{% for h in range(AH) %}
{% if LAYOUT == "tn" %}
{% if KTAIL %}
    let va{{ h }} = select(0.0, 1.0, k + ka{{ h }} < k1) * {% if VA == 4 %}vec4<f32>(mat_a[a{{ h }} + min(k + ka{{ h }}, p.k - 1u) * (p.lda / 4u)]){% else %}vec4<f32>({% for j in range(4) %}f32(mat_a[a{{ h }}_{{ j }} + min(k + ka{{ h }}, p.k - 1u) * p.lda]){{ ", " if not loop.last }}{% endfor %}){% endif %};
{% else %}
    let va{{ h }} = {% if VA == 4 %}vec4<f32>(mat_a[a{{ h }} + (k + ka{{ h }}) * (p.lda / 4u)]){% else %}vec4<f32>({% for j in range(4) %}f32(mat_a[a{{ h }}_{{ j }} + (k + ka{{ h }}) * p.lda]){{ ", " if not loop.last }}{% endfor %}){% endif %};
{% endif %}
{% elif VA == 4 %}
    let va{{ h }} = vec4<f32>(mat_a[a{{ h }} + k / 4u]);
{% elif KTAIL %}
    let va{{ h }} = vec4<f32>({% for j in range(4) %}select(0.0, f32(mat_a[a{{ h }} + min(k + {{ j }}u, p.k - 1u)]), k + {{ j }}u < k1){{ ", " if not loop.last }}{% endfor %});
{% else %}
    let va{{ h }} = vec4<f32>({% for j in range(4) %}f32(mat_a[a{{ h }} + k + {{ j }}u]){{ ", " if not loop.last }}{% endfor %});
{% endif %}
{% endfor %}
{% if LAYOUT == "nt" %}
{% for q in range(TQ) %}
{% for j in range(4) %}
    let vb{{ q }}_{{ j }} = {% if VB == 4 %}vec4<f32>(mat_b[b{{ q }}_{{ j }} + k / 4u]){% else %}vec4<f32>({% for i in range(4) %}f32(mat_b[b{{ q }}_{{ j }} + {{ "min(k + " ~ i ~ "u, p.k - 1u)" if KTAIL else "k + " ~ i ~ "u" }}]){{ ", " if not loop.last }}{% endfor %}){% endif %};
{% endfor %}
{% endfor %}
{% endif %}
{% for kk in range(4) %}
    {
{% if LAYOUT != "nt" %}
      let rb = {{ "min(k + " ~ kk ~ "u, p.k - 1u)" if KTAIL else "(k + " ~ kk ~ "u)" }} * {{ "(p.ldb / 4u)" if VB == 4 else "p.ldb" }};
{% endif %}
{% for q in range(TQ) %}
{% if LAYOUT == "nt" %}
      let w{{ q }} = vec4<f32>({% for j in range(4) %}vb{{ q }}_{{ j }}.{{ XYZW[kk] }}{{ ", " if not loop.last }}{% endfor %});
{% elif VB == 4 %}
      let w{{ q }} = vec4<f32>(mat_b[b{{ q }} + rb]);
{% else %}
      let w{{ q }} = vec4<f32>({% for j in range(4) %}f32(mat_b[b{{ q }}_{{ j }} + rb]){{ ", " if not loop.last }}{% endfor %});
{% endif %}
{% endfor %}
{% for i in range(TM) %}
{% if LAYOUT == "tn" %}
{% set e = kk * R4 + i // 4 %}
      let s{{ i }} = subgroupBroadcast(va{{ e // S }}.{{ XYZW[i % 4] }}, {{ e % S }}u);
{% else %}
      let s{{ i }} = subgroupBroadcast(va{{ i // S }}.{{ XYZW[kk] }}, {{ i % S }}u);
{% endif %}
{% for q in range(TQ) %}
      c{{ i }}_{{ q }} += s{{ i }} * w{{ q }};
{% endfor %}
{% endfor %}
    }
{% endfor %}
  }
{% for i in range(TM) %}
{% for q in range(TQ) %}
  finish4(wg.z, m0 + {{ i }}u, col{{ q }}, c{{ i }}_{{ q }});
{% endfor %}
{% endfor %}
}
