// Activations and their gradients, element by element. ACT: gelu_erf, gelu_tanh, tanh.
//   out = f(inp),   dinp = dout * f'(inp); for tanh the gradient is taken from the output, 1 - out^2.
// Bindings forward: inp, out. Backward: saved (inp, for tanh out), dout, dinp.
// Work: PER groups of four a thread. Bytes: forward 2 tensors, backward 3.
{% include "shared/gelu.wgsl" %}
struct Params { quads: u32, accumulate: u32 }
var<immediate> p: Params;
// exp overflows long before tanh stops being 1, and drivers' tanh is built on exp.
fn tanh_safe4(x: vec4<f32>) -> vec4<f32> { return tanh(clamp(x, vec4<f32>(-15.0), vec4<f32>(15.0))); }
{% if PASS == "fwd" %}
@group(0) @binding(0) var<storage, read> inp: array<vec4<{{ T }}>>;
@group(0) @binding(1) var<storage, read_write> out: array<vec4<{{ T }}>>;
{% else %}
@group(0) @binding(0) var<storage, read> saved: array<vec4<{{ T }}>>;
@group(0) @binding(1) var<storage, read> dout: array<vec4<{{ T }}>>;
@group(0) @binding(2) var<storage, read_write> dinp: array<vec4<{{ T }}>>;
{% endif %}

@compute @workgroup_size({{ WG }})
fn activation_{{ PASS }}(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
                  @builtin(local_invocation_index) lid: u32) {
  let start = (wg.x + wg.y * grid.x) * {{ WG * PER }}u + lid;
{% for k in range(PER) %}
  let i{{ k }} = start + {{ k * WG }}u;
  if (i{{ k }} < p.quads) {
{% if PASS == "fwd" %}
    let x = vec4<f32>(inp[i{{ k }}]);
    out[i{{ k }}] = vec4<{{ T }}>({% if ACT == "tanh" %}tanh_safe4(x){% else %}{{ ACT }}4(x){% endif %});
{% else %}
    let x = vec4<f32>(saved[i{{ k }}]);
    var d = vec4<f32>(dout[i{{ k }}]) * {% if ACT == "tanh" %}(1.0 - x * x){% else %}{{ ACT }}_grad4(x){% endif %};
    if (p.accumulate != 0u) { d += vec4<f32>(dinp[i{{ k }}]); }
    dinp[i{{ k }}] = vec4<{{ T }}>(d);
{% endif %}
  }
{% endfor %}
}
