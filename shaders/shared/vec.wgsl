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
