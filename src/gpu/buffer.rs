//! Buffers with exact accounting by purpose.

use super::Gpu;
use crate::error::{Error, Kind, Result};
use serde::Serialize;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a buffer is for; memory is accounted and printed by purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    Parameters,
    Gradients,
    Optimizer,
    Activations,
    Scratch,
    Inputs,
    Staging,
}

impl Purpose {
    pub const ALL: [Purpose; 7] = [
        Purpose::Parameters,
        Purpose::Gradients,
        Purpose::Optimizer,
        Purpose::Activations,
        Purpose::Scratch,
        Purpose::Inputs,
        Purpose::Staging,
    ];
}

/// Bytes by purpose. A plan states it before it runs; [`Gpu::memory`] gives what is held now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    bytes: [u64; Purpose::ALL.len()],
}

impl Memory {
    pub fn of(&self, purpose: Purpose) -> u64 {
        self.bytes[purpose as usize]
    }

    pub fn add(&mut self, purpose: Purpose, bytes: u64) {
        self.bytes[purpose as usize] += bytes;
    }

    pub fn total(&self) -> u64 {
        self.bytes.iter().sum()
    }
}

impl std::ops::Add for Memory {
    type Output = Memory;
    fn add(self, other: Memory) -> Memory {
        Memory { bytes: std::array::from_fn(|i| self.bytes[i] + other.bytes[i]) }
    }
}

impl std::ops::Sub for Memory {
    type Output = Memory;
    fn sub(self, before: Memory) -> Memory {
        Memory { bytes: std::array::from_fn(|i| self.bytes[i].saturating_sub(before.bytes[i])) }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for purpose in Purpose::ALL {
            if self.of(purpose) > 0 {
                writeln!(f, "  {:<12} {:>10.2} MiB", format!("{purpose:?}").to_lowercase(), mib(self.of(purpose)))?;
            }
        }
        write!(f, "  {:<12} {:>10.2} MiB", "total", mib(self.total()))
    }
}

pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}

/// Live counters behind [`Memory`].
#[derive(Debug, Default)]
pub(super) struct Account {
    now: [AtomicU64; Purpose::ALL.len()],
    peak: AtomicU64,
}

impl Account {
    fn add(&self, purpose: Purpose, bytes: u64) {
        self.now[purpose as usize].fetch_add(bytes, Ordering::Relaxed);
        self.peak.fetch_max(self.memory().total(), Ordering::Relaxed);
    }

    fn remove(&self, purpose: Purpose, bytes: u64) {
        self.now[purpose as usize].fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn memory(&self) -> Memory {
        Memory { bytes: std::array::from_fn(|i| self.now[i].load(Ordering::Relaxed)) }
    }

    pub(super) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}

/// Buffers are sized in steps of this, which is also WebGPU's binding-offset alignment: slices of arenas stand on it.
pub const ALIGN: u64 = 256;

pub fn align(bytes: u64) -> u64 {
    bytes.max(1).next_multiple_of(ALIGN)
}

/// A device buffer. Cloning shares it; the memory goes back to the account with the last clone.
#[derive(Clone)]
pub struct Buffer {
    inner: Arc<Inner>,
}

struct Inner {
    raw: wgpu::Buffer,
    bytes: u64,
    purpose: Purpose,
    account: Arc<Account>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.account.remove(self.purpose, self.bytes);
    }
}

impl Buffer {
    pub fn bytes(&self) -> u64 {
        self.inner.bytes
    }

    pub(super) fn raw(&self) -> &wgpu::Buffer {
        &self.inner.raw
    }

    pub fn slice(&self, offset: u64, bytes: u64) -> BufferSlice {
        BufferSlice { buffer: self.clone(), offset, bytes }
    }

    pub fn whole(&self) -> BufferSlice {
        self.slice(0, self.bytes())
    }

    /// Tells device buffers apart, as long as they live.
    pub(super) fn id(&self) -> usize {
        Arc::as_ptr(&self.inner) as usize
    }
}

/// A range of a buffer, as bound to a kernel.
#[derive(Clone)]
pub struct BufferSlice {
    pub buffer: Buffer,
    pub offset: u64,
    pub bytes: u64,
}

impl Gpu {
    /// A zeroed storage buffer of at least `bytes`, rounded up to [`ALIGN`].
    ///
    /// Errors: over the adapter's buffer limit ([`Kind::Limit`]), out of memory, device lost.
    pub fn buffer(&self, label: &str, purpose: Purpose, bytes: u64) -> Result<Buffer> {
        use wgpu::BufferUsages as U;
        self.create(label, purpose, bytes, U::STORAGE | U::COPY_SRC | U::COPY_DST)
    }

    pub(super) fn uniform_buffer(&self, label: &str, bytes: u64) -> Result<Buffer> {
        use wgpu::BufferUsages as U;
        self.create(label, Purpose::Inputs, bytes, U::UNIFORM | U::COPY_DST)
    }

    pub(super) fn staging_buffer(&self, label: &str, bytes: u64) -> Result<Buffer> {
        use wgpu::BufferUsages as U;
        self.create(label, Purpose::Staging, bytes, U::MAP_READ | U::COPY_DST)
    }

    pub(super) fn query_buffer(&self, bytes: u64) -> Result<Buffer> {
        use wgpu::BufferUsages as U;
        self.create("timestamps", Purpose::Staging, bytes, U::QUERY_RESOLVE | U::COPY_SRC)
    }

    fn create(&self, label: &str, purpose: Purpose, bytes: u64, usage: wgpu::BufferUsages) -> Result<Buffer> {
        self.check()?;
        let bytes = align(bytes);
        let attempt = || format!("allocate {label} ({purpose:?}, {bytes} bytes)");
        let limit = self.caps().limits.buffer_bytes;
        if bytes > limit {
            let happened = format!("{bytes} bytes are over this adapter's max_buffer_size of {limit} bytes");
            return Err(Error::new(Kind::Limit, attempt(), happened).hint("use smaller batches or micro-batches"));
        }
        let scope = self.device().push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let raw = self.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: bytes,
            usage,
            mapped_at_creation: false,
        });
        if let Some(error) = pollster::block_on(scope.pop()) {
            // After a device loss tiny allocations report out-of-memory: the loss is the truth.
            self.check()?;
            let held = self.memory();
            return Err(Error::new(
                Kind::OutOfMemory,
                attempt(),
                format!("the device has no memory left ({error}); held now:\n{held}"),
            )
            .hint("use a smaller batch, more micro-batches, a smaller length, or f16"));
        }
        self.check()?;
        self.account().add(purpose, bytes);
        Ok(Buffer { inner: Arc::new(Inner { raw, bytes, purpose, account: self.account().clone() }) })
    }
}
