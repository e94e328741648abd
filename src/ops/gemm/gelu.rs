//! GELU on the host in f64, for references.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI, PI, TAU};

/// The exact GELU or its tanh approximation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    Erf,
    Tanh,
}

impl Gelu {
    /// gelu(x).
    pub fn value(self, x: f64) -> f64 {
        match self {
            Gelu::Erf => 0.5 * x * erfc(-x * FRAC_1_SQRT_2),
            Gelu::Tanh => 0.5 * x * (1.0 + tanh_argument(x).tanh()),
        }
    }

    /// gelu'(x).
    pub fn slope(self, x: f64) -> f64 {
        match self {
            Gelu::Erf => 0.5 * erfc(-x * FRAC_1_SQRT_2) + x * (-0.5 * x * x).exp() / TAU.sqrt(),
            Gelu::Tanh => {
                let t = tanh_argument(x).tanh();
                let inner = FRAC_2_PI.sqrt() * (1.0 + 3.0 * 0.044715 * x * x);
                0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner
            }
        }
    }
}

fn tanh_argument(x: f64) -> f64 {
    FRAC_2_PI.sqrt() * (x + 0.044715 * x * x * x)
}

/// 1 - erf(x): the Taylor series of erf near zero, Laplace's continued fraction beyond; within 1e-13 of the larger of 1
/// and the value near zero, relative beyond.
pub fn erfc(x: f64) -> f64 {
    let z = x.abs();
    let tail = if z < 2.5 {
        let mut term = z;
        let mut sum = z;
        for n in 1..80 {
            term *= -z * z / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        1.0 - sum * 2.0 / PI.sqrt()
    } else {
        let fraction = (1..60).rev().fold(0.0, |f, n| 0.5 * f64::from(n) / (z + f));
        (-z * z).exp() / PI.sqrt() / (z + fraction)
    };
    if x < 0.0 { 2.0 - tail } else { tail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erfc_has_its_known_values_and_no_step_where_the_formula_changes() {
        // Abramowitz and Stegun, table 7.1 and 7.3.
        for (x, want) in [
            (0.0, 1.0),
            (0.5, 0.479_500_122_186_953_5),
            (1.0, 0.157_299_207_050_285_13),
            (3.0, 2.209_049_699_858_544e-5),
        ] {
            assert!((erfc(x) - want).abs() < 1e-13, "{x}: {}", erfc(x));
            assert!((erfc(-x) - (2.0 - want)).abs() < 1e-13);
        }
        assert!((erfc(2.5 - 1e-12) - erfc(2.5)).abs() < 1e-12);
    }

    #[test]
    fn slopes_are_the_derivatives() {
        for gelu in [Gelu::Erf, Gelu::Tanh] {
            for i in -40..=40 {
                let x = f64::from(i) * 0.17;
                let difference = (gelu.value(x + 1e-5) - gelu.value(x - 1e-5)) / 2e-5;
                assert!((gelu.slope(x) - difference).abs() < 1e-8, "{gelu:?} at {x}");
            }
        }
    }
}
