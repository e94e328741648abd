// What every attention kernel shares: the parameters, and loads and stores of four neighbouring head dimensions.
// Packed qkv [B*T, 3*C], C = H*D: of head h, q starts at column h*D, k at C + h*D, v at 2*C + h*D; lens [B]: keys at
// and beyond lens[b] are masked. D that four does not divide goes element by element, padded with zeros to DV vectors.
struct Params {
  batch: u32,
  tokens: u32,
  heads: u32,
  scale: f32,         // 1 / sqrt(D)
  site: u32,          // dropout of the probabilities: see shared/rng.wgsl; 0, 0, 1 without it
  threshold: u32,
  keep_scale: f32,
}
var<immediate> p: Params;
const D = {{ D }}u;
const DV = {{ (D + 3) // 4 }}u;
const LOG2E = 1.44269504f;
const LN2 = 0.693147181f;
const MASKED = -3.0e38f;
{% set ELEMENT = "vec4<" ~ T_IO ~ ">" if D % 4 == 0 else T_IO %}
{% for name in READS %}
{# `row` is the element at which the head's row starts #}
fn load_{{ name }}(row: u32, d4: u32) -> vec4<f32> {
{% if D % 4 == 0 %}
  return vec4<f32>({{ name }}[row / 4u + d4]);
{% else %}
  let d = 4u * d4;
  return vec4<f32>(
{% for c in range(4) %}
    select(0.0, f32({{ name }}[row + min(d + {{ c }}u, D - 1u)]), d + {{ c }}u < D),
{% endfor %}
  );
{% endif %}
}
{% endfor %}
{% for name in WRITES %}
fn store_{{ name }}(row: u32, d4: u32, value: vec4<f32>) {
{% if D % 4 == 0 %}
  {{ name }}[row / 4u + d4] = {{ ELEMENT }}(value);
{% else %}
  let d = row + 4u * d4;
{% for c in range(4) %}
  if (4u * d4 + {{ c }}u < D) { {{ name }}[d + {{ c }}u] = {{ T_IO }}(value.{{ "xyzw"[c] }}); }
{% endfor %}
{% endif %}
}
{% endfor %}
{% if DROPOUT %}
// Scales of the four probabilities from key `k` on (a multiple of four), of query `row` = (b*H + h)*T + q.
fn probability_dropout(row: u32, k: u32) -> vec4<f32> {
  return dropout4(p.site, row * ((p.tokens + 3u) / 4u) + k / 4u, p.threshold, p.keep_scale);
}
{% endif %}
