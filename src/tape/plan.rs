//! The plan: which variant runs each node, how long each value lives, and which buffer it gets.
//!
//! Values get whole buffers, the largest first, each the smallest buffer that is free for its whole life ("greedy by
//! size", Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020). Whole buffers, not slices of one
//! arena: wgpu refuses a dispatch that reads one part of a buffer and writes another.

use super::{Arena, Home, ParamSet, ParamStore, Tape, Write};
use crate::error::{Context, Error, Kind, Result};
use crate::gpu::{Caps, Memory, Purpose, align};
use crate::ops::{Bind, Cost, Io, Program, Spec, Var, Variant};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// How to plan. The default is for running; tests ask for guard words, every value kept, and chosen variants.
#[derive(Clone, Debug, Default)]
pub struct PlanOptions {
    /// Give every value a buffer of its own and keep it, with guard words behind.
    pub guarded: bool,
    /// Run ops by the variant of this name where they have it.
    pub force: Option<String>,
}

/// A node with the variant chosen for it.
pub struct Planned {
    pub name: &'static str,
    pub variant: Variant,
    pub program: Program,
    pub(crate) io: Io,
    pub(crate) ins: Vec<Var>,
    pub(crate) outs: Vec<(Var, Write)>,
}

impl Planned {
    pub fn cost(&self) -> Cost {
        self.program.launches.iter().map(|l| l.cost).sum()
    }
}

/// Buffers and launches, fixed before the first step; no device yet.
pub struct Plan {
    pub nodes: Vec<Planned>,
    pub(crate) params: Arc<ParamSet>,
    /// Bytes of each shared buffer.
    pub(crate) slots: Vec<u64>,
    /// The shared buffer of each planned value.
    pub(crate) slot_of: BTreeMap<Var, usize>,
    /// First and last node that touch each planned value.
    pub lives: BTreeMap<Var, (usize, usize)>,
    /// Bytes of each scratch buffer; nodes share them.
    pub(crate) scratch: Vec<u64>,
    pub(crate) inputs: Vec<Var>,
    pub(crate) specs: BTreeMap<Var, Spec>,
    pub(crate) homes: BTreeMap<Var, Home>,
    /// Root of every value.
    pub(crate) roots: BTreeMap<Var, Var>,
    pub(crate) kept: Vec<Var>,
    pub guarded: bool,
    pub(crate) staging: u64,
    arenas: Memory,
}

/// Guard words behind a value in a guarded plan, in bytes. They are inside the binding: what is past a binding's end many
/// drivers drop, and nothing would be seen.
pub(crate) const GUARD: u64 = 256;

/// Bytes that hold `spec`: what a kernel may touch, up to the end of the last 16-byte word.
pub(crate) fn touchable(spec: &Spec) -> u64 {
    spec.bytes().clamp(1, u64::MAX - 1024).next_multiple_of(16)
}

impl Plan {
    /// Plans `tape` for an adapter.
    ///
    /// Errors: a value that fits no binding of this adapter ([`Kind::Limit`]), a value read before anything wrote it.
    pub fn new(tape: &Tape, caps: &Caps, options: &PlanOptions) -> Result<Plan> {
        let mut nodes = Vec::with_capacity(tape.nodes.len());
        for node in &tape.nodes {
            let io = tape.io(node);
            let mut variants = node.op.variants(&io, caps);
            let forced = options.force.as_ref().and_then(|name| variants.iter().position(|v| v.name == *name));
            if variants.is_empty() {
                return Err(Error::new(Kind::Adapter, format!("plan {}", node.op.name()), "no variant runs here"));
            }
            let variant = variants.swap_remove(forced.unwrap_or(0));
            let what = || format!("plan {} ({})", node.op.name(), variant.name);
            let program = node.op.program(&io, &variant, caps).context(what)?;
            nodes.push(Planned {
                name: node.op.name(),
                variant,
                program,
                io,
                ins: node.ins.clone(),
                outs: node.outs.clone(),
            });
        }
        let mut plan = Plan {
            nodes,
            params: tape.params.clone(),
            slots: Vec::new(),
            slot_of: BTreeMap::new(),
            lives: BTreeMap::new(),
            scratch: Vec::new(),
            inputs: Vec::new(),
            specs: BTreeMap::new(),
            homes: BTreeMap::new(),
            roots: BTreeMap::new(),
            kept: Vec::new(),
            guarded: options.guarded,
            staging: 0,
            arenas: Memory::default(),
        };
        plan.describe_values(tape);
        plan.find_lives(tape)?;
        plan.check_nodes(caps)?;
        plan.assign(caps)?;
        plan.size_scratch();
        plan.staging = plan.kept.iter().map(|v| align(touchable(&plan.specs[v]))).max().unwrap_or(0);
        if plan.guarded {
            plan.staging =
                plan.slots.iter().copied().chain(plan.inputs.iter().map(|v| plan.value_bytes(*v))).max().unwrap_or(0);
        }
        Ok(plan)
    }

    fn describe_values(&mut self, tape: &Tape) {
        let mut arenas = std::collections::BTreeSet::new();
        for (index, value) in tape.values.iter().enumerate() {
            let var = Var(index as u32);
            self.specs.insert(var, value.spec.clone());
            self.homes.insert(var, value.home.clone());
            self.roots.insert(var, tape.root(var));
            match value.home {
                Home::Input => self.inputs.push(var),
                Home::Param(_, arena) | Home::Arena(arena) => {
                    arenas.insert(arena);
                }
                Home::Planned | Home::View(_) => {}
            }
            if value.keep {
                self.kept.push(var);
            }
        }
        let arenas: Vec<_> = arenas.into_iter().collect();
        self.arenas = ParamStore::memory(&tape.params, &arenas);
    }

    fn find_lives(&mut self, tape: &Tape) -> Result<()> {
        let end = self.nodes.len();
        for (index, node) in self.nodes.iter().enumerate() {
            let touched =
                node.ins.iter().map(|&v| (v, false)).chain(node.outs.iter().map(|o| (o.0, o.1 == Write::Set)));
            for (var, sets) in touched {
                let root = self.roots[&var];
                if self.homes[&root] != Home::Planned {
                    continue;
                }
                if !sets && !self.lives.contains_key(&root) {
                    let happened = format!("{} reads a value that nothing wrote before it", node.name);
                    return Err(Error::new(Kind::Shape, "plan the recording", happened));
                }
                self.lives.entry(root).or_insert((index, index)).1 = index;
            }
        }
        for (&var, life) in &mut self.lives {
            if self.guarded || tape.get(var).keep {
                life.1 = end;
            }
        }
        Ok(())
    }

    /// Whether `var` is a slice of the gradient arena: written by a step's first micro-batch, added to by later ones.
    pub(crate) fn is_param_gradient(&self, var: Var) -> bool {
        matches!(self.homes[&self.roots[&var]], Home::Param(_, Arena::Gradients))
    }

    /// What must hold of every node before anything is allocated: an output that is added to has launches that can add,
    /// and nothing that is bound whole spans more than a binding may.
    fn check_nodes(&self, caps: &Caps) -> Result<()> {
        let limit = caps.limits.binding_bytes;
        for node in &self.nodes {
            let attempt = || format!("plan {} ({})", node.name, node.variant.name);
            for (k, &(var, write)) in node.outs.iter().enumerate() {
                let adds = write == Write::Add || (write == Write::Set && self.is_param_gradient(var));
                let can = |l: &crate::ops::Launch| {
                    l.immediates.accumulate.iter().any(|a| a.1 == k) || l.only_when_written == Some(k)
                };
                if adds && !node.program.launches.iter().any(can) {
                    let happened = format!("output {k} is to be added to, and none of its launches can");
                    return Err(Error::new(Kind::Shape, attempt(), happened));
                }
            }
            for bind in node.program.launches.iter().flat_map(|l| &l.bindings) {
                let (what, bytes) = match *bind {
                    Bind::In(i) => (format!("input {i} {}", node.io.ins[i]), touchable(&node.io.ins[i])),
                    Bind::Out(k) => (format!("output {k} {}", node.io.outs[k]), touchable(&node.io.outs[k])),
                    Bind::Scratch(i) => (format!("scratch {i}"), node.program.scratch[i]),
                    Bind::InAt { bytes, .. } | Bind::OutAt { bytes, .. } => ("a part".into(), bytes),
                    Bind::Step => continue,
                };
                if bytes > limit {
                    let happened = format!(
                        "{what} spans {bytes} bytes, over this adapter's max_storage_buffer_binding_size of {limit} bytes"
                    );
                    return Err(
                        Error::new(Kind::Limit, attempt(), happened).hint("use a smaller batch or more micro-batches")
                    );
                }
            }
        }
        Ok(())
    }

    /// The largest buffers, for an error about memory.
    pub(crate) fn largest(&self) -> String {
        let mut all: Vec<(u64, Var)> =
            self.slot_of.keys().chain(&self.inputs).map(|&v| (self.value_bytes(v), v)).collect();
        all.sort_by_key(|&(bytes, var)| (std::cmp::Reverse(bytes), var));
        let line = |(bytes, var): &(u64, Var)| format!("\n  {:.2} MiB {}", crate::gpu::mib(*bytes), self.specs[var]);
        all.iter().take(5).map(line).collect()
    }

    /// Bytes of the buffer part that holds `var`, guard words included.
    pub(crate) fn value_bytes(&self, var: Var) -> u64 {
        let bytes = touchable(&self.specs[&var]);
        align(if self.guarded { bytes + GUARD } else { bytes })
    }

    fn assign(&mut self, caps: &Caps) -> Result<()> {
        let mut order: Vec<(u64, Var)> = self.lives.keys().map(|&v| (self.value_bytes(v), v)).collect();
        order.sort_by_key(|&(bytes, var)| (std::cmp::Reverse(bytes), var));
        let limit = caps.limits.buffer_bytes;
        let mut lives_in: Vec<Vec<(usize, usize)>> = Vec::new();
        for (bytes, var) in order {
            if bytes > limit {
                let happened = format!(
                    "a value {} needs {bytes} bytes, over this adapter's max_buffer_size of {limit} bytes",
                    self.specs[&var]
                );
                return Err(Error::new(Kind::Limit, "plan the recording", happened)
                    .hint("use a smaller batch or more micro-batches"));
            }
            let life = self.lives[&var];
            let free = |lives: &Vec<(usize, usize)>| lives.iter().all(|&other| !overlapping(life, other));
            // Sizes only fall from here on, so every slot there is large enough; the last is the smallest.
            let slot = match (0..self.slots.len()).rev().find(|&s| !self.guarded && free(&lives_in[s])) {
                Some(slot) => slot,
                None => {
                    self.slots.push(bytes);
                    lives_in.push(Vec::new());
                    self.slots.len() - 1
                }
            };
            lives_in[slot].push(life);
            self.slot_of.insert(var, slot);
        }
        Ok(())
    }

    fn size_scratch(&mut self) {
        for node in &self.nodes {
            for (i, &bytes) in node.program.scratch.iter().enumerate() {
                if i == self.scratch.len() {
                    self.scratch.push(0);
                }
                self.scratch[i] = self.scratch[i].max(align(bytes.max(16)) + if self.guarded { GUARD } else { 0 });
            }
        }
    }

    /// Bytes by purpose that a session of this plan will hold, and the parameter arenas that it uses.
    pub fn memory(&self) -> Memory {
        self.arenas + self.memory_beside_parameters()
    }

    /// [`Plan::memory`] without the parameter arenas, which plans may share.
    pub fn memory_beside_parameters(&self) -> Memory {
        let mut memory = Memory::default();
        for &bytes in &self.slots {
            memory.add(Purpose::Activations, bytes);
        }
        for &bytes in &self.scratch {
            memory.add(Purpose::Scratch, bytes);
        }
        for &input in &self.inputs {
            memory.add(Purpose::Inputs, self.value_bytes(input));
        }
        memory.add(Purpose::Inputs, align(std::mem::size_of::<crate::gpu::Step>() as u64));
        if self.staging > 0 {
            memory.add(Purpose::Staging, self.staging);
        }
        memory
    }

    /// Number of launches of a replay.
    pub fn launches(&self) -> usize {
        self.nodes.iter().map(|n| n.program.launches.len()).sum()
    }

    pub fn cost(&self) -> Cost {
        self.nodes.iter().map(Planned::cost).sum()
    }

    /// Buffers of two values that live at the same time, if a buffer was given twice: always empty. For tests.
    pub fn conflicts(&self) -> Vec<(Var, Var)> {
        let mut found = Vec::new();
        let all: Vec<(&Var, &usize)> = self.slot_of.iter().collect();
        for (i, &(a, slot_a)) in all.iter().enumerate() {
            for &(b, slot_b) in &all[i + 1..] {
                if slot_a == slot_b && overlapping(self.lives[a], self.lives[b]) {
                    found.push((*a, *b));
                }
            }
        }
        found
    }
}

/// Whether two lives (first and last node, both included) touch.
pub fn overlapping(a: (usize, usize), b: (usize, usize)) -> bool {
    a.0 <= b.1 && b.0 <= a.1
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cost = self.cost();
        writeln!(
            f,
            "plan: {} ops, {} launches, {:.3} GFLOP, {} values in {} buffers",
            self.nodes.len(),
            self.launches(),
            cost.flops / 1e9,
            self.slot_of.len(),
            self.slots.len()
        )?;
        write!(f, "{}", self.memory())
    }
}
