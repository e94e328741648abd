//! What has to hold of a recorded training step: parameters in arenas, micro-batches, determinism, replays.

use super::gpu;
use denshi::gpu::Gpu;
use denshi::ops::gemm::linear;
use denshi::ops::{DType, Fill, Host, Recorder, Spec, Var};
use denshi::tape::{Arena, ParamId, ParamSet, ParamStore, Plan, PlanOptions, Session, Tape, data_for};
use std::sync::Arc;

const IN: usize = 20;
const OUT: usize = 12;

struct Layer {
    set: Arc<ParamSet>,
    store: ParamStore,
    weight: ParamId,
    bias: ParamId,
}

/// A linear layer's parameters on the device.
fn layer(gpu: &Gpu) -> Layer {
    let mut set = ParamSet::default();
    let weight = set.add("weight", &[OUT, IN], 0.01).unwrap();
    let bias = set.add("bias", &[OUT], 0.0).unwrap();
    let store = ParamStore::new(gpu, &set, &[Arena::Weights, Arena::Gradients]).unwrap();
    for (id, seed) in [(weight, 1), (bias, 2)] {
        let spec = set.get(id).unwrap();
        let data = data_for(Spec::f32(&spec.shape), &Fill::Normal(0.3), seed);
        gpu.write(&store.slice(spec, Arena::Weights).unwrap(), &data.to_bytes()).unwrap();
    }
    Layer { set: Arc::new(set), store, weight, bias }
}

struct Recorded {
    session: Session,
    x: Var,
    dout: Var,
    grads: [Var; 2],
}

/// y = layer(x) + layer(x): every parameter's gradient has two contributions.
fn record(gpu: &Gpu, layer: &Layer, rows: usize) -> Recorded {
    let mut tape = Tape::new(layer.set.clone(), true);
    let x = tape.input(Spec::f32(&[rows, IN]));
    let w = tape.param(layer.weight, DType::F32).unwrap();
    let b = tape.param(layer.bias, DType::F32).unwrap();
    let y1 = linear(&mut tape, x, w, Some(b)).unwrap();
    let y2 = linear(&mut tape, x, w, Some(b)).unwrap();
    let y = denshi::ops::add::add(&mut tape, y1, y2).unwrap();
    let dout = tape.input(Spec::f32(&[rows, OUT]));
    tape.seed(y, dout).unwrap();
    tape.backward().unwrap();
    let grads = [tape.grad(w).unwrap(), tape.grad(b).unwrap()];
    grads.iter().for_each(|&g| tape.keep(g));
    let plan = Plan::new(&tape, gpu.caps(), &PlanOptions::default()).unwrap();
    let session = Session::new(gpu, plan, &layer.set, Some(&layer.store)).unwrap();
    Recorded { session, x, dout, grads }
}

fn rows_of(all: &Host, from: usize, count: usize) -> Host {
    let width = all.spec.width();
    Host { spec: Spec::f32(&[count, width]), data: all.data[from * width..(from + count) * width].to_vec() }
}

fn gradients(layer: &Layer, micro_batches: usize) -> Vec<Host> {
    const ROWS: usize = 24;
    let (x, dout) = (
        data_for(Spec::f32(&[ROWS, IN]), &Fill::Normal(1.0), 3),
        data_for(Spec::f32(&[ROWS, OUT]), &Fill::Normal(1.0), 4),
    );
    let rows = ROWS / micro_batches;
    let recorded = record(gpu(), layer, rows);
    for micro in 0..micro_batches {
        recorded.session.write(recorded.x, &rows_of(&x, micro * rows, rows)).unwrap();
        recorded.session.write(recorded.dout, &rows_of(&dout, micro * rows, rows)).unwrap();
        recorded.session.run(&denshi::gpu::Step::new(1, 0, micro as u32)).unwrap();
    }
    recorded.grads.iter().map(|&g| recorded.session.read(g).unwrap()).collect()
}

#[test]
fn micro_batches_add_up_to_the_gradient_of_the_big_batch() {
    let layer = layer(gpu());
    let whole = gradients(&layer, 1);
    for parts in [2, 3, 4] {
        let summed = gradients(&layer, parts);
        for (a, b) in whole.iter().zip(&summed) {
            let largest = a.data.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            // 24 products of order one in another order: sqrt(48) half-units of f32, eight times over.
            let bound = 8.0 * 48f64.sqrt() * denshi::ops::EPS * largest;
            for (x, y) in a.data.iter().zip(&b.data) {
                assert!((x - y).abs() <= bound, "{parts} micro-batches: {x} and {y} differ by more than {bound:e}");
            }
        }
    }
}

#[test]
fn the_first_micro_batch_forgets_the_step_before() {
    let layer = layer(gpu());
    let first = gradients(&layer, 2);
    let again = gradients(&layer, 2);
    assert_eq!(first, again, "gradients of an earlier step leaked into a later one, or two runs differ in bits");
}

#[test]
fn parameter_gradients_match_sums_on_the_host() {
    let layer = layer(gpu());
    let grads = gradients(&layer, 1);
    let (x, dout) =
        (data_for(Spec::f32(&[24, IN]), &Fill::Normal(1.0), 3), data_for(Spec::f32(&[24, OUT]), &Fill::Normal(1.0), 4));
    for o in 0..OUT {
        let dbias: f64 = 2.0 * (0..24).map(|r| dout.row(r)[o]).sum::<f64>();
        assert!((grads[1].data[o] - dbias).abs() < 1e-4, "dbias[{o}] {} and {dbias}", grads[1].data[o]);
        for i in 0..IN {
            let dweight: f64 = 2.0 * (0..24).map(|r| dout.row(r)[o] * x.row(r)[i]).sum::<f64>();
            assert!((grads[0].data[o * IN + i] - dweight).abs() < 1e-4);
        }
    }
}

#[test]
fn a_frozen_parameter_gets_no_gradient_and_no_launch_for_one() {
    let mut set = ParamSet::default();
    let weight = set.add("weight", &[OUT, IN], 0.0).unwrap();
    set.get_mut(weight).unwrap().trainable = false;
    let mut tape = Tape::new(Arc::new(set), true);
    let x = tape.input_with_grad(Spec::f32(&[4, IN]));
    let w = tape.param(weight, DType::F32).unwrap();
    let y = linear(&mut tape, x, w, None).unwrap();
    let dout = tape.input(Spec::f32(&[4, OUT]));
    tape.seed(y, dout).unwrap();
    let forward = tape.len();
    tape.backward().unwrap();
    assert!(tape.grad(w).is_none());
    assert!(tape.grad(x).is_some());
    assert_eq!(tape.len() - forward, 1, "only the gradient of x is computed");
}

#[test]
fn an_op_that_forgets_a_gradient_is_an_error() {
    use denshi::ops::{Backward, Gradients, Io, Op, Program, Tolerance, Variant};
    #[derive(Debug)]
    struct Forgetful;
    impl Op for Forgetful {
        fn name(&self) -> &'static str {
            "forgetful"
        }
        fn outputs(&self, ins: &[Spec]) -> denshi::error::Result<Vec<Spec>> {
            Ok(vec![ins[0].clone()])
        }
        fn variants(&self, _: &Io, _: &denshi::gpu::Caps) -> Vec<Variant> {
            vec![Variant::new("none", &[])]
        }
        fn program(&self, _: &Io, _: &Variant, _: &denshi::gpu::Caps) -> denshi::error::Result<Program> {
            Ok(Program::default())
        }
        fn backward(&self, b: &mut Gradients<'_>) -> denshi::error::Result<Backward> {
            let dout = b.dout(0).expect("it was seeded");
            b.pass(0, dout)?;
            Ok(Backward::Rule)
        }
        fn reference(&self, ins: &[&Host], _: &Io, _: &denshi::gpu::Step) -> Vec<Vec<f64>> {
            vec![ins[0].data.clone()]
        }
        fn tolerance(&self, _: &Io, _: usize) -> Tolerance {
            Tolerance::EXACT
        }
    }
    let mut tape = Tape::new(Arc::new(ParamSet::default()), true);
    let a = tape.input_with_grad(Spec::f32(&[4]));
    let b = tape.input_with_grad(Spec::f32(&[4]));
    let y = tape.record(Box::new(Forgetful), &[a, b], &[]).unwrap()[0];
    let dout = tape.input(Spec::f32(&[4]));
    tape.seed(y, dout).unwrap();
    let error = tape.backward().expect_err("the gradient of b is missing");
    assert!(error.to_string().contains("no gradient for input 1"), "{error}");
}

#[test]
fn a_tiny_electra_learns_within_its_stated_memory_and_twice_to_the_same_bits() {
    // A device of its own: the rehearsal reads the device's account of memory.
    let gpu = Gpu::open(&denshi::gpu::AdapterChoice::from_user(None)).unwrap();
    for dtype in [DType::F32, DType::F16] {
        if dtype == DType::F16 && !gpu.caps().f16 {
            continue;
        }
        let mut announced = String::new();
        let rehearsal = denshi::doctor::rehearse(&gpu, dtype, |text| announced.push_str(text)).unwrap();
        assert!(announced.contains("activations"), "memory by purpose is told before it runs: {announced}");
        assert_eq!(rehearsal.bytes_stated, rehearsal.bytes_used);
        assert!(rehearsal.same_bits, "two runs differ");
        assert!(rehearsal.healthy(), "{rehearsal:?}");
    }
}
