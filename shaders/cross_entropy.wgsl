// Softmax cross-entropy over a row of logits with its gradient (GRAD) put in the logits' place (INPLACE) or beside them, the row's
// best class, and (SAMPLE) a draw from the same row: the vocabulary head of the generator in one visit and a half. Also the
// classification loss.
//   x = logits + bias                           lse = log(sum(exp(x)))
//   loss = w * (lse - x[label])                 dlogits = (exp(x - lse) - onehot(label)) * w * coef * loss_scale
//   best = argmax(x)                            sample = argmax(x / temperature + Gumbel), x[label] - 1000 when `disallow`
// Shapes: logits [rows, ld] of which `cols` count; bias [cols] f32; labels, best, sample [rows] u32; weights, loss [rows] f32;
// denominator [2] f32 = (sum of weights, coef) from `losses.wgsl`. Ties take the lowest id. Without WEIGHTED a row's weight
// is 1, and 0 for the label 0xffffffff.
// Bindings: logits, labels, denominator, loss, best, bias (BIAS), weights (WEIGHTED), sample (SAMPLE), dlogits (GRAD and not
// INPLACE), step. Logits start at row first_row of all, the per-row vectors at row 0: so rows can be taken in chunks.
// Work: LANES invocations take a row; first pass: running maximum, sum and best in registers; second pass: the gradient.
// Bytes: logits read twice and written once. The draw of a row depends on its number among all rows, so cutting
// them into chunks changes nothing.
{% include "shared/vec.wgsl" %}
{% include "shared/reduce_row.wgsl" %}
{% if SAMPLE %}
{% include "shared/gumbel.wgsl" %}
{% elif GRAD %}
{% include "shared/step.wgsl" %}
{% endif %}
{% include "shared/best.wgsl" %}
struct Params {
  rows: u32, cols: u32, ld: u32, first_row: u32,
  site: u32, inv_temperature: f32, disallow: f32,   // disallow: 1000 or 0, taken off the label's logit in the draw
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, {% if GRAD and INPLACE %}read_write{% else %}read{% endif %}> logits: array<Stored>;
@group(0) @binding(1) var<storage, read> labels: array<u32>;
@group(0) @binding(2) var<storage, read> denominator: array<f32>;
@group(0) @binding(3) var<storage, read_write> loss: array<f32>;
@group(0) @binding(4) var<storage, read_write> best: array<u32>;
{% if BIAS %}
@group(0) @binding(5) var<storage, read> bias: array<Val>;
{% endif %}
{% if WEIGHTED %}
@group(0) @binding({{ 5 + BIAS }}) var<storage, read> weights: array<f32>;
{% endif %}
{% if SAMPLE %}
@group(0) @binding({{ 5 + BIAS + WEIGHTED }}) var<storage, read_write> sample: array<u32>;
{% endif %}
{% if GRAD and not INPLACE %}
@group(0) @binding({{ 5 + BIAS + WEIGHTED + SAMPLE }}) var<storage, read_write> dlogits: array<Stored>;
{% endif %}

@compute @workgroup_size({{ LANES * ROWS }})
fn cross_entropy(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
                 @builtin(local_invocation_index) lid: u32) {
  let lane = lid % {{ LANES }}u;
  let wanted = (wg.x + wg.y * grid.x) * {{ ROWS }}u + lid / {{ LANES }}u;
  let local = min(wanted, p.rows - 1u);
  let row = p.first_row + local;
  let live = wanted < p.rows;
  let pieces = p.cols / {{ VEC }}u;
  let base = local * (p.ld / {{ VEC }}u);
  let given = labels[row];
  let label = min(given, p.cols - 1u);
{% if WEIGHTED %}
  let weight = weights[row];
{% else %}
  let weight = select(1.0, 0.0, given == 0xffffffffu);
{% endif %}
  // Read before anything is overwritten: the reductions below stand between this and the second pass.
  let x_label = Val(logits[base + label / {{ VEC }}u]){% if BIAS %} + bias[label / {{ VEC }}u]{% endif %};
  let at_label = {% if VEC == 4 %}x_label[label % 4u]{% else %}x_label{% endif %};

  var top = -3.0e38;
  var total = 0.0;
  var top_value = Val(-3.0e38);
  var top_piece = Piece(0u);
{% if SAMPLE %}
  let first_quad = row * ((p.cols + 3u) / 4u);
  var draw_value = Val(-3.0e38);
  var draw_piece = Piece(0u);
{% endif %}
  var j = lane;
{% for count in [UNROLL, 1] %}
  for (; j + {{ (count - 1) * LANES }}u < pieces; j += {{ count * LANES }}u) {
{% for k in range(count) %}
    let j{{ k }} = j + {{ k * LANES }}u;
    let x{{ k }} = Val(logits[base + j{{ k }}]){% if BIAS %} + bias[j{{ k }}]{% endif %};
    top_piece = select(top_piece, Piece(j{{ k }}), x{{ k }} > top_value);
    top_value = max(top_value, x{{ k }});
{% if SAMPLE %}
    {
      let held_back = select(Val(0.0), Val(p.disallow), ids_of(j{{ k }}) == Piece(label));
      let z = (x{{ k }} - held_back) * p.inv_temperature
              + {% if VEC == 4 %}gumbel4(p.site, first_quad + j{{ k }}){% else %}gumbel4(p.site, first_quad + j{{ k }} / 4u)[j{{ k }} % 4u]{% endif %};
      draw_piece = select(draw_piece, Piece(j{{ k }}), z > draw_value);
      draw_value = max(draw_value, z);
    }
{% endif %}
{% endfor %}
    let higher = max(top, hmax({% for k in range(count - 1) %}max(x{{ k }}, {% endfor %}x{{ count - 1 }}{% for k in range(count - 1) %}){% endfor %}));
    total = total * exp(top - higher) + hsum({% for k in range(count) %}{% if k %} + {% endif %}exp(x{{ k }} - higher){% endfor %});
    top = higher;
  }
{% endfor %}
  let row_top = row_max(top, lane);
  let lse = row_top + log(row_sum(total * exp(top - row_top), lane));
  let row_best = row_min_u32(first_equal(top_value, top_piece, row_top), lane);
{% if SAMPLE %}
  let draw_top = row_max(hmax(draw_value), lane);
  let row_draw = row_min_u32(first_equal(draw_value, draw_piece, draw_top), lane);
{% endif %}
  if (live) {
    if (lane == 0u) {
      // A weight of 0 makes 0 even of a logit that is not finite.
      loss[row] = select(weight * (lse - at_label), 0.0, weight == 0.0);
      best[row] = min(row_best, p.cols - 1u);
{% if SAMPLE %}
      sample[row] = min(row_draw, p.cols - 1u);
{% endif %}
    }
{% if GRAD %}
    let scale = weight * denominator[1] * step.loss_scale;
    for (var j = lane; j < pieces; j += {{ LANES }}u) {
      let x = Val(logits[base + j]){% if BIAS %} + bias[j]{% endif %};
      let onehot = select(Val(0.0), Val(1.0), ids_of(j) == Piece(label));
      {% if INPLACE %}logits{% else %}dlogits{% endif %}[base + j] = Stored(select((exp(x - lse) - onehot) * scale, Val(0.0), Val(weight) == Val(0.0)));
    }
{% endif %}
  }
}
