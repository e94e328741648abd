// Sum of token, position and segment embeddings.
//   out[r, :] = tokens[ids[r], :] + positions[r mod length, :] + segments[kinds[r], :]
// Shapes: ids, kinds [rows] u32; tables [.., C] f32; out [rows, C]. POSITIONS = 0, SEGMENTS = 0 leave those out.
// Bindings: ids, tokens, out, positions (POSITIONS), kinds, segments (SEGMENTS).
// Ids past the table's end read its last row; the host has refused them before.
// Work: PER pieces of VEC elements a thread; PIECES = C / VEC is a constant because it is divided by.
// Bytes: out once, a table row for each row of it. The gradients are `segment_sum.wgsl` and `reduce.wgsl`.
{% include "shared/vec.wgsl" %}
struct Params { pieces: u32, length: u32, vocabulary: u32, kinds: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> ids: array<u32>;
@group(0) @binding(1) var<storage, read> tokens: array<Val>;
@group(0) @binding(2) var<storage, read_write> out: array<Stored>;
{% if POSITIONS %}
@group(0) @binding(3) var<storage, read> positions: array<Val>;
{% endif %}
{% if SEGMENTS %}
@group(0) @binding({{ 3 + POSITIONS }}) var<storage, read> kinds: array<u32>;
@group(0) @binding({{ 4 + POSITIONS }}) var<storage, read> segments: array<Val>;
{% endif %}

@compute @workgroup_size({{ WG }})
fn embedding(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
             @builtin(local_invocation_index) lid: u32) {
  let start = (wg.x + wg.y * grid.x) * {{ WG * PER }}u + lid;
{% for k in range(PER) %}
  let i{{ k }} = start + {{ k * WG }}u;
  if (i{{ k }} < p.pieces) {
    let row = i{{ k }} / {{ PIECES }}u;
    let c = i{{ k }} % {{ PIECES }}u;
    var v = tokens[min(ids[row], p.vocabulary - 1u) * {{ PIECES }}u + c];
{% if POSITIONS %}
    v += positions[(row % p.length) * {{ PIECES }}u + c];
{% endif %}
{% if SEGMENTS %}
    v += segments[min(kinds[row], p.kinds - 1u) * {{ PIECES }}u + c];
{% endif %}
    out[i{{ k }}] = Stored(v);
  }
{% endfor %}
}
