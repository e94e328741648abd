// Global norm of a flat gradient arena, whether all of it is finite, and the factor that clips it.
//   norm = sqrt(sum of (g * grad_scale)^2),    clip = min(1, max_norm / norm)  (1 when max_norm = 0)
// partial  a workgroup adds up its share of a chunk of the arena into partial[first + group] = (sum, not finite).
//          Bindings: grads [n] f32, partial, step.      final  one workgroup. Bindings: partial, result [4] f32.
// result: 0 norm, 1 clip, 2 not finite (1 or 0), 3 sum of squares.
// "Not finite" is an exponent of all ones, tested on the bits: compilers may assume that comparisons never see such numbers.
// The scale is applied before squaring, so that a loss scale does not overflow the sum. Bytes: the arena once.
{% set SUBGROUP = 0 %}
{% set LANES = WG %}
{% include "shared/reduce_row.wgsl" %}
{% if PASS == "partial" %}
{% include "shared/step.wgsl" %}
struct Params { n: u32, first: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> grads: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> partial: array<vec2<f32>>;

@compute @workgroup_size({{ WG }})
fn norm_partial(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
                @builtin(local_invocation_index) lid: u32) {
  let stride = grid.x * {{ WG }}u;
  let whole = p.n / 4u;
  var s0 = vec4<f32>(0.0);
  var s1 = vec4<f32>(0.0);
  var odd = vec4<u32>(0u);
  var q = wg.x * {{ WG }}u + lid;
  for (; q + stride < whole; q += 2u * stride) {
    let a = grads[q];
    let b = grads[q + stride];
    odd |= select(vec4<u32>(0u), vec4<u32>(1u), (bitcast<vec4<u32>>(a) & vec4<u32>(0x7f800000u)) == vec4<u32>(0x7f800000u));
    odd |= select(vec4<u32>(0u), vec4<u32>(1u), (bitcast<vec4<u32>>(b) & vec4<u32>(0x7f800000u)) == vec4<u32>(0x7f800000u));
    let x = a * step.grad_scale;
    let y = b * step.grad_scale;
    s0 += x * x;
    s1 += y * y;
  }
  for (; q * 4u < p.n; q += stride) {
    let inside = vec4<u32>(q * 4u) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.n);
    let a = select(vec4<f32>(0.0), grads[q], inside);
    odd |= select(vec4<u32>(0u), vec4<u32>(1u), (bitcast<vec4<u32>>(a) & vec4<u32>(0x7f800000u)) == vec4<u32>(0x7f800000u));
    let x = a * step.grad_scale;
    s0 += x * x;
  }
  let s = s0 + s1;
  let flag = f32(odd.x | odd.y | odd.z | odd.w);
  let total = row_sum2(vec2<f32>((s.x + s.y) + (s.z + s.w), flag), lid);
  if (lid == 0u) { partial[p.first + wg.x] = total; }
}
{% else %}
struct Params { groups: u32, max_norm: f32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> partial: array<vec2<f32>>;
@group(0) @binding(1) var<storage, read_write> result: array<f32>;

@compute @workgroup_size({{ WG }})
fn norm_final(@builtin(local_invocation_index) lid: u32) {
  var sum = vec2<f32>(0.0);
  for (var g = lid; g < p.groups; g += {{ WG }}u) { sum += partial[g]; }
  let total = row_sum2(sum, lid);
  if (lid == 0u) {
    let norm = sqrt(total.x);
    let overflow = (bitcast<u32>(total.x) & 0x7f800000u) == 0x7f800000u;
    result[0] = norm;
    result[1] = select(1.0, p.max_norm / norm, p.max_norm > 0.0 && norm > p.max_norm);
    result[2] = select(0.0, 1.0, overflow || total.y > 0.0);
    result[3] = total.x;
  }
}
{% endif %}
