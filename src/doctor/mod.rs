//! Every kernel and variant on one adapter, against f64 references.

mod rehearsal;

pub use rehearsal::{Rehearsal, rehearse};

use crate::error::Result;
use crate::gpu::{Gpu, Timer};
use crate::ops::{FAMILIES, Family};
use crate::tape::{CaseTape, check_case};
use serde::Serialize;
use std::collections::BTreeMap;

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
}

impl Examination {
    pub fn healthy(&self) -> bool {
        self.rows.iter().all(|r| r.failures.is_empty())
    }
}

/// Examines the families whose name contains `only`, calling `progress(done, all, what)` as it goes.
pub fn examine(gpu: &Gpu, only: &str, mut progress: impl FnMut(usize, usize, &str)) -> Result<Examination> {
    let families: Vec<&Family> = FAMILIES.iter().filter(|f| f.name.contains(only)).collect();
    let timer = Timer::new(gpu).ok();
    let mut skipped_f16 = 0;
    let mut work = Vec::new();
    for family in families {
        for case in (family.cases)() {
            if case.f16 && !gpu.caps().f16 {
                skipped_f16 += 1;
            } else {
                work.push((family.name, case));
            }
        }
    }
    let mut rows: BTreeMap<(&str, &str, String), Row> = BTreeMap::new();
    let all = work.len();
    for (done, (family, case)) in work.into_iter().enumerate() {
        progress(done, all, &case.name);
        let recorded = CaseTape::record(&case)?;
        for variant in recorded.variants(gpu.caps()) {
            for node in check_case(gpu, timer.as_ref(), &recorded, Some(&variant))? {
                let row = rows.entry((family, node.op, node.variant.clone())).or_insert_with(|| Row {
                    family,
                    op: node.op,
                    variant: node.variant.clone(),
                    ..Row::default()
                });
                row.cases += 1;
                row.worst = row.worst.max(node.worst);
                if let Some(ns) = node.nanoseconds {
                    *row.milliseconds.get_or_insert(0.0) += ns / 1e6;
                }
                row.failures.extend(node.failure.map(|f| format!("{}: {f}", case.name)));
            }
        }
    }
    progress(all, all, "done");
    Ok(Examination { rows: rows.into_values().collect(), skipped_f16 })
}
