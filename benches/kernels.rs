//! Every op at the sizes of ELECTRA-Small and BERT-base, on one adapter.
//!
//! `cargo bench --bench kernels [-- [FILTER] [--all-variants] [--launches] [--json FILE]]`
//!
//! Times are medians of device timestamps where the adapter has them, else of wall time per replay. On a software adapter
//! the column `GF/s 2c` is the rate per two core-seconds of process time, which other work on the machine does not move.

use cpu_time::ProcessTime;
use denshi::gpu::{AdapterChoice, Gpu, Timer};
use denshi::ops::{Case, FAMILIES, Host, Spec, activation::tanh, add::add};
use denshi::tape::{CaseTape, ParamSet, Plan, PlanOptions, Session, Tape, case_step};
use std::sync::Arc;
use std::time::Instant;

struct Options {
    filter: String,
    all_variants: bool,
    /// Also print each launch of an op that has several.
    launches: bool,
    json: Option<String>,
}

fn options() -> Options {
    let mut options = Options { filter: String::new(), all_variants: false, launches: false, json: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => {}
            "--all-variants" => options.all_variants = true,
            "--launches" => options.launches = true,
            "--json" => options.json = arguments.next(),
            filter => options.filter = filter.into(),
        }
    }
    options
}

struct Row {
    case: String,
    op: &'static str,
    variant: String,
    launches: usize,
    milliseconds: f64,
    gflops: f64,
    gbps: f64,
    /// GFLOP/s per two core-seconds; software adapters only.
    gflops_2c: Option<f64>,
    /// Kernel and median milliseconds of each launch.
    parts: Vec<(String, f64)>,
}

fn main() {
    let options = options();
    let gpu = Gpu::open(&AdapterChoice::from_user(None)).unwrap_or_else(|e| panic!("{e}"));
    let timer = Timer::new(&gpu).ok();
    println!("{}", gpu.caps());
    println!(
        "{:34} {:26} {:28} {:>8} {:>10} {:>9} {:>8} {:>8}",
        "case", "op", "variant", "launches", "ms", "GFLOP/s", "GB/s", "GF/s 2c"
    );
    let mut rows = Vec::new();
    for (family, case) in FAMILIES.iter().flat_map(|f| (f.bench_cases)().into_iter().map(|case| (f.name, case))) {
        let asked = case.name.contains(&options.filter) || family.contains(&options.filter);
        if !asked || (case.f16 && !gpu.caps().f16) {
            continue;
        }
        let recorded = CaseTape::record(&case).unwrap_or_else(|e| panic!("{e}"));
        let variants = if options.all_variants {
            recorded.variants(gpu.caps()).into_iter().map(Some).collect()
        } else {
            vec![None]
        };
        for force in variants {
            for row in bench(&gpu, timer.as_ref(), &case, &recorded, force) {
                println!(
                    "{:34} {:26} {:28} {:>8} {:>10.3} {:>9.2} {:>8.2} {:>8}",
                    row.case,
                    row.op,
                    row.variant,
                    row.launches,
                    row.milliseconds,
                    row.gflops,
                    row.gbps,
                    row.gflops_2c.map(|g| format!("{g:.2}")).unwrap_or_else(|| "-".into())
                );
                for (kernel, ms) in row.parts.iter().filter(|_| options.launches && row.launches > 1) {
                    println!("{:34} {:26} {ms:>10.3} ms  {kernel}", "", "");
                }
                rows.push(row);
            }
        }
    }
    if "encoding".contains(&options.filter) || options.filter.is_empty() {
        let (encoding, with_submission) = replay_thousand(&gpu);
        println!(
            "host time of a replay of 1000 launches: {encoding:.3} ms to encode, {with_submission:.3} ms with submission"
        );
    }
    if let Some(path) = &options.json {
        let all: Vec<_> = rows.iter().map(json).collect();
        let text = serde_json::json!({ "adapter": gpu.caps(), "rows": all });
        std::fs::write(path, format!("{text:#}\n")).unwrap_or_else(|e| panic!("cannot write {path}: {e}"));
    }
}

fn json(row: &Row) -> serde_json::Value {
    serde_json::json!({
        "case": row.case, "op": row.op, "variant": row.variant, "launches": row.launches, "ms": row.milliseconds,
        "gflops": row.gflops, "gbps": row.gbps, "gflops_2c": row.gflops_2c,
    })
}

fn bench(gpu: &Gpu, timer: Option<&Timer>, case: &Case, recorded: &CaseTape, force: Option<String>) -> Vec<Row> {
    let plan = Plan::new(&recorded.tape, gpu.caps(), &PlanOptions { guarded: false, force })
        .unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let session = Session::new(gpu, plan, None).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    for (var, host) in &recorded.inputs {
        upload(&session, *var, host);
    }
    let step = case_step();
    let replay = || {
        session.run(&step).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        gpu.wait().unwrap_or_else(|e| panic!("{}: {e}", case.name));
    };
    // The first replay compiles in the driver, the second touches all memory.
    replay();
    replay();
    let (cpu, wall) = (ProcessTime::now(), Instant::now());
    let mut samples: Vec<Vec<f64>> = Vec::new();
    while samples.len() < 5 || (wall.elapsed().as_secs_f64() < 0.4 && samples.len() < 200) {
        samples.push(match timer {
            Some(timer) => session.run_timed(&step, timer).unwrap_or_else(|e| panic!("{}: {e}", case.name)),
            None => {
                let start = Instant::now();
                replay();
                vec![start.elapsed().as_secs_f64() * 1e9]
            }
        });
    }
    // Two-core seconds of process time for each second of device time: above the truth by what the host does beside.
    let device_seconds = samples.iter().flatten().sum::<f64>() / 1e9;
    let core_seconds = cpu.elapsed().as_secs_f64() / 2.0 / device_seconds;
    let node_of = |launch: usize| if timer.is_some() { session.launches()[launch].node } else { 0 };
    let mut rows = Vec::new();
    for (index, node) in session.plan().nodes.iter().enumerate() {
        let total = |sample: &Vec<f64>| {
            let own = sample.iter().enumerate().filter(|(l, _)| node_of(*l) == index);
            own.map(|(_, ns)| ns).sum::<f64>() / 1e9
        };
        let mut times: Vec<f64> = samples.iter().map(total).collect();
        times.sort_by(f64::total_cmp);
        let seconds = times[times.len() / 2];
        // Without timestamps the whole replay is one number, told with the first op.
        if seconds == 0.0 {
            continue;
        }
        let part = |launch: usize| {
            let mut times: Vec<f64> = samples.iter().map(|sample| sample[launch] / 1e6).collect();
            times.sort_by(f64::total_cmp);
            (session.launches()[launch].kernel.to_string(), times[times.len() / 2])
        };
        let own = (0..session.launches().len()).filter(|&l| timer.is_some() && node_of(l) == index);
        let parts = own.map(part).collect();
        let cost = if timer.is_some() { node.cost() } else { session.plan().cost() };
        rows.push(Row {
            case: case.name.clone(),
            op: node.name,
            variant: node.variant.name.clone(),
            launches: node.program.launches.len(),
            milliseconds: seconds * 1e3,
            gflops: cost.flops / seconds / 1e9,
            gbps: cost.bytes / seconds / 1e9,
            parts,
            gflops_2c: gpu.caps().is_cpu().then(|| cost.flops / (seconds * core_seconds) / 1e9),
        });
    }
    rows
}

fn upload(session: &Session, var: denshi::ops::Var, host: &Host) {
    session.write(var, host).unwrap_or_else(|e| panic!("{e}"));
}

/// Median host milliseconds to encode a replay of a thousand small launches, and to encode and submit it.
fn replay_thousand(gpu: &Gpu) -> (f64, f64) {
    let mut tape = Tape::new(Arc::new(ParamSet::default()), false);
    let one = tape.input(Spec::f32(&[1024]));
    let mut x = one;
    // Two kernels in turn, so that no launch finds its pipeline set already.
    for i in 0..1000 {
        x = if i % 2 == 0 { add(&mut tape, x, one) } else { tanh(&mut tape, x) }.unwrap_or_else(|e| panic!("{e}"));
    }
    let plan = Plan::new(&tape, gpu.caps(), &PlanOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let session = Session::new(gpu, plan, None).unwrap_or_else(|e| panic!("{e}"));
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2] * 1e3
    };
    let encoding = median((0..50).map(|_| gpu.encoding_seconds(session.dispatches())).collect());
    let run = || {
        gpu.wait().unwrap_or_else(|e| panic!("{e}"));
        let start = Instant::now();
        session.run(&case_step()).unwrap_or_else(|e| panic!("{e}"));
        start.elapsed().as_secs_f64()
    };
    (encoding, median((0..50).map(|_| run()).collect()))
}
