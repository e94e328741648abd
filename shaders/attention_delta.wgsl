// Attention, backward, first step: delta[b, h, q] = sum_d dout[q, d] out[q, d], which equals sum_k P dP and so serves every key.
// Shapes: dout, out [B*T, C], delta [B, H, T] f32. A thread a query and head; 64 a workgroup. Bytes: dout and out once.
{% set READS = ["dout", "out"] %}
{% set WRITES = [] %}
{% include "shared/attention.wgsl" %}
@group(0) @binding(0) var<storage, read> dout: array<{{ ELEMENT }}>;
@group(0) @binding(1) var<storage, read> out: array<{{ ELEMENT }}>;
@group(0) @binding(2) var<storage, read_write> delta: array<f32>;

@compute @workgroup_size(64)
fn flash_attention_bwd_delta(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
                             @builtin(local_invocation_index) thread: u32) {
  let i = (wg.x + wg.y * grid.x) * 64u + thread;
  if (i >= p.batch * p.heads * p.tokens) { return; }
  let bh = i / p.tokens;
  let row = ((bh / p.heads * p.tokens + i % p.tokens) * p.heads + bh % p.heads) * D;
  var sum = vec4<f32>();
  for (var d = 0u; d < DV; d++) { sum = fma(load_dout(row, d), load_out(row, d), sum); }
  delta[i] = (sum.x + sum.y) + (sum.z + sum.w);
}
