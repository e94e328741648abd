// Attention, forward, one subgroup a workgroup: for CPU drivers, where lanes are SIMD lanes and a load costs as much as fifty
// multiply-adds. No workgroup memory, no barrier, no T x T matrix.
//   out[q] = sum_k softmax_k(scale q.k) v[k],   lse[q] = ln sum_k exp(scale q.k)       over k < lens[b]; both 0 where lens[b] is 0
// Shapes: qkv [B*T, 3*C], lens [B], out [B*T, C], lse [B, H, T] f32. Dropout acts on the probabilities, not on lse.
// Work: a workgroup takes QB queries of one head and goes through the keys in blocks of 4*S*TK. Scores: a lane owns 4*TK keys (four
// neighbours, so that one random quad serves them) and gets the queries by broadcast. Output: a lane owns dimensions and gets the
// probabilities by broadcast; these rotate through their vector so that four keys share one copy of the text.
// Bytes: qkv once a block of queries, out and lse once.
{% set READS = ["qkv"] %}
{% set WRITES = ["out"] %}
{% set NV = ((D + 3) // 4 + S - 1) // S %}
{% set G = QB // S %}
{% include "shared/attention.wgsl" %}
{% if DROPOUT %}
{% include "shared/rng.wgsl" %}
{% endif %}
@group(0) @binding(0) var<storage, read> qkv: array<{{ ELEMENT }}>;
@group(0) @binding(1) var<storage, read> lens: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<{{ ELEMENT }}>;
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;
const KB = {{ 4 * S * TK }}u;

{% for l in range(S) %}
fn at{{ l }}(x: f32) -> vec4<f32> { return vec4<f32>(subgroupBroadcast(x, {{ l }}u)); }
{% endfor %}
// A broadcast is one shuffle on a CPU driver; subgroupMax is a loop over the lanes.
fn lanes_max(x: f32) -> f32 {
  var m = subgroupBroadcast(x, 0u);
{% for l in range(1, S) %}
  m = max(m, subgroupBroadcast(x, {{ l }}u));
{% endfor %}
  return m;
}

@compute @workgroup_size({{ S }})
fn flash_attention_fwd(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
                       @builtin(subgroup_invocation_id) lane: u32) {
  let id = wg.x + wg.y * grid.x;
  let blocks = (p.tokens + {{ QB - 1 }}u) / {{ QB }}u;
  if (id >= p.batch * p.heads * blocks) { return; }
  let bh = id / blocks;
  let q0 = (id % blocks) * {{ QB }}u;
  let b = bh / p.heads;
  let c = p.heads * D;
  let len = min(lens[b], p.tokens);
  let head = b * p.tokens * 3u * c + (bh % p.heads) * D;
{% for g in range(G) %}
  let q_row{{ g }} = head + min(q0 + {{ g * S }}u + lane, p.tokens - 1u) * 3u * c;
{% endfor %}
{% for n in range(NV) %}
  let dim{{ n }} = min(lane + {{ n * S }}u, DV - 1u);
{% endfor %}
{% for r in range(QB) %}
{% for n in range(NV) %}
  var o{{ r }}_{{ n }} = vec4<f32>();
{% endfor %}
  var m{{ r }} = MASKED;
  var l{{ r }} = 0.0;
{% endfor %}
  let scale = p.scale * LOG2E;
  for (var kb = 0u; kb < len; kb += KB) {
    let key = kb + 4u * lane;
{% for t in range(TK) %}
{% for j in range(4) %}
    let k_row{{ t }}{{ j }} = head + c + min(key + {{ 4 * S * t + j }}u, len - 1u) * 3u * c;
{% endfor %}
{% for r in range(QB) %}
    var s{{ r }}_{{ t }} = vec4<f32>();
{% endfor %}
{% endfor %}
    for (var d = 0u; d < DV; d++) {
{% for g in range(G) %}
      let a{{ g }} = load_qkv(q_row{{ g }}, d);
{% endfor %}
{% for t in range(TK) %}
      let k{{ t }} = transpose(mat4x4<f32>(load_qkv(k_row{{ t }}0, d), load_qkv(k_row{{ t }}1, d), load_qkv(k_row{{ t }}2, d), load_qkv(k_row{{ t }}3, d)));
{% endfor %}
{% for r in range(QB) %}
{% for x in "xyzw" %}
{% set i = loop.index0 %}
{% for t in range(TK) %}
      s{{ r }}_{{ t }} = fma(at{{ r % S }}(a{{ r // S }}.{{ x }}), k{{ t }}[{{ i }}], s{{ r }}_{{ t }});
{% endfor %}
{% endfor %}
{% endfor %}
    }
{% for t in range(TK) %}
    let valid{{ t }} = vec4<u32>(key + {{ 4 * S * t }}u) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(len);
{% endfor %}
{% for r in range(QB) %}
    {
{% for t in range(TK) %}
      s{{ r }}_{{ t }} = select(vec4<f32>(MASKED), s{{ r }}_{{ t }} * scale, valid{{ t }});
      let top{{ t }} = max(max(s{{ r }}_{{ t }}.x, s{{ r }}_{{ t }}.y), max(s{{ r }}_{{ t }}.z, s{{ r }}_{{ t }}.w));
{% endfor %}
      let m = max(m{{ r }}, lanes_max({{ "top0" if TK == 1 else "max(top0, top1)" }}));
      let shrink = exp2(m{{ r }} - m);
      m{{ r }} = m;
      l{{ r }} *= shrink;
{% for t in range(TK) %}
      s{{ r }}_{{ t }} = exp2(s{{ r }}_{{ t }} - m);
      l{{ r }} += s{{ r }}_{{ t }}.x + s{{ r }}_{{ t }}.y + s{{ r }}_{{ t }}.z + s{{ r }}_{{ t }}.w;
{% if DROPOUT %}
      s{{ r }}_{{ t }} *= probability_dropout(bh * p.tokens + q0 + {{ r }}u, key + {{ 4 * S * t }}u);
{% endif %}
{% endfor %}
{% for n in range(NV) %}
      o{{ r }}_{{ n }} *= shrink;
{% endfor %}
    }
{% endfor %}
    for (var j = 0u; j < {{ 4 * TK }}u; j++) {
      let first = kb + j{{ "" if TK == 1 else " % 4u + (j / 4u) * " ~ (4 * S) ~ "u" }};
{% for l in range(S) %}
      {
        let v_row = head + 2u * c + min(first + {{ 4 * l }}u, len - 1u) * 3u * c;
{% for n in range(NV) %}
        let v{{ n }} = load_qkv(v_row, dim{{ n }});
{% endfor %}
{% for r in range(QB) %}
        let w{{ r }} = at{{ l }}(s{{ r }}_0.x);
{% for n in range(NV) %}
        o{{ r }}_{{ n }} = fma(w{{ r }}, v{{ n }}, o{{ r }}_{{ n }});
{% endfor %}
{% endfor %}
      }
{% endfor %}
{% for r in range(QB) %}
{% if TK == 1 %}
      s{{ r }}_0 = s{{ r }}_0.yzwx;
{% else %}
      let w{{ r }} = s{{ r }}_0.x;
      s{{ r }}_0 = vec4<f32>(s{{ r }}_0.yzw, s{{ r }}_1.x);
      s{{ r }}_1 = vec4<f32>(s{{ r }}_1.yzw, w{{ r }});
{% endif %}
{% endfor %}
    }
  }
{% for r in range(QB) %}
  {
    let q = q0 + {{ r }}u;
    let sum = subgroupAdd(l{{ r }});
    let inverse = select(0.0, 1.0 / sum, len > 0u);
    if (q < p.tokens) {
      let row = (b * p.tokens + q) * c + (bh % p.heads) * D;
{% for n in range(NV) %}
      if (lane + {{ n * S }}u < DV) { store_out(row, dim{{ n }}, o{{ r }}_{{ n }} * inverse); }
{% endfor %}
      if (lane == {{ r % S }}u) { lse[bh * p.tokens + q] = select(0.0, (m{{ r }} + log2(sum)) * LN2, len > 0u); }
    }
  }
{% endfor %}
}
