//! A rehearsal: a tiny generator and discriminator trained by replaced-token detection for a few steps, on the device
//! from end to end, in the way a real run uses the engine. What single kernels cannot show is checked: memory is what the plan said,
//! the same seed gives the same bits, and the loss falls.

use crate::error::Result;
use crate::gpu::{Gpu, Memory, Step};
use crate::ops::adam::{Adam, adam};
use crate::ops::attention::flash_attention;
use crate::ops::bce::{BinaryCrossEntropy, binary_cross_entropy};
use crate::ops::embedding::embedding;
use crate::ops::gather::{gather_rows, replace_ids};
use crate::ops::gemm::{Gelu, ffn, linear};
use crate::ops::layer_norm::{layer_norm, residual_layer_norm};
use crate::ops::losses::{Draw, SUM};
use crate::ops::norm::global_norm;
use crate::ops::random::DropRate;
use crate::ops::vocabulary::vocabulary_cross_entropy;
use crate::ops::{DType, Fill, Host, Recorder, Spec, Var};
use crate::tape::{Arena, ParamSet, ParamStore, Plan, PlanOptions, Session, Tape, data_for};
use serde::Serialize;
use std::sync::Arc;

// Sizes that divide nothing: batch, tokens, masked a sequence, vocabulary, width, heads, feed-forward.
const BATCH: usize = 6;
const TOKENS: usize = 17;
const MASKED: usize = 3;
const VOCABULARY: usize = 23;
const WIDTH: usize = 36;
const HEADS: usize = 3;
const FORWARD: usize = 52;
const MASK: usize = 4;
const FIRST_WORD: usize = 5;
const STEPS: u32 = 150;
const MICRO_BATCHES: u32 = 2;
const EPS: f32 = 1e-12;
const ARENAS: [Arena; 4] = [Arena::Weights, Arena::Gradients, Arena::Moment1, Arena::Moment2];

/// What the rehearsal showed.
#[derive(Clone, Debug, Serialize)]
pub struct Rehearsal {
    pub precision: &'static str,
    pub launches: usize,
    pub bytes_stated: u64,
    pub bytes_used: u64,
    /// Mean masked-LM and replaced-token loss of the first five steps and of the last five.
    pub first: [f64; 2],
    pub last: [f64; 2],
    pub same_bits: bool,
}

impl Rehearsal {
    /// Learning means: the generator's loss falls below half of what guessing among all words costs, ln(words), and
    /// the discriminator's below where it began.
    pub fn healthy(&self) -> bool {
        let guess = ((VOCABULARY - FIRST_WORD) as f64).ln();
        let learns = self.last[0] < 0.5 * guess && self.last[1] < self.first[1];
        self.bytes_stated == self.bytes_used && self.same_bits && learns
    }
}

/// Trains twice from the same seed; `announce` is told the memory before anything runs.
pub fn rehearse(gpu: &Gpu, dtype: DType, mut announce: impl FnMut(&str) -> Result<()>) -> Result<Rehearsal> {
    let (first, losses, stated, used, launches) = train(gpu, dtype, &mut announce)?;
    let (second, ..) = train(gpu, dtype, &mut |_| Ok(()))?;
    let mean = |part: &[[f64; 2]]| [0, 1].map(|k| part.iter().map(|l| l[k]).sum::<f64>() / part.len() as f64);
    Ok(Rehearsal {
        precision: dtype.wgsl(),
        launches,
        bytes_stated: stated.total(),
        bytes_used: used.total(),
        first: mean(&losses[..5]),
        last: mean(&losses[losses.len() - 5..]),
        same_bits: first == second,
    })
}

type Trained = (Vec<u8>, Vec<[f64; 2]>, Memory, Memory, usize);

fn train(gpu: &Gpu, dtype: DType, announce: &mut dyn FnMut(&str) -> Result<()>) -> Result<Trained> {
    let set = Arc::new(parameters()?);
    let mut arenas = ARENAS.to_vec();
    arenas.extend((dtype == DType::F16).then_some(Arena::Half));
    let before = gpu.memory();
    let step = record_step(&set, dtype)?;
    let update = record_update(&set, dtype)?;
    let step_plan = Plan::new(&step.tape, gpu.caps(), &PlanOptions::default())?;
    let update_plan = Plan::new(&update.tape, gpu.caps(), &PlanOptions::default())?;
    let mut stated = ParamStore::memory(&set, &arenas);
    stated = stated + step_plan.memory_beside_parameters() + update_plan.memory_beside_parameters();
    announce(&format!("rehearsal in {}:\n{step_plan}\nwith parameters and optimiser:\n{stated}", dtype.wgsl()))?;
    let launches = step_plan.launches() * MICRO_BATCHES as usize + update_plan.launches();

    let store = ParamStore::new(gpu, &set, &arenas)?;
    let forward = Session::new(gpu, step_plan, Some(&store))?;
    let optimiser = Session::new(gpu, update_plan, Some(&store))?;
    initialise(gpu, &set, &store, dtype)?;
    let (blocks, rates) = set.optimizer_tables();
    optimiser.write_bytes(update.blocks, bytemuck::cast_slice(&blocks))?;
    optimiser.write_bytes(update.rates, bytemuck::cast_slice(&rates))?;

    let mut losses = Vec::new();
    for t in 0..STEPS {
        let mut loss = [0.0; 2];
        for micro in 0..MICRO_BATCHES {
            step.upload(&forward, t * MICRO_BATCHES + micro)?;
            forward.run(&settings(dtype, t, micro))?;
            for (sum, var) in loss.iter_mut().zip([step.mlm, step.rtd]) {
                *sum += forward.read(var)?.data[0];
            }
        }
        optimiser.run(&settings(dtype, t, 0))?;
        losses.push(loss);
    }
    let used = gpu.memory() - before;
    let weights = optimiser.read(update.weights)?.to_bytes();
    Ok((weights, losses, stated, used, launches))
}

fn settings(dtype: DType, t: u32, micro: u32) -> Step {
    let loss_scale = if dtype == DType::F16 { 128.0 } else { 1.0 };
    Step {
        lr: 1e-2,
        loss_scale,
        grad_scale: 1.0 / loss_scale,
        bias1: 1.0 - 0.9f32.powi(t as i32 + 1),
        bias2: 1.0 - 0.999f32.powi(t as i32 + 1),
        ..Step::new(42, t, micro)
    }
}

/// Names and shapes; the table serves the generator's input and output and the discriminator's input.
fn parameters() -> Result<ParamSet> {
    let mut set = ParamSet::default();
    let mut matrix = |name: &str, shape: &[usize]| set.add(name, shape, 0.01).map(|_| ());
    matrix("tokens", &[VOCABULARY, WIDTH])?;
    matrix("positions", &[TOKENS, WIDTH])?;
    matrix("segments", &[2, WIDTH])?;
    for net in ["generator", "discriminator"] {
        matrix(&format!("{net}.qkv.weight"), &[3 * WIDTH, WIDTH])?;
        matrix(&format!("{net}.out.weight"), &[WIDTH, WIDTH])?;
        matrix(&format!("{net}.up.weight"), &[FORWARD, WIDTH])?;
        matrix(&format!("{net}.down.weight"), &[WIDTH, FORWARD])?;
    }
    matrix("head.weight", &[1, WIDTH])?;
    let mut vector = |name: String, n: usize| set.add(&name, &[n], 0.0).map(|_| ());
    vector("norm.gamma".into(), WIDTH)?;
    vector("norm.beta".into(), WIDTH)?;
    for net in ["generator", "discriminator"] {
        for (name, n) in [("qkv", 3 * WIDTH), ("out", WIDTH), ("up", FORWARD), ("down", WIDTH)] {
            vector(format!("{net}.{name}.bias"), n)?;
        }
        for norm in ["norm1", "norm2"] {
            vector(format!("{net}.{norm}.gamma"), WIDTH)?;
            vector(format!("{net}.{norm}.beta"), WIDTH)?;
        }
    }
    vector("vocabulary.bias".into(), VOCABULARY)?;
    vector("head.bias".into(), 1)?;
    Ok(set)
}

fn initialise(gpu: &Gpu, set: &ParamSet, store: &ParamStore, dtype: DType) -> Result<()> {
    for (id, spec) in set.iter() {
        let fill = match spec.name.rsplit('.').next() {
            Some("gamma") => Fill::Const(1.0),
            Some("beta" | "bias") => Fill::Const(0.0),
            _ => Fill::Normal(0.1),
        };
        let mut data = data_for(Spec::f32(&spec.shape), &fill, 1000 + spec.offset() as u64);
        gpu.write(&store.slice(set.get(id)?, Arena::Weights)?, &data.to_bytes())?;
        if dtype == DType::F16 {
            data.spec.dtype = DType::F16;
            gpu.write(&store.slice(set.get(id)?, Arena::Half)?, &data.to_bytes())?;
        }
    }
    Ok(())
}

struct RecordedStep {
    tape: Tape,
    ids: Var,
    masked_ids: Var,
    kinds: Var,
    lengths: Var,
    places: Var,
    labels: Var,
    weights: Var,
    real: Var,
    mlm: Var,
    rtd: Var,
}

impl RecordedStep {
    /// Sequences that count upwards from a random word: what is masked can be told from its neighbours.
    fn upload(&self, session: &Session, number: u32) -> Result<()> {
        let words = VOCABULARY - FIRST_WORD;
        let starts = random(number, 1, BATCH, words);
        let (picks, mut ids) = (random(number, 3, BATCH * MASKED, TOKENS / 2), Vec::new());
        for start in &starts {
            ids.extend((0..TOKENS).map(|t| (FIRST_WORD + (*start as usize + t) % words) as f64));
        }
        let lengths = lengths(number);
        // Weights are divided by their sum over the whole step, so that its micro-batches add up to one big batch.
        let first = number / MICRO_BATCHES * MICRO_BATCHES;
        let step_tokens: f64 = (first..first + MICRO_BATCHES).flat_map(self::lengths).sum();
        let row_of = |i: usize| (i / MASKED) * TOKENS + picks[i] as usize;
        let mut masked = ids.clone();
        (0..BATCH * MASKED).for_each(|i| masked[row_of(i)] = MASK as f64);
        let labels: Vec<f64> = (0..BATCH * MASKED).map(|i| ids[row_of(i)]).collect();
        let is_real = |r: usize| ((r % TOKENS) as f64) < lengths[r / TOKENS];
        let real = (0..BATCH * TOKENS).map(|r| if is_real(r) { 1.0 / step_tokens } else { 0.0 });
        let share = 1.0 / (BATCH * MASKED * MICRO_BATCHES as usize) as f64;
        let put = |var: Var, spec: Spec, data: Vec<f64>| session.write(var, &Host { spec, data });
        let rows = [BATCH, TOKENS];
        put(self.real, Spec::f32(&rows), real.collect())?;
        put(self.ids, Spec::u32(&rows), ids)?;
        put(self.masked_ids, Spec::u32(&rows), masked)?;
        put(self.kinds, Spec::u32(&rows), vec![0.0; BATCH * TOKENS])?;
        put(self.lengths, Spec::u32(&[BATCH]), lengths)?;
        put(self.places, Spec::u32(&[BATCH * MASKED]), (0..BATCH * MASKED).map(|i| row_of(i) as f64).collect())?;
        put(self.labels, Spec::u32(&[BATCH * MASKED]), labels)?;
        put(self.weights, Spec::f32(&[BATCH * MASKED]), vec![share; BATCH * MASKED])
    }
}

/// Seeded whole numbers below `below` for micro-batch `number` of the run.
fn random(number: u32, salt: u64, n: usize, below: usize) -> Vec<f64> {
    data_for(Spec::u32(&[n]), &Fill::Ids(below), 77 + u64::from(number) * 10 + salt).data
}

/// True lengths of the sequences of a micro-batch.
fn lengths(number: u32) -> Vec<f64> {
    random(number, 2, BATCH, TOKENS / 2).iter().map(|cut| TOKENS as f64 - cut).collect()
}

fn record_step(set: &Arc<ParamSet>, dtype: DType) -> Result<RecordedStep> {
    let mut tape = Tape::new(set.clone(), true);
    let rows = [BATCH, TOKENS];
    let ids = tape.input(Spec::u32(&rows));
    let masked_ids = tape.input(Spec::u32(&rows));
    let kinds = tape.input(Spec::u32(&rows));
    let lengths = tape.input(Spec::u32(&[BATCH]));
    let places = tape.input(Spec::u32(&[BATCH * MASKED]));
    let labels = tape.input(Spec::u32(&[BATCH * MASKED]));
    let weights = tape.input(Spec::f32(&[BATCH * MASKED]));
    let real = tape.input(Spec::f32(&rows));

    let embedded = embed(&mut tape, masked_ids, kinds, dtype)?;
    let generated = encode(&mut tape, "generator", embedded, lengths, dtype)?;
    let hidden = gather_rows(&mut tape, generated, places)?;
    let table = param(&mut tape, "tokens", dtype)?;
    let bias = param(&mut tape, "vocabulary.bias", DType::F32)?;
    let draw = Draw { site: tape.site(), temperature: 1.0, never_right: false };
    let head = vocabulary_cross_entropy(&mut tape, [1.0, SUM], Some(draw), [hidden, table, bias, labels, weights])?;
    let drawn = head.drawn.unwrap_or(labels);
    let [corrupted, replaced] = replace_ids(&mut tape, ids, places, drawn, weights)?;
    let embedded = embed(&mut tape, corrupted, kinds, dtype)?;
    let judged = encode(&mut tape, "discriminator", embedded, lengths, dtype)?;
    let (w, b) = (param(&mut tape, "head.weight", dtype)?, param(&mut tape, "head.bias", DType::F32)?);
    let logits = linear(&mut tape, judged, w, Some(b))?;
    let op = BinaryCrossEntropy { weight: 2.0, eps: SUM };
    let [rtd, _] = binary_cross_entropy(&mut tape, op, [logits, replaced, real])?;
    let mlm = head.loss;
    tape.keep(mlm);
    tape.keep(rtd);
    tape.backward()?;
    Ok(RecordedStep { tape, ids, masked_ids, kinds, lengths, places, labels, weights, real, mlm, rtd })
}

fn param(tape: &mut Tape, name: &str, dtype: DType) -> Result<Var> {
    use crate::error::{Error, Kind};
    let missing = || Error::new(Kind::Shape, "record the rehearsal", format!("there is no parameter {name}"));
    let id = tape.params().id(name).ok_or_else(missing)?;
    tape.param(id, dtype)
}

/// Token, position and segment embeddings, normalised. The tables are f32: looking rows up is no matrix product.
fn embed(tape: &mut Tape, ids: Var, kinds: Var, dtype: DType) -> Result<Var> {
    let tables = ["tokens", "positions", "segments"];
    let [tokens, positions, segments] = tables.map(|name| param(tape, name, DType::F32));
    let x = embedding(tape, [ids, kinds], [tokens?, positions?, segments?], dtype, None)?;
    let (gamma, beta) = (param(tape, "norm.gamma", DType::F32)?, param(tape, "norm.beta", DType::F32)?);
    let x = layer_norm(tape, x, gamma, beta, EPS)?;
    tape.view(x, &[BATCH * TOKENS, WIDTH])
}

/// One encoder layer with dropout.
fn encode(tape: &mut Tape, net: &str, x: Var, lengths: Var, dtype: DType) -> Result<Var> {
    let drop = Some(DropRate::new(0.1));
    let weight = |tape: &mut Tape, name: &str| param(tape, &format!("{net}.{name}.weight"), dtype);
    let vector = |tape: &mut Tape, name: &str| param(tape, &format!("{net}.{name}"), DType::F32);
    let (w, b) = (weight(tape, "qkv")?, vector(tape, "qkv.bias")?);
    let qkv = linear(tape, x, w, Some(b))?;
    let context = flash_attention(tape, qkv, lengths, HEADS, drop)?;
    let (w, b) = (weight(tape, "out")?, vector(tape, "out.bias")?);
    let projected = linear(tape, context, w, Some(b))?;
    let norm = [vector(tape, "norm1.gamma")?, vector(tape, "norm1.beta")?];
    let x = residual_layer_norm(tape, [projected, x], norm, EPS, drop)?;
    let up = [weight(tape, "up")?, vector(tape, "up.bias")?];
    let down = [weight(tape, "down")?, vector(tape, "down.bias")?];
    let f = ffn(tape, Gelu::Erf, x, [up[0], up[1], down[0], down[1]])?;
    let norm = [vector(tape, "norm2.gamma")?, vector(tape, "norm2.beta")?];
    residual_layer_norm(tape, [f, x], norm, EPS, drop)
}

struct RecordedUpdate {
    tape: Tape,
    blocks: Var,
    rates: Var,
    weights: Var,
}

fn record_update(set: &Arc<ParamSet>, dtype: DType) -> Result<RecordedUpdate> {
    let mut tape = Tape::new(set.clone(), false);
    let arenas = ARENAS.map(|arena| tape.arena(arena));
    let half = (dtype == DType::F16).then(|| tape.arena(Arena::Half));
    let (blocks, rates) = set.optimizer_tables();
    let blocks = tape.input(Spec::u32(&[blocks.len()]));
    let rates = tape.input(Spec::f32(&[rates.len(), 2]));
    let norm = global_norm(&mut tape, arenas[1], 1.0)?;
    let op = Adam { beta1: 0.9, beta2: 0.999, eps: 1e-6, half: half.is_some() };
    adam(&mut tape, op, arenas, [blocks, rates, norm], half)?;
    tape.keep(arenas[0]);
    Ok(RecordedUpdate { tape, blocks, rates, weights: arenas[0] })
}
