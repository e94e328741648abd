//! The planner: no buffer for two live values, reuse that is worth it, memory as stated.

use super::gpu;
use denshi::gpu::{Gpu, Purpose};
use denshi::ops::{FAMILIES, Fill, Spec, Var, add::add};
use denshi::tape::{CaseTape, ParamSet, Plan, PlanOptions, Session, Tape, case_step, data_for};
use std::sync::Arc;

/// A recording of additions in a seeded random order: long and short lives, values read many times.
fn random_tape(seed: u64, nodes: usize) -> (Tape, Vec<Var>) {
    let mut tape = Tape::new(Arc::new(ParamSet::default()), false);
    let mut state = seed;
    let mut pick = move |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as usize) % n
    };
    let spec = Spec::f32(&[64]);
    let mut values = vec![tape.input(spec.clone()), tape.input(spec)];
    for _ in 0..nodes {
        // Mostly recent values, sometimes old ones.
        let reach = if pick(4) == 0 { values.len() } else { values.len().min(4) };
        let mut one = || values.len() - 1 - pick(reach);
        let (a, b) = (one(), one());
        let sum = add(&mut tape, values[a], values[b]).unwrap();
        values.push(sum);
    }
    (tape, values)
}

/// Bytes of this process in memory, where the system tells.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(status.split_whitespace().nth(1)?.parse::<u64>().ok()? * 4096)
}

#[test]
fn no_buffer_is_given_to_two_live_values() {
    for seed in 0..20 {
        let (mut tape, values) = random_tape(seed, 120);
        tape.keep(*values.last().unwrap());
        let plan = Plan::new(&tape, gpu().caps(), &PlanOptions::default()).unwrap();
        assert_eq!(plan.conflicts(), [], "seed {seed}");
    }
    for case in FAMILIES.iter().flat_map(|f| (f.bench_cases)()) {
        let recorded = CaseTape::record(&case).unwrap();
        if let Ok(plan) = Plan::new(&recorded.tape, gpu().caps(), &PlanOptions::default()) {
            assert_eq!(plan.conflicts(), [], "{}", case.name);
        }
    }
}

#[test]
fn a_chain_runs_in_two_buffers_and_gives_the_right_sum() {
    let mut tape = Tape::new(Arc::new(ParamSet::default()), false);
    let one = tape.input(Spec::f32(&[300]));
    let mut x = one;
    for _ in 0..50 {
        x = add(&mut tape, x, one).unwrap();
    }
    tape.keep(x);
    let plan = Plan::new(&tape, gpu().caps(), &PlanOptions::default()).unwrap();
    assert_eq!(
        plan.memory().of(Purpose::Activations),
        2 * 1280,
        "fifty sums of 300 floats need two buffers of 1280 bytes"
    );
    let session = Session::new(gpu(), plan, None).unwrap();
    session.write(one, &data_for(Spec::f32(&[300]), &Fill::Const(1.0), 0)).unwrap();
    session.run(&case_step()).unwrap();
    assert!(session.read(x).unwrap().data.iter().all(|&v| v == 51.0));
}

#[test]
fn shared_buffers_give_the_same_values_as_buffers_of_their_own() {
    for seed in [3, 4] {
        let (mut tape, values) = random_tape(seed, 40);
        let last = *values.last().unwrap();
        tape.keep(last);
        let mut results = Vec::new();
        for guarded in [false, true] {
            let plan = Plan::new(&tape, gpu().caps(), &PlanOptions { guarded, force: None }).unwrap();
            let session = Session::new(gpu(), plan, None).unwrap();
            for (i, &input) in values[..2].iter().enumerate() {
                session.write(input, &data_for(Spec::f32(&[64]), &Fill::Uniform(-1e-3, 1e-3), i as u64)).unwrap();
            }
            session.run(&case_step()).unwrap();
            results.push(session.read(last).unwrap());
        }
        assert_eq!(results[0], results[1], "seed {seed}");
    }
}

#[test]
fn memory_printed_before_a_plan_runs_is_the_memory_it_uses() {
    // A device of its own: other tests allocate on the shared one.
    let gpu = Gpu::open(&denshi::gpu::AdapterChoice::from_user(None)).unwrap();
    let (mut tape, values) = random_tape(5, 60);
    tape.keep(*values.last().unwrap());
    let plan = Plan::new(&tape, gpu.caps(), &PlanOptions::default()).unwrap();
    let stated = plan.memory();
    let before = gpu.memory();
    let session = Session::new(&gpu, plan, None).unwrap();
    assert_eq!(gpu.memory() - before, stated);
    let data = data_for(Spec::f32(&[64]), &Fill::Normal(1.0), 1);
    let replay = || {
        values[..2].iter().for_each(|&input| session.write(input, &data).unwrap());
        session.run(&case_step()).unwrap();
        session.read(*values.last().unwrap()).unwrap();
    };
    (0..200).for_each(|_| replay());
    assert_eq!(gpu.memory() - before, stated, "two hundred replays allocated");
    assert_eq!(gpu.peak_bytes(), (stated.total() + before.total()));
    drop(session);
    assert_eq!(gpu.memory(), before, "everything is given back");
}

#[test]
fn two_hundred_replays_with_uploads_leave_no_memory_behind() {
    // What no account of ours sees: the process itself. A leak of one upload a replay would be 200 x 8 MiB; the bound is
    // an eighth of that, and above what the tests that run beside this one need at their largest.
    const ELEMENTS: usize = 2 << 20;
    let mut tape = Tape::new(Arc::new(ParamSet::default()), false);
    let x = tape.input(Spec::f32(&[ELEMENTS]));
    let sum = denshi::ops::reduce::sum(&mut tape, x).unwrap();
    tape.keep(sum);
    let session = Session::new(gpu(), Plan::new(&tape, gpu().caps(), &PlanOptions::default()).unwrap(), None).unwrap();
    let bytes = vec![0u8; ELEMENTS * 4];
    let replay = || {
        session.write_bytes(x, &bytes).unwrap();
        session.run(&case_step()).unwrap();
        session.read(sum).unwrap();
    };
    (0..20).for_each(|_| replay());
    let before = resident_bytes();
    (0..200).for_each(|_| replay());
    if let (Some(before), Some(after)) = (before, resident_bytes()) {
        assert!(after < before + (200 << 20), "resident memory grew from {before} to {after} bytes over 200 replays");
    }
}
