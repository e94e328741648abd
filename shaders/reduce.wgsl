// Sums in a fixed order, one form (FORM) a kernel; `accumulate` adds to what is there.
//   columns  out[g, c] = sum of inp[r, first + c] over the rows r of group g: bias, position-table and LayerNorm gradients.
//            inp [rows, ld] as {{ T }}, `cols` columns of it from `first`; out [groups, cols] f32.
//            Work: an invocation owns VEC columns of one group; four rows are in flight at once.
//   total    out[g] = sum of the n elements of inp that stand in the `group` quads of group g; out [groups] f32.
//            Work: a workgroup owns a group, its invocations take the quads in turn, then add up as a tree.
// Where there is much to sum it is run twice: into partial sums of up to 256 (total: 1024) groups, then over those. The order of
// additions depends on the shape only. Bindings: inp, out. Bytes: what is summed, once.
{% include "shared/vec.wgsl" %}
{% if FORM == "columns" %}
struct Params { rows: u32, cols: u32, ld: u32, first: u32, group: u32, accumulate: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> inp: array<Stored>;
@group(0) @binding(1) var<storage, read_write> out: array<Val>;

@compute @workgroup_size({{ WG }})
fn column_sum(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let pieces = p.cols / {{ VEC }}u;
  let c = wg.x * {{ WG }}u + lid;
  if (c < pieces) {
    let stride = p.ld / {{ VEC }}u;
    let begin = wg.y * p.group;
    let end = min(begin + p.group, p.rows);
    var at = begin * stride + p.first / {{ VEC }}u + c;
    var s0 = Val(0.0);
    var s1 = Val(0.0);
    var s2 = Val(0.0);
    var s3 = Val(0.0);
    var r = begin;
    for (; r + 4u <= end; r += 4u) {
      s0 += Val(inp[at]);
      s1 += Val(inp[at + stride]);
      s2 += Val(inp[at + 2u * stride]);
      s3 += Val(inp[at + 3u * stride]);
      at += 4u * stride;
    }
    for (; r < end; r++) {
      s0 += Val(inp[at]);
      at += stride;
    }
    var total = (s0 + s1) + (s2 + s3);
    let to = wg.y * pieces + c;
    if (p.accumulate != 0u) { total += out[to]; }
    out[to] = total;
  }
}
{% else %}
{% set SUBGROUP = 0 %}
{% set LANES = WG %}
{% include "shared/reduce_row.wgsl" %}
struct Params { n: u32, group: u32, accumulate: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> inp: array<Stored>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

@compute @workgroup_size({{ WG }})
fn total(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let begin = wg.x * p.group;
  let end = min(begin + p.group, (p.n + 3u) / 4u);
  let whole = min(end, p.n / 4u);
  var s = Val(0.0);
  for (var q = begin + lid; q < whole; q += {{ WG }}u) { s += Val(inp[q]); }
  // The last quad may hold less than four: what stands behind them is not ours and may be NaN, so it is not multiplied away.
  if (lid == 0u && whole < end) {
    s += select(Val(0.0), Val(inp[whole]), vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.n % 4u));
  }
  var sum = row_sum(hsum(s), lid);
  if (lid == 0u) {
    if (p.accumulate != 0u) { sum += out[wg.x]; }
    out[wg.x] = sum;
  }
}
{% endif %}
