//! Runs a case on a device and compares every node with its f64 reference, fed with the device's own inputs, so that
//! errors do not add up along a chain and each op answers for itself.

use super::plan::{Plan, PlanOptions};
use super::session::Session;
use super::{Home, Node, ParamSet, Tape, Write};
use crate::error::{Context, Error, Kind, Result};
use crate::gpu::{Caps, Gpu, Step, Timer};
use crate::ops::{Case, CaseRecorder, DType, Fill, Host, Op, Recorder, Spec, Var};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A tape whose inputs have contents.
pub struct CaseTape {
    pub tape: Tape,
    pub inputs: Vec<(Var, Host)>,
    /// Values and the gradients they were seeded with.
    pub seeds: Vec<(Var, Var)>,
    /// Nodes before the gradients.
    pub forward: usize,
    seed: u64,
    /// Inputs and sites asked for so far; a second recording of the case gets the first one's again.
    asked: usize,
    sites: u32,
}

impl CaseTape {
    /// Records `case` and its gradients.
    pub fn record(case: &Case) -> Result<CaseTape> {
        CaseTape::record_times(case, 1)
    }

    /// Records `case` twice on the same inputs: every gradient has two contributions, so the second of each is added.
    pub fn record_doubled(case: &Case) -> Result<CaseTape> {
        CaseTape::record_times(case, 2)
    }

    fn record_times(case: &Case, times: usize) -> Result<CaseTape> {
        let seed =
            case.name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        let tape = Tape::new(Arc::new(ParamSet::default()), true);
        let mut recording =
            CaseTape { tape, inputs: Vec::new(), seeds: Vec::new(), forward: 0, seed, asked: 0, sites: 0 };
        for _ in 0..times {
            (recording.asked, recording.sites) = (0, 0);
            (case.build)(&mut recording).context(|| format!("record case {}", case.name))?;
        }
        recording.forward = recording.tape.len();
        recording.tape.backward().context(|| format!("record case {}", case.name))?;
        let grads: Vec<Var> = recording.inputs.iter().filter_map(|(v, _)| recording.tape.grad(*v)).collect();
        grads.iter().for_each(|&g| recording.tape.keep(g));
        Ok(recording)
    }

    fn filled(&mut self, spec: Spec, fill: Fill) -> Host {
        let seed = self.seed.wrapping_add(self.inputs.len() as u64 * 0x9e37_79b9);
        data_for(spec, &fill, seed)
    }
}

/// A seeded tensor, rounded to its storage type.
pub fn data_for(spec: Spec, fill: &Fill, seed: u64) -> Host {
    let mut state = seed;
    // splitmix64; 53 bits to [0, 1).
    let mut unit = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    let data = (0..spec.elements())
        .map(|i| {
            let x = match fill {
                Fill::Uniform(low, high) => low + (high - low) * unit(),
                Fill::Normal(std) => {
                    let (u, v) = (unit(), unit());
                    std * (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
                }
                Fill::Ids(n) => (unit() * *n as f64).floor(),
                Fill::Const(x) => *x,
                Fill::Values(values) => values[i % values.len()],
            };
            spec.dtype.round(x)
        })
        .collect();
    Host { spec, data }
}

impl Recorder for CaseTape {
    fn spec(&self, v: Var) -> &Spec {
        self.tape.spec(v)
    }
    fn training(&self) -> bool {
        self.tape.training()
    }
    fn needs_grad(&self, v: Var) -> bool {
        self.tape.needs_grad(v)
    }
    fn site(&mut self) -> u32 {
        self.sites += 1;
        self.sites
    }
    fn record(&mut self, op: Box<dyn Op>, ins: &[Var], grads: &[(usize, Var)]) -> Result<Vec<Var>> {
        self.tape.record(op, ins, grads)
    }
    fn pass_gradient(&mut self, v: Var, grad: Var) -> Result<()> {
        self.tape.pass_gradient(v, grad)
    }
}

impl CaseRecorder for CaseTape {
    fn input(&mut self, shape: &[usize], dtype: DType, fill: Fill) -> Var {
        self.next_input(Spec::new(shape, dtype), fill, dtype != DType::U32)
    }

    fn seed(&mut self, v: Var, fill: Fill) -> Result<()> {
        let spec = self.tape.spec(v).clone();
        let dout = self.next_input(spec, fill, false);
        self.seeds.push((v, dout));
        self.tape.seed(v, dout)
    }
}

impl CaseTape {
    fn next_input(&mut self, spec: Spec, fill: Fill, with_grad: bool) -> Var {
        let index = self.asked;
        self.asked += 1;
        if let Some((var, _)) = self.inputs.get(index) {
            return *var;
        }
        let data = self.filled(spec.clone(), fill);
        let var = if with_grad { self.tape.input_with_grad(spec) } else { self.tape.input(spec) };
        self.inputs.push((var, data));
        var
    }
}

impl CaseTape {
    /// Output 0 of every forward op that writes gradients in the same pass: a loss.
    pub fn loss_outputs(&self) -> Vec<Var> {
        let is_gradient = |v: &Var| self.tape.is_gradient(*v);
        let forward = &self.tape.nodes[..self.forward];
        let losses = forward.iter().filter(|n| n.outs.iter().skip(1).any(|o| is_gradient(&o.0)));
        losses.map(|n| n.outs[0].0).collect()
    }

    /// The variant that each node's op prefers on such an adapter.
    pub fn preferred(&self, caps: &Caps) -> Vec<(&'static str, String)> {
        let first = |node: &Node| {
            let variant = node.op.variants(&self.tape.io(node), caps).into_iter().next();
            variant.map(|v| (node.op.name(), v.name))
        };
        self.tape.nodes.iter().filter_map(first).collect()
    }

    /// Names of all variants that this adapter can run any node of the case by, each once, preferred ones first.
    pub fn variants(&self, caps: &Caps) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for node in &self.tape.nodes {
            for variant in node.op.variants(&self.tape.io(node), caps) {
                if !names.contains(&variant.name) {
                    names.push(variant.name);
                }
            }
        }
        names
    }
}

/// What one node showed.
#[derive(Clone, Debug)]
pub struct NodeCheck {
    pub op: &'static str,
    pub variant: String,
    /// Worst |error| / tolerance over all outputs; over 1 is a failure.
    pub worst: f64,
    /// Device time of its launches in nanoseconds, where the adapter has timestamps.
    pub nanoseconds: Option<f64>,
    /// In words, where it failed.
    pub failure: Option<String>,
}

/// The step every case runs under: a fixed key, scales that are not 1 so that a kernel that forgets them is seen.
pub fn case_step() -> Step {
    Step { lr: 0.01, loss_scale: 4.0, grad_scale: 0.25, bias1: 0.1, bias2: 0.001, ..Step::new(7, 3, 0) }
}

/// Runs a recorded case with `force`d variants where they exist. Checks values, guard words, and that a second run
/// gives the same bits; the second run is timed where there is a timer.
pub fn check_case(gpu: &Gpu, timer: Option<&Timer>, case: &CaseTape, force: Option<&str>) -> Result<Vec<NodeCheck>> {
    let options = PlanOptions { guarded: true, force: force.map(str::to_string) };
    let plan = Plan::new(&case.tape, gpu.caps(), &options)?;
    let session = Session::new(gpu, plan, None)?;
    let step = case_step();
    let (first, _) = run_once(&session, case, &step, None)?;
    let (second, times) = run_once(&session, case, &step, timer)?;
    let mut checks = compare(&session, case, &step, &first)?;
    for (launch, time) in session.launches().iter().zip(&times) {
        *checks[launch.node].nanoseconds.get_or_insert(0.0) += time;
    }
    for (check, node) in checks.iter_mut().zip(&session.plan().nodes) {
        for &(var, _) in &node.outs {
            let root = session.plan().roots[&var];
            let (guard_holds, bytes) = &first[&root];
            if !guard_holds || !second[&root].0 {
                check.failure = Some("it wrote past the end of its output".into());
            } else if bytes != &second[&root].1 {
                check.failure = Some("two runs differ in their bits".into());
            }
        }
    }
    if let Some(scratch) = session.overrun_scratch()? {
        let happened = format!("a kernel wrote past the end of all scratch memory {scratch}");
        return Err(Error::new(Kind::Numeric, "check a case", happened));
    }
    for (input, _) in &case.inputs {
        if !first[input].0 {
            return Err(Error::new(Kind::Numeric, "check a case", "a kernel wrote past the end of an input"));
        }
    }
    Ok(checks)
}

/// Runs `case` by a guarded plan and by the plan that a user gets, in shared buffers: gradients of inputs that differ in
/// any bit, with what they are. None should.
pub fn compare_plans(gpu: &Gpu, case: &CaseTape) -> Result<Vec<Var>> {
    let step = case_step();
    let mut results: Vec<Vec<Vec<u8>>> = Vec::new();
    let grads: Vec<Var> = case.inputs.iter().filter_map(|(v, _)| case.tape.grad(*v)).collect();
    for guarded in [true, false] {
        let plan = Plan::new(&case.tape, gpu.caps(), &PlanOptions { guarded, force: None })?;
        let session = Session::new(gpu, plan, None)?;
        if guarded {
            session.poison()?;
        }
        for (var, data) in &case.inputs {
            session.write(*var, data)?;
        }
        session.run(&step)?;
        results.push(grads.iter().map(|&g| Ok(session.read(g)?.to_bytes())).collect::<Result<_>>()?);
    }
    let differs = |i: &usize| results[0][*i] != results[1][*i];
    Ok((0..grads.len()).filter(differs).map(|i| grads[i]).collect())
}

type Contents = BTreeMap<Var, (bool, Vec<u8>)>;

fn run_once(session: &Session, case: &CaseTape, step: &Step, timer: Option<&Timer>) -> Result<(Contents, Vec<f64>)> {
    session.poison()?;
    for (var, data) in &case.inputs {
        session.write(*var, data)?;
    }
    let times = match timer {
        Some(timer) => session.run_timed(step, timer)?,
        None => session.run(step).map(|()| Vec::new())?,
    };
    let plan = session.plan();
    let stored = |v: &&Var| plan.slot_of.contains_key(*v) || plan.homes[*v] == Home::Input;
    let read = |&v: &Var| Ok((v, session.read_guarded(v)?));
    let contents: Result<Contents> = plan.homes.keys().filter(stored).map(read).collect();
    Ok((contents?, times))
}

fn compare(session: &Session, case: &CaseTape, step: &Step, contents: &Contents) -> Result<Vec<NodeCheck>> {
    let plan = session.plan();
    let device = |var: Var| Host::from_bytes(&plan.specs[&var], &contents[&plan.roots[&var]].1);
    // What a value that several nodes write should hold so far.
    let mut expected: BTreeMap<Var, Vec<f64>> = case.inputs.iter().map(|(v, h)| (*v, h.data.clone())).collect();
    let mut writers: BTreeMap<Var, Vec<(usize, usize)>> = BTreeMap::new();
    for (index, node) in plan.nodes.iter().enumerate() {
        for (k, (var, _)) in node.outs.iter().enumerate() {
            writers.entry(plan.roots[var]).or_default().push((index, k));
        }
    }
    let last_writer = |root: &Var| writers.get(root).and_then(|w| w.last()).map(|w| w.0);
    let mut checks: Vec<NodeCheck> = Vec::new();
    let mut inputs_of: Vec<Vec<Host>> = Vec::new();
    for (index, (planned, node)) in plan.nodes.iter().zip(&case.tape.nodes).enumerate() {
        let input = |&v: &Var| {
            let root = plan.roots[&v];
            let changed_later = last_writer(&root).is_some_and(|w| w >= index);
            match expected.get(&root).filter(|_| changed_later) {
                Some(data) => Host { spec: plan.specs[&v].clone(), data: data.clone() },
                None => device(v),
            }
        };
        inputs_of.push(planned.ins.iter().map(input).collect());
        // An input that a later node changes is known by its reference alone, errors and all: what is computed from it
        // has no bound of its own. The sum it becomes is checked where it is complete.
        let own: Vec<Var> = planned.outs.iter().map(|o| plan.roots[&o.0]).collect();
        let changes = |v: &Var| last_writer(&plan.roots[v]).is_some_and(|w| w > index) && !own.contains(&plan.roots[v]);
        let estimated = planned.ins.iter().any(changes);
        let ins: Vec<&Host> = inputs_of[index].iter().collect();
        let reference = node.op.reference(&ins, &planned.io, step);
        let (op, variant) = (planned.name, planned.variant.name.clone());
        checks.push(NodeCheck { op, variant, worst: 0.0, nanoseconds: None, failure: None });
        if reference.len() != planned.outs.len() {
            let happened = format!("the reference gives {} outputs of {}", reference.len(), planned.outs.len());
            return Err(Error::new(Kind::Shape, format!("check {}", planned.name), happened));
        }
        for (k, (want, &(var, write))) in reference.into_iter().zip(&planned.outs).enumerate() {
            let root = plan.roots[&var];
            let want = match (write, expected.get(&root)) {
                (Write::Add, Some(before)) => before.iter().zip(&want).map(|(b, w)| b + w).collect(),
                _ => want,
            };
            if last_writer(&root) == Some(index) && !estimated {
                let got = device(var).data;
                // Errors of contributions add up: as many times the bound of the one that allows most.
                let ratio = |&(n, k): &(usize, usize)| {
                    let ins: Vec<&Host> = inputs_of[n].iter().collect();
                    case.tape.nodes[n].op.worst(k, &ins, &plan.nodes[n].io, step, &got, &want)
                };
                let by = &writers[&root];
                let ratios: Vec<f64> = by.iter().map(ratio).collect();
                let any_nan = ratios.iter().any(|r| r.is_nan());
                let least = ratios.iter().fold(f64::INFINITY, |m, &r| m.min(r));
                let worst = if any_nan { f64::INFINITY } else { least / by.len() as f64 };
                if worst > 1.0 {
                    checks[index].failure = Some(describe(k, &planned.io.outs[k], &got, &want, worst));
                }
                checks[index].worst = checks[index].worst.max(worst);
            }
            expected.insert(root, want);
        }
    }
    Ok(checks)
}

fn describe(k: usize, spec: &Spec, got: &[f64], want: &[f64], worst: f64) -> String {
    let distance = |i: usize| {
        let d = (got[i] - want[i]).abs();
        if d.is_nan() { f64::INFINITY } else { d }
    };
    let place = (0..want.len()).max_by(|&a, &b| distance(a).total_cmp(&distance(b))).unwrap_or(0);
    let unwritten = got.iter().filter(|x| x.is_nan()).count();
    format!(
        "output {k} {spec}: {worst:.2} times its tolerance; element {place} is {:e}, expected {:e}; {unwritten} NaN",
        got[place], want[place]
    )
}
