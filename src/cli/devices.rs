//! `denshi devices`: what there is to run on.

use super::{Global, say};
use crate::error::Result;
use crate::gpu::{Caps, adapter, mib};
use crate::ops::FAMILIES;
use crate::tape::CaseTape;
use clap::Args;
use std::collections::BTreeMap;

#[derive(Args)]
pub struct Options {
    /// Also list the variant that each op prefers on the adapter
    #[arg(long)]
    variants: bool,
}

pub fn run(global: &Global, options: &Options) -> Result<bool> {
    let adapters = adapter::list();
    if adapters.is_empty() {
        adapter::choose(Vec::new(), &global.adapter_choice())?;
    }
    if global.json {
        let all: Vec<_> = adapters
            .iter()
            .enumerate()
            .map(|(index, a)| serde_json::json!({ "index": index, "caps": a.caps, "variants": variants(&a.caps) }))
            .collect();
        say(serde_json::Value::from(all))?;
        return Ok(true);
    }
    for (index, adapter) in adapters.iter().enumerate() {
        let caps = &adapter.caps;
        say(format!("{index}: {caps}"))?;
        say(format!("   f16 {}, subgroups {}, {}", yes(caps.f16), subgroups(caps), matrices(caps)))?;
        let limits = &caps.limits;
        say(format!(
            "   binding {:.0} MiB, buffer {:.0} MiB, workgroup {} threads and {} KiB, timestamps {:?}",
            mib(limits.binding_bytes),
            mib(limits.buffer_bytes),
            limits.workgroup_invocations,
            limits.workgroup_bytes / 1024,
            caps.timestamps
        ))?;
        if options.variants {
            for (op, names) in variants(caps) {
                say(format!("   {op:28} {}", names.join(", ")))?;
            }
        }
    }
    Ok(true)
}

fn yes(b: bool) -> &'static str {
    if b { "yes" } else { "no" }
}

fn subgroups(caps: &Caps) -> String {
    match caps.subgroup {
        Some((min, max)) if min == max => format!("of {min}"),
        Some((min, max)) => format!("of {min} to {max}"),
        None => "none".into(),
    }
}

fn matrices(caps: &Caps) -> String {
    let sizes: Vec<String> = caps
        .coop
        .iter()
        .map(|c| format!("{0}x{0}x{0} to {1}", c.size, if c.f32_accumulate { "f32" } else { "f16" }))
        .collect();
    if sizes.is_empty() {
        "no cooperative matrices".into()
    } else {
        format!("cooperative matrices {}", sizes.join(", "))
    }
}

/// Variants that each op prefers on such an adapter over its bench cases.
fn variants(caps: &Caps) -> BTreeMap<&'static str, Vec<String>> {
    let mut found: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    for case in FAMILIES.iter().flat_map(|f| (f.bench_cases)()) {
        if case.f16 && !caps.f16 {
            continue;
        }
        let Ok(recorded) = CaseTape::record(&case) else { continue };
        for (op, variant) in recorded.preferred(caps) {
            let names = found.entry(op).or_default();
            if !names.contains(&variant) {
                names.push(variant);
            }
        }
    }
    found
}
