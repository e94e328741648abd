// A draw from softmax(logits / temperature) for every row, by the Gumbel trick, or (NOISE = 0) the row's best id.
//   out = argmax((logits + bias) / temperature + Gumbel); x[label] - 1000 when `disallow`. Ties take the lowest id.
// Shapes: logits [rows, ld] of which `cols` count; bias [cols] f32; labels, out [rows] u32.
// Bindings: logits, out, bias (BIAS), labels (LABELS), step. Work: LANES invocations take a row. Bytes: logits once.
{% include "shared/vec.wgsl" %}
{% include "shared/reduce_row.wgsl" %}
{% if NOISE %}
{% include "shared/gumbel.wgsl" %}
{% endif %}
{% include "shared/best.wgsl" %}
struct Params { rows: u32, cols: u32, ld: u32, first_row: u32, site: u32, inv_temperature: f32, disallow: f32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> logits: array<Stored>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;
{% if BIAS %}
@group(0) @binding(2) var<storage, read> bias: array<Val>;
{% endif %}
{% if LABELS %}
@group(0) @binding({{ 2 + BIAS }}) var<storage, read> labels: array<u32>;
{% endif %}

@compute @workgroup_size({{ LANES * ROWS }})
fn sample(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
          @builtin(local_invocation_index) lid: u32) {
  let lane = lid % {{ LANES }}u;
  let wanted = (wg.x + wg.y * grid.x) * {{ ROWS }}u + lid / {{ LANES }}u;
  let row = min(wanted, p.rows - 1u);
  let pieces = p.cols / {{ VEC }}u;
  let base = row * (p.ld / {{ VEC }}u);
{% if LABELS %}
  let label = labels[row];
{% endif %}
{% if NOISE %}
  let first_quad = (p.first_row + row) * ((p.cols + 3u) / 4u);
{% endif %}
  var value = Val(-3.0e38);
  var piece = Piece(0u);
  for (var j = lane; j < pieces; j += {{ LANES }}u) {
    var z = Val(logits[base + j]){% if BIAS %} + bias[j]{% endif %};
{% if LABELS %}
    z -= select(Val(0.0), Val(p.disallow), ids_of(j) == Piece(label));
{% endif %}
    z *= p.inv_temperature;
{% if NOISE %}
    z += {% if VEC == 4 %}gumbel4(p.site, first_quad + j){% else %}gumbel4(p.site, first_quad + j / 4u)[j % 4u]{% endif %};
{% endif %}
    piece = select(piece, Piece(j), z > value);
    value = max(value, z);
  }
  let top = row_max(hmax(value), lane);
  let id = row_min_u32(first_equal(value, piece, top), lane);
  if (wanted < p.rows && lane == 0u) { out[row] = min(id, p.cols - 1u); }
}
