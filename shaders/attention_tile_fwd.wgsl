// Attention, forward, with tiles in workgroup memory: the portable variant for GPUs. No subgroup operation.
//   out[q] = sum_k softmax_k(scale q.k) v[k],   lse[q] = ln sum_k exp(scale q.k)       over k < lens[b]; both 0 where lens[b] is 0
// Shapes: qkv [B*T, 3*C], lens [B], out [B*T, C], lse [B, H, T] f32. Dropout acts on the probabilities, not on lse.
// Work: 8 x TY threads take TY*TM queries of one head and go through the keys in blocks of 8*TN. Thread (x, y) owns the scores of queries
// y + TY*i and keys TN*x + n, and the output of the same queries at dimensions 4*(x + 8*j). K and V share one tile. Rows are one vector
// longer than they need be where that makes their length odd, so that neighbouring rows start in different banks; key TN*x + n lies at
// row 8*n + x for the same reason. Workgroup memory: 16 QS (TY*TM + 8*TN) + 4 TN PS TY*TM + 32 TY*TM bytes, QS = DV | 1, PS = 9 (8 for TN = 2).
// Bytes: q, out and lse once, k and v once a block of queries.
{% set READS = ["qkv"] %}
{% set WRITES = ["out"] %}
{% set DVN = (D + 3) // 4 %}
{% set QS = DVN + 1 - DVN % 2 %}
{% set PS = 9 if TN == 4 else 8 %}
{% set NV = (DVN + 7) // 8 %}
{% set BQ = TY * TM %}
{% set THREADS = 8 * TY %}
{% include "shared/attention.wgsl" %}
{% if DROPOUT %}
{% include "shared/rng.wgsl" %}
{% endif %}
@group(0) @binding(0) var<storage, read> qkv: array<{{ ELEMENT }}>;
@group(0) @binding(1) var<storage, read> lens: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<{{ ELEMENT }}>;
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;
var<workgroup> q_tile: array<vec4<f32>, {{ BQ * QS }}>;
var<workgroup> kv_tile: array<vec4<f32>, {{ 8 * TN * QS }}>;
var<workgroup> weights: array<vec{{ TN }}<f32>, {{ BQ * PS }}>;
var<workgroup> partial: array<f32, {{ BQ * 8 }}>;
{% macro load_block(part) %}
    for (var i = thread; i < {{ 8 * TN }}u * DV; i += {{ THREADS }}u) {
      let s = i / DV;
      kv_tile[((s % {{ TN }}u) * 8u + s / {{ TN }}u) * {{ QS }}u + i % DV] = load_qkv(head + {{ part }}u * c + min(kb + s, len - 1u) * 3u * c, i % DV);
    }
{% endmacro %}

@compute @workgroup_size({{ THREADS }})
fn flash_attention_fwd(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
                       @builtin(local_invocation_index) thread: u32) {
  let id = wg.x + wg.y * grid.x;
  let blocks = (p.tokens + {{ BQ - 1 }}u) / {{ BQ }}u;
  if (id >= p.batch * p.heads * blocks) { return; }
  let bh = id / blocks;
  let q0 = (id % blocks) * {{ BQ }}u;
  let b = bh / p.heads;
  let c = p.heads * D;
  let len = min(lens[b], p.tokens);
  let head = b * p.tokens * 3u * c + (bh % p.heads) * D;
  let tx = thread % 8u;
  let ty = thread / 8u;
  for (var i = thread; i < {{ BQ }}u * DV; i += {{ THREADS }}u) {
    q_tile[i / DV * {{ QS }}u + i % DV] = load_qkv(head + min(q0 + i / DV, p.tokens - 1u) * 3u * c, i % DV) * (p.scale * LOG2E);
  }
{% for j in range(NV) %}
  let dim{{ j }} = min(tx + {{ 8 * j }}u, DV - 1u);
{% endfor %}
{% for i in range(TM) %}
  let row{{ i }} = ty + {{ TY * i }}u;
  var m{{ i }} = MASKED;
  var l{{ i }} = 0.0;
{% for j in range(NV) %}
  var o{{ i }}_{{ j }} = vec4<f32>();
{% endfor %}
{% endfor %}
  for (var kb = 0u; kb < len; kb += {{ 8 * TN }}u) {
    workgroupBarrier();
{{ load_block(1) }}
    workgroupBarrier();
{% for i in range(TM) %}
    var s{{ i }} = vec{{ TN }}<f32>();
{% endfor %}
    for (var d = 0u; d < DV; d++) {
{% for n in range(TN) %}
      let k{{ n }} = kv_tile[({{ 8 * n }}u + tx) * {{ QS }}u + d];
{% endfor %}
{% for i in range(TM) %}
      let a{{ i }} = q_tile[row{{ i }} * {{ QS }}u + d];
{% for n in range(TN) %}
      s{{ i }}.{{ "xyzw"[n] }} += dot(a{{ i }}, k{{ n }});
{% endfor %}
{% endfor %}
    }
    let key = kb + {{ TN }}u * tx;
{% for n in range(TN) %}
    let valid{{ n }} = key + {{ n }}u < len;
{% endfor %}
{% for i in range(TM) %}
{% for n in range(TN) %}
    s{{ i }}.{{ "xyzw"[n] }} = select(MASKED, s{{ i }}.{{ "xyzw"[n] }}, valid{{ n }});
{% endfor %}
    partial[row{{ i }} * 8u + tx] = {{ "max(max(s%d.x, s%d.y), max(s%d.z, s%d.w))" | format(i, i, i, i) if TN == 4 else "max(s%d.x, s%d.y)" | format(i, i) }};
{% endfor %}
    workgroupBarrier();
{{ load_block(2) }}
{% for i in range(TM) %}
    {
      var m = m{{ i }};
      for (var x = 0u; x < 8u; x++) { m = max(m, partial[row{{ i }} * 8u + x]); }
      let shrink = exp2(m{{ i }} - m);
      m{{ i }} = m;
      s{{ i }} = exp2(s{{ i }} - m);
      l{{ i }} = l{{ i }} * shrink + dot(s{{ i }}, vec{{ TN }}<f32>(1.0));
{% if DROPOUT %}
      let kept = probability_dropout(bh * p.tokens + q0 + row{{ i }}, key);
      s{{ i }} *= {{ "kept" if TN == 4 else "select(kept.xy, kept.zw, tx % 2u == 1u)" }};
{% endif %}
      weights[row{{ i }} * {{ PS }}u + tx] = s{{ i }};
{% for j in range(NV) %}
      o{{ i }}_{{ j }} *= shrink;
{% endfor %}
    }
{% endfor %}
    workgroupBarrier();
    for (var s = 0u; s < 8u; s++) {
{% for i in range(TM) %}
      let w{{ i }} = weights[row{{ i }} * {{ PS }}u + s];
{% endfor %}
{% for n in range(TN) %}
{% for j in range(NV) %}
      let v{{ n }}_{{ j }} = kv_tile[({{ 8 * n }}u + s) * {{ QS }}u + dim{{ j }}];
{% for i in range(TM) %}
      o{{ i }}_{{ j }} = fma(vec4<f32>(w{{ i }}.{{ "xyzw"[n] }}), v{{ n }}_{{ j }}, o{{ i }}_{{ j }});
{% endfor %}
{% endfor %}
{% endfor %}
    }
  }
  workgroupBarrier();
{% for i in range(TM) %}
  partial[row{{ i }} * 8u + tx] = l{{ i }};
{% endfor %}
  workgroupBarrier();
{% for i in range(TM) %}
  if (q0 + row{{ i }} < p.tokens) {
    var sum = 0.0;
    for (var x = 0u; x < 8u; x++) { sum += partial[row{{ i }} * 8u + x]; }
    let q = q0 + row{{ i }};
    let row = (b * p.tokens + q) * c + (bh % p.heads) * D;
    let inverse = select(0.0, 1.0 / sum, len > 0u);
{% for j in range(NV) %}
    if (tx + {{ 8 * j }}u < DV) { store_out(row, dim{{ j }}, o{{ i }}_{{ j }} * inverse); }
{% endfor %}
    if (tx == 0u) { lse[bh * p.tokens + q] = select(0.0, (m{{ i }} + log2(sum)) * LN2, len > 0u); }
  }
{% endfor %}
}
