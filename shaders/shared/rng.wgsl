// Counter-based random numbers: four u32 for (site, quad) under the step's key. The same four numbers come back
// wherever they are asked for, so dropout masks are recomputed in backward and never stored.
// The mixer is pcg4d (Jarzynski and Olano, "Hash Functions for GPU Rendering", JCGT 9(3), 2020).
{% include "shared/step.wgsl" %}
fn pcg4d(seed: vec4<u32>) -> vec4<u32> {
  var v = seed * 1664525u + vec4<u32>(1013904223u);
  v.x += v.y * v.w; v.y += v.z * v.x; v.z += v.x * v.y; v.w += v.y * v.z;
  v ^= v >> vec4<u32>(16u);
  v.x += v.y * v.w; v.y += v.z * v.x; v.z += v.x * v.y; v.w += v.y * v.z;
  return v;
}
// `site` names the place in the network, `quad` the group of four consecutive elements.
fn random4(site: u32, quad: u32) -> vec4<u32> {
  return pcg4d(vec4<u32>(quad, site, step.key_lo, step.key_hi));
}
// 1/(1-p) where the element is kept, 0 where it is dropped; `threshold` = floor(p * 2^32), `scale` = 1/(1-p).
fn dropout4(site: u32, quad: u32, threshold: u32, scale: f32) -> vec4<f32> {
  return select(vec4<f32>(0.0), vec4<f32>(scale), random4(site, quad) >= vec4<u32>(threshold));
}
