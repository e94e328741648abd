//! Every variant of every shader, for every kind of adapter: naga validates it and writes it for the adapter's backend,
//! Tint judges it where it is on PATH. No device.

use super::adapters::described;
use denshi::gpu::{Backend, Caps, KernelKey, render};
use denshi::ops::{Case, FAMILIES};
use denshi::tape::{CaseTape, Plan, PlanOptions};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Kernels that some case needs on some described adapter, with the backends they are for.
fn all_kernels() -> BTreeMap<KernelKey, BTreeSet<&'static str>> {
    let mut kernels: BTreeMap<KernelKey, BTreeSet<&'static str>> = BTreeMap::new();
    let cases: Vec<Case> = FAMILIES.iter().flat_map(|f| (f.cases)().into_iter().chain((f.bench_cases)())).collect();
    let adapters = described();
    for case in &cases {
        let recorded = CaseTape::record(case).unwrap_or_else(|e| panic!("{e}"));
        for caps in adapters.iter().filter(|caps| caps.f16 || !case.f16) {
            for force in recorded.variants(caps) {
                let options = PlanOptions { guarded: false, force: Some(force.clone()) };
                let plan = Plan::new(&recorded.tape, caps, &options)
                    .unwrap_or_else(|e| panic!("case {} by {force} on {}: {e}", case.name, caps.name));
                for launch in plan.nodes.iter().flat_map(|n| &n.program.launches) {
                    kernels.entry(launch.kernel.clone()).or_default().insert(backend(caps));
                }
            }
        }
    }
    kernels
}

fn backend(caps: &Caps) -> &'static str {
    match caps.backend {
        Backend::Vulkan => "vulkan",
        Backend::Metal => "metal",
        Backend::Dx12 => "dx12",
    }
}

#[test]
fn every_shader_variant_validates_and_translates_for_the_backends_it_is_chosen_on() {
    let kernels = all_kernels();
    let mut failures = Vec::new();
    for (key, backends) in &kernels {
        let rendered = match render(key.file, &key.constants) {
            Ok(rendered) => rendered,
            Err(e) => {
                failures.push(format!("{key}: {e}"));
                continue;
            }
        };
        let (module, info) = match rendered.parse(None) {
            Ok(parsed) => parsed,
            Err(e) => {
                failures.push(format!("{key}: {e}"));
                continue;
            }
        };
        for &backend in backends {
            if let Err(e) = translate(&module, &info, backend) {
                failures.push(format!("{key} for {backend}: {e}"));
            }
        }
    }
    assert!(kernels.len() > 1, "no kernels found");
    assert!(failures.is_empty(), "{} of {} kernels failed:\n{}", failures.len(), kernels.len(), failures.join("\n"));
}

fn translate(module: &naga::Module, info: &naga::valid::ModuleInfo, backend: &str) -> Result<(), String> {
    match backend {
        "vulkan" => {
            let options = naga::back::spv::Options { lang_version: (1, 3), ..Default::default() };
            naga::back::spv::write_vec(module, info, &options, None).map(|_| ()).map_err(|e| e.to_string())
        }
        "metal" => {
            // Fake bindings: which slot a buffer gets is wgpu's affair, whether the text can be written is ours.
            let options =
                naga::back::msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..Default::default() };
            naga::back::msl::write_string(module, info, &options, &Default::default())
                .map(|_| ())
                .map_err(|e| e.to_string())
        }
        _ => {
            let options = naga::back::hlsl::Options {
                shader_model: naga::back::hlsl::ShaderModel::V6_2,
                fake_missing_bindings: true,
                immediates_target: Some(naga::back::hlsl::BindTarget { space: 9, ..Default::default() }),
                ..Default::default()
            };
            let pipeline = naga::back::hlsl::PipelineOptions::default();
            let mut text = String::new();
            let mut writer = naga::back::hlsl::Writer::new(&mut text, &options, &pipeline);
            writer.write(module, info, None).map(|_| ()).map_err(|e| e.to_string())
        }
    }
}

#[test]
fn tint_accepts_every_shader_that_has_no_naga_extension() {
    if Command::new("tint").arg("--help").output().is_err() {
        eprintln!("tint is not on PATH: its check of uniform control flow is left out");
        return;
    }
    let folder = std::env::temp_dir().join(format!("denshi-tint-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the temporary folder can be written");
    let mut seen = BTreeSet::new();
    let mut failures = Vec::new();
    for key in all_kernels().keys() {
        let rendered = render(key.file, &key.constants).unwrap_or_else(|e| panic!("{e}"));
        // Cooperative matrices are naga's own extension.
        if rendered.text.contains("wgpu_cooperative_matrix") || !seen.insert(rendered.text.clone()) {
            continue;
        }
        let file = folder.join("shader.wgsl");
        let subgroups = if rendered.text.contains("subgroup") { "enable subgroups;\n" } else { "" };
        std::fs::write(&file, format!("{subgroups}{}", rendered.text)).expect("the temporary folder can be written");
        let out =
            Command::new("tint").arg(&file).arg("-o").arg(folder.join("out.wgsl")).output().expect("tint ran before");
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr).lines().take(6).collect::<Vec<_>>().join("\n    ");
            failures.push(format!("{key}:\n    {said}"));
        }
    }
    std::fs::remove_dir_all(&folder).ok();
    assert!(!seen.is_empty(), "tint saw nothing");
    assert!(failures.is_empty(), "tint refuses {} of {}:\n{}", failures.len(), seen.len(), failures.join("\n"));
}

#[test]
fn every_op_has_a_variant_on_every_kind_of_adapter() {
    for case in FAMILIES.iter().flat_map(|f| (f.cases)()) {
        let recorded = CaseTape::record(&case).unwrap_or_else(|e| panic!("{e}"));
        for caps in described().iter().filter(|caps| caps.f16 || !case.f16) {
            let plan = Plan::new(&recorded.tape, caps, &PlanOptions::default());
            if let Err(e) = plan {
                panic!("{} on {}: {e}", case.name, caps.name);
            }
        }
    }
}

#[test]
fn cooperative_matrices_are_never_chosen_where_the_backend_has_none() {
    for case in FAMILIES.iter().flat_map(|f| (f.cases)()) {
        let recorded = CaseTape::record(&case).unwrap_or_else(|e| panic!("{e}"));
        for caps in described().iter().filter(|caps| caps.coop.is_empty() && (caps.f16 || !case.f16)) {
            for force in recorded.variants(caps) {
                let options = PlanOptions { guarded: false, force: Some(force) };
                let plan = Plan::new(&recorded.tape, caps, &options).unwrap_or_else(|e| panic!("{e}"));
                for launch in plan.nodes.iter().flat_map(|n| &n.program.launches) {
                    let text =
                        render(launch.kernel.file, &launch.kernel.constants).unwrap_or_else(|e| panic!("{e}")).text;
                    assert!(!text.contains("coop_mat"), "{} on {}: {}", case.name, caps.name, launch.kernel);
                }
            }
        }
    }
}

#[test]
fn what_an_adapter_lacks_is_refused_at_the_file_and_line_that_uses_it() {
    let mut bare = described().into_iter().find(|caps| caps.subgroup.is_some() && caps.f16).expect("one is described");
    bare.subgroup = None;
    let mut refused = 0;
    for key in all_kernels().keys() {
        let rendered = render(key.file, &key.constants).unwrap_or_else(|e| panic!("{e}"));
        if rendered.text.contains("subgroupAdd") || rendered.text.contains("subgroupBroadcast") {
            let error = rendered.parse(Some(&bare)).expect_err("it has no subgroups");
            assert!(error.attempted[0].contains(".wgsl:"), "{error}");
            refused += 1;
        }
    }
    assert!(refused > 0, "no shader uses subgroups");
}
