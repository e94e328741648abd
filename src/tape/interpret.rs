//! A recording run on the host in f64, through every op's reference: what gradients are checked against differences with.

use super::check::CaseTape;
use super::{Tape, Write};
use crate::gpu::Step;
use crate::ops::{Host, Var};
use std::collections::BTreeMap;

/// Values of a recording, by root.
pub struct Interpreted {
    values: BTreeMap<Var, Vec<f64>>,
}

impl Interpreted {
    pub fn get(&self, tape: &Tape, v: Var) -> Option<&[f64]> {
        self.values.get(&tape.root(v)).map(Vec::as_slice)
    }
}

/// Runs the first `nodes` nodes of `case` with `inputs` in place of its own, without rounding to storage types.
pub fn interpret(case: &CaseTape, inputs: &[Host], step: &Step, nodes: usize) -> Interpreted {
    let tape = &case.tape;
    let mut values: BTreeMap<Var, Vec<f64>> = BTreeMap::new();
    for ((var, _), host) in case.inputs.iter().zip(inputs) {
        values.insert(*var, host.data.clone());
    }
    for node in tape.nodes.iter().take(nodes) {
        let io = tape.io(node);
        let host = |&v: &Var| {
            let spec = tape.get(v).spec.clone();
            let zeros = || vec![0.0; spec.elements()];
            let data = values.get(&tape.root(v)).cloned().unwrap_or_else(zeros);
            Host { spec, data }
        };
        let ins: Vec<Host> = node.ins.iter().map(host).collect();
        let ins: Vec<&Host> = ins.iter().collect();
        for (data, &(var, write)) in node.op.reference(&ins, &io, step).into_iter().zip(&node.outs) {
            match (write, values.get_mut(&tape.root(var))) {
                (Write::Add, Some(held)) => held.iter_mut().zip(data).for_each(|(h, d)| *h += d),
                _ => {
                    values.insert(tape.root(var), data);
                }
            }
        }
    }
    Interpreted { values }
}
