//! The device: the only module that names wgpu.
//!
//! Everything above sees adapters as [`Caps`], memory as [`Buffer`]s, shaders as [`KernelKey`]s and work as [`Dispatch`]es.

pub mod adapter;
mod buffer;
mod caps;
mod kernel;
mod queue;
mod shader;
mod timing;

pub use adapter::{Adapter, AdapterChoice};
pub use buffer::{ALIGN, Buffer, BufferSlice, Memory, Purpose, align, mib};
pub use caps::{Backend, Caps, CoopMatrix, DeviceClass, Limits, Timestamps};
pub use kernel::{BindGroups, Const, Dispatch, KernelKey};
pub use queue::{Readback, Step, StepUniform};
pub use shader::{Rendered, render, shader_files};
pub use timing::Timer;

use crate::error::{Error, Kind, Result};
use buffer::Account;
use std::io::Write;
use std::sync::{Arc, Mutex};

/// An opened device. Cheap to clone; all clones are the same device.
#[derive(Clone)]
pub struct Gpu {
    inner: Arc<Inner>,
}

struct Inner {
    caps: Caps,
    device: wgpu::Device,
    queue: wgpu::Queue,
    account: Arc<Account>,
    /// The first fatal thing that happened to the device. Latched: what follows a loss is noise.
    fault: Arc<Mutex<Option<Error>>>,
    kernels: Mutex<kernel::Cache>,
    in_flight: Mutex<queue::InFlight>,
}

impl Gpu {
    /// Opens the adapter that `choice` names and says on stderr when it is a software one nobody asked for.
    pub fn open(choice: &AdapterChoice) -> Result<Gpu> {
        let (adapter, said) = adapter::choose(adapter::list(), choice)?;
        if let Some(said) = said {
            // Not eprintln: it panics where stderr is closed.
            let _ = writeln!(std::io::stderr(), "denshi: {said}");
        }
        Gpu::from_adapter(adapter)
    }

    pub fn from_adapter(adapter: Adapter) -> Result<Gpu> {
        let Adapter { raw, caps } = adapter;
        let attempt = || format!("open {caps}");
        if caps.limits.immediate_bytes < kernel::MAX_IMMEDIATES {
            let has = caps.limits.immediate_bytes;
            let happened = format!("it offers {has} bytes of immediates, {} are needed", kernel::MAX_IMMEDIATES);
            return Err(Error::new(Kind::Adapter, attempt(), happened).hint("choose another adapter or driver"));
        }
        if u64::from(caps.limits.offset_alignment) > ALIGN {
            let happened = format!(
                "its bindings start at multiples of {} bytes, {ALIGN} at most are provided for",
                caps.limits.offset_alignment
            );
            return Err(Error::new(Kind::Adapter, attempt(), happened).hint("choose another adapter or driver"));
        }
        let wanted = wgpu::Features::IMMEDIATES
            | wgpu::Features::SHADER_F16
            | wgpu::Features::SUBGROUP
            | wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS
            | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES;
        let mut features = raw.features() & wanted;
        let mut experimental = wgpu::ExperimentalFeatures::disabled();
        if !caps.coop.is_empty() {
            features |= wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
            // SAFETY: asked for cooperative matrices alone; sizes come from the adapter's own list and every
            // kernel that uses them is checked against an f64 reference by `denshi doctor`.
            experimental = unsafe { wgpu::ExperimentalFeatures::enabled() };
        }
        let request = raw.request_device(&wgpu::DeviceDescriptor {
            label: Some("denshi"),
            required_features: features,
            required_limits: raw.limits(),
            experimental_features: experimental,
            memory_hints: wgpu::MemoryHints::Performance,
            trace: wgpu::Trace::Off,
        });
        let (device, queue) =
            pollster::block_on(request).map_err(|e| Error::new(Kind::Adapter, attempt(), e.to_string()))?;
        let fault: Arc<Mutex<Option<Error>>> = Arc::default();
        let latch = fault.clone();
        let account: Arc<Account> = Arc::default();
        let held = account.clone();
        device.set_device_lost_callback(move |reason, message| {
            // Where an allocation of wgpu's own fails (upload staging), it gives the device up: the cause is memory.
            if message.to_lowercase().contains("memory") {
                let happened = format!("the device has no memory left ({message}); held now:\n{}", held.memory());
                let hint = "use a smaller batch, more micro-batches, a smaller length, or f16";
                latch_first(&latch, Error::new(Kind::OutOfMemory, "use the device", happened).hint(hint));
                return;
            }
            let happened = format!("the device was lost ({reason:?}: {message})");
            let hint = "the driver reset or removed the device; run again, with --resume where a run was going";
            latch_first(&latch, Error::new(Kind::DeviceLost, "use the device", happened).hint(hint));
        });
        let latch = fault.clone();
        device.on_uncaptured_error(Arc::new(move |error| {
            let kind = match &error {
                wgpu::Error::OutOfMemory { .. } => Kind::OutOfMemory,
                _ => Kind::Shader,
            };
            latch_first(&latch, Error::new(kind, "run on the device", error.to_string()));
        }));
        Ok(Gpu {
            inner: Arc::new(Inner {
                caps,
                device,
                queue,
                account,
                fault,
                kernels: Mutex::default(),
                in_flight: Mutex::default(),
            }),
        })
    }

    pub fn caps(&self) -> &Caps {
        &self.inner.caps
    }

    /// Bytes held now, by purpose.
    pub fn memory(&self) -> Memory {
        self.inner.account.memory()
    }

    /// The most bytes held at any time since the device was opened.
    pub fn peak_bytes(&self) -> u64 {
        self.inner.account.peak()
    }

    /// The first fatal thing that happened to the device, if any. Every call that touches the device asks this.
    pub fn check(&self) -> Result<()> {
        match &*lock(&self.inner.fault) {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Makes the device unusable, as a driver reset would. For tests of what happens then.
    pub fn simulate_loss(&self) {
        self.inner.device.destroy();
        let _ = self.inner.device.poll(wgpu::PollType::wait_indefinitely());
    }

    fn device(&self) -> &wgpu::Device {
        &self.inner.device
    }

    fn account(&self) -> &Arc<Account> {
        &self.inner.account
    }
}

fn latch_first(latch: &Mutex<Option<Error>>, error: Error) {
    let mut fault = lock(latch);
    // A loss explains the errors before it in the same breath, so it may replace them; nothing replaces a loss, and
    // nothing replaces the want of memory that led to one.
    let replaces =
        |f: &Error| !matches!(f.kind, Kind::DeviceLost | Kind::OutOfMemory) && error.kind == Kind::DeviceLost;
    if fault.as_ref().is_none_or(replaces) {
        *fault = Some(error);
    }
}

/// Locks, also after a panic elsewhere: the data behind our locks is valid at every point.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
