//! Pipelines, made once per (file, entry point, constants), and the dispatches that use them.
//!
//! Bind-group layouts and the size of the immediates are read from the shader itself (naga reflection), so that there
//! is no second list to keep in step.

use super::buffer::BufferSlice;
use super::{Gpu, lock, shader};
use crate::error::{Context, Error, Kind, Result};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

/// Bytes of immediates every kernel may count on; all three backends offer as many.
pub const MAX_IMMEDIATES: u32 = 128;

/// A template constant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Const {
    Int(i64),
    Text(&'static str),
}

impl Const {
    pub(super) fn value(&self) -> minijinja::Value {
        match self {
            Const::Int(i) => minijinja::Value::from(*i),
            Const::Text(s) => minijinja::Value::from(*s),
        }
    }
}

impl From<u32> for Const {
    fn from(v: u32) -> Self {
        Const::Int(v.into())
    }
}
impl From<usize> for Const {
    fn from(v: usize) -> Self {
        Const::Int(v as i64)
    }
}
impl From<i32> for Const {
    fn from(v: i32) -> Self {
        Const::Int(v.into())
    }
}
impl From<bool> for Const {
    fn from(v: bool) -> Self {
        Const::Int(v.into())
    }
}
impl From<&'static str> for Const {
    fn from(v: &'static str) -> Self {
        Const::Text(v)
    }
}

impl fmt::Display for Const {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Const::Int(i) => i.fmt(f),
            Const::Text(s) => s.fmt(f),
        }
    }
}

/// What a kernel is: a file under `shaders/`, an entry point, and the constants it is expanded with.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KernelKey {
    pub file: &'static str,
    pub entry: &'static str,
    pub constants: BTreeMap<&'static str, Const>,
}

impl KernelKey {
    pub fn new(file: &'static str, entry: &'static str) -> Self {
        KernelKey { file, entry, constants: BTreeMap::new() }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<Const>) -> Self {
        self.constants.insert(name, value.into());
        self
    }
}

impl fmt::Display for KernelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.entry)?;
        let constants: Vec<String> = self.constants.iter().map(|(k, v)| format!("{k}={v}")).collect();
        if constants.is_empty() { Ok(()) } else { write!(f, "[{}]", constants.join(",")) }
    }
}

/// A compiled kernel.
pub struct Kernel {
    pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
    /// Binding numbers in ascending order; a launch gives its slices in this order.
    bindings: Vec<u32>,
    immediates: u32,
}

type Parsed = Arc<(wgpu::ShaderModule, naga::Module, naga::valid::ModuleInfo)>;

#[derive(Default)]
pub(super) struct Cache {
    modules: HashMap<(&'static str, BTreeMap<&'static str, Const>), Parsed>,
    kernels: HashMap<KernelKey, Arc<Kernel>>,
}

/// Bind groups of one set of launches, made once for each kernel and list of slices: layers that run in the same
/// buffers share them. It must not outlive the buffers, by whose identity it knows them.
#[derive(Default)]
pub struct BindGroups {
    made: HashMap<(usize, Vec<BoundRange>), wgpu::BindGroup>,
}

/// Buffer, offset and bytes of a binding.
type BoundRange = (usize, u64, u64);

/// One launch, ready to be encoded: everything made beforehand.
#[derive(Clone)]
pub struct Dispatch {
    kernel: Arc<Kernel>,
    bind_group: wgpu::BindGroup,
    immediates: Arc<[u8]>,
    grid: [u32; 3],
}

impl Dispatch {
    pub(super) fn encode(&self, pass: &mut wgpu::ComputePass<'_>, bound: &mut Option<*const Kernel>) {
        let this = Arc::as_ptr(&self.kernel);
        if *bound != Some(this) {
            pass.set_pipeline(&self.kernel.pipeline);
            *bound = Some(this);
        }
        pass.set_bind_group(0, &self.bind_group, &[]);
        if self.kernel.immediates > 0 {
            pass.set_immediates(0, &self.immediates);
        }
        pass.dispatch_workgroups(self.grid[0], self.grid[1], self.grid[2]);
    }

    /// The same launch with other immediates.
    pub fn with_immediates(&self, immediates: &[u8]) -> Dispatch {
        Dispatch { immediates: immediates.into(), ..self.clone() }
    }
}

impl Gpu {
    /// Compiles `key`, or finds it compiled.
    pub fn kernel(&self, key: &KernelKey) -> Result<Arc<Kernel>> {
        if let Some(kernel) = lock(&self.inner.kernels).kernels.get(key) {
            return Ok(kernel.clone());
        }
        let kernel = Arc::new(self.compile(key).context(|| format!("build kernel {key}"))?);
        lock(&self.inner.kernels).kernels.insert(key.clone(), kernel.clone());
        Ok(kernel)
    }

    fn module(&self, key: &KernelKey) -> Result<Parsed> {
        let module_key = (key.file, key.constants.clone());
        if let Some(parsed) = lock(&self.inner.kernels).modules.get(&module_key) {
            return Ok(parsed.clone());
        }
        let (module, info) = shader::render(key.file, &key.constants)?.parse(Some(self.caps()))?;
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(key.file),
            source: wgpu::ShaderSource::Naga(std::borrow::Cow::Owned(module.clone())),
        };
        // Array accesses stay checked. Loop bounding is off: it puts a 64-bit counter into every loop, which keeps
        // drivers from unrolling, and every loop here is bounded by an immediate.
        let mut checks = wgpu::ShaderRuntimeChecks::checked();
        checks.force_loop_bounding = false;
        // SAFETY: the only check given up is the one against endless loops; see above.
        let compiled = unsafe { self.device().create_shader_module_trusted(descriptor, checks) };
        let parsed = Arc::new((compiled, module, info));
        lock(&self.inner.kernels).modules.insert(module_key, parsed.clone());
        Ok(parsed)
    }

    fn compile(&self, key: &KernelKey) -> Result<Kernel> {
        self.check()?;
        let scope = self.device().push_error_scope(wgpu::ErrorFilter::Validation);
        let built = self.compile_in_scope(key);
        let refused = pollster::block_on(scope.pop());
        let kernel = built?;
        match refused {
            Some(error) => {
                let place =
                    shader::render(key.file, &key.constants).map(|r| r.entry_line(key.entry)).unwrap_or_default();
                Err(Error::new(Kind::Shader, format!("compile {place}"), error.to_string()))
            }
            None => Ok(kernel),
        }
    }

    fn compile_in_scope(&self, key: &KernelKey) -> Result<Kernel> {
        let parsed = self.module(key)?;
        let (compiled, module, info) = &*parsed;
        let interface = interface(module, info, key.entry)?;
        if interface.immediates > MAX_IMMEDIATES {
            let happened = format!("{} bytes of immediates are over {MAX_IMMEDIATES}", interface.immediates);
            return Err(Error::new(Kind::Shader, "lay out its parameters", happened));
        }
        let storage = interface.bindings.iter().filter(|b| b.1 != wgpu::BufferBindingType::Uniform).count();
        let limit = self.caps().limits.storage_buffers as usize;
        if storage > limit {
            let happened = format!("it binds {storage} storage buffers, the adapter allows {limit}");
            return Err(Error::new(Kind::Limit, "lay out its bindings", happened));
        }
        let entries: Vec<wgpu::BindGroupLayoutEntry> = interface
            .bindings
            .iter()
            .map(|&(binding, ty)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
                count: None,
            })
            .collect();
        let device = self.device();
        let layout =
            device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: interface.immediates,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(key.entry),
            layout: Some(&pipeline_layout),
            module: compiled,
            entry_point: Some(key.entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                // Kernels write workgroup memory before they read it; tests run each of them twice on used memory.
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        let bindings = interface.bindings.iter().map(|b| b.0).collect();
        Ok(Kernel { pipeline, layout, bindings, immediates: interface.immediates })
    }

    /// Makes a launch: `slices` in the order of the kernel's binding numbers.
    pub fn dispatch(
        &self,
        groups: &mut BindGroups,
        key: &KernelKey,
        slices: &[BufferSlice],
        immediates: &[u8],
        grid: [u32; 3],
    ) -> Result<Dispatch> {
        let kernel = self.kernel(key)?;
        let fail = |happened: String| Error::new(Kind::Shader, format!("launch {key}"), happened);
        if slices.len() != kernel.bindings.len() {
            return Err(fail(format!("{} slices for {} bindings", slices.len(), kernel.bindings.len())));
        }
        if immediates.len() as u32 != kernel.immediates {
            return Err(fail(format!("{} bytes of parameters for {}", immediates.len(), kernel.immediates)));
        }
        let limits = &self.caps().limits;
        if grid.iter().any(|&g| g == 0 || g > limits.workgroups_per_dimension) {
            return Err(fail(format!("grid {grid:?} is outside 1..={}", limits.workgroups_per_dimension)));
        }
        for (slice, binding) in slices.iter().zip(&kernel.bindings) {
            if slice.bytes > limits.binding_bytes {
                let (bytes, limit) = (slice.bytes, limits.binding_bytes);
                let happened = format!(
                    "binding {binding} spans {bytes} bytes, over this adapter's max_storage_buffer_binding_size of {limit}"
                );
                return Err(Error::new(Kind::Limit, format!("launch {key}"), happened)
                    .hint("use a smaller batch, more micro-batches, or a smaller vocabulary chunk"));
            }
        }
        let bound = slices.iter().map(|s| (s.buffer.id(), s.offset, s.bytes)).collect();
        let known = (Arc::as_ptr(&kernel) as usize, bound);
        if let Some(bind_group) = groups.made.get(&known).cloned() {
            return Ok(Dispatch { kernel, bind_group, immediates: immediates.into(), grid });
        }
        let entries: Vec<wgpu::BindGroupEntry> = slices
            .iter()
            .zip(&kernel.bindings)
            .map(|(slice, &binding)| wgpu::BindGroupEntry {
                binding,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: slice.buffer.raw(),
                    offset: slice.offset,
                    size: std::num::NonZeroU64::new(slice.bytes),
                }),
            })
            .collect();
        let scope = self.device().push_error_scope(wgpu::ErrorFilter::Validation);
        let bind_group = self.device().create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &kernel.layout,
            entries: &entries,
        });
        if let Some(error) = pollster::block_on(scope.pop()) {
            return Err(fail(error.to_string()));
        }
        groups.made.insert(known, bind_group.clone());
        Ok(Dispatch { kernel, bind_group, immediates: immediates.into(), grid })
    }
}

struct Interface {
    bindings: Vec<(u32, wgpu::BufferBindingType)>,
    immediates: u32,
}

/// What an entry point really uses: entry points of one file may reuse binding numbers.
fn interface(module: &naga::Module, info: &naga::valid::ModuleInfo, entry: &str) -> Result<Interface> {
    let Some(index) = module.entry_points.iter().position(|e| e.name == entry) else {
        return Err(Error::new(Kind::Shader, "find its entry point", format!("there is no '{entry}'")));
    };
    let used = info.get_entry_point(index);
    let mut bindings = Vec::new();
    let mut immediates = 0;
    for (handle, global) in module.global_variables.iter() {
        if used[handle].is_empty() {
            continue;
        }
        let ty = match global.space {
            naga::AddressSpace::Storage { access } => {
                wgpu::BufferBindingType::Storage { read_only: !access.contains(naga::StorageAccess::STORE) }
            }
            naga::AddressSpace::Uniform => wgpu::BufferBindingType::Uniform,
            naga::AddressSpace::Immediate => {
                immediates = module.types[global.ty].inner.size(module.to_ctx()).next_multiple_of(4);
                continue;
            }
            _ => continue,
        };
        if let Some(binding) = &global.binding {
            bindings.push((binding.binding, ty));
        }
    }
    bindings.sort_unstable_by_key(|b| b.0);
    Ok(Interface { bindings, immediates })
}
