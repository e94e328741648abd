// Attention, backward, in one pass: for CPU drivers (see attention_subgroup_fwd.wgsl). One subgroup a workgroup, one workgroup a
// head, so that five products suffice where separate dq and dkv kernels need seven, and dq is summed in a fixed order by its owner.
//   P = exp(scale q.k - lse)   dv[k] = sum_q P~ dout[q]   dS = scale P (dP~ - delta)   dk[k] = sum_q dS q[q]   dq[q] = sum_k dS k[k]
// with P~ = P and dP~ = dout.v, both times the dropout scale. Every element of dqkv is written; k and v of masked keys get exact zeros.
// delta = dout.out comes along with the first block of keys, where dout is in registers anyway, and is kept for the others.
// Shapes: qkv, dqkv [B*T, 3*C], lens [B], dout, out [B*T, C], lse [B, H, T] f32; scratch delta [B, H, T] f32 and with f16
// storage dq_sum [B*T, C] f32.
// Work: outer loop over blocks of 4*S keys (a lane owns four neighbours), inner over QB queries, which reach the lanes by broadcast.
// dk and dv of the block stay in workgroup memory (128 DV S bytes), each element touched by one lane only, hence no barrier; dq is read, added to and written back once a block of keys.
// Bytes: a head's q and dout twice a block of keys, k and v once, dq twice; out once.
{% set READS = ["qkv", "dout", "out", "dqkv"] if T_IO == "f32" else ["qkv", "dout", "out"] %}
{% set WRITES = ["dqkv"] %}
{% set DVN = (D + 3) // 4 %}
{% set NV = (DVN + S - 1) // S %}
{% set G = QB // S %}
{% include "shared/attention.wgsl" %}
{% if DROPOUT %}
{% include "shared/rng.wgsl" %}
{% endif %}
@group(0) @binding(0) var<storage, read> qkv: array<{{ ELEMENT }}>;
@group(0) @binding(1) var<storage, read> lens: array<u32>;
@group(0) @binding(2) var<storage, read> dout: array<{{ ELEMENT }}>;
@group(0) @binding(3) var<storage, read> lse: array<f32>;
@group(0) @binding(4) var<storage, read> out: array<{{ ELEMENT }}>;
@group(0) @binding(5) var<storage, read_write> dqkv: array<{{ ELEMENT }}>;
@group(0) @binding(6) var<storage, read_write> delta: array<f32>;
{% if T_IO != "f32" %}
@group(0) @binding(7) var<storage, read_write> dq_sum: array<vec4<f32>>;
{% endif %}
{% for l in range(S) %}
fn at{{ l }}(x: f32) -> vec4<f32> { return vec4<f32>(subgroupBroadcast(x, {{ l }}u)); }
fn all{{ l }}(x: vec4<f32>) -> vec4<f32> { return subgroupBroadcast(x, {{ l }}u); }
{% endfor %}
var<workgroup> dk_sum: array<vec4<f32>, {{ 4 * DVN * S }}>;
var<workgroup> dv_sum: array<vec4<f32>, {{ 4 * DVN * S }}>;

@compute @workgroup_size({{ S }})
fn flash_attention_bwd(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
                       @builtin(subgroup_invocation_id) lane: u32) {
  let bh = wg.x + wg.y * grid.x;
  if (bh >= p.batch * p.heads) { return; }
  let b = bh / p.heads;
  let c = p.heads * D;
  let len = min(lens[b], p.tokens);
  let head = b * p.tokens * 3u * c + (bh % p.heads) * D;
  let head_out = b * p.tokens * c + (bh % p.heads) * D;
  let scale = p.scale * LOG2E;
{% for n in range(NV) %}
  let dim{{ n }} = min(lane + {{ n * S }}u, DV - 1u);
  let mine{{ n }} = lane + {{ n * S }}u < DV;
{% endfor %}
  if (len == 0u) {
    for (var q = 0u; q < p.tokens; q++) {
{% for n in range(NV) %}
      if (mine{{ n }}) { store_dqkv(head + q * 3u * c, dim{{ n }}, vec4<f32>()); }
{% endfor %}
    }
  }
  for (var kb = 0u; kb < p.tokens; kb += {{ 4 * S }}u) {
    let key = kb + 4u * lane;
{% for j in range(4) %}
    let k_row{{ j }} = head + c + min(key + {{ j }}u, max(len, 1u) - 1u) * 3u * c;
{% endfor %}
    for (var d = 0u; d < 4u * DV; d++) {
      dk_sum[d * {{ S }}u + lane] = vec4<f32>();
      dv_sum[d * {{ S }}u + lane] = vec4<f32>();
    }
    for (var q0 = 0u; q0 < select(0u, p.tokens, kb < len); q0 += {{ QB }}u) {
{% for g in range(G) %}
      let token{{ g }} = min(q0 + {{ g * S }}u + lane, p.tokens - 1u);
      let q_row{{ g }} = head + token{{ g }} * 3u * c;
      let out_row{{ g }} = head_out + token{{ g }} * c;
      let lse{{ g }} = lse[bh * p.tokens + token{{ g }}] * LOG2E;
      var products{{ g }} = vec4<f32>();
{% endfor %}
{% for r in range(QB) %}
      var s{{ r }} = vec4<f32>();
      var t{{ r }} = vec4<f32>();
{% endfor %}
      for (var d = 0u; d < DV; d++) {
{% for g in range(G) %}
        let a{{ g }} = load_qkv(q_row{{ g }}, d);
{% endfor %}
        let k = transpose(mat4x4<f32>(load_qkv(k_row0, d), load_qkv(k_row1, d), load_qkv(k_row2, d), load_qkv(k_row3, d)));
{% for r in range(QB) %}
{% for x in "xyzw" %}
        s{{ r }} = fma(at{{ r % S }}(a{{ r // S }}.{{ x }}), k[{{ loop.index0 }}], s{{ r }});
{% endfor %}
{% endfor %}
      }
{% for r in range(QB) %}
      s{{ r }} = select(vec4<f32>(), exp2(fma(s{{ r }}, vec4<f32>(scale), -at{{ r % S }}(lse{{ r // S }}))),
        vec4<u32>(key) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(select(0u, len, q0 + {{ r }}u < p.tokens)));
{% if DROPOUT %}
      let w{{ r }} = s{{ r }} * probability_dropout(bh * p.tokens + q0 + {{ r }}u, key);
{% else %}
      let w{{ r }} = s{{ r }};
{% endif %}
{% endfor %}
      for (var d = 0u; d < DV; d++) {
{% for g in range(G) %}
        let a{{ g }} = load_dout(out_row{{ g }}, d);
{% endfor %}
        if (kb == 0u) {
{% for g in range(G) %}
          products{{ g }} = fma(a{{ g }}, load_out(out_row{{ g }}, d), products{{ g }});
{% endfor %}
        }
        let v = transpose(mat4x4<f32>(load_qkv(k_row0 + c, d), load_qkv(k_row1 + c, d), load_qkv(k_row2 + c, d), load_qkv(k_row3 + c, d)));
{% for j in range(4) %}
        var dv{{ j }} = dv_sum[({{ j }}u * DV + d) * {{ S }}u + lane];
{% endfor %}
{% for r in range(QB) %}
        {
          let a = all{{ r % S }}(a{{ r // S }});
          t{{ r }} = fma(a.xxxx, v[0], t{{ r }}); t{{ r }} = fma(a.yyyy, v[1], t{{ r }});
          t{{ r }} = fma(a.zzzz, v[2], t{{ r }}); t{{ r }} = fma(a.wwww, v[3], t{{ r }});
{% for j in range(4) %}
          dv{{ j }} = fma(w{{ r }}.{{ "xyzw"[j] * 4 }}, a, dv{{ j }});
{% endfor %}
        }
{% endfor %}
{% for j in range(4) %}
        dv_sum[({{ j }}u * DV + d) * {{ S }}u + lane] = dv{{ j }};
{% endfor %}
      }
{% for g in range(G) %}
      var delta{{ g }} = (products{{ g }}.x + products{{ g }}.y) + (products{{ g }}.z + products{{ g }}.w);
      if (kb == 0u) {
        delta[bh * p.tokens + token{{ g }}] = delta{{ g }};
      } else {
        delta{{ g }} = delta[bh * p.tokens + token{{ g }}];
      }
{% endfor %}
{% for r in range(QB) %}
      s{{ r }} = fma(w{{ r }}, t{{ r }}, -s{{ r }} * at{{ r % S }}(delta{{ r // S }})) * p.scale;
{% for n in range(NV) %}
      var dq{{ r }}_{{ n }} = vec4<f32>();
{% endfor %}
{% endfor %}
      for (var d = 0u; d < DV; d++) {
{% for g in range(G) %}
        let a{{ g }} = load_qkv(q_row{{ g }}, d);
{% endfor %}
{% for j in range(4) %}
        var dk{{ j }} = dk_sum[({{ j }}u * DV + d) * {{ S }}u + lane];
{% endfor %}
{% for r in range(QB) %}
        {
          let a = all{{ r % S }}(a{{ r // S }});
{% for j in range(4) %}
          dk{{ j }} = fma(s{{ r }}.{{ "xyzw"[j] * 4 }}, a, dk{{ j }});
{% endfor %}
        }
{% endfor %}
{% for j in range(4) %}
        dk_sum[({{ j }}u * DV + d) * {{ S }}u + lane] = dk{{ j }};
{% endfor %}
      }
      for (var j = 0u; j < 4u; j++) {
{% for l in range(S) %}
        {
          let row = head + c + min(kb + {{ 4 * l }}u + j, len - 1u) * 3u * c;
{% for n in range(NV) %}
          let k{{ n }} = load_qkv(row, dim{{ n }});
{% endfor %}
{% for r in range(QB) %}
          let w{{ r }} = at{{ l }}(s{{ r }}.x);
{% for n in range(NV) %}
          dq{{ r }}_{{ n }} = fma(w{{ r }}, k{{ n }}, dq{{ r }}_{{ n }});
{% endfor %}
{% endfor %}
        }
{% endfor %}
{% for r in range(QB) %}
        s{{ r }} = s{{ r }}.yzwx;
{% endfor %}
      }
{% for r in range(QB) %}
      if (q0 + {{ r }}u < p.tokens) {
        let q = q0 + {{ r }}u;
{% for n in range(NV) %}
        if (mine{{ n }}) {
{% if T_IO == "f32" %}
          if (kb > 0u) { dq{{ r }}_{{ n }} += load_dqkv(head + q * 3u * c, dim{{ n }}); }
          store_dqkv(head + q * 3u * c, dim{{ n }}, dq{{ r }}_{{ n }});
{% else %}
          let i = (bh * p.tokens + q) * {{ NV * S }}u + lane + {{ n * S }}u;
          if (kb > 0u) { dq{{ r }}_{{ n }} += dq_sum[i]; }
          if (kb + {{ 4 * S }}u < len) {
            dq_sum[i] = dq{{ r }}_{{ n }};
          } else {
            store_dqkv(head + q * 3u * c, dim{{ n }}, dq{{ r }}_{{ n }});
          }
{% endif %}
        }
{% endfor %}
      }
{% endfor %}
    }
    // One loop: nested ones of constant length are unrolled by drivers, each store into a loop over the lanes.
    for (var i = 0u; i < 4u * DV; i++) {
      let k = key + i / DV;
      if (k < p.tokens) {
        let row = head + c + k * 3u * c;
        store_dqkv(row, i % DV, select(vec4<f32>(), dk_sum[i * {{ S }}u + lane], k < len));
        store_dqkv(row + c, i % DV, select(vec4<f32>(), dv_sum[i * {{ S }}u + lane], k < len));
      }
    }
  }
}
