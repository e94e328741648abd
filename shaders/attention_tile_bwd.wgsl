// Attention, backward, with tiles in workgroup memory: the portable variant for GPUs. No subgroup operation, no atomics.
//   P = exp(scale q.k - lse)   dv[k] = sum_q P~ dout[q]   dS = scale P (dP~ - delta)   dk[k] = sum_q dS q[q]   dq[q] = sum_k dS k[k]
// with P~ = P and dP~ = dout.v, both times the dropout scale. Two kernels from this text: PART dq holds a block of queries and streams the
// keys, PART dkv holds a block of keys and streams the queries; each output has one owner. Together they write every element of dqkv;
// k and v of masked keys get exact zeros.
// Shapes: qkv, dqkv [B*T, 3*C], lens [B], dout [B*T, C], lse, delta [B, H, T] f32.
// Work: 8 x TY threads hold TY*TM rows and stream 8*TN at a time through one tile. Thread (x, y) owns P and dS of held rows TM*y + i and
// streamed rows TN*x + n, and the sums of the same held rows at dimensions 4*(x + 8*j). Tiles as in attention_tile_fwd.wgsl: held row TM*y + i lies
// at TY*i + y, streamed row TN*x + n at 8*n + x. Workgroup memory: 16 QS (2 TY*TM + 8*TN) + 4 TN PS TY*TM bytes.
// Bytes: held rows once; a head's streamed rows two (dq) or three (dkv) times a block.
{% set READS = ["qkv", "dout"] %}
{% set WRITES = ["dqkv"] %}
{% set DVN = (D + 3) // 4 %}
{% set QS = DVN + 1 - DVN % 2 %}
{% set PS = 9 if TN == 4 else 8 %}
{% set NV = (DVN + 7) // 8 %}
{% set BR = TY * TM %}
{% set BS = 8 * TN %}
{% set THREADS = 8 * TY %}
{% include "shared/attention.wgsl" %}
{% if DROPOUT %}
{% include "shared/rng.wgsl" %}
{% endif %}
@group(0) @binding(0) var<storage, read> qkv: array<{{ ELEMENT }}>;
@group(0) @binding(1) var<storage, read> lens: array<u32>;
@group(0) @binding(2) var<storage, read> dout: array<{{ ELEMENT }}>;
@group(0) @binding(3) var<storage, read> lse: array<f32>;
@group(0) @binding(4) var<storage, read> delta: array<f32>;
@group(0) @binding(5) var<storage, read_write> dqkv: array<{{ ELEMENT }}>;
var<workgroup> held_a: array<vec4<f32>, {{ BR * QS }}>;
var<workgroup> held_b: array<vec4<f32>, {{ BR * QS }}>;
var<workgroup> tile: array<vec4<f32>, {{ BS * QS }}>;
var<workgroup> weights: array<vec{{ TN }}<f32>, {{ BR * PS }}>;
{# rows of qkv: part 0 q, 1 k, 2 v; part 3 is dout #}
{% macro element(part, row) %}
{% if part == 3 %}load_dout(head_out + ({{ row }}) * c, i % DV){% else %}load_qkv(head + {{ part }}u * c + ({{ row }}) * 3u * c, i % DV){% endif %}
{% endmacro %}
{% macro hold(name, part, last) %}
  for (var i = thread; i < {{ BR }}u * DV; i += {{ THREADS }}u) {
    let r = i / DV;
    {{ name }}[((r % {{ TM }}u) * {{ TY }}u + r / {{ TM }}u) * {{ QS }}u + i % DV] = {{ element(part, "min(r0 + r, " ~ last ~ ")") }};
  }
{% endmacro %}
{% macro stream(part, last) %}
    for (var i = thread; i < {{ BS }}u * DV; i += {{ THREADS }}u) {
      let s = i / DV;
      tile[((s % {{ TN }}u) * 8u + s / {{ TN }}u) * {{ QS }}u + i % DV] = {{ element(part, "min(base + s, " ~ last ~ ")") }};
    }
{% endmacro %}
{% macro product(result, held) %}
{% for i in range(TM) %}
    var {{ result }}{{ i }} = vec{{ TN }}<f32>();
{% endfor %}
    for (var d = 0u; d < DV; d++) {
{% for n in range(TN) %}
      let b{{ n }} = tile[({{ 8 * n }}u + tx) * {{ QS }}u + d];
{% endfor %}
{% for i in range(TM) %}
      let a{{ i }} = {{ held }}[({{ TY * i }}u + ty) * {{ QS }}u + d];
{% for n in range(TN) %}
      {{ result }}{{ i }}.{{ "xyzw"[n] }} += dot(a{{ i }}, b{{ n }});
{% endfor %}
{% endfor %}
    }
{% endmacro %}
{% macro accumulate(sum) %}
    for (var s = 0u; s < 8u; s++) {
{% for i in range(TM) %}
      let w{{ i }} = weights[({{ TY * i }}u + ty) * {{ PS }}u + s];
{% endfor %}
{% for n in range(TN) %}
{% for j in range(NV) %}
      let b{{ n }}_{{ j }} = tile[({{ 8 * n }}u + s) * {{ QS }}u + dim{{ j }}];
{% for i in range(TM) %}
      {{ sum }}{{ i }}_{{ j }} = fma(vec4<f32>(w{{ i }}.{{ "xyzw"[n] }}), b{{ n }}_{{ j }}, {{ sum }}{{ i }}_{{ j }});
{% endfor %}
{% endfor %}
{% endfor %}
    }
{% endmacro %}
{% macro weigh(source) %}
{% for i in range(TM) %}
    weights[({{ TY * i }}u + ty) * {{ PS }}u + tx] = {{ source }}{{ i }};
{% endfor %}
{% endmacro %}

@compute @workgroup_size({{ THREADS }})
fn flash_attention_bwd_{{ PART }}(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
                          @builtin(local_invocation_index) thread: u32) {
  let id = wg.x + wg.y * grid.x;
  let blocks = (p.tokens + {{ BR - 1 }}u) / {{ BR }}u;
  if (id >= p.batch * p.heads * blocks) { return; }
  let bh = id / blocks;
  let r0 = (id % blocks) * {{ BR }}u;
  let b = bh / p.heads;
  let c = p.heads * D;
  let len = min(lens[b], p.tokens);
  let head = b * p.tokens * 3u * c + (bh % p.heads) * D;
  let head_out = b * p.tokens * c + (bh % p.heads) * D;
  let tx = thread % 8u;
  let ty = thread / 8u;
{% for j in range(NV) %}
  let dim{{ j }} = min(tx + {{ 8 * j }}u, DV - 1u);
{% endfor %}
{% for i in range(TM) %}
  let row{{ i }} = r0 + {{ TM }}u * ty + {{ i }}u;
{% for sum in (["dq"] if PART == "dq" else ["dk", "dv"]) %}
{% for j in range(NV) %}
  var {{ sum }}{{ i }}_{{ j }} = vec4<f32>();
{% endfor %}
{% endfor %}
{% endfor %}
{% if PART == "dq" %}
{{ hold("held_a", 0, "p.tokens - 1u") }}
{{ hold("held_b", 3, "p.tokens - 1u") }}
{% for i in range(TM) %}
  let stat{{ i }} = bh * p.tokens + min(row{{ i }}, p.tokens - 1u);
  let lse{{ i }} = lse[stat{{ i }}] * LOG2E;
  let delta{{ i }} = delta[stat{{ i }}];
{% endfor %}
  for (var base = 0u; base < len; base += {{ BS }}u) {
    workgroupBarrier();
{{ stream(2, "len - 1u") }}
    workgroupBarrier();
{{ product("t", "held_b") }}
    workgroupBarrier();
{{ stream(1, "len - 1u") }}
    workgroupBarrier();
{{ product("s", "held_a") }}
    let key = base + {{ TN }}u * tx;
{% for i in range(TM) %}
{% if DROPOUT %}
    let kept{{ i }} = probability_dropout(bh * p.tokens + row{{ i }}, key);
    t{{ i }} *= {{ "kept%d" | format(i) if TN == 4 else "select(kept%d.xy, kept%d.zw, tx %% 2u == 1u)" | format(i, i) }};
{% endif %}
    s{{ i }} = exp2(s{{ i }} * (p.scale * LOG2E) - lse{{ i }}) * (t{{ i }} - delta{{ i }}) * p.scale;
{% for n in range(TN) %}
    s{{ i }}.{{ "xyzw"[n] }} = select(0.0, s{{ i }}.{{ "xyzw"[n] }}, key + {{ n }}u < len);
{% endfor %}
{% endfor %}
{{ weigh("s") }}
    workgroupBarrier();
{{ accumulate("dq") }}
  }
{% else %}
{{ hold("held_a", 1, "p.tokens - 1u") }}
{{ hold("held_b", 2, "p.tokens - 1u") }}
  for (var base = 0u; base < select(0u, p.tokens, r0 < len); base += {{ BS }}u) {
    workgroupBarrier();
{{ stream(0, "p.tokens - 1u") }}
    workgroupBarrier();
{{ product("s", "held_a") }}
{% for n in range(TN) %}
    let q{{ n }} = base + {{ TN }}u * tx + {{ n }}u;
    let stat{{ n }} = bh * p.tokens + min(q{{ n }}, p.tokens - 1u);
    let lse{{ n }} = lse[stat{{ n }}] * LOG2E;
    let delta{{ n }} = delta[stat{{ n }}];
{% endfor %}
{% for i in range(TM) %}
{% for n in range(TN) %}
    s{{ i }}.{{ "xyzw"[n] }} = select(0.0, exp2(s{{ i }}.{{ "xyzw"[n] }} * (p.scale * LOG2E) - lse{{ n }}), q{{ n }} < p.tokens && row{{ i }} < len);
{% endfor %}
    var u{{ i }} = s{{ i }};
{% endfor %}
{% if DROPOUT %}
{% for n in range(TN) %}
    let kept{{ n }} = probability_dropout(stat{{ n }}, row0);
{% for i in range(TM) %}
    u{{ i }}.{{ "xyzw"[n] }} *= kept{{ n }}[{{ i ~ "u" if TM == 4 else "row%d %% 4u" | format(i) }}];
{% endfor %}
{% endfor %}
{% endif %}
{{ weigh("u") }}
    workgroupBarrier();
{{ stream(3, "p.tokens - 1u") }}
    workgroupBarrier();
{{ accumulate("dv") }}
{{ product("t", "held_b") }}
    workgroupBarrier();
{{ stream(0, "p.tokens - 1u") }}
{% for i in range(TM) %}
    s{{ i }} = (u{{ i }} * t{{ i }} - s{{ i }} * vec{{ TN }}<f32>({% for n in range(TN) %}{{ "" if n == 0 else ", " }}delta{{ n }}{% endfor %})) * p.scale;
{% endfor %}
{{ weigh("s") }}
    workgroupBarrier();
{{ accumulate("dk") }}
  }
{% endif %}
{% for i in range(TM) %}
  if (row{{ i }} < p.tokens) {
    let at = head + row{{ i }} * 3u * c;
{% for j in range(NV) %}
    if (tx + {{ 8 * j }}u < DV) {
{% if PART == "dq" %}
      store_dqkv(at, dim{{ j }}, dq{{ i }}_{{ j }});
{% else %}
      store_dqkv(at + c, dim{{ j }}, dk{{ i }}_{{ j }});
      store_dqkv(at + 2u * c, dim{{ j }}, dv{{ i }}_{{ j }});
{% endif %}
    }
{% endfor %}
  }
{% endfor %}
}
