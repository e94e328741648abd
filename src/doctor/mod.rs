//! Every kernel and variant on one adapter, against f64 references; then a rehearsal of training.

mod rehearsal;

pub use rehearsal::{Rehearsal, rehearse};

use crate::error::{Error, Kind, Result};
use crate::gpu::{Gpu, Timer};
use crate::ops::{Case, FAMILIES, Family};
use crate::tape::{CaseTape, check_case};
use serde::Serialize;
use std::collections::BTreeMap;

/// The name by which the rehearsal alone is asked for.
pub const REHEARSAL: &str = "rehearsal";

/// What one op did in one variant over all cases.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    pub family: &'static str,
    pub op: &'static str,
    pub variant: String,
    pub cases: usize,
    /// Worst |error| as a share of the tolerance; over 1 is a failure.
    pub worst: f64,
    /// Device time over all cases in milliseconds; none without timestamps.
    pub milliseconds: Option<f64>,
    /// Each failed case with what went wrong.
    pub failures: Vec<String>,
}

/// A full examination.
#[derive(Clone, Debug, Serialize)]
pub struct Examination {
    pub rows: Vec<Row>,
    /// Cases left out because the adapter has no f16.
    pub skipped_f16: usize,
    /// What ended the examination before its end: the device was lost.
    pub fatal: Option<String>,
}

impl Examination {
    pub fn healthy(&self) -> bool {
        self.fatal.is_none() && self.rows.iter().all(|r| r.failures.is_empty())
    }
}

/// Examines the families whose name contains `only`, calling `progress(done, all, what)` as it goes. A kernel that the
/// driver refuses is a failed row and the examination goes on; only a lost device ends it.
///
/// Error: no family is called so.
pub fn examine(gpu: &Gpu, only: &str, mut progress: impl FnMut(usize, usize, &str)) -> Result<Examination> {
    let families: Vec<&Family> = FAMILIES.iter().filter(|f| f.name.contains(only)).collect();
    if families.is_empty() && only != REHEARSAL {
        let names: Vec<&str> = FAMILIES.iter().map(|f| f.name).collect();
        let happened = format!("no op family's name contains '{only}'");
        let hint = format!("there are {}, and {REHEARSAL}", names.join(", "));
        return Err(Error::new(Kind::Usage, "examine the adapter", happened).hint(hint));
    }
    let timer = Timer::new(gpu).ok();
    let mut examination = Examination { rows: Vec::new(), skipped_f16: 0, fatal: None };
    let mut work: Vec<(&'static str, Case)> = Vec::new();
    for family in families {
        let (run, skip): (Vec<Case>, Vec<Case>) = (family.cases)().into_iter().partition(|c| !c.f16 || gpu.caps().f16);
        examination.skipped_f16 += skip.len();
        work.extend(run.into_iter().map(|case| (family.name, case)));
    }
    let mut rows = Rows::default();
    let all = work.len();
    for (done, (family, case)) in work.into_iter().enumerate() {
        progress(done, all, &case.name);
        let recorded = CaseTape::record(&case)?;
        for variant in recorded.variants(gpu.caps()) {
            match check_case(gpu, timer.as_ref(), &recorded, Some(&variant)) {
                Ok(nodes) => {
                    for node in nodes {
                        let row = rows.row(family, node.op, node.variant);
                        row.cases += 1;
                        row.worst = row.worst.max(node.worst);
                        if let Some(ns) = node.nanoseconds {
                            *row.milliseconds.get_or_insert(0.0) += ns / 1e6;
                        }
                        row.failures.extend(node.failure.map(|f| format!("{}: {f}", case.name)));
                    }
                }
                Err(error) => {
                    let row = rows.row(family, family, variant);
                    row.cases += 1;
                    row.worst = f64::INFINITY;
                    row.failures.push(format!("{}: {error}", case.name));
                }
            }
            if let Err(fatal) = gpu.check() {
                examination.fatal = Some(format!("at case {}: {fatal}", case.name));
                examination.rows = rows.0.into_values().collect();
                return Ok(examination);
            }
        }
    }
    progress(all, all, "done");
    examination.rows = rows.0.into_values().collect();
    Ok(examination)
}

#[derive(Default)]
struct Rows(BTreeMap<(&'static str, &'static str, String), Row>);

impl Rows {
    fn row(&mut self, family: &'static str, op: &'static str, variant: String) -> &mut Row {
        let row = Row { family, op, variant: variant.clone(), ..Row::default() };
        self.0.entry((family, op, variant)).or_insert(row)
    }
}
