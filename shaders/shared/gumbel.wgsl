// Standard Gumbel noise for the four elements of a quad: -log(-log(u + 1e-9) + 1e-9), u uniform in [0, 1) with 24 bits.
// Close to 1 the inner logarithm is a series in 1 - u: drivers' log is only good to some 3e-7 there, absolutely, which would hand
// unlikely tokens scores that belong to odds of one in a billion.
{% include "shared/rng.wgsl" %}
fn gumbel4(site: u32, quad: u32) -> vec4<f32> {
  let bits = random4(site, quad) >> vec4<u32>(8u);
  let u = vec4<f32>(bits) * 5.9604645e-8;
  let w = vec4<f32>(vec4<u32>(16777216u) - bits) * 5.9604645e-8 - 1.0e-9;
  let series = w * (1.0 + w * (0.5 + w * (0.33333333 + w * (0.25 + w * (0.2 + w * 0.16666667)))));
  let inner = select(-log(u + 1.0e-9), series, w < vec4<f32>(0.0625));
  return -log(inner + 1.0e-9);
}
