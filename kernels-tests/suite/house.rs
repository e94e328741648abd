//! The house rules that a test can hold: who names wgpu, where WGSL lives, which way modules point.

use std::path::{Path, PathBuf};

fn rust_files(folder: &str) -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, out: &mut Vec<(PathBuf, String)>) {
        for entry in std::fs::read_dir(folder).expect("the sources are there").flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).expect("sources are UTF-8");
                out.push((path, text));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut out = Vec::new();
    walk(&root.join(folder), &mut out);
    out.into_iter().map(|(p, t)| (p.strip_prefix(root).expect("it is below the root").to_path_buf(), t)).collect()
}

#[test]
fn only_the_gpu_module_names_wgpu() {
    for (path, text) in rust_files("src") {
        let inside = path.starts_with("src/gpu");
        let code = text.lines().filter(|l| !l.trim_start().starts_with("//"));
        let named = code.into_iter().any(|l| l.contains("wgpu::"));
        assert!(inside || !named, "{} names wgpu", path.display());
    }
}

#[test]
fn no_shader_text_in_rust() {
    for (path, text) in rust_files("src") {
        for word in ["@compute", "@workgroup_size", "@group("] {
            assert!(!text.contains(word), "{} has {word}", path.display());
        }
    }
}

#[test]
fn layers_point_downwards() {
    let layers = ["gpu", "ops", "tape", "doctor", "cli"];
    for (path, text) in rust_files("src") {
        let of = |name: &str| layers.iter().position(|l| *l == name);
        let part = path.iter().nth(1).and_then(|p| p.to_str()).unwrap_or_default().trim_end_matches(".rs");
        let Some(own) = of(part) else { continue };
        for layer in &layers[own + 1..] {
            assert!(!text.contains(&format!("crate::{layer}")), "{} looks up at {layer}", path.display());
        }
    }
}

#[test]
fn every_shader_opens_with_what_it_computes_and_how() {
    for name in denshi::gpu::shader_files() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders").join(name);
        let text = std::fs::read_to_string(path).expect("embedded shaders come from files");
        let head: String = text.lines().take_while(|l| l.starts_with("//") || l.trim().is_empty()).collect();
        assert!(head.len() > 80, "{name} does not open with its maths and division of work");
    }
}
