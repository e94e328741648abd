// Rows by index, and ids by index.
//   rows     out[i, :] = inp[index[i], :]      Shapes: inp [rows, C], index [n] u32, out [n, C]. Bindings: inp, index, out.
//   replace  What the discriminator reads: in each group (example) of `length` rows, the rows that `index` names (`per` entries a
//            group, counted from the first row of all) take `sampled`; entries of weight 0 name nothing, of two the last holds.
//            changed[r] = 1 where the id now differs.
//            Shapes: ids, out, changed [rows] u32; index, sampled [groups * per] u32, weights [groups * per] f32.
//            Bindings: ids, index, sampled, weights, out, changed.
// Indices past the end read the last row. The gradient of `rows` is `segment_sum.wgsl`; `replace` has none (it stops there).
// Work: rows: PER pieces of VEC a thread, PIECES = C / VEC; replace: a thread a row, looking through its group's entries.
{% if PASS == "rows" %}
{% include "shared/vec.wgsl" %}
struct Params { pieces: u32, rows: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> inp: array<Stored>;
@group(0) @binding(1) var<storage, read> index: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<Stored>;

@compute @workgroup_size({{ WG }})
fn gather_rows(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
               @builtin(local_invocation_index) lid: u32) {
  let start = (wg.x + wg.y * grid.x) * {{ WG * PER }}u + lid;
{% for k in range(PER) %}
  let i{{ k }} = start + {{ k * WG }}u;
  if (i{{ k }} < p.pieces) {
    out[i{{ k }}] = inp[min(index[i{{ k }} / {{ PIECES }}u], p.rows - 1u) * {{ PIECES }}u + i{{ k }} % {{ PIECES }}u];
  }
{% endfor %}
}
{% else %}
struct Params { rows: u32, length: u32, per: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> ids: array<u32>;
@group(0) @binding(1) var<storage, read> index: array<u32>;
@group(0) @binding(2) var<storage, read> sampled: array<u32>;
@group(0) @binding(3) var<storage, read> weights: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<u32>;
@group(0) @binding(5) var<storage, read_write> changed: array<u32>;

@compute @workgroup_size({{ WG }})
fn replace_ids(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
               @builtin(local_invocation_index) lid: u32) {
  let row = (wg.x + wg.y * grid.x) * {{ WG }}u + lid;
  if (row < p.rows) {
    let before = ids[row];
    var now = before;
    let first = (row / p.length) * p.per;
    for (var m = first; m < first + p.per; m++) {
      if (index[m] == row && weights[m] > 0.0) { now = sampled[m]; }
    }
    out[row] = now;
    changed[row] = select(0u, 1u, now != before);
  }
}
{% endif %}
