//! Which adapter: by name, by index, by power, or the best there is.

use super::caps::{Backend, Caps, CoopMatrix, DeviceClass, Limits, Timestamps};
use crate::error::{Error, Kind, Result};
use std::str::FromStr;

/// How the user names an adapter: `--adapter` or `DENSHI_ADAPTER`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AdapterChoice {
    /// The best real GPU, then a software one.
    #[default]
    Best,
    /// The integrated GPU before the discrete one.
    LowPower,
    /// A discrete GPU before the integrated one (as `Best`, but said).
    HighPower,
    Index(usize),
    /// Part of the name, in any case.
    Name(String),
}

impl FromStr for AdapterChoice {
    type Err = std::convert::Infallible;
    fn from_str(s: &str) -> std::result::Result<Self, Self::Err> {
        Ok(match s.trim().to_lowercase().as_str() {
            "" | "best" => AdapterChoice::Best,
            "low-power" => AdapterChoice::LowPower,
            "high-power" => AdapterChoice::HighPower,
            other => match other.parse() {
                Ok(index) => AdapterChoice::Index(index),
                Err(_) => AdapterChoice::Name(s.trim().to_string()),
            },
        })
    }
}

impl AdapterChoice {
    /// The command line's choice if there is one, else the environment's, else the best.
    pub fn from_user(option: Option<&str>) -> Self {
        let named = option.map(str::to_string).or_else(|| std::env::var("DENSHI_ADAPTER").ok());
        named.map(|s| s.parse().unwrap_or_default()).unwrap_or_default()
    }
}

/// An adapter that was found, not opened yet.
pub struct Adapter {
    pub(super) raw: wgpu::Adapter,
    pub caps: Caps,
}

/// Every adapter that the native backends list, GL left out: it has neither f16 nor subgroups.
pub fn list() -> Vec<Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    // Validation layers change timings and are the driver's, not ours, to ship.
    descriptor.flags = wgpu::InstanceFlags::empty();
    let backends = descriptor.backends;
    let instance = wgpu::Instance::new(descriptor);
    let found = pollster::block_on(instance.enumerate_adapters(backends));
    found.into_iter().filter_map(|raw| caps_of(&raw).map(|caps| Adapter { raw, caps })).collect()
}

/// Picks one of `adapters` and says in a second value what should be said aloud (a software adapter was taken).
pub fn choose(mut adapters: Vec<Adapter>, choice: &AdapterChoice) -> Result<(Adapter, Option<String>)> {
    let attempt = "choose an adapter";
    if adapters.is_empty() {
        return Err(Error::new(Kind::Adapter, attempt, "no Vulkan, Metal or DX12 adapter was found").hint(
            "install the GPU's Vulkan driver, or a software one: on Debian and Ubuntu \
             `apt-get install libvulkan1 mesa-vulkan-drivers`",
        ));
    }
    let listing = |adapters: &[Adapter]| {
        let lines: Vec<String> = adapters.iter().enumerate().map(|(i, a)| format!("\n    {i}: {}", a.caps)).collect();
        lines.concat()
    };
    let index = match choice {
        AdapterChoice::Index(index) => (*index < adapters.len()).then_some(*index),
        AdapterChoice::Name(name) => {
            let wanted = name.to_lowercase();
            let fits = |a: &Adapter| a.caps.name.to_lowercase().contains(&wanted);
            let found: Vec<usize> = (0..adapters.len()).filter(|&i| fits(&adapters[i])).collect();
            if found.len() > 1 {
                let happened = format!("'{name}' names {} adapters; there are{}", found.len(), listing(&adapters));
                return Err(Error::new(Kind::Usage, attempt, happened).hint("name one of them by its number"));
            }
            found.first().copied()
        }
        AdapterChoice::Best | AdapterChoice::HighPower => {
            best(&adapters, &[DeviceClass::Discrete, DeviceClass::Integrated])
        }
        AdapterChoice::LowPower => best(&adapters, &[DeviceClass::Integrated, DeviceClass::Discrete]),
    };
    let Some(index) = index else {
        let wanted = match choice {
            AdapterChoice::Index(index) => format!("there is no adapter {index}"),
            AdapterChoice::Name(name) => format!("no adapter's name contains '{name}'"),
            _ => "none fits".into(),
        };
        return Err(Error::new(Kind::Usage, attempt, format!("{wanted}; there are{}", listing(&adapters)))
            .hint("name one of these by number or part of its name: --adapter or DENSHI_ADAPTER"));
    };
    let adapter = adapters.swap_remove(index);
    let by_power = matches!(choice, AdapterChoice::Best | AdapterChoice::LowPower | AdapterChoice::HighPower);
    let said = (adapter.caps.is_cpu() && by_power)
        .then(|| format!("no GPU found: using the software adapter {}", adapter.caps));
    Ok((adapter, said))
}

fn best(adapters: &[Adapter], order: &[DeviceClass]) -> Option<usize> {
    let rank = |class: DeviceClass| match order.iter().position(|&c| c == class) {
        Some(place) => place,
        None => match class {
            DeviceClass::Virtual => 10,
            DeviceClass::Other => 11,
            _ => 12,
        },
    };
    (0..adapters.len()).min_by_key(|&i| rank(adapters[i].caps.class))
}

pub(super) fn caps_of(raw: &wgpu::Adapter) -> Option<Caps> {
    let info = raw.get_info();
    let features = raw.features();
    let limits = raw.limits();
    let backend = match info.backend {
        wgpu::Backend::Vulkan => Backend::Vulkan,
        wgpu::Backend::Metal => Backend::Metal,
        wgpu::Backend::Dx12 => Backend::Dx12,
        _ => return None,
    };
    let class = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => DeviceClass::Discrete,
        wgpu::DeviceType::IntegratedGpu => DeviceClass::Integrated,
        wgpu::DeviceType::VirtualGpu => DeviceClass::Virtual,
        wgpu::DeviceType::Cpu => DeviceClass::Cpu,
        wgpu::DeviceType::Other => DeviceClass::Other,
    };
    let has = |f: wgpu::Features| features.contains(f);
    let subgroup = (has(wgpu::Features::SUBGROUP) && info.subgroup_min_size > 0)
        .then_some((info.subgroup_min_size, info.subgroup_max_size));
    let f16 = has(wgpu::Features::SHADER_F16);
    let coop = if f16 && has(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) { coop_of(raw) } else { Vec::new() };
    let timestamps = if has(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES) {
        Timestamps::InsidePasses
    } else if has(wgpu::Features::TIMESTAMP_QUERY) {
        Timestamps::PassBoundaries
    } else {
        Timestamps::None
    };
    Some(Caps {
        name: info.name,
        backend,
        class,
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
        f16,
        subgroup,
        coop,
        timestamps,
        limits: Limits {
            binding_bytes: limits.max_storage_buffer_binding_size,
            buffer_bytes: limits.max_buffer_size,
            storage_buffers: limits.max_storage_buffers_per_shader_stage,
            workgroup_bytes: limits.max_compute_workgroup_storage_size,
            workgroup_invocations: limits.max_compute_invocations_per_workgroup,
            workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
            immediate_bytes: if has(wgpu::Features::IMMEDIATES) { limits.max_immediate_size } else { 0 },
            offset_alignment: limits.min_storage_buffer_offset_alignment,
        },
    })
}

/// Only what WGSL can express today: square tiles of 8 or 16, f16 in.
fn coop_of(raw: &wgpu::Adapter) -> Vec<CoopMatrix> {
    let f16 = wgpu::CooperativeScalarType::F16;
    let mut found: Vec<CoopMatrix> = Vec::new();
    for c in raw.cooperative_matrix_properties() {
        let square = c.m_size == c.n_size && c.n_size == c.k_size && (c.m_size == 8 || c.m_size == 16);
        let f32_accumulate = c.cr_type == wgpu::CooperativeScalarType::F32;
        if square && c.ab_type == f16 && (f32_accumulate || c.cr_type == f16) && !c.saturating_accumulation {
            let coop = CoopMatrix { size: c.m_size, f32_accumulate };
            if !found.contains(&coop) {
                found.push(coop);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapter_choice_reads_numbers_names_and_power() {
        assert_eq!("2".parse(), Ok(AdapterChoice::Index(2)));
        assert_eq!("llvmpipe".parse(), Ok(AdapterChoice::Name("llvmpipe".into())));
        assert_eq!("LOW-power".parse(), Ok(AdapterChoice::LowPower));
        assert_eq!("".parse(), Ok(AdapterChoice::Best));
    }

    #[test]
    fn no_adapter_says_how_to_get_a_software_one() {
        let error = choose(Vec::new(), &AdapterChoice::Best).err().expect("an empty list cannot be chosen from");
        assert_eq!(error.kind, Kind::Adapter);
        assert!(error.to_string().contains("mesa-vulkan-drivers"), "{error}");
    }
}
