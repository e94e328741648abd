// Layer normalisation over the last axis, alone or with what stands before it in the encoder.
//
//   s = residual + inp * mask                    (RESIDUAL; DROPOUT only with it; without it s is inp)
//   out = (s - mean) * rstd * gamma + beta       mean = sum(s) / C,  rstd = 1 / sqrt(sum((s - mean)^2) / C + eps)
//   dsum = rstd * (g - sum(g) / C - xhat * sum(g * xhat) / C)     g = dout * gamma,  xhat = (s - mean) * rstd
//   dresidual = dsum,  dinp = dsum * mask (the same as dsum without DROPOUT),  dgamma = sum over rows of dout * xhat,  dbeta = sum over rows of dout
//
// Shapes: inp, residual, sum, out [rows, C]; gamma, beta [C] f32; stats [rows, 2] f32 = (mean, rstd).
// Bindings forward:  inp, residual (RESIDUAL), gamma, beta, out, stats (SAVE), sum (SAVE and RESIDUAL). SAVE = 0: no backward follows.
// Bindings backward: dout, sum (or inp), stats, gamma, dsum, partial [groups, 2 C] f32, dinp (DROPOUT).
// Work: LANES invocations take a row and hold it in registers (HELD pieces of VEC elements each, FULL = 1 when they fit
// exactly), ROWS rows side by side in a workgroup, p.group rows one after another. The rows of a slot add to dgamma and dbeta
// in registers; `reduce.wgsl` adds the partial sums up.
// Bytes: forward 2 to 4 tensors, backward 3 to 4.
//
// The second pass also sums s - mean: that sum is what rounding left in the mean, and with it taken off, constant rows
// give exactly zero and rows far from zero lose nothing (rstd reaches 1e6 at eps = 1e-12, so this matters).
{% include "shared/vec.wgsl" %}
{% include "shared/reduce_row.wgsl" %}
{% if DROPOUT %}
{% include "shared/dropout.wgsl" %}
{% endif %}
struct Params {
  rows: u32, cols: u32, group: u32, eps: f32,
  site: u32, threshold: u32, scale: f32,
  accumulate: u32,   // backward: add to dsum instead of writing it
}
var<immediate> p: Params;

{% if PASS == "fwd" %}
@group(0) @binding(0) var<storage, read> inp: array<Stored>;
{% if RESIDUAL %}
@group(0) @binding(1) var<storage, read> residual: array<Stored>;
{% endif %}
@group(0) @binding({{ 1 + RESIDUAL }}) var<storage, read> gamma: array<Val>;
@group(0) @binding({{ 2 + RESIDUAL }}) var<storage, read> beta: array<Val>;
@group(0) @binding({{ 3 + RESIDUAL }}) var<storage, read_write> out: array<Stored>;
{% if SAVE %}
@group(0) @binding({{ 4 + RESIDUAL }}) var<storage, read_write> stats: array<vec2<f32>>;
{% endif %}
{% if SAVE and RESIDUAL %}
@group(0) @binding({{ 5 + RESIDUAL }}) var<storage, read_write> sum: array<Stored>;
{% endif %}

@compute @workgroup_size({{ LANES * ROWS }})
fn layer_norm_fwd(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
                  @builtin(local_invocation_index) lid: u32) {
  let lane = lid % {{ LANES }}u;
  let slot = (wg.x + wg.y * grid.x) * {{ ROWS }}u + lid / {{ LANES }}u;
  let pieces = p.cols / {{ VEC }}u;
  let inv = 1.0 / f32(p.cols);
{% for k in range(HELD) %}
  let j{{ k }} = {% if FULL or k + 1 < HELD %}lane + {{ k * LANES }}u{% else %}min(lane + {{ k * LANES }}u, pieces - 1u){% endif %};
  let gamma{{ k }} = gamma[j{{ k }}];
  let beta{{ k }} = beta[j{{ k }}];
{% endfor %}
  let inside = lane + {{ (HELD - 1) * LANES }}u < pieces;
  for (var r = 0u; r < p.group; r++) {
    let wanted = slot * p.group + r;
    let live = wanted < p.rows;
    // A row past the end redoes the last one and stores nothing: reductions need every invocation.
    let row = min(wanted, p.rows - 1u);
    let base = row * pieces;
{% for k in range(HELD) %}
{% if RESIDUAL %}
    // Rounded to storage before the statistics, so that backward sees the very same numbers.
    let s{{ k }} = rounded(Val(residual[base + j{{ k }}]) + Val(inp[base + j{{ k }}]){% if DROPOUT %} * drop_factor(p.site, base + j{{ k }}, p.threshold, p.scale){% endif %});
{% else %}
    let s{{ k }} = Val(inp[base + j{{ k }}]);
{% endif %}
{% endfor %}
{% if FULL %}
    let total = hsum({% for k in range(HELD) %}{% if k %} + {% endif %}s{{ k }}{% endfor %});
{% else %}
    let total = hsum({% for k in range(HELD - 1) %}s{{ k }} + {% endfor %}select(Val(0.0), s{{ HELD - 1 }}, inside));
{% endif %}
    let rough = row_sum(total, lane) * inv;
    var first = Val(0.0);
    var second = Val(0.0);
{% for k in range(HELD) %}
{% if FULL or k + 1 < HELD %}
    let d{{ k }} = s{{ k }} - rough;
{% else %}
    let d{{ k }} = select(Val(0.0), s{{ k }} - rough, inside);
{% endif %}
    first += d{{ k }};
    second += d{{ k }} * d{{ k }};
{% endfor %}
    let moments = row_sum2(vec2<f32>(hsum(first), hsum(second)), lane) * inv;
    let rstd = 1.0 / sqrt(max(moments.y - moments.x * moments.x, 0.0) + p.eps);
    if (live) {
{% for k in range(HELD) %}
{% if not FULL and k + 1 == HELD %}
      if (inside) {
{% endif %}
{% if SAVE and RESIDUAL %}
      sum[base + j{{ k }}] = Stored(s{{ k }});
{% endif %}
      out[base + j{{ k }}] = Stored((d{{ k }} - moments.x) * rstd * gamma{{ k }} + beta{{ k }});
{% if not FULL and k + 1 == HELD %}
      }
{% endif %}
{% endfor %}
{% if SAVE %}
      if (lane == 0u) { stats[row] = vec2<f32>(rough + moments.x, rstd); }
{% endif %}
    }
  }
}
{% else %}
@group(0) @binding(0) var<storage, read> dout: array<Stored>;
@group(0) @binding(1) var<storage, read> sum: array<Stored>;
@group(0) @binding(2) var<storage, read> stats: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read> gamma: array<Val>;
@group(0) @binding(4) var<storage, read_write> dsum: array<Stored>;
@group(0) @binding(5) var<storage, read_write> partial: array<Val>;
{% if DROPOUT %}
@group(0) @binding(6) var<storage, read_write> dinp: array<Stored>;
{% endif %}

@compute @workgroup_size({{ LANES * ROWS }})
fn layer_norm_bwd(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
                  @builtin(local_invocation_index) lid: u32) {
  let lane = lid % {{ LANES }}u;
  let slot = (wg.x + wg.y * grid.x) * {{ ROWS }}u + lid / {{ LANES }}u;
  let pieces = p.cols / {{ VEC }}u;
  let inv = 1.0 / f32(p.cols);
{% for k in range(HELD) %}
  let j{{ k }} = {% if FULL or k + 1 < HELD %}lane + {{ k * LANES }}u{% else %}min(lane + {{ k * LANES }}u, pieces - 1u){% endif %};
  let gamma{{ k }} = gamma[j{{ k }}];
  var dgamma{{ k }} = Val(0.0);
  var dbeta{{ k }} = Val(0.0);
{% endfor %}
  let inside = lane + {{ (HELD - 1) * LANES }}u < pieces;
  for (var r = 0u; r < p.group; r++) {
    let wanted = slot * p.group + r;
    let live = wanted < p.rows;
    let row = min(wanted, p.rows - 1u);
    let base = row * pieces;
    let mean = stats[row].x;
    let rstd = stats[row].y;
    var first = Val(0.0);
    var second = Val(0.0);
{% for k in range(HELD) %}
    let xhat{{ k }} = (Val(sum[base + j{{ k }}]) - mean) * rstd;
{% if FULL or k + 1 < HELD %}
    let dout{{ k }} = Val(dout[base + j{{ k }}]);
{% else %}
    let dout{{ k }} = select(Val(0.0), Val(dout[base + j{{ k }}]), inside);
{% endif %}
    dgamma{{ k }} += select(Val(0.0), dout{{ k }} * xhat{{ k }}, live);
    dbeta{{ k }} += select(Val(0.0), dout{{ k }}, live);
    let g{{ k }} = dout{{ k }} * gamma{{ k }};
    first += g{{ k }};
    second += g{{ k }} * xhat{{ k }};
{% endfor %}
    let moments = row_sum2(vec2<f32>(hsum(first), hsum(second)), lane) * inv;
    if (live) {
{% for k in range(HELD) %}
{% if not FULL and k + 1 == HELD %}
      if (inside) {
{% endif %}
      let d{{ k }} = rstd * (g{{ k }} - moments.x - xhat{{ k }} * moments.y);
{% if DROPOUT %}
      dinp[base + j{{ k }}] = Stored(d{{ k }} * drop_factor(p.site, base + j{{ k }}, p.threshold, p.scale));
{% endif %}
      if (p.accumulate != 0u) { dsum[base + j{{ k }}] = Stored(Val(dsum[base + j{{ k }}]) + d{{ k }}); }
      else { dsum[base + j{{ k }}] = Stored(d{{ k }}); }
{% if not FULL and k + 1 == HELD %}
      }
{% endif %}
{% endfor %}
    }
  }
  // Slots past the last group of rows exist only to fill a workgroup.
  if (slot * p.group < p.rows) {
    let to = slot * 2u * pieces;
{% for k in range(HELD) %}
{% if not FULL and k + 1 == HELD %}
    if (inside) {
{% endif %}
    partial[to + j{{ k }}] = dgamma{{ k }};
    partial[to + pieces + j{{ k }}] = dbeta{{ k }};
{% if not FULL and k + 1 == HELD %}
    }
{% endif %}
{% endfor %}
  }
}
{% endif %}
