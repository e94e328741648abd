// Sums of two tensors.
//
// add: y[i] = a[i] + b[i];  add_into: y[i] += a[i].        y, a, b: [n], storage T
// Bindings: add 0 a, 1 b, 2 y;  add_into 0 a, 2 y.
// Work: one vec4 a thread, 256 threads a workgroup, grid folded into x and y.
// Bytes moved: 3 n sizeof(T).
struct Params { quads: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> a: array<vec4<{{ T }}>>;
@group(0) @binding(1) var<storage, read> b: array<vec4<{{ T }}>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<{{ T }}>>;

@compute @workgroup_size(256)
fn add(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = (wg.x + wg.y * grid.x) * 256u + lane;
  if (i < p.quads) {
    y[i] = vec4<{{ T }}>(vec4<f32>(a[i]) + vec4<f32>(b[i]));
  }
}

@compute @workgroup_size(256)
fn add_into(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = (wg.x + wg.y * grid.x) * 256u + lane;
  if (i < p.quads) {
    y[i] = vec4<{{ T }}>(vec4<f32>(y[i]) + vec4<f32>(a[i]));
  }
}
