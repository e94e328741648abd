//! The tape: records ops on values, then their gradients, as one flat list of nodes.
//!
//! Recording needs no device, only an adapter's [`Caps`]. [`Plan`] turns a tape into buffers and launches, [`Session`]
//! runs them again and again.
//!
//! Invariants kept here: no gradient is dropped silently (an op's backward covers every wanted input or says why it
//! stops); "first writes, later adds" belongs to the tape, not to kernels; two live values never share a buffer.

mod check;
mod interpret;
mod params;
mod plan;
mod session;

pub use check::{CaseTape, NodeCheck, case_step, check_case, compare_plans, data_for};
pub use interpret::{Interpreted, interpret};
pub use params::{ParamId, ParamSet, ParamSpec, ParamStore};
pub use plan::{Plan, PlanOptions, Planned, overlapping};
pub use session::{LaunchInfo, Session};

use crate::error::{Context, Error, Kind, Result};
use crate::ops::add::{Add, AddInto};
use crate::ops::{Backward, DType, Gradients, Io, Op, Recorder, Spec, Var};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// How a node touches one of its outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Every element is written; the old content is gone. For a parameter gradient this holds for the first
    /// micro-batch of a step; in later ones it adds.
    Set,
    /// Added to what is there.
    Add,
    /// Changed in place by the op's own rule.
    Update,
}

/// Where a value lives.
#[derive(Clone, Debug, PartialEq)]
pub enum Home {
    /// In a buffer that the plan assigns.
    Planned,
    /// Written by the host; keeps its buffer.
    Input,
    /// A slice of an arena of the parameter store.
    Param(ParamId, Arena),
    /// A whole arena of the parameter store.
    Arena(Arena),
    /// The same elements as another value, in another shape.
    View(Var),
}

/// The flat arrays that hold all parameters and what belongs to them, element by element in the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arena {
    /// f32 master weights.
    Weights,
    /// Their f16 copy, for kernels with f16 inputs.
    Half,
    Gradients,
    /// Adam's first moment.
    Moment1,
    /// Adam's second moment.
    Moment2,
}

pub(crate) struct Value {
    pub spec: Spec,
    pub home: Home,
    pub needs_grad: bool,
    pub keep: bool,
}

pub(crate) struct Node {
    pub op: Arc<dyn Op>,
    pub ins: Vec<Var>,
    pub outs: Vec<(Var, Write)>,
}

/// A recording.
pub struct Tape {
    pub(crate) values: Vec<Value>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) params: Arc<ParamSet>,
    /// Gradient of each value, while it is being built. Keys are roots of views.
    grads: HashMap<Var, Var>,
    /// The value that holds each parameter's gradient, and whether something writes it yet.
    param_grads: HashMap<ParamId, Var>,
    /// Final gradients, for those who ask after backward.
    finished: HashMap<Var, Var>,
    /// Gradient values that the tape made itself and may add to in place; roots.
    owned: HashSet<Var>,
    /// Values whose gradients must survive to the end; roots.
    watched: HashSet<Var>,
    in_backward: bool,
    stops: Vec<(&'static str, &'static str)>,
    training: bool,
    sites: u32,
}

impl Tape {
    /// A tape that records gradients (`training`) or only values.
    pub fn new(params: Arc<ParamSet>, training: bool) -> Tape {
        Tape {
            values: Vec::new(),
            nodes: Vec::new(),
            params,
            grads: HashMap::new(),
            param_grads: HashMap::new(),
            finished: HashMap::new(),
            owned: HashSet::new(),
            watched: HashSet::new(),
            in_backward: false,
            stops: Vec::new(),
            training,
            sites: 0,
        }
    }

    fn value(&mut self, spec: Spec, home: Home, needs_grad: bool) -> Var {
        let var = Var(self.values.len() as u32);
        if self.in_backward && home == Home::Planned {
            self.owned.insert(var);
        }
        self.values.push(Value { spec, home, needs_grad, keep: false });
        var
    }

    pub(crate) fn get(&self, v: Var) -> &Value {
        &self.values[v.0 as usize]
    }

    pub(crate) fn io(&self, node: &Node) -> Io {
        let spec = |v: Var| self.get(v).spec.clone();
        Io { ins: node.ins.iter().map(|&v| spec(v)).collect(), outs: node.outs.iter().map(|o| spec(o.0)).collect() }
    }

    /// The value whose elements `v` shows.
    pub(crate) fn root(&self, mut v: Var) -> Var {
        while let Home::View(of) = self.get(v).home {
            v = of;
        }
        v
    }

    /// A value that the host writes before a replay.
    pub fn input(&mut self, spec: Spec) -> Var {
        self.value(spec, Home::Input, false)
    }

    /// As [`Tape::input`], with a gradient.
    pub fn input_with_grad(&mut self, spec: Spec) -> Var {
        let training = self.training;
        self.value(spec, Home::Input, training)
    }

    /// Parameter `id` as f32, or its f16 copy.
    pub fn param(&mut self, id: ParamId, dtype: DType) -> Result<Var> {
        let param = self.params.get(id)?;
        let (shape, trainable) = (param.shape.clone(), param.trainable);
        let arena = match dtype {
            DType::F32 => Arena::Weights,
            DType::F16 => Arena::Half,
            DType::U32 => {
                return Err(Error::new(Kind::Shape, "record a parameter", "parameters are f32 or f16"));
            }
        };
        let needs_grad = self.training && trainable;
        Ok(self.value(Spec::new(&shape, dtype), Home::Param(id, arena), needs_grad))
    }

    /// A whole arena as one flat value; for the optimiser and the norm.
    pub fn arena(&mut self, arena: Arena) -> Var {
        let dtype = if arena == Arena::Half { DType::F16 } else { DType::F32 };
        let spec = Spec::new(&[self.params.elements()], dtype);
        self.value(spec, Home::Arena(arena), false)
    }

    /// The elements of `v` in another shape; no copy.
    pub fn view(&mut self, v: Var, shape: &[usize]) -> Result<Var> {
        let spec = Spec::new(shape, self.spec(v).dtype);
        if spec.elements() != self.spec(v).elements() {
            let happened = format!("{} has other elements than {spec}", self.spec(v));
            return Err(Error::new(Kind::Shape, "view a value in another shape", happened));
        }
        let needs_grad = self.get(v).needs_grad;
        Ok(self.value(spec, Home::View(v), needs_grad))
    }

    /// Keeps `v`'s buffer to the end of the replay, so that it can be read.
    pub fn keep(&mut self, v: Var) {
        let root = self.root(v);
        self.values[root.0 as usize].keep = true;
    }

    /// The parameters that this tape may record.
    pub fn params(&self) -> &ParamSet {
        &self.params
    }

    /// Number of recorded nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub(crate) fn is_gradient(&self, v: Var) -> bool {
        self.finished.values().chain(self.param_grads.values()).any(|&g| g == v)
    }

    /// Where gradients stopped, as (op, reason).
    pub fn stops(&self) -> &[(&'static str, &'static str)] {
        &self.stops
    }

    /// The gradient of `v` after [`Tape::backward`]; none where nothing that has a gradient depends on it, and for a value in
    /// the middle whose gradient went on into a sum in place, unless it was [`Tape::watch`]ed.
    pub fn grad(&self, v: Var) -> Option<Var> {
        let root = self.root(v);
        if let Home::Param(id, _) = self.get(root).home {
            return self.param_grads.get(&id).copied();
        }
        self.finished.get(&root).copied()
    }

    /// Keeps the gradient of `v`, a value in the middle, from being added to after it is complete. Before backward.
    pub fn watch(&mut self, v: Var) {
        let root = self.root(v);
        self.watched.insert(root);
    }

    /// Starts backward at `v` with the gradient `dout` (a value of the same size). Losses need none: they write
    /// their inputs' gradients in the same pass.
    pub fn seed(&mut self, v: Var, dout: Var) -> Result<()> {
        self.pass_gradient(v, dout)
    }

    /// Records the gradients of everything that has a seeded or written gradient so far, in reverse order.
    pub fn backward(&mut self) -> Result<()> {
        self.in_backward = true;
        let recorded = self.record_backward();
        self.in_backward = false;
        recorded
    }

    fn record_backward(&mut self) -> Result<()> {
        for index in (0..self.nodes.len()).rev() {
            let op = self.nodes[index].op.clone();
            let ins = self.nodes[index].ins.clone();
            let outs: Vec<Var> = self.nodes[index].outs.iter().map(|o| o.0).collect();
            let douts: Vec<Option<Var>> = outs.iter().map(|&o| self.grads.get(&self.root(o)).copied()).collect();
            // A node that wrote gradients lists them among its outputs: they have no gradients themselves.
            if douts.iter().all(Option::is_none) || !ins.iter().any(|&i| self.needs_grad(i)) {
                self.finish(&outs);
                continue;
            }
            let mut gradients = Gradients {
                contributed: vec![false; ins.len()],
                recorder: self,
                ins: &ins,
                outs: &outs,
                douts: &douts,
            };
            let answer = op.backward(&mut gradients).context(|| format!("record the backward of {}", op.name()))?;
            let contributed = gradients.contributed;
            match answer {
                Backward::Stop(reason) => self.stops.push((op.name(), reason)),
                Backward::Rule => {
                    for (i, &input) in ins.iter().enumerate() {
                        if self.needs_grad(input) && !contributed[i] {
                            let happened = format!("it gave no gradient for input {i} {}", self.spec(input));
                            return Err(Error::new(
                                Kind::Shape,
                                format!("record the backward of {}", op.name()),
                                happened,
                            )
                            .hint("its backward has to contribute to every wanted input, or stop with a reason"));
                        }
                    }
                }
            }
            self.finish(&outs);
        }
        let left: Vec<Var> = self.grads.keys().copied().collect();
        self.finish(&left);
        Ok(())
    }

    /// The producer of these values has been passed: their gradients are complete and nobody else adds to them.
    fn finish(&mut self, outs: &[Var]) {
        for &out in outs {
            let root = self.root(out);
            if let Some(grad) = self.grads.remove(&root) {
                self.finished.insert(root, grad);
            }
        }
    }

    /// Resolves output `k` of `op` as a contribution to the gradient of `v`: the value to write, how, and where the
    /// op cannot add by itself, the value to add it to afterwards.
    fn target(&mut self, op: &dyn Op, k: usize, spec: &Spec, v: Var) -> Result<(Var, Write, Option<Var>)> {
        let root = self.root(v);
        let fail = |happened: String| Error::new(Kind::Shape, format!("record {}", op.name()), happened);
        if let Home::Param(id, _) = self.get(root).home {
            let wanted = Spec::f32(&self.get(root).spec.shape);
            if spec.elements() != wanted.elements() || spec.dtype != DType::F32 {
                return Err(fail(format!("its output {k} {spec} is not the gradient of a parameter {wanted}")));
            }
            if !op.accumulates(k) {
                return Err(fail(format!("its output {k} is a parameter's gradient but cannot be added to")));
            }
            return Ok(match self.param_grads.get(&id) {
                Some(&grad) => (grad, Write::Add, None),
                None => {
                    let grad = self.value(wanted, Home::Param(id, Arena::Gradients), false);
                    self.param_grads.insert(id, grad);
                    (grad, Write::Set, None)
                }
            });
        }
        let Some(&grad) = self.grads.get(&root) else {
            let grad = self.value(spec.clone(), Home::Planned, false);
            self.owned.insert(grad);
            self.grads.insert(root, grad);
            return Ok((grad, Write::Set, None));
        };
        let held = &self.get(grad).spec;
        if held.elements() != spec.elements() || held.dtype != spec.dtype {
            return Err(fail(format!("its output {k} {spec} does not fit the gradient {held} that is there already")));
        }
        if op.accumulates(k) && self.may_change(grad) {
            self.changed(grad);
            return Ok((grad, Write::Add, None));
        }
        let own = self.value(spec.clone(), Home::Planned, false);
        Ok((own, Write::Set, Some(v)))
    }
}

impl Tape {
    /// Whether a gradient may be added to in place: only if the tape made it (an input is the host's, a forward value
    /// may have been saved for somebody), and only where nobody else still has to read the old sum: a gradient that was passed
    /// on unchanged belongs to two values until one of them is done.
    fn may_change(&self, grad: Var) -> bool {
        let root = self.root(grad);
        let same = |g: &Var| self.root(*g) == root;
        let holders = self.grads.values().filter(|g| same(g)).count();
        let watched = self.watched.iter().filter_map(|v| self.finished.get(v)).any(same);
        self.owned.contains(&root) && holders <= 1 && !watched
    }

    /// `grad` is added to in place: what it was the finished gradient of is no longer to be had.
    fn changed(&mut self, grad: Var) {
        let root = self.root(grad);
        let gone: Vec<Var> = self.finished.iter().filter(|(_, g)| self.root(**g) == root).map(|(v, _)| *v).collect();
        gone.iter().for_each(|v| {
            self.finished.remove(v);
        });
    }
}

impl Recorder for Tape {
    fn spec(&self, v: Var) -> &Spec {
        &self.get(v).spec
    }

    fn training(&self) -> bool {
        self.training
    }

    fn needs_grad(&self, v: Var) -> bool {
        self.training && self.get(v).needs_grad
    }

    fn site(&mut self) -> u32 {
        self.sites += 1;
        self.sites
    }

    fn record(&mut self, op: Box<dyn Op>, ins: &[Var], grads: &[(usize, Var)]) -> Result<Vec<Var>> {
        let op: Arc<dyn Op> = op.into();
        let specs: Vec<Spec> = ins.iter().map(|&v| self.spec(v).clone()).collect();
        let out_specs = op.outputs(&specs)?;
        let needs_grad = self.training && !self.in_backward && ins.iter().any(|&v| self.get(v).needs_grad);
        let updates = op.updates();
        let mut outs = Vec::with_capacity(out_specs.len());
        let mut additions = Vec::new();
        for (k, spec) in out_specs.into_iter().enumerate() {
            if let Some(&(_, input)) = updates.iter().find(|u| u.0 == k) {
                let changed = self.get(self.root(ins[input]));
                if self.training && changed.needs_grad && changed.home != Home::Input {
                    let happened = "it changes in place a value that gradients are still to be computed from";
                    return Err(Error::new(Kind::Shape, format!("record {}", op.name()), happened));
                }
                outs.push((ins[input], Write::Update));
            } else if let Some(&(_, v)) = grads.iter().find(|g| g.0 == k) {
                let (value, write, then_add_to) = self.target(&*op, k, &spec, v)?;
                additions.extend(then_add_to.map(|v| (v, value)));
                outs.push((value, write));
            } else {
                let float = spec.dtype != DType::U32;
                outs.push((self.value(spec, Home::Planned, needs_grad && float), Write::Set));
            }
        }
        // A loss writes its gradients in the same pass, and has said for which inputs: the others stop here.
        let untold = |v: &&Var| self.needs_grad(**v) && !grads.iter().any(|g| self.root(g.1) == self.root(**v));
        if !self.in_backward && !grads.is_empty() && ins.iter().any(|v| untold(&v)) {
            self.stops.push((op.name(), "a loss takes its labels and weights as constants"));
        }
        let vars = outs.iter().map(|o| o.0).collect();
        self.nodes.push(Node { op, ins: ins.to_vec(), outs });
        for (v, value) in additions {
            self.pass_gradient(v, value)?;
        }
        Ok(vars)
    }

    fn pass_gradient(&mut self, v: Var, grad: Var) -> Result<()> {
        let root = self.root(v);
        if matches!(self.get(root).home, Home::Param(..)) {
            let happened = "a value cannot be passed on as a parameter's gradient: it has to be written there";
            return Err(Error::new(Kind::Shape, "record a gradient", happened));
        }
        let (have, want) = (self.spec(grad), self.spec(self.grads.get(&root).copied().unwrap_or(v)));
        if have.elements() != want.elements() || have.dtype != want.dtype {
            let happened = format!("{have} is not a gradient of {want}");
            return Err(Error::new(Kind::Shape, "record a gradient", happened));
        }
        let Some(&held) = self.grads.get(&root) else {
            self.grads.insert(root, grad);
            return Ok(());
        };
        let twice = self.root(held) == self.root(grad);
        let grad = self.view(grad, &self.spec(held).shape.clone())?;
        let summed = if self.may_change(held) && !twice {
            self.changed(held);
            self.record(Box::new(AddInto), &[held, grad], &[])?[0]
        } else {
            let summed = self.record(Box::new(Add), &[held, grad], &[])?[0];
            self.owned.insert(summed);
            summed
        };
        self.values[summed.0 as usize].needs_grad = false;
        self.grads.insert(root, summed);
        Ok(())
    }
}
