// Elements of a tensor: VEC of them (1 or 4) are moved at once, stored as {{ T }}, computed on as f32.
{% if VEC == 4 %}
alias Stored = vec4<{{ T }}>;
alias Val = vec4<f32>;
fn hsum(v: Val) -> f32 { return (v.x + v.y) + (v.z + v.w); }
fn hmax(v: Val) -> f32 { return max(max(v.x, v.y), max(v.z, v.w)); }
{% else %}
alias Stored = {{ T }};
alias Val = f32;
fn hsum(v: Val) -> f32 { return v; }
fn hmax(v: Val) -> f32 { return v; }
{% endif %}
// `v` as storage will hold it. Drivers drop a conversion to f16 and back, so f16 is rounded on the bits: to eleven of them,
// ties to even. (Below 6e-5 storage rounds coarser than this, by less than 3e-8.)
fn rounded(v: Val) -> Val {
{% if T == "f16" %}
{% set U = "vec4<u32>" if VEC == 4 else "u32" %}
  let bits = bitcast<{{ U }}>(v);
  let odd = (bits >> {{ U }}(13u)) & {{ U }}(1u);
  return bitcast<Val>((bits + {{ U }}(0xfffu) + odd) & {{ U }}(0xffffe000u));
{% else %}
  return v;
{% endif %}
}
