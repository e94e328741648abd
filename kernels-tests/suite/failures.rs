//! Bad input and bad luck: a clear error each time, and no panic.

use super::gpu;
use denshi::error::Kind;
use denshi::gpu::{AdapterChoice, BindGroups, Gpu, KernelKey, Purpose};
use denshi::ops::{DType, Fill, Recorder, Spec, add::add};
use denshi::tape::{ParamSet, Plan, PlanOptions, Session, Tape, case_step, data_for};
use std::process::Command;
use std::sync::Arc;

/// Runs the program on the adapters that the tests see, or with `envs` of its own.
fn denshi(arguments: &[&str], envs: &[(&str, &str)]) -> (i32, String) {
    // Where cargo starts the tests through a runner (another Vulkan beside the system's), the program needs it too.
    let runner = std::env::var("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER").unwrap_or_default();
    let no_driver = envs.iter().any(|(name, _)| name.starts_with("VK_"));
    let mut words: Vec<&str> = if no_driver { Vec::new() } else { runner.split_whitespace().collect() };
    words.push(env!("CARGO_BIN_EXE_denshi"));
    let out = Command::new(words[0])
        .args(&words[1..])
        .args(arguments)
        .env_remove("DENSHI_ADAPTER")
        .envs(envs.iter().copied())
        .output()
        .expect("the program starts");
    (out.status.code().unwrap_or(-1), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[test]
fn an_unknown_adapter_name_lists_those_there_are() {
    let (code, said) = denshi(&["doctor", "--adapter", "no such card"], &[]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("no such card") && said.contains(&gpu().caps().name), "{said}");
    let (code, said) = denshi(&["doctor"], &[("DENSHI_ADAPTER", "99")]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("there is no adapter 99"), "{said}");
}

#[cfg(target_os = "linux")]
#[test]
fn without_any_driver_the_error_says_how_to_get_a_software_one() {
    let nothing = [("VK_ICD_FILENAMES", "/nonexistent.json"), ("VK_DRIVER_FILES", "/nonexistent.json")];
    for command in ["doctor", "devices"] {
        let (code, said) = denshi(&[command], &nothing);
        assert_eq!(code, 4, "{said}");
        assert!(said.contains("mesa-vulkan-drivers"), "{said}");
    }
}

#[test]
fn a_buffer_over_the_limit_names_the_limit_and_the_sizes() {
    let limit = gpu().caps().limits.buffer_bytes;
    let error = gpu().buffer("too large", Purpose::Activations, limit + 1).err().expect("it is over the limit");
    assert_eq!(error.kind, Kind::Limit);
    assert!(error.to_string().contains(&limit.to_string()), "{error}");
    assert!(error.to_string().contains("max_buffer_size"), "{error}");
}

#[test]
fn a_binding_over_the_limit_names_the_limit_and_the_sizes() {
    let limit = gpu().caps().limits.binding_bytes;
    // On adapters whose bindings reach as far as their buffers there is nothing to refuse.
    if limit + 1024 > gpu().caps().limits.buffer_bytes.min(1 << 30) {
        return;
    }
    let buffer = gpu().buffer("large", Purpose::Activations, limit + 1024).unwrap();
    let small = gpu().buffer("small", Purpose::Activations, 256).unwrap();
    let key = KernelKey::new("add.wgsl", "add_into").with("T", "f32");
    let slices = [buffer.whole(), small.whole()];
    let error = gpu()
        .dispatch(&mut BindGroups::default(), &key, &slices, &4u32.to_le_bytes(), [1, 1, 1])
        .err()
        .expect("the binding is too large");
    assert_eq!(error.kind, Kind::Limit);
    let said = error.to_string();
    assert!(said.contains(&limit.to_string()) && said.contains(&(limit + 1024).to_string()), "{said}");
}

#[test]
fn a_value_too_large_for_the_adapter_is_refused_when_planned() {
    let mut caps = gpu().caps().clone();
    caps.limits.buffer_bytes = 1 << 20;
    let mut tape = Tape::new(Arc::new(ParamSet::default()), false);
    let x = tape.input(Spec::f32(&[1 << 19]));
    add(&mut tape, x, x).unwrap();
    let error = Plan::new(&tape, &caps, &PlanOptions::default()).err().expect("two MiB do not fit one");
    assert_eq!(error.kind, Kind::Limit);
    assert!(error.to_string().contains("1048576") && error.to_string().contains("2097152"), "{error}");
}

#[test]
fn shapes_that_do_not_fit_are_an_error_with_the_shapes() {
    let mut tape = Tape::new(Arc::new(ParamSet::default()), false);
    let a = tape.input(Spec::f32(&[2, 3]));
    let b = tape.input(Spec::new(&[2, 3], DType::F16));
    let error = add(&mut tape, a, b).expect_err("the types differ");
    assert_eq!(error.kind, Kind::Shape);
    assert!(error.to_string().contains("add(f32[2, 3], f16[2, 3])"), "{error}");
    assert!(tape.view(a, &[7]).is_err());
}

#[test]
fn an_input_of_the_wrong_size_is_refused() {
    let mut tape = Tape::new(Arc::new(ParamSet::default()), false);
    let x = tape.input(Spec::f32(&[10]));
    let y = add(&mut tape, x, x).unwrap();
    let plan = Plan::new(&tape, gpu().caps(), &PlanOptions::default()).unwrap();
    let session = Session::new(gpu(), plan, None).unwrap();
    assert_eq!(session.write_bytes(x, &[0; 36]).expect_err("36 bytes for 10 floats").kind, Kind::Shape);
    assert_eq!(session.read(y).expect_err("nobody kept it").kind, Kind::Shape);
    assert_eq!(tape.spec(y).shape, [10]);
}

#[test]
fn a_lost_device_is_reported_as_lost_and_nothing_else() {
    // A device of its own: it does not come back.
    let gpu = Gpu::open(&AdapterChoice::from_user(None)).unwrap();
    let mut tape = Tape::new(Arc::new(ParamSet::default()), false);
    let x = tape.input(Spec::f32(&[1000]));
    let y = add(&mut tape, x, x).unwrap();
    tape.keep(y);
    let plan = Plan::new(&tape, gpu.caps(), &PlanOptions::default()).unwrap();
    let session = Session::new(&gpu, plan, None).unwrap();
    session.run(&case_step()).unwrap();
    gpu.simulate_loss();
    for error in [
        session.run(&case_step()).expect_err("the device is gone"),
        session.read(y).expect_err("the device is gone"),
        gpu.buffer("small", Purpose::Scratch, 16).err().expect("the device is gone"),
    ] {
        assert_eq!(error.kind, Kind::DeviceLost, "{error}");
        assert_eq!(error.exit_code(), 4);
    }
}

#[test]
fn many_threads_read_back_from_one_device() {
    let mut tape = Tape::new(Arc::new(ParamSet::default()), false);
    let x = tape.input(Spec::f32(&[4096]));
    let y = add(&mut tape, x, x).unwrap();
    tape.keep(y);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let plan = Plan::new(&tape, gpu().caps(), &PlanOptions::default()).unwrap();
                let session = Session::new(gpu(), plan, None).unwrap();
                for round in 0..400 {
                    session.write(x, &data_for(Spec::f32(&[4096]), &Fill::Const(f64::from(round)), 0)).unwrap();
                    session.run(&case_step()).unwrap();
                    assert_eq!(session.read(y).unwrap().data[4095], f64::from(2 * round));
                }
            });
        }
    });
}

#[test]
fn an_unknown_family_is_a_usage_error_with_the_names_there_are() {
    let (code, said) = denshi(&["doctor", "no such family"], &[]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("no such family") && said.contains("attention"), "{said}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_stdout_is_an_error_and_no_panic() {
    let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux has it");
    let mut command = Command::new(env!("CARGO_BIN_EXE_denshi"));
    let out = command.args(["devices", "--json"]).stdout(full).stderr(std::process::Stdio::piped()).spawn();
    let out = out.and_then(|child| child.wait_with_output()).expect("the program starts");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!said.contains("panicked"), "{said}");
    assert!(matches!(out.status.code(), Some(3 | 4)), "{:?} {said}", out.status);
}

#[test]
fn two_threads_may_read_from_one_session() {
    let mut tape = Tape::new(Arc::new(ParamSet::default()), false);
    let x = tape.input(Spec::f32(&[4096]));
    let y = add(&mut tape, x, x).unwrap();
    tape.keep(y);
    let session = Session::new(gpu(), Plan::new(&tape, gpu().caps(), &PlanOptions::default()).unwrap(), None).unwrap();
    session.write(x, &data_for(Spec::f32(&[4096]), &Fill::Const(1.0), 0)).unwrap();
    session.run(&case_step()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..50).for_each(|_| assert_eq!(session.read(y).unwrap().data[7], 2.0)));
        }
    });
}
