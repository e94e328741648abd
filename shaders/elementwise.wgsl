// Plain work on whole tensors, one form (FORM) a kernel:
//   scale      out = inp * alpha               bindings inp, out             2 tensors
//   cast       out = TO(inp), IEEE: too large for f16 is infinite (the gradient norm's flag finds it)     2 tensors
//   fill       out = alpha                     binding out                   1 tensor
//   broadcast  out[.., c] = inp[c], inp [cols] f32; bindings inp, out; `cols` is 1 (SPAN = "one"), a multiple of four ("quads") or
//              whatever it is ("any")          1 tensor
// T is the storage of the inputs, TO of the output. Work: PER groups of four a thread.
{% if FORM == "broadcast" %}
struct Params { quads: u32, cols: u32 }
{% else %}
struct Params { quads: u32, alpha: f32 }
{% endif %}
var<immediate> p: Params;
{% if FORM == "broadcast" and SPAN != "quads" %}
@group(0) @binding(0) var<storage, read> inp: array<{{ T }}>;
{% elif FORM != "fill" %}
@group(0) @binding(0) var<storage, read> inp: array<vec4<{{ T }}>>;
{% endif %}
{% if FORM == "fill" %}
@group(0) @binding(0) var<storage, read_write> out: array<vec4<{{ TO }}>>;
{% else %}
@group(0) @binding(1) var<storage, read_write> out: array<vec4<{{ TO }}>>;
{% endif %}

@compute @workgroup_size({{ WG }})
fn elementwise_{{ FORM }}(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
                      @builtin(local_invocation_index) lid: u32) {
  let start = (wg.x + wg.y * grid.x) * {{ WG * PER }}u + lid;
{% for k in range(PER) %}
  let i{{ k }} = start + {{ k * WG }}u;
  if (i{{ k }} < p.quads) {
{% if FORM == "scale" %}
    out[i{{ k }}] = vec4<{{ TO }}>(vec4<f32>(inp[i{{ k }}]) * p.alpha);
{% elif FORM == "cast" %}
    out[i{{ k }}] = vec4<{{ TO }}>(vec4<f32>(inp[i{{ k }}]));
{% elif FORM == "broadcast" %}
{% if SPAN == "one" %}
    out[i{{ k }}] = vec4<{{ TO }}>(vec4<f32>(inp[0]));
{% elif SPAN == "quads" %}
    out[i{{ k }}] = vec4<{{ TO }}>(inp[i{{ k }} % (p.cols / 4u)]);
{% else %}
    let c = vec4<u32>(4u * i{{ k }}) + vec4<u32>(0u, 1u, 2u, 3u);
    let at = c % vec4<u32>(p.cols);
    out[i{{ k }}] = vec4<{{ TO }}>(vec4<f32>(inp[at.x], inp[at.y], inp[at.z], inp[at.w]));
{% endif %}
{% else %}
    out[i{{ k }}] = vec4<{{ TO }}>(vec4<f32>(p.alpha));
{% endif %}
  }
{% endfor %}
}
