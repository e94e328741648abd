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
    let session = Session::new(gpu, plan, Some(&layer.store)).unwrap();
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
        let rehearsal = denshi::doctor::rehearse(&gpu, dtype, |text| {
            announced.push_str(text);
            Ok(())
        })
        .unwrap();
        assert!(announced.contains("activations"), "memory by purpose is told before it runs: {announced}");
        assert_eq!(rehearsal.bytes_stated, rehearsal.bytes_used);
        assert!(rehearsal.same_bits, "two runs differ");
        assert!(rehearsal.healthy(), "{rehearsal:?}");
    }
}

/// Runs a tape with `inputs` in buffers shared as a user gets them.
fn run(tape: &Tape, inputs: &[(Var, Host)], read: Var) -> Host {
    let plan = Plan::new(tape, gpu().caps(), &PlanOptions::default()).unwrap();
    let session = Session::new(gpu(), plan, None).unwrap();
    inputs.iter().for_each(|(v, h)| session.write(*v, h).unwrap());
    session.run(&denshi::tape::case_step()).unwrap();
    session.read(read).unwrap()
}

#[test]
fn a_gradient_passed_to_two_values_is_not_changed_under_one_of_them() {
    use denshi::ops::activation::tanh;
    use denshi::ops::add::add;
    // s = tanh(x) + x: the gradient of s is that of tanh(x) too, and x's is summed up later.
    let spec = Spec::f32(&[50]);
    let (data, dout) = (data_for(spec.clone(), &Fill::Normal(1.0), 1), data_for(spec.clone(), &Fill::Normal(1.0), 2));
    for watched in [false, true] {
        let mut tape = Tape::new(Arc::new(ParamSet::default()), true);
        let x = tape.input_with_grad(spec.clone());
        let a = tanh(&mut tape, x).unwrap();
        let s = add(&mut tape, a, x).unwrap();
        let twice = add(&mut tape, s, s).unwrap();
        let seed = tape.input(spec.clone());
        tape.seed(twice, seed).unwrap();
        if watched {
            tape.watch(a);
        }
        tape.backward().unwrap();
        let dx = tape.grad(x).unwrap();
        tape.keep(dx);
        let inputs = [(x, data.clone()), (seed, dout.clone())];
        let got = run(&tape, &inputs, dx);
        for i in 0..50 {
            let t = data.data[i].tanh();
            let want = 2.0 * dout.data[i] * (1.0 - t * t + 1.0);
            approx::assert_abs_diff_eq!(got.data[i], want, epsilon = 1e-5 * (1.0 + want.abs()));
        }
        if watched {
            let da = tape.grad(a).expect("it is watched");
            tape.keep(da);
            let got = run(&tape, &inputs, da);
            assert!(
                (0..50).all(|i| (got.data[i] - 2.0 * dout.data[i]).abs() < 1e-6),
                "the watched gradient was changed"
            );
        }
    }
}

#[test]
fn a_forward_value_used_as_its_own_seed_is_not_changed() {
    use denshi::ops::activation::tanh;
    use denshi::ops::add::add;
    // F = |y|^2 / 2 + z . d with y = tanh(x), z = tanh(y): y is read by the backward of z, and its gradient is y itself plus more.
    let spec = Spec::f32(&[40]);
    let (data, dout) = (data_for(spec.clone(), &Fill::Normal(1.0), 3), data_for(spec.clone(), &Fill::Normal(1.0), 4));
    let mut tape = Tape::new(Arc::new(ParamSet::default()), true);
    let x = tape.input_with_grad(spec.clone());
    let y = tanh(&mut tape, x).unwrap();
    let z = add(&mut tape, y, y).unwrap();
    let seed = tape.input(spec);
    tape.seed(y, y).unwrap();
    tape.seed(z, seed).unwrap();
    tape.backward().unwrap();
    let dx = tape.grad(x).unwrap();
    tape.keep(dx);
    let got = run(&tape, &[(x, data.clone()), (seed, dout.clone())], dx);
    for i in 0..40 {
        let y = data.data[i].tanh();
        let want = (y + 2.0 * dout.data[i]) * (1.0 - y * y);
        approx::assert_abs_diff_eq!(got.data[i], want, epsilon = 1e-5 * (1.0 + want.abs()));
    }
}

#[test]
fn changing_a_value_in_place_that_backward_needs_is_an_error() {
    let mut tape = Tape::new(Arc::new(ParamSet::default()), true);
    let x = tape.input_with_grad(Spec::f32(&[4]));
    let y = denshi::ops::activation::tanh(&mut tape, x).unwrap();
    let error = tape.record(Box::new(denshi::ops::add::AddInto), &[y, x], &[]).expect_err("tanh's backward reads y");
    assert!(error.to_string().contains("in place"), "{error}");
}

#[test]
fn a_seed_of_another_size_or_type_is_an_error() {
    let mut tape = Tape::new(Arc::new(ParamSet::default()), true);
    let x = tape.input_with_grad(Spec::f32(&[4]));
    let y = denshi::ops::activation::tanh(&mut tape, x).unwrap();
    for wrong in [Spec::f32(&[5]), Spec::new(&[4], DType::F16)] {
        let seed = tape.input(wrong);
        assert!(tape.seed(y, seed).is_err());
    }
}

#[test]
fn micro_batches_of_unequal_weight_add_up_to_the_loss_of_the_big_batch() {
    use denshi::ops::bce::{BinaryCrossEntropy, binary_cross_entropy};
    use denshi::ops::losses::SUM;
    const ROWS: usize = 24;
    let layer = layer(gpu());
    let x = data_for(Spec::f32(&[ROWS, IN]), &Fill::Normal(1.0), 3);
    let targets = data_for(Spec::u32(&[ROWS, OUT]), &Fill::Ids(2), 4);
    // Rows of all weight, of little and of none, unevenly spread.
    let raw: Vec<f64> = (0..ROWS * OUT).map(|i| [1.0, 0.0, 0.25][(i / 50) % 3]).collect();
    let total: f64 = raw.iter().sum();
    let weights =
        Host { spec: Spec::f32(&[ROWS, OUT]), data: raw.iter().map(|w| f64::from((w / total) as f32)).collect() };
    let gradient = |parts: usize| {
        let rows = ROWS / parts;
        let mut tape = Tape::new(layer.set.clone(), true);
        let input = tape.input(Spec::f32(&[rows, IN]));
        let w = tape.param(layer.weight, DType::F32).unwrap();
        let b = tape.param(layer.bias, DType::F32).unwrap();
        let logits = linear(&mut tape, input, w, Some(b)).unwrap();
        let goal = tape.input(Spec::u32(&[rows, OUT]));
        let weight = tape.input(Spec::f32(&[rows, OUT]));
        let op = BinaryCrossEntropy { weight: 50.0, eps: SUM };
        let [loss, _] = binary_cross_entropy(&mut tape, op, [logits, goal, weight]).unwrap();
        tape.backward().unwrap();
        let dw = tape.grad(w).unwrap();
        tape.keep(dw);
        tape.keep(loss);
        let plan = Plan::new(&tape, gpu().caps(), &PlanOptions::default()).unwrap();
        let session = Session::new(gpu(), plan, Some(&layer.store)).unwrap();
        let mut sum = 0.0;
        for micro in 0..parts {
            session.write(input, &rows_of(&x, micro * rows, rows)).unwrap();
            session.write(weight, &rows_of(&weights, micro * rows, rows)).unwrap();
            let part = rows_of(&targets, micro * rows, rows);
            session.write(goal, &Host { spec: Spec::u32(&[rows, OUT]), data: part.data }).unwrap();
            session.run(&denshi::gpu::Step::new(1, 0, micro as u32)).unwrap();
            sum += session.read(loss).unwrap().data[0];
        }
        (session.read(dw).unwrap(), sum)
    };
    let (whole, loss) = gradient(1);
    let largest = whole.data.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    for parts in [2, 4] {
        let (summed, parts_loss) = gradient(parts);
        // 24 products in another order, as above; the loss is a sum of 288 terms.
        approx::assert_relative_eq!(loss, parts_loss, max_relative = 8.0 * 288f64.sqrt() * denshi::ops::EPS);
        for (a, b) in whole.data.iter().zip(&summed.data) {
            approx::assert_abs_diff_eq!(a, b, epsilon = 8.0 * 24f64.sqrt() * denshi::ops::EPS * largest);
        }
    }
}
