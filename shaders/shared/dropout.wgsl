// Dropout factors of VEC consecutive elements (`shared/vec.wgsl`), `i` counting in steps of VEC from the start of the tensor:
// element e belongs to quad e / 4 whatever VEC is, so forward and backward may run with different widths.
{% include "shared/rng.wgsl" %}
fn drop_factor(site: u32, i: u32, threshold: u32, scale: f32) -> Val {
{% if VEC == 4 %}
  return dropout4(site, i, threshold, scale);
{% else %}
  return dropout4(site, i / 4u, threshold, scale)[i % 4u];
{% endif %}
}
