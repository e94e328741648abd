//! What holds of all ops, and the one device that all tests share.

mod adapters;
mod failures;
mod house;
mod planner;
mod shaders;
mod training;

use denshi::gpu::{AdapterChoice, Gpu};
use denshi::ops::{Case, DType, FAMILIES, Fill, Host, Var};
use denshi::tape::{CaseTape, case_step, check_case, compare_plans, data_for, interpret};
use std::sync::OnceLock;

/// The device of the whole run.
pub fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| Gpu::open(&AdapterChoice::from_user(None)).unwrap_or_else(|e| panic!("{e}")))
}

pub fn cases(family: &str) -> Vec<Case> {
    let family = FAMILIES.iter().find(|f| f.name == family).unwrap_or_else(|| panic!("no family {family}"));
    (family.cases)()
}

/// Runs every case of a family by every variant the adapter has.
pub fn check_family(family: &str) {
    let gpu = gpu();
    let mut failures = Vec::new();
    let mut checks = 0;
    for case in cases(family) {
        if case.f16 && !gpu.caps().f16 {
            continue;
        }
        let recorded = CaseTape::record(&case).unwrap_or_else(|e| panic!("{e}"));
        for variant in recorded.variants(gpu.caps()) {
            let nodes = check_case(gpu, None, &recorded, Some(&variant))
                .unwrap_or_else(|e| panic!("case {} by {variant}: {e}", case.name));
            checks += nodes.len();
            let failed = nodes
                .into_iter()
                .filter_map(|n| n.failure.map(|f| format!("{} / {} ({}): {f}", case.name, n.op, n.variant)));
            failures.extend(failed);
        }
        let differ = compare_plans(gpu, &recorded).unwrap_or_else(|e| panic!("case {}: {e}", case.name));
        failures.extend(differ.iter().map(|v| format!("{}: shared buffers change gradient {v:?}", case.name)));
        // Gradients of values that are used twice are added to, by the op itself where it can.
        let doubled = CaseTape::record_doubled(&case).unwrap_or_else(|e| panic!("{e}"));
        if recorded.tape.len() > recorded.forward || !recorded.loss_outputs().is_empty() {
            let nodes =
                check_case(gpu, None, &doubled, None).unwrap_or_else(|e| panic!("case {} twice: {e}", case.name));
            let failed = nodes
                .into_iter()
                .filter_map(|n| n.failure.map(|f| format!("{} twice / {} ({}): {f}", case.name, n.op, n.variant)));
            failures.extend(failed);
        }
    }
    assert!(checks > 0, "family {family} checked nothing");
    assert!(failures.is_empty(), "{} of {checks} checks failed:\n{}", failures.len(), failures.join("\n"));
}

/// Checks the f64 references themselves: the gradients they give against central differences of the forward.
///
/// F = sum of seeded outputs times their seeds + loss scale times every loss (output 0 of an op that writes gradients
/// in the same pass). Difference step 1e-5: truncation error h^2/6 |F'''| and rounding eps F / h are both near 1e-10
/// of the values' scale here; 1e-6 of the gradient's largest leaves room for third derivatives.
pub fn check_gradients(family: &str) {
    let step = case_step();
    let mut compared = 0;
    let mut failures = Vec::new();
    for case in cases(family) {
        if case.f16 {
            continue;
        }
        let recorded = CaseTape::record(&case).unwrap_or_else(|e| panic!("{e}"));
        let inputs: Vec<Host> = recorded.inputs.iter().map(|(_, h)| h.clone()).collect();
        if recorded.tape.len() == recorded.forward && recorded.loss_outputs().is_empty() {
            continue;
        }
        let values = interpret(&recorded, &inputs, &step, recorded.tape.len());
        let seeds: Vec<(Var, usize)> = recorded
            .seeds
            .iter()
            .map(|&(v, dout)| (v, recorded.inputs.iter().position(|(i, _)| *i == dout).expect("a seed is an input")))
            .collect();
        let objective = |inputs: &[Host]| -> f64 {
            let values = interpret(&recorded, inputs, &step, recorded.forward);
            let seeded: f64 = seeds
                .iter()
                .map(|&(v, dout)| {
                    let value = values.get(&recorded.tape, v).expect("seeded values are recorded");
                    value.iter().zip(&inputs[dout].data).map(|(a, b)| a * b).sum::<f64>()
                })
                .sum();
            let losses: f64 = recorded
                .loss_outputs()
                .iter()
                .map(|&v| f64::from(step.loss_scale) * values.get(&recorded.tape, v).expect("losses are recorded")[0])
                .sum();
            seeded + losses
        };
        for (index, (var, host)) in recorded.inputs.iter().enumerate() {
            if seeds.iter().any(|s| s.1 == index) || host.spec.dtype == DType::U32 {
                continue;
            }
            let zeros = vec![0.0; host.data.len()];
            let got = match recorded.tape.grad(*var) {
                Some(grad) => values.get(&recorded.tape, grad).expect("gradients are recorded"),
                // No gradient: only where an op said why it stops there, or where nothing depends on the input.
                None if !recorded.tape.stops().is_empty() => continue,
                None => &zeros,
            };
            // Large inputs: a seeded random direction and a few single elements; small ones: every element.
            let n = host.data.len();
            let direction = data_for(host.spec.clone(), &Fill::Normal(1.0), 99).data;
            let single = |i: usize| (0..n).map(|j| f64::from(u8::from(i == j))).collect::<Vec<f64>>();
            let stride = n.div_ceil(12).max(1);
            let mut directions: Vec<Vec<f64>> = (0..n).step_by(stride).map(single).collect();
            directions.push(direction);
            let largest = got.iter().fold(0.0f64, |m, g| m.max(g.abs()));
            for d in directions {
                let h = 1e-5 * host.data.iter().fold(1.0f64, |m, x| m.max(x.abs())).min(100.0);
                let moved = |sign: f64| {
                    let mut inputs = inputs.clone();
                    inputs[index].data.iter_mut().zip(&d).for_each(|(x, d)| *x += sign * h * d);
                    objective(&inputs)
                };
                let (plus, minus) = (moved(1.0), moved(-1.0));
                let difference = (plus - minus) / (2.0 * h);
                let expected: f64 = got.iter().zip(&d).map(|(g, d)| g * d).sum();
                let norm = d.iter().map(|x| x * x).sum::<f64>().sqrt();
                let bound = 1e-6 * largest * norm + 4.0 * f64::EPSILON * (plus.abs() + minus.abs()) / h + 1e-9;
                compared += 1;
                if (difference - expected).abs() > bound {
                    failures.push(format!(
                        "{}: input {index} {}: reference gradient {expected:e}, central difference {difference:e}, bound {bound:e}",
                        case.name, host.spec
                    ));
                }
            }
        }
    }
    assert!(compared > 0, "family {family} has no gradients to check");
    assert!(failures.is_empty(), "{} of {compared} failed:\n{}", failures.len(), failures.join("\n"));
}
