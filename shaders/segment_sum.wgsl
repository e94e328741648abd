// Adds rows into the table rows that their ids name: the gradient of looking rows up. Ids repeat, floats are never added
// atomically, and the order of additions is the order of the rows.
//   table[id, :] += sum of rows[i, :] over all i with ids[i] = id          (id = skip: left alone)
// 1 rank   sorts (id, i) by counting, for every i, what stands before it: n^2 integer comparisons, no passes, no scratch.
//          Bindings: ids [n] u32, order [n] of (i, id).
// 2 chunk  a workgroup walks CHUNK sorted entries. Runs of one id that begin and end inside are added to the table; the
//          piece of a run that came from the chunk before goes to partial[chunk, 0], of one that goes on to partial[chunk, 1].
//          Bindings: order, rows [n, C], table [.., C], partial [chunks, 2, C] f32.
// 3 join   the chunk in which such a run begins adds its pieces up. Bindings: order, partial, table.
// So a token that stands in half of all positions costs n / CHUNK additions in sequence, not n / 2.
// Every table row is touched by one workgroup only. Work: threads own VEC columns. Bytes: rows once, the touched table rows twice.
struct Params { n: u32, pieces: u32, limit: u32, skip: u32 }
var<immediate> p: Params;
{% if PASS == "rank" %}
@group(0) @binding(0) var<storage, read> ids: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> order: array<vec2<u32>>;

@compute @workgroup_size({{ WG }})
fn rank(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let i = wg.x * {{ WG }}u + lid;
  let at = min(i, p.n - 1u);
  let last = p.limit - 1u;
  let mine = min(ids[at / 4u][at % 4u], last);
  let whole = p.n / 4u;
  let own = at / 4u;
  var before = vec4<u32>(0u);
  var q = 0u;
{% for step in [4, 1] %}
  for (; q + {{ step }}u <= whole; q += {{ step }}u) {
{% for k in range(step) %}
    // Equal ids stand before mine if they come earlier: one comparison, with the bound moved by one.
    before += select(vec4<u32>(0u), vec4<u32>(1u),
                     min(ids[q + {{ k }}u], vec4<u32>(last)) < vec4<u32>(mine + select(0u, 1u, q + {{ k }}u < own)));
{% endfor %}
  }
{% endfor %}
  // What the quads leave over, and those of my own quad that are equal and earlier.
  for (var j = whole * 4u; j < p.n; j++) {
    before.x += select(0u, 1u, min(ids[j / 4u][j % 4u], last) < mine + select(0u, 1u, j < at && own == whole));
  }
  if (own < whole) {
    for (var j = own * 4u; j < at; j++) {
      before.x += select(0u, 1u, min(ids[j / 4u][j % 4u], last) == mine);
    }
  }
  if (i < p.n) { order[before.x + before.y + before.z + before.w] = vec2<u32>(i, mine); }
}
{% else %}
{% include "shared/vec.wgsl" %}
@group(0) @binding(0) var<storage, read> order: array<vec2<u32>>;
{% if PASS == "chunk" %}
@group(0) @binding(1) var<storage, read> rows: array<Stored>;
@group(0) @binding(2) var<storage, read_write> table: array<{% if VEC == 4 %}vec4<{{ TO }}>{% else %}{{ TO }}{% endif %}>;
@group(0) @binding(3) var<storage, read_write> partial: array<Val>;
{% else %}
@group(0) @binding(1) var<storage, read> partial: array<Val>;
@group(0) @binding(2) var<storage, read_write> table: array<{% if VEC == 4 %}vec4<{{ TO }}>{% else %}{{ TO }}{% endif %}>;
{% endif %}
fn add_to_table(id: u32, c: u32, v: Val) {
  if (id != p.skip) {
    let to = id * p.pieces + c;
    table[to] = {% if VEC == 4 %}vec4<{{ TO }}>{% else %}{{ TO }}{% endif %}(Val(table[to]) + v);
  }
}

{% if PASS == "chunk" %}
@compute @workgroup_size({{ WG }})
fn chunk(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
         @builtin(local_invocation_index) lid: u32) {
  let me = wg.x + wg.y * grid.x;
  let begin = me * {{ CHUNK }}u;
  if (begin >= p.n) { return; }
  let end = min(begin + {{ CHUNK }}u, p.n);
  for (var c = lid; c < p.pieces; c += {{ WG }}u) {
    var here = order[begin];
    var from_before = begin > 0u && order[max(begin, 1u) - 1u].y == here.y;
    var sum = Val(0.0);
    for (var s = begin; s < end; s++) {
      sum += Val(rows[here.x * p.pieces + c]);
      let next = order[min(s + 1u, p.n - 1u)];
      if (s + 1u == p.n || next.y != here.y) {
        if (from_before) { partial[me * 2u * p.pieces + c] = sum; } else { add_to_table(here.y, c, sum); }
        from_before = false;
        sum = Val(0.0);
      } else if (s + 1u == end) {
        partial[(me * 2u + select(1u, 0u, from_before)) * p.pieces + c] = sum;
      }
      here = next;
    }
  }
}
{% else %}
@compute @workgroup_size({{ WG }})
fn join(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lid: u32) {
  let me = wg.x + wg.y * grid.x;
  let begin = me * {{ CHUNK }}u;
  let end = begin + {{ CHUNK }}u;
  if (end >= p.n) { return; }
  let id = order[end - 1u].y;
  let goes_on = order[end].y == id;
  let begins_here = begin == 0u || order[max(begin, 1u) - 1u].y != id;
  if (goes_on && begins_here) {
    for (var c = lid; c < p.pieces; c += {{ WG }}u) {
      var sum = partial[(me * 2u + 1u) * p.pieces + c];
      var k = me + 1u;
      loop {
        sum += partial[k * 2u * p.pieces + c];
        k++;
        let first = k * {{ CHUNK }}u;
        if (first >= p.n) { break; }
        if (order[first].y != id) { break; }
      }
      add_to_table(id, c, sum);
    }
  }
}
{% endif %}
{% endif %}
