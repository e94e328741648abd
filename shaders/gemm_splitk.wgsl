// Second half of a product whose K was cut: C[M,N] (+)= alpha sum_s part[s, M, N], s ascending, for each batch entry (grid z).
// A product with few tiles and a long K (weight gradients: K is tokens) would otherwise leave most of a GPU idle; the order of
// the sum is fixed, so results repeat bit for bit.
// Bindings: 0 part f32[batch, splits, M, N], 1 C (ldc, stride_c as in the product). One invocation makes VC elements of C.
// Moved: 4 splits M N bytes read, M N elements written.
struct Params {
  m: u32, n: u32, ldc: u32, stride_c: u32,
  splits: u32, acc: u32, alpha: f32,
  grid_x: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> part: array<{{ "vec4<f32>" if VC == 4 else "f32" }}>;
@group(0) @binding(1) var<storage, read_write> mat_c: array<{{ "vec4<" ~ TC ~ ">" if VC == 4 else TC }}>;
{% set V = "vec4<f32>" if VC == 4 else "f32" %}

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let unit = (wg.x + wg.y * p.grid_x) * {{ WG }}u + t;
  let across = p.n / {{ VC }}u;
  if (unit >= p.m * across) { return; }
  let size = p.m * across;
  var at_part = wg.z * p.splits * size + unit;
  var v = {{ V }}();
  for (var s = 0u; s < p.splits; s++) {
    v += part[at_part];
    at_part += size;
  }
  v *= p.alpha;
  let at = (wg.z * p.stride_c + unit / across * p.ldc) / {{ VC }}u + unit % across;
  if (p.acc != 0u) { v += {{ V }}(mat_c[at]); }
  mat_c[at] = {{ "vec4<" ~ TC ~ ">" if VC == 4 else TC }}(v);
}
