// Dropout, forward and backward alike: out = inp * mask, mask from (key, site, element), never stored.
// Bindings: inp, out, step. Work: PER groups of four a thread. Bytes: 2 tensors.
{% include "shared/rng.wgsl" %}
struct Params { quads: u32, site: u32, threshold: u32, scale: f32, accumulate: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> inp: array<vec4<{{ T }}>>;
@group(0) @binding(1) var<storage, read_write> out: array<vec4<{{ T }}>>;

@compute @workgroup_size({{ WG }})
fn dropout(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
           @builtin(local_invocation_index) lid: u32) {
  let start = (wg.x + wg.y * grid.x) * {{ WG * PER }}u + lid;
{% for k in range(PER) %}
  let i{{ k }} = start + {{ k * WG }}u;
  if (i{{ k }} < p.quads) {
    var v = vec4<f32>(inp[i{{ k }}]) * dropout4(p.site, i{{ k }}, p.threshold, p.scale);
    if (p.accumulate != 0u) { v += vec4<f32>(out[i{{ k }}]); }
    out[i{{ k }}] = vec4<{{ T }}>(v);
  }
{% endfor %}
}
