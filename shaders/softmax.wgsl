// Softmax over the last axis and its gradient.
//   out = exp(inp - max) / sum(exp(inp - max)),     dinp = out * (dout - sum(out * dout))
// Shapes: all [rows, C]. Bindings forward: inp, out. Backward: out, dout, dinp.
// Work: LANES invocations take a row; one visit finds maximum and sum together, a second writes. Any width.
// Bytes: forward 2 reads (the second mostly from cache) and 1 write, backward 2 x 2 reads and 1 write.
{% include "shared/vec.wgsl" %}
{% include "shared/reduce_row.wgsl" %}
struct Params { rows: u32, cols: u32, accumulate: u32 }
var<immediate> p: Params;
{% if PASS == "fwd" %}
@group(0) @binding(0) var<storage, read> inp: array<Stored>;
@group(0) @binding(1) var<storage, read_write> out: array<Stored>;

@compute @workgroup_size({{ LANES * ROWS }})
fn softmax_fwd(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
               @builtin(local_invocation_index) lid: u32) {
  let lane = lid % {{ LANES }}u;
  let wanted = (wg.x + wg.y * grid.x) * {{ ROWS }}u + lid / {{ LANES }}u;
  let row = min(wanted, p.rows - 1u);
  let pieces = p.cols / {{ VEC }}u;
  let base = row * pieces;
  var top = -3.0e38;
  var total = 0.0;
  for (var j = lane; j < pieces; j += {{ LANES }}u) {
    let v = Val(inp[base + j]);
    let higher = max(top, hmax(v));
    total = total * exp(top - higher) + hsum(exp(v - higher));
    top = higher;
  }
  let row_top = row_max(top, lane);
  let inv = 1.0 / row_sum(total * exp(top - row_top), lane);
  if (wanted < p.rows) {
    for (var j = lane; j < pieces; j += {{ LANES }}u) {
      out[base + j] = Stored(exp(Val(inp[base + j]) - row_top) * inv);
    }
  }
}
{% else %}
@group(0) @binding(0) var<storage, read> out: array<Stored>;
@group(0) @binding(1) var<storage, read> dout: array<Stored>;
@group(0) @binding(2) var<storage, read_write> dinp: array<Stored>;

@compute @workgroup_size({{ LANES * ROWS }})
fn softmax_bwd(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
               @builtin(local_invocation_index) lid: u32) {
  let lane = lid % {{ LANES }}u;
  let wanted = (wg.x + wg.y * grid.x) * {{ ROWS }}u + lid / {{ LANES }}u;
  let row = min(wanted, p.rows - 1u);
  let pieces = p.cols / {{ VEC }}u;
  let base = row * pieces;
  var dot = Val(0.0);
  for (var j = lane; j < pieces; j += {{ LANES }}u) { dot += Val(out[base + j]) * Val(dout[base + j]); }
  let mean = row_sum(hsum(dot), lane);
  if (wanted < p.rows) {
    for (var j = lane; j < pieces; j += {{ LANES }}u) {
      var d = Val(out[base + j]) * (Val(dout[base + j]) - mean);
      if (p.accumulate != 0u) { d += Val(dinp[base + j]); }
      dinp[base + j] = Stored(d);
    }
  }
}
{% endif %}
