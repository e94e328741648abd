// The lowest id of the largest value: an invocation keeps, for each of its VEC components, the largest value and the piece it came
// from (the first one, pieces being visited in order).
{% if VEC == 4 %}
alias Piece = vec4<u32>;
fn ids_of(piece: u32) -> Piece { return vec4<u32>(piece * 4u) + vec4<u32>(0u, 1u, 2u, 3u); }
fn first_equal(value: Val, piece: Piece, top: f32) -> u32 {
  let id = select(vec4<u32>(0xffffffffu), piece * 4u + vec4<u32>(0u, 1u, 2u, 3u), value == Val(top));
  return min(min(id.x, id.y), min(id.z, id.w));
}
{% else %}
alias Piece = u32;
fn ids_of(piece: u32) -> Piece { return piece; }
fn first_equal(value: Val, piece: Piece, top: f32) -> u32 { return select(0xffffffffu, piece, value == top); }
{% endif %}
