// GELU and its derivative, exact (erf) and tanh form, each for a scalar and (suffix 4) for four at once.
//   exact: gelu(x) = x Phi(x) = max(x, 0) - |x| T(|x|),   T(a) = Phi(-a) = exp(-a^2/2) P(a)/Q(a)
//   tanh:  gelu(x) = x sigmoid(2u),                       u = sqrt(2/pi) (x + 0.044715 x^3)
// P/Q is a minimax fit of exp(a^2/2) Phi(-a) on [0, 6], relative error 6.5e-8. Working with the tail T, not with erf, keeps
// the error relative where x is negative. In f32, exp correctly rounded, for |x| <= 12:
//   |gelu error| <= 8.1e-8 max(1, |x|), |derivative error| <= 1.6e-7, |erf error| <= 2.6e-7.
// A driver whose exp is off by e (relative) adds at most 0.17 e, 0.5 e and 1.0 e.
// Arguments are clamped where the result no longer depends on them, so that nothing overflows on the way.
{% for suffix, T in [("", "f32"), ("4", "vec4<f32>")] %}
fn gauss_tail{{ suffix }}(a: {{ T }}, e: {{ T }}) -> {{ T }} {
  let num = ((0.013532123 * a + 0.10404826) * a + 0.33382092) * a + 0.5;
  let den = (((0.033941027 * a + 0.26024801) * a + 0.87744385) * a + 1.465524) * a + 1.0;
  return e * (num / den);
}
fn erf_f32{{ suffix }}(z: {{ T }}) -> {{ T }} {
  let a = min(abs(z) * 1.4142135, {{ T }}(13.0));
  return sign(z) * (1.0 - 2.0 * gauss_tail{{ suffix }}(a, exp(-0.5 * a * a)));
}
fn gelu_erf{{ suffix }}(x: {{ T }}) -> {{ T }} {
  let a = min(abs(x), {{ T }}(13.0));
  return max(x, {{ T }}(0.0)) - abs(x) * gauss_tail{{ suffix }}(a, exp(-0.5 * a * a));
}
fn gelu_erf_grad{{ suffix }}(x: {{ T }}) -> {{ T }} {
  let a = min(abs(x), {{ T }}(13.0));
  let e = exp(-0.5 * a * a);
  let tail = gauss_tail{{ suffix }}(a, e);
  let c = clamp(x, {{ T }}(-13.0), {{ T }}(13.0));
  return select(tail, 1.0 - tail, x >= {{ T }}(0.0)) + c * e * 0.3989423;
}
fn gelu_tanh{{ suffix }}(x: {{ T }}) -> {{ T }} {
  let c = clamp(x, {{ T }}(-10.0), {{ T }}(10.0));
  return x / (1.0 + exp(-1.5957691 * (c + 0.044715 * c * c * c)));
}
fn gelu_tanh_grad{{ suffix }}(x: {{ T }}) -> {{ T }} {
  let c = clamp(x, {{ T }}(-10.0), {{ T }}(10.0));
  let s = 1.0 / (1.0 + exp(-1.5957691 * (c + 0.044715 * c * c * c)));
  return s + c * s * (1.0 - s) * (1.5957691 + 0.2140644 * c * c);
}
{% endfor %}
