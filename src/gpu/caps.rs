//! What an adapter can do, in our own words: the only description of a device that the layers above see.

use serde::Serialize;
use std::fmt;

/// The graphics interface that the adapter is driven through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    Vulkan,
    Metal,
    Dx12,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceClass {
    Discrete,
    Integrated,
    Virtual,
    /// A driver that runs shaders on the CPU (lavapipe, SwiftShader, WARP).
    Cpu,
    Other,
}

/// A cooperative-matrix shape: square tiles of `size`, f16 in, accumulated in f32 or f16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CoopMatrix {
    pub size: u32,
    pub f32_accumulate: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Timestamps {
    None,
    /// At the ends of a pass only: timing puts each launch in a pass of its own.
    PassBoundaries,
    /// Between the launches of one pass.
    InsidePasses,
}

/// Limits that plans and variants are made from; taken from the adapter, never assumed.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Limits {
    /// Most bytes one binding may span.
    pub binding_bytes: u64,
    /// Most bytes one buffer may have.
    pub buffer_bytes: u64,
    pub storage_buffers: u32,
    pub workgroup_bytes: u32,
    pub workgroup_invocations: u32,
    pub workgroups_per_dimension: u32,
    pub immediate_bytes: u32,
    /// Offsets of bindings are multiples of this.
    pub offset_alignment: u32,
}

#[derive(Clone, Debug, Serialize)]
pub struct Caps {
    pub name: String,
    pub backend: Backend,
    pub class: DeviceClass,
    pub driver: String,
    /// f16 in shaders and in storage.
    pub f16: bool,
    /// Smallest and largest subgroup size, where subgroup operations exist.
    pub subgroup: Option<(u32, u32)>,
    pub coop: Vec<CoopMatrix>,
    pub timestamps: Timestamps,
    pub limits: Limits,
}

impl Caps {
    /// The subgroup size where it cannot vary: kernels that count on a number of lanes are legal only then.
    pub fn fixed_subgroup(&self) -> Option<u32> {
        self.subgroup.and_then(|(min, max)| (min == max).then_some(min))
    }

    /// Whether shaders run on the CPU: no real workgroup memory, barriers are expensive (lane loads too).
    pub fn is_cpu(&self) -> bool {
        self.class == DeviceClass::Cpu
    }

    /// Cooperative-matrix tile sizes with f16 inputs and f32 accumulation.
    pub fn coop_f32(&self) -> impl Iterator<Item = u32> + '_ {
        self.coop.iter().filter(|c| c.f32_accumulate).map(|c| c.size)
    }
}

impl fmt::Display for Caps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?}, {:?}, {})", self.name, self.backend, self.class, self.driver)
    }
}
