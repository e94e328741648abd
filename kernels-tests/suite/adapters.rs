//! Adapters that are not here: descriptions from which plans and shaders are made and checked without a device.

use denshi::gpu::{Backend, Caps, CoopMatrix, DeviceClass, Limits, Timestamps};

const MIB: u64 = 1 << 20;

fn adapter(
    name: &str,
    backend: Backend,
    class: DeviceClass,
    subgroup: Option<(u32, u32)>,
    f16: bool,
    coop: &[u32],
) -> Caps {
    Caps {
        name: name.into(),
        backend,
        class,
        driver: "described".into(),
        f16,
        subgroup,
        coop: coop.iter().map(|&size| CoopMatrix { size, f32_accumulate: true }).collect(),
        timestamps: Timestamps::None,
        limits: Limits {
            binding_bytes: 2048 * MIB - 4,
            buffer_bytes: 2048 * MIB,
            storage_buffers: 8,
            workgroup_bytes: 32 * 1024,
            workgroup_invocations: 1024,
            workgroups_per_dimension: 65_535,
            immediate_bytes: 128,
            offset_alignment: 256,
        },
    }
}

/// The kinds of adapter that variants are chosen by.
pub fn described() -> Vec<Caps> {
    use DeviceClass::*;
    let mut all = vec![
        adapter("nvidia-like", Backend::Vulkan, Discrete, Some((32, 32)), true, &[16]),
        adapter("radeon-like", Backend::Vulkan, Discrete, Some((32, 64)), true, &[16]),
        adapter("intel-like", Backend::Vulkan, Integrated, Some((8, 32)), true, &[]),
        adapter("apple-like", Backend::Metal, Integrated, Some((32, 32)), true, &[8]),
        adapter("dx12-fxc", Backend::Dx12, Discrete, None, false, &[]),
        adapter("dx12-dxc", Backend::Dx12, Discrete, Some((32, 32)), true, &[]),
        adapter("cpu-4-lanes", Backend::Vulkan, Cpu, Some((4, 4)), true, &[]),
        adapter("cpu-8-lanes", Backend::Vulkan, Cpu, Some((8, 8)), true, &[8]),
        adapter("cpu-16-lanes", Backend::Vulkan, Cpu, Some((16, 16)), true, &[]),
        adapter("cpu-no-subgroups", Backend::Vulkan, Cpu, None, false, &[]),
    ];
    // WebGPU's default limits: the least that anything offers.
    let mut least = adapter("least", Backend::Vulkan, Other, None, false, &[]);
    least.limits.workgroup_bytes = 16 * 1024;
    least.limits.workgroup_invocations = 256;
    least.limits.binding_bytes = 128 * MIB;
    least.limits.buffer_bytes = 256 * MIB;
    all.push(least);
    all
}
