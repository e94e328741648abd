//! A plan on a device: made once, replayed many times, allocating nothing.
//!
//! Only the step uniform and the inputs change between replays. The one other difference, that a step's first
//! micro-batch writes parameter gradients and later ones add to them, is two lists of ready-made launches.

use super::plan::{GUARD, Plan, touchable};
use super::{Home, ParamStore, Write};
use crate::error::{Context, Error, Kind, Result};
use crate::gpu::{
    BindGroups, Buffer, BufferSlice, DeviceClass, Dispatch, Gpu, KernelKey, Purpose, Readback, Step, StepUniform, Timer,
};
use crate::ops::{Bind, Cost, Host, Launch, Var};
use std::collections::BTreeMap;
use std::ops::Range;

/// What a launch is, for whoever times it.
#[derive(Clone, Debug)]
pub struct LaunchInfo {
    /// Index into [`Plan::nodes`].
    pub node: usize,
    pub op: &'static str,
    pub variant: String,
    pub kernel: KernelKey,
    pub cost: Cost,
}

pub struct Session {
    gpu: Gpu,
    first: Vec<Dispatch>,
    /// For micro-batches after the first of a step; empty where they are the same launches.
    later: Vec<Dispatch>,
    infos: Vec<LaunchInfo>,
    /// Where `first` and `later` are cut into submissions.
    first_cuts: Vec<Range<usize>>,
    later_cuts: Vec<Range<usize>>,
    step: StepUniform,
    slices: BTreeMap<Var, BufferSlice>,
    slots: Vec<Buffer>,
    scratch: Vec<Buffer>,
    readback: Option<Readback>,
    plan: Plan,
}

impl Session {
    /// Allocates everything, compiles every kernel, makes every bind group.
    ///
    /// An error for want of memory tells the plan's budget by purpose and its largest values.
    pub fn new(gpu: &Gpu, plan: Plan, store: Option<&ParamStore>) -> Result<Session> {
        let budget =
            || format!("hold a plan that needs\n{}\nand whose largest values are{}\n", plan.memory(), plan.largest());
        let guard = if plan.guarded { GUARD } else { 0 };
        let buffers = |label: &str, purpose: Purpose, sizes: &[u64]| -> Result<Vec<Buffer>> {
            sizes.iter().map(|&bytes| gpu.buffer(label, purpose, bytes)).collect::<Result<_>>().context(budget)
        };
        let slots = buffers("activation", Purpose::Activations, &plan.slots)?;
        let scratch = buffers("scratch", Purpose::Scratch, &plan.scratch)?;
        let step = StepUniform::new(gpu)?;
        let mut slices = BTreeMap::new();
        for (&var, home) in &plan.homes {
            let spec = &plan.specs[&var];
            let slice = match home {
                Home::Planned => match plan.slot_of.get(&var) {
                    Some(&slot) => slots[slot].slice(0, touchable(spec) + guard),
                    None => continue,
                },
                Home::Input => {
                    let buffer = gpu.buffer("input", Purpose::Inputs, plan.value_bytes(var)).context(budget)?;
                    buffer.slice(0, touchable(spec) + guard)
                }
                Home::Param(id, arena) => needs_store(store)?.slice(plan.params.get(*id)?, *arena)?,
                Home::Arena(arena) => needs_store(store)?.whole(*arena)?,
                Home::View(_) => continue,
            };
            slices.insert(var, slice);
        }
        for (&var, root) in &plan.roots {
            if let Some(slice) = slices.get(root).cloned() {
                slices.insert(var, slice);
            }
        }
        let readback = (plan.staging > 0).then(|| Readback::new(gpu, plan.staging)).transpose()?;
        let (first, later) = (Vec::new(), Vec::new());
        let (first_cuts, later_cuts) = (Vec::new(), Vec::new());
        let infos = Vec::new();
        let mut session = Session {
            gpu: gpu.clone(),
            first,
            later,
            infos,
            first_cuts,
            later_cuts,
            step,
            slices,
            slots,
            scratch,
            readback,
            plan,
        };
        session.make_dispatches()?;
        session.step.write(gpu, &Step::default())?;
        Ok(session)
    }

    fn make_dispatches(&mut self) -> Result<()> {
        let mut differs = false;
        let mut later_costs = Vec::new();
        let mut groups = BindGroups::default();
        for (index, node) in self.plan.nodes.iter().enumerate() {
            // Whether each output is added to in a step's first micro-batch, and in later ones.
            let adds = |k: usize| {
                let (var, write) = node.outs[k];
                let first = write == Write::Add;
                (first, first || self.plan.is_param_gradient(var))
            };
            for launch in &node.program.launches {
                let what = || format!("prepare {} ({})", node.name, node.variant.name);
                let (mut first, mut later) = (launch.immediates.bytes.clone(), launch.immediates.bytes.clone());
                for &(at, k) in &launch.immediates.accumulate {
                    let (in_first, in_later) = adds(k);
                    first[at..at + 4].copy_from_slice(&u32::from(in_first).to_le_bytes());
                    later[at..at + 4].copy_from_slice(&u32::from(in_later).to_le_bytes());
                }
                // A fill before scattered additions has no place where there is something to add to.
                let (skip_first, skip_later) = launch.only_when_written.map_or((false, false), adds);
                if skip_first {
                    continue;
                }
                let slices = self.bind(launch, &node.program.scratch, &node.ins, &node.outs).context(what)?;
                let dispatch =
                    self.gpu.dispatch(&mut groups, &launch.kernel, &slices, &first, launch.grid).context(what)?;
                differs |= skip_later || first != later;
                if !skip_later {
                    later_costs.push(launch.cost);
                    self.later.push(if first == later { dispatch.clone() } else { dispatch.with_immediates(&later) });
                }
                self.first.push(dispatch);
                self.infos.push(LaunchInfo {
                    node: index,
                    op: node.name,
                    variant: node.variant.name.clone(),
                    kernel: launch.kernel.clone(),
                    cost: launch.cost,
                });
            }
        }
        let budget = submission_budget(self.gpu.caps().class);
        let first_costs: Vec<Cost> = self.infos.iter().map(|i| i.cost).collect();
        self.first_cuts = cut(&first_costs, budget);
        self.later_cuts = cut(&later_costs, budget);
        if !differs {
            self.later.clear();
        }
        Ok(())
    }

    fn bind(&self, launch: &Launch, scratch: &[u64], ins: &[Var], outs: &[(Var, Write)]) -> Result<Vec<BufferSlice>> {
        let of = |var: Var| {
            let missing = || Error::new(Kind::Shape, "find a value's buffer", "it has none");
            self.slices.get(&var).cloned().ok_or_else(missing)
        };
        let part = |var: Var, offset: u64, bytes: u64| {
            let whole = of(var)?;
            Ok(whole.buffer.slice(whole.offset + offset, bytes))
        };
        let guard = if self.plan.guarded { GUARD } else { 0 };
        let one = |bind: &Bind| match *bind {
            Bind::In(i) => of(ins[i]),
            Bind::Out(k) => of(outs[k].0),
            Bind::InAt { input, offset, bytes } => part(ins[input], offset, bytes),
            Bind::OutAt { output, offset, bytes } => part(outs[output].0, offset, bytes),
            Bind::Scratch(i) => Ok(self.scratch[i].slice(0, scratch[i].max(1).next_multiple_of(16) + guard)),
            Bind::Step => Ok(self.step.slice()),
        };
        launch.bindings.iter().map(one).collect()
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub fn launches(&self) -> &[LaunchInfo] {
        &self.infos
    }

    /// The ready-made launches of a step's first micro-batch.
    pub fn dispatches(&self) -> &[Dispatch] {
        &self.first
    }

    fn slice(&self, var: Var) -> Result<&BufferSlice> {
        self.slices.get(&var).ok_or_else(|| Error::new(Kind::Shape, "find a value's buffer", "it has none"))
    }

    /// Uploads an input. `data` is the tensor's bytes.
    pub fn write_bytes(&self, var: Var, data: &[u8]) -> Result<()> {
        let spec = &self.plan.specs[&var];
        if data.len() as u64 != spec.bytes() {
            let happened = format!("{} bytes given for {spec}", data.len());
            return Err(Error::new(Kind::Shape, "upload an input", happened));
        }
        self.gpu.write(self.slice(var)?, data)
    }

    pub fn write(&self, var: Var, tensor: &Host) -> Result<()> {
        let spec = &self.plan.specs[&var];
        if tensor.spec.dtype != spec.dtype {
            let happened = format!("{} given for {spec}", tensor.spec);
            return Err(Error::new(Kind::Shape, "upload an input", happened));
        }
        self.write_bytes(var, &tensor.to_bytes())
    }

    /// Submits one replay and returns at once; at most a few submissions are in flight.
    pub fn run(&self, step: &Step) -> Result<()> {
        self.step.write(&self.gpu, step)?;
        let again = step.micro > 0 && !self.later.is_empty();
        let (list, cuts) = if again { (&self.later, &self.later_cuts) } else { (&self.first, &self.first_cuts) };
        cuts.iter().try_for_each(|range| self.gpu.submit(&list[range.clone()]))
    }

    /// Runs one replay with timestamps: nanoseconds for each of [`Session::launches`]. Of a step's first micro-batch: the
    /// launches of later ones are others.
    pub fn run_timed(&self, step: &Step, timer: &Timer) -> Result<Vec<f64>> {
        if step.micro > 0 && !self.later.is_empty() {
            return Err(Error::new(Kind::Usage, "time a replay", "only a step's first micro-batch can be timed"));
        }
        self.step.write(&self.gpu, step)?;
        timer.run(&self.gpu, &self.first)
    }

    /// Waits for what was submitted and reads a kept value.
    pub fn read(&self, var: Var) -> Result<Host> {
        let spec = &self.plan.specs[&var];
        Ok(Host::from_bytes(spec, &self.read_bytes(var, touchable(spec))?))
    }

    fn read_bytes(&self, var: Var, bytes: u64) -> Result<Vec<u8>> {
        let kept = self.plan.guarded || self.plan.kept.contains(&self.plan.roots[&var]);
        let attempt = "read a value back";
        let Some(readback) = self.readback.as_ref().filter(|_| kept) else {
            return Err(Error::new(Kind::Shape, attempt, "its buffer may hold another value by now").hint("keep() it"));
        };
        let slice = self.slice(var)?;
        readback.read(&self.gpu, &slice.buffer.slice(slice.offset, bytes))
    }

    /// In a guarded plan: fills every buffer, guards included, with NaN patterns. Inputs lose their contents.
    pub fn poison(&self) -> Result<()> {
        for buffer in self.slots.iter().chain(&self.scratch) {
            self.gpu.write(&buffer.whole(), &poison_bytes(buffer.bytes()))?;
        }
        for &input in &self.plan.inputs {
            let buffer = &self.slice(input)?.buffer;
            self.gpu.write(&buffer.whole(), &poison_bytes(buffer.bytes()))?;
        }
        Ok(())
    }

    /// In a guarded plan: the scratch memory whose last words were written, if any; no node may reach them.
    pub(crate) fn overrun_scratch(&self) -> Result<Option<usize>> {
        for (i, buffer) in self.scratch.iter().enumerate() {
            let tail = buffer.slice(buffer.bytes() - GUARD, GUARD);
            let readback = Readback::new(&self.gpu, GUARD)?;
            if readback.read(&self.gpu, &tail)? != poison_bytes(GUARD) {
                return Ok(Some(i));
            }
        }
        Ok(None)
    }

    /// In a guarded plan: whether the words behind `var` are as [`Session::poison`] left them, and the bytes of `var`.
    pub fn read_guarded(&self, var: Var) -> Result<(bool, Vec<u8>)> {
        let bytes = touchable(&self.plan.specs[&var]);
        let mut all = self.read_bytes(var, bytes + GUARD)?;
        let guard = all.split_off(bytes as usize);
        Ok((guard == poison_bytes(GUARD), all))
    }
}

/// The most work of one submission. Desktops reset a GPU that does not answer for two seconds and stutter from a tenth
/// of one: a tenth of a second of a slow card of each kind, taking a byte for as long as ten operations. A CPU driver
/// is not watched.
fn submission_budget(class: DeviceClass) -> f64 {
    match class {
        DeviceClass::Cpu => f64::INFINITY,
        DeviceClass::Discrete => 4e11,
        _ => 4e10,
    }
}

/// Cuts launches into runs that cost at most `budget` each (a launch that alone costs more is a run of its own).
fn cut(costs: &[Cost], budget: f64) -> Vec<Range<usize>> {
    let mut cuts = Vec::new();
    let (mut start, mut sum) = (0, 0.0);
    for (i, cost) in costs.iter().enumerate() {
        let units = cost.flops.max(10.0 * cost.bytes);
        if i > start && sum + units > budget {
            cuts.push(start..i);
            (start, sum) = (i, 0.0);
        }
        sum += units;
    }
    if start < costs.len() {
        cuts.push(start..costs.len());
    }
    cuts
}

fn needs_store(store: Option<&ParamStore>) -> Result<&ParamStore> {
    store.ok_or_else(|| Error::new(Kind::Shape, "prepare a plan with parameters", "no parameter store was given"))
}

/// A NaN as f32 and, in both halves, as f16.
fn poison_bytes(bytes: u64) -> Vec<u8> {
    0x7fd1_7e2du32.to_le_bytes().repeat(bytes as usize / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_is_cut_into_submissions_that_cover_it_within_the_budget() {
        let cost = |flops| Cost { flops, bytes: 0.0 };
        let costs: Vec<Cost> = [3.0, 4.0, 9.0, 1.0, 1.0].map(cost).into();
        assert_eq!(cut(&costs, 7.0), [0..2, 2..3, 3..5]);
        assert_eq!(cut(&costs, f64::INFINITY), vec![0..5]);
        assert_eq!(cut(&[], 1.0), []);
    }
}
