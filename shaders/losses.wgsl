// What losses share, and the binary loss of replaced-token detection.
//   weight_sum  denominator = (sum of weights, loss_weight / (sum + eps)); LABELS: a weight is 1 unless the label is 0xffffffff.
//               Bindings: weights [n] f32 (or labels [n] u32), denominator [2].
//   bce         z = -x where the target is 1, else x;  loss = w * softplus(z),  dlogits = w * coef * loss_scale * (+-)sigmoid(z)
//               Bindings: logits [n], targets [n] u32, weights [n] f32, denominator, dlogits [n], partial [groups, 8], step.
//   rows        the same statistics from the rows of `cross_entropy.wgsl`.
//               Bindings: loss [n] f32, best [n] u32, labels [n] u32, partial [groups, 8], weights [n] f32 (WEIGHTED).
//   finish      adds the groups up; loss = loss_weight * mean loss. Bindings: partial, stats [8], loss [1] f32.
// A negative eps asks for sums: nothing is divided.
// Statistics, each weighted: 0 loss, 1 weights, 2 mean loss = [0] / ([1] + eps), 3 right, 4 called positive, 5 rightly called
// positive, 6 positive, 7 unused. The binary loss calls positive what has x > 0.
// Work: weight_sum and finish are one workgroup; bce and rows take PER groups of four (rows: of one) a thread.
{% set SUBGROUP = 0 %}
{% set LANES = WG %}
{% include "shared/reduce_row.wgsl" %}
{% if FORM == "weight_sum" %}
struct Params { n: u32, loss_weight: f32, eps: f32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> weights: array<vec4<{% if LABELS %}u32{% else %}f32{% endif %}>>;
@group(0) @binding(1) var<storage, read_write> denominator: array<f32>;

@compute @workgroup_size({{ WG }})
fn weight_sum(@builtin(local_invocation_index) lid: u32) {
  var sum = vec4<f32>(0.0);
  for (var q = lid; q * 4u < p.n; q += {{ WG }}u) {
    let id = vec4<u32>(q * 4u) + vec4<u32>(0u, 1u, 2u, 3u);
{% if LABELS %}
    let w = select(vec4<f32>(1.0), vec4<f32>(0.0), weights[q] == vec4<u32>(0xffffffffu));
{% else %}
    let w = weights[q];
{% endif %}
    sum += select(vec4<f32>(0.0), w, id < vec4<u32>(p.n));
  }
  let total = row_sum((sum.x + sum.y) + (sum.z + sum.w), lid);
  if (lid == 0u) {
    denominator[0] = total;
    denominator[1] = p.loss_weight / select(max(total + p.eps, 1.0e-30), 1.0, p.eps < 0.0);
  }
}
{% elif FORM == "bce" %}
{% include "shared/step.wgsl" %}
struct Params { n: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> logits: array<vec4<{{ T }}>>;
@group(0) @binding(1) var<storage, read> targets: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> weights: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> denominator: array<f32>;
@group(0) @binding(4) var<storage, read_write> dlogits: array<vec4<{{ T }}>>;
@group(0) @binding(5) var<storage, read_write> partial: array<f32>;

@compute @workgroup_size({{ WG }})
fn bce(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  let one = vec4<f32>(1.0);
  let zero = vec4<f32>(0.0);
  let scale = denominator[1] * step.loss_scale;
  var loss = zero;
  var weight = zero;
  var right = zero;
  var called = zero;
  var hit = zero;
  var positive = zero;
{% for k in range(PER) %}
  {
    let q = (wg.x * {{ PER }}u + {{ k }}u) * {{ WG }}u + lid;
    if (q * 4u < p.n) {
      let id = vec4<u32>(q * 4u) + vec4<u32>(0u, 1u, 2u, 3u);
      let x = vec4<f32>(logits[q]);
      let t = targets[q] != vec4<u32>(0u);
      let w = select(zero, weights[q], id < vec4<u32>(p.n));
      let sign = select(one, -one, t);
      let z = x * sign;
      let e = exp(-abs(z));
      // log(1 + e) by its series where e is small: relative, not only absolute, accuracy for confident right answers.
      let tail = select(log(1.0 + e), e * (1.0 - e * (0.5 - e * (0.33333333 - e * (0.25 - e * 0.2)))), e < vec4<f32>(0.0625));
      let yes = x > zero;
      // A weight of 0 makes 0 even of a logit that is not finite.
      loss += select(w * (max(z, zero) + tail), zero, w == zero);
      weight += w;
      right += select(zero, w, t == yes);
      called += select(zero, w, yes);
      hit += select(zero, w, t & yes);
      positive += select(zero, w, t);
      let d = sign * select(e, one, z >= zero) / (1.0 + e) * (w * scale);
      dlogits[q] = vec4<{{ T }}>(select(d, zero, w == zero));
    }
  }
{% endfor %}
  let a = row_sum2(vec2<f32>((loss.x + loss.y) + (loss.z + loss.w), (weight.x + weight.y) + (weight.z + weight.w)), lid);
  let b = row_sum2(vec2<f32>((right.x + right.y) + (right.z + right.w), (called.x + called.y) + (called.z + called.w)), lid);
  let c = row_sum2(vec2<f32>((hit.x + hit.y) + (hit.z + hit.w), (positive.x + positive.y) + (positive.z + positive.w)), lid);
  if (lid == 0u) {
    let to = wg.x * 8u;
    partial[to] = a.x;
    partial[to + 1u] = a.y;
    partial[to + 2u] = 0.0;
    partial[to + 3u] = b.x;
    partial[to + 4u] = b.y;
    partial[to + 5u] = c.x;
    partial[to + 6u] = c.y;
    partial[to + 7u] = 0.0;
  }
}
{% elif FORM == "rows" %}
struct Params { n: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> loss: array<f32>;
@group(0) @binding(1) var<storage, read> best: array<u32>;
@group(0) @binding(2) var<storage, read> labels: array<u32>;
@group(0) @binding(3) var<storage, read_write> partial: array<f32>;
{% if WEIGHTED %}
@group(0) @binding(4) var<storage, read> weights: array<f32>;
{% endif %}

@compute @workgroup_size({{ WG }})
fn rows(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
  var sums = vec2<f32>(0.0);
  var right = 0.0;
{% for k in range(PER) %}
  {
    let i = (wg.x * {{ PER }}u + {{ k }}u) * {{ WG }}u + lid;
    if (i < p.n) {
      let label = labels[i];
{% if WEIGHTED %}
      let w = weights[i];
{% else %}
      let w = select(1.0, 0.0, label == 0xffffffffu);
{% endif %}
      sums += vec2<f32>(loss[i], w);
      right += select(0.0, w, best[i] == label);
    }
  }
{% endfor %}
  let a = row_sum2(sums, lid);
  let b = row_sum(right, lid);
  if (lid == 0u) {
    let to = wg.x * 8u;
    partial[to] = a.x;
    partial[to + 1u] = a.y;
    partial[to + 2u] = 0.0;
    partial[to + 3u] = b;
    for (var k = 4u; k < 8u; k++) { partial[to + k] = 0.0; }
  }
}
{% else %}
struct Params { groups: u32, loss_weight: f32, eps: f32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> partial: array<f32>;
@group(0) @binding(1) var<storage, read_write> stats: array<f32>;
@group(0) @binding(2) var<storage, read_write> loss: array<f32>;

@compute @workgroup_size({{ WG }})
fn finish(@builtin(local_invocation_index) lid: u32) {
  // Invocation i adds statistic i mod 8 of every (WG / 8)th group; the tree then adds equal statistics.
  var sum = 0.0;
  for (var g = lid / 8u; g < p.groups; g += {{ WG // 8 }}u) { sum += partial[g * 8u + lid % 8u]; }
  row_scratch[lid].x = sum;
  workgroupBarrier();
  for (var half = {{ WG // 2 }}u; half >= 8u; half /= 2u) {
    if (lid < half) { row_scratch[lid].x += row_scratch[lid + half].x; }
    workgroupBarrier();
  }
  let mean = row_scratch[0].x / select(max(row_scratch[1].x + p.eps, 1.0e-30), 1.0, p.eps < 0.0);
  if (lid < 8u) { stats[lid] = select(row_scratch[lid].x, mean, lid == 2u); }
  if (lid == 0u) { loss[0] = mean * p.loss_weight; }
}
{% endif %}
