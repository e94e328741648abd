//! `denshi doctor`: what a user with a strange driver runs first.

use super::progress::Progress;
use super::{Global, say};
use crate::doctor::{Examination, REHEARSAL, Rehearsal, examine, rehearse};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::ops::DType;
use clap::Args;

#[derive(Args)]
pub struct Options {
    /// Only op families whose name contains this, or `rehearsal` for the training rehearsal alone
    #[arg(default_value = "")]
    only: String,
}

pub fn run(global: &Global, options: &Options) -> Result<bool> {
    let gpu = Gpu::open(&global.adapter_choice())?;
    if !global.json {
        say(gpu.caps())?;
    }
    let mut progress = Progress::new();
    let examination = examine(&gpu, &options.only, |done, all, what| progress.show(done, all, what))?;
    if !global.json && options.only != REHEARSAL {
        print_table(&examination)?;
    }
    let mut rehearsals = Vec::new();
    if examination.fatal.is_none() && (options.only.is_empty() || options.only == REHEARSAL) {
        for dtype in [DType::F32, DType::F16] {
            if dtype == DType::F32 || gpu.caps().f16 {
                let rehearsal = rehearse(&gpu, dtype, |text| if global.json { Ok(()) } else { say(text) })?;
                if !global.json {
                    print_rehearsal(&rehearsal)?;
                }
                rehearsals.push(rehearsal);
            }
        }
    }
    let healthy = examination.healthy() && rehearsals.iter().all(Rehearsal::healthy);
    if global.json {
        say(serde_json::json!({
            "adapter": gpu.caps(), "healthy": healthy, "examination": examination, "rehearsals": rehearsals
        }))?;
    } else {
        say(if healthy { "all holds" } else { "NOT healthy: do not trust results from this adapter" })?;
    }
    Ok(healthy)
}

fn print_rehearsal(r: &Rehearsal) -> Result<()> {
    say(format!(
        "{} launches a step; {} bytes stated, {} used; two runs {}; masked-LM loss {:.3} -> {:.3}, replaced-token loss \
         {:.3} -> {:.3}: {}",
        r.launches,
        r.bytes_stated,
        r.bytes_used,
        if r.same_bits { "give the same bits" } else { "DIFFER" },
        r.first[0],
        r.last[0],
        r.first[1],
        r.last[1],
        if r.healthy() { "ok" } else { "FAILED" }
    ))
}

fn print_table(examination: &Examination) -> Result<()> {
    let rows = &examination.rows;
    let width = rows.iter().map(|r| r.op.len()).max().unwrap_or(2).max(2);
    let variant_width = rows.iter().map(|r| r.variant.len()).max().unwrap_or(7).max(7);
    say(format!("{:width$}  {:variant_width$}  cases  worst/tolerance  device ms  verdict", "op", "variant"))?;
    for row in rows {
        let time = row.milliseconds.map(|ms| format!("{ms:.2}")).unwrap_or_else(|| "-".into());
        let verdict = if row.failures.is_empty() { "ok" } else { "FAILED" };
        say(format!(
            "{:width$}  {:variant_width$}  {:5}  {:15.3}  {time:>9}  {verdict}",
            row.op, row.variant, row.cases, row.worst
        ))?;
    }
    for row in rows {
        for failure in &row.failures {
            say(format!("FAILED {} ({}): {failure}", row.op, row.variant))?;
        }
    }
    let checks: usize = rows.iter().map(|r| r.cases).sum();
    let failed: usize = rows.iter().map(|r| r.failures.len()).sum();
    if examination.skipped_f16 > 0 {
        say(format!("{} f16 cases left out: this adapter has no f16", examination.skipped_f16))?;
    }
    if let Some(fatal) = &examination.fatal {
        say(format!("stopped: {fatal}"))?;
    }
    say(format!("{} ops and variants, {checks} checks, {failed} failed", rows.len()))
}
