//! The kernels' random numbers on the host (`shaders/shared/rng.wgsl`), for references.

use crate::gpu::Step;

fn pcg4d(seed: [u32; 4]) -> [u32; 4] {
    let mut v = seed.map(|x| x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    let mix = |v: &mut [u32; 4]| {
        v[0] = v[0].wrapping_add(v[1].wrapping_mul(v[3]));
        v[1] = v[1].wrapping_add(v[2].wrapping_mul(v[0]));
        v[2] = v[2].wrapping_add(v[0].wrapping_mul(v[1]));
        v[3] = v[3].wrapping_add(v[1].wrapping_mul(v[2]));
    };
    mix(&mut v);
    v = v.map(|x| x ^ (x >> 16));
    mix(&mut v);
    v
}

/// Four random words for (`site`, `quad`) under the step's key.
pub fn random4(step: &Step, site: u32, quad: u32) -> [u32; 4] {
    pcg4d([quad, site, step.key[0], step.key[1]])
}

/// A dropout probability as kernels take it: elements whose word is below `threshold` are dropped, others scaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropRate {
    pub threshold: u32,
    pub scale: f32,
}

impl DropRate {
    /// `p` in [0, 1).
    pub fn new(p: f32) -> DropRate {
        let p = f64::from(p).clamp(0.0, 0.999_999);
        DropRate { threshold: (p * 4_294_967_296.0) as u32, scale: (1.0 / (1.0 - p)) as f32 }
    }

    /// The factor of element `element` of `site`: 0 or 1/(1-p).
    pub fn factor(&self, step: &Step, site: u32, element: u64) -> f64 {
        let word = random4(step, site, (element / 4) as u32)[(element % 4) as usize];
        if word >= self.threshold { f64::from(self.scale) } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_is_dropped_and_the_mean_is_kept() {
        let rate = DropRate::new(0.1);
        let step = Step::new(1, 2, 0);
        let n = 200_000u64;
        let sum: f64 = (0..n).map(|i| rate.factor(&step, 5, i)).sum();
        let mean = sum / n as f64;
        // Standard error of the mean: sqrt(p / (1 - p) / n) = 7.5e-4.
        assert!((mean - 1.0).abs() < 4.0 * 7.5e-4, "mean {mean}");
    }

    #[test]
    fn sites_and_steps_have_masks_of_their_own() {
        let rate = DropRate::new(0.5);
        let mask = |step: &Step, site| (0..256).map(|i| rate.factor(step, site, i) > 0.0).collect::<Vec<_>>();
        let step = Step::new(1, 2, 0);
        assert_ne!(mask(&step, 1), mask(&step, 2));
        assert_ne!(mask(&step, 1), mask(&Step::new(1, 3, 0), 1));
        assert_ne!(mask(&step, 1), mask(&Step::new(1, 2, 1), 1));
        assert_eq!(mask(&step, 1), mask(&Step::new(1, 2, 0), 1));
    }
}
