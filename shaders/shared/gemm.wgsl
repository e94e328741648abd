// What the matrix products share: parameters, bindings, the order in which tiles are made, and what is done with a finished result.
struct Params {
  m: u32, n: u32, k: u32,
  lda: u32, ldb: u32, ldc: u32,
  stride_a: u32, stride_b: u32, stride_c: u32,   // elements from one batch entry to the next
  acc: u32,                                      // 1: add to what C holds
  alpha: f32,
  tiles_m: u32, tiles_n: u32,
  band: u32,                                     // rows of tiles walked together, for the cache
  grid_x: u32,                                   // the tile index is folded: wg.x + wg.y * grid_x
  splits: u32, k_split: u32,                     // K is cut into `splits` parts of k_split; part s of batch b is z = b splits + s
  k_begin: u32,                                  // where the first part begins; the last ends at k at the latest
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> mat_a: array<{{ "vec4<" ~ TA ~ ">" if VA == 4 else TA }}>;
@group(0) @binding(1) var<storage, read> mat_b: array<{{ "vec4<" ~ TB ~ ">" if VB == 4 else TB }}>;
@group(0) @binding(2) var<storage, read_write> mat_c: array<{{ "vec4<" ~ TC ~ ">" if VC == 4 else TC }}>;
{% if EPILOGUE in ["bias", "bias_gelu"] %}
@group(0) @binding(3) var<storage, read> bias: array<f32>;
{% endif %}
{% if EPILOGUE == "dgelu" %}
@group(0) @binding(3) var<storage, read> pre: array<{{ "vec4<" ~ TC ~ ">" if VC == 4 else TC }}>;
{% endif %}
{% if EPILOGUE == "bias_gelu" %}
@group(0) @binding(4) var<storage, read_write> pre: array<{{ "vec4<" ~ TC ~ ">" if VC == 4 else TC }}>;
{% endif %}
{% if EPILOGUE in ["bias_gelu", "dgelu"] %}
{% include "shared/gelu.wgsl" %}
{% endif %}

// Bands of `band` tile rows, within a band column after column: what a band reads of A stays in cache while B streams past once.
// An index past the last tile gives x = tiles_m.
fn tile_of(wg: vec3<u32>) -> vec2<u32> {
  let id = wg.x + wg.y * p.grid_x;
  if (id >= p.tiles_m * p.tiles_n) { return vec2<u32>(p.tiles_m, 0u); }
  let first = id / (p.band * p.tiles_n) * p.band;
  let rows = min(p.band, p.tiles_m - first);
  let within = id - first * p.tiles_n;
  return vec2<u32>(first + within % rows, within / rows);
}

// Epilogue and store of C[row, col .. col+4], whatever lies outside the matrix left alone.
fn finish4(z: u32, row: u32, col: u32, sum: vec4<f32>) {
  if (row >= p.m || col >= p.n) { return; }
  var v = sum * p.alpha;
{% if VC == 4 %}
  let at = (z * p.stride_c + row * p.ldc + col) / 4u;
  if (p.acc != 0u) { v += vec4<f32>(mat_c[at]); }
{% if EPILOGUE in ["bias", "bias_gelu"] %}
  v += vec4<f32>({% for j in range(4) %}bias[col + {{ j }}u]{{ ", " if not loop.last }}{% endfor %});
{% endif %}
{% if EPILOGUE == "bias_gelu" %}
  pre[at] = vec4<{{ TC }}>(v);
  v = gelu_{{ GELU }}4(v);
{% elif EPILOGUE == "dgelu" %}
  v *= gelu_{{ GELU }}_grad4(vec4<f32>(pre[at]));
{% endif %}
  mat_c[at] = vec4<{{ TC }}>(v);
{% else %}
  let at = z * p.stride_c + row * p.ldc + col;
{% for j in range(4) %}
  if (col + {{ j }}u < p.n) {
    var x = v[{{ j }}];
    if (p.acc != 0u) { x += f32(mat_c[at + {{ j }}u]); }
{% if EPILOGUE in ["bias", "bias_gelu"] %}
    x += bias[col + {{ j }}u];
{% endif %}
{% if EPILOGUE == "bias_gelu" %}
    pre[at + {{ j }}u] = {{ TC }}(x);
    x = gelu_{{ GELU }}(x);
{% elif EPILOGUE == "dgelu" %}
    x *= gelu_{{ GELU }}_grad(f32(pre[at + {{ j }}u]));
{% endif %}
    mat_c[at + {{ j }}u] = {{ TC }}(x);
  }
{% endfor %}
{% endif %}
}
