// Sum, maximum and minimum over the LANES invocations that share a row; every one of them gets the result.
// SUBGROUP = 1: LANES is the (fixed) subgroup size, nothing goes through memory, several rows may share a workgroup.
// SUBGROUP = 0: the workgroup is the row's LANES invocations (a power of two) and a tree in workgroup memory adds in fixed order.
// Call in uniform control flow only.
{% if SUBGROUP %}
fn row_sum(v: f32, lane: u32) -> f32 { return subgroupAdd(v); }
fn row_sum2(v: vec2<f32>, lane: u32) -> vec2<f32> { return subgroupAdd(v); }
fn row_max(v: f32, lane: u32) -> f32 { return subgroupMax(v); }
fn row_min_u32(v: u32, lane: u32) -> u32 { return subgroupMin(v); }
{% else %}
var<workgroup> row_scratch: array<vec2<f32>, {{ LANES }}>;
var<workgroup> row_scratch_u32: array<u32, {{ LANES }}>;
fn row_sum2(v: vec2<f32>, lane: u32) -> vec2<f32> {
  row_scratch[lane] = v;
  workgroupBarrier();
  for (var half = {{ LANES }}u / 2u; half > 0u; half /= 2u) {
    if (lane < half) { row_scratch[lane] += row_scratch[lane + half]; }
    workgroupBarrier();
  }
  let total = row_scratch[0];
  workgroupBarrier();
  return total;
}
fn row_sum(v: f32, lane: u32) -> f32 { return row_sum2(vec2<f32>(v, 0.0), lane).x; }
fn row_max(v: f32, lane: u32) -> f32 {
  row_scratch[lane].x = v;
  workgroupBarrier();
  for (var half = {{ LANES }}u / 2u; half > 0u; half /= 2u) {
    if (lane < half) { row_scratch[lane].x = max(row_scratch[lane].x, row_scratch[lane + half].x); }
    workgroupBarrier();
  }
  let top = row_scratch[0].x;
  workgroupBarrier();
  return top;
}
fn row_min_u32(v: u32, lane: u32) -> u32 {
  row_scratch_u32[lane] = v;
  workgroupBarrier();
  for (var half = {{ LANES }}u / 2u; half > 0u; half /= 2u) {
    if (lane < half) { row_scratch_u32[lane] = min(row_scratch_u32[lane], row_scratch_u32[lane + half]); }
    workgroupBarrier();
  }
  let low = row_scratch_u32[0];
  workgroupBarrier();
  return low;
}
{% endif %}
