// One Adam step over flat arenas, weight decay decoupled.
//   g = grad * grad_scale * clip       m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2
//   u = (m / bias1) / (sqrt(v / bias2) + eps) + decay * w                 w = w - lr * lr_scale * u
// (Decaying first, w (1 - lr decay), is the same number: both use the old w.)
// Shapes: params, grads, moment1, moment2 [n] f32, tensors in slices of whole 128-element blocks; block_tensor: for each block the
// number of its tensor, tensor_rates: for each tensor (decay, lr_scale); norm [4] from `norm.wgsl`: when it says not finite nothing changes.
// Bindings: params, grads, moment1, moment2, block_tensor, tensor_rates, norm, params16 (HALF: a copy in f16), step.
// Work: eight threads take a block, four groups of four elements each, so the tables are asked once in sixteen elements.
// Bytes: 28 an element (30 with the copy).
{% include "shared/step.wgsl" %}
struct Params { blocks: u32, first_block: u32, beta1: f32, beta2: f32, eps: f32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> params: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> grads: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> moment1: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> moment2: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> block_tensor: array<u32>;
@group(0) @binding(5) var<storage, read> tensor_rates: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read> norm: array<f32>;
{% if HALF %}
@group(0) @binding(7) var<storage, read_write> params16: array<vec4<f16>>;
{% endif %}

@compute @workgroup_size({{ WG }})
fn adam(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) lid: u32) {
  let i = (wg.x + wg.y * grid.x) * {{ WG }}u + lid;
  let block = i / 8u;
  if (block >= p.blocks || norm[2] != 0.0) { return; }
  let rates = tensor_rates[block_tensor[p.first_block + block]];
  let scale = step.grad_scale * norm[1];
  let rate = step.lr * rates.y;
  let unbias1 = 1.0 / step.bias1;
  let unbias2 = 1.0 / sqrt(step.bias2);
{% for k in range(4) %}
  {
    let at = block * 32u + {{ k * 8 }}u + i % 8u;
    let g = grads[at] * scale;
    let m = p.beta1 * moment1[at] + (1.0 - p.beta1) * g;
    let v = p.beta2 * moment2[at] + (1.0 - p.beta2) * (g * g);
    let old = params[at];
    let now = old - rate * (m * unbias1 / (sqrt(v) * unbias2 + p.eps) + rates.x * old);
    moment1[at] = m;
    moment2[at] = v;
    params[at] = now;
{% if HALF %}
    params16[at] = vec4<f16>(now);
{% endif %}
  }
{% endfor %}
}
