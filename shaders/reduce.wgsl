// Sums down the columns of a matrix, for bias, position-table and LayerNorm gradients.
//   out[g, c] = sum of inp[r, first + c] over the rows r of group g        (accumulate: added to what is there)
// Shapes: inp [rows, ld] as {{ T }}, `cols` columns of it from `first`; out [groups, cols] f32. With many rows it is run twice: into
// partial sums of a few hundred groups, then over those. The order of additions depends on the shape only.
// Bindings: inp, out. Work: an invocation owns VEC columns of one group; four rows are in flight at once.
// Bytes: rows * cols read once.
{% include "shared/vec.wgsl" %}
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
