//! Submitting work: a bounded number of submissions in flight, uploads, the step uniform, and reading back.

use super::buffer::{Buffer, BufferSlice};
use super::kernel::Dispatch;
use super::{Gpu, lock};
use crate::error::{Error, Kind, Result};
use std::collections::VecDeque;
use std::sync::Mutex;

/// Submissions that may be under way before a further one waits. Dropped buffers are freed, and staging memory comes
/// back, only as submissions end: without a bound a fast host grows the process without end.
const MAX_IN_FLIGHT: usize = 3;

#[derive(Default)]
pub(super) struct InFlight {
    submissions: VecDeque<wgpu::SubmissionIndex>,
}

/// What changes between two replays of a plan; `shaders/shared/step.wgsl` says what each field means.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Step {
    pub key: [u32; 2],
    pub step: u32,
    pub micro: u32,
    pub lr: f32,
    pub loss_scale: f32,
    pub grad_scale: f32,
    pub bias1: f32,
    pub bias2: f32,
    pub reserved: [f32; 7],
}

impl Default for Step {
    fn default() -> Self {
        Step::new(0, 0, 0)
    }
}

impl Step {
    /// Step `step`, micro-batch `micro`, of a run with `seed`; rates and scales at 1 apart from `lr` 0.
    pub fn new(seed: u64, step: u32, micro: u32) -> Step {
        // splitmix64 (Steele, Lea, Flood 2014) over the three, one after the other.
        let mix = |x: u64| {
            let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            x ^ (x >> 31)
        };
        let key = mix(mix(mix(seed) ^ u64::from(step)) ^ u64::from(micro));
        Step {
            key: [key as u32, (key >> 32) as u32],
            step,
            micro,
            lr: 0.0,
            loss_scale: 1.0,
            grad_scale: 1.0,
            bias1: 1.0,
            bias2: 1.0,
            reserved: [0.0; 7],
        }
    }
}

/// The device's copy of a [`Step`].
pub struct StepUniform {
    buffer: Buffer,
}

impl StepUniform {
    pub fn new(gpu: &Gpu) -> Result<Self> {
        Ok(StepUniform { buffer: gpu.uniform_buffer("step", std::mem::size_of::<Step>() as u64)? })
    }

    pub fn slice(&self) -> BufferSlice {
        self.buffer.slice(0, std::mem::size_of::<Step>() as u64)
    }

    /// Takes effect with the next submission.
    pub fn write(&self, gpu: &Gpu, step: &Step) -> Result<()> {
        gpu.write(&self.buffer.whole(), bytemuck::bytes_of(step))
    }
}

/// A staging buffer for reading back, made once and reused.
pub struct Readback {
    buffer: Buffer,
    /// One reader at a time: a buffer that is mapped may not be copied to.
    busy: Mutex<()>,
}

impl Readback {
    pub fn new(gpu: &Gpu, bytes: u64) -> Result<Self> {
        Ok(Readback { buffer: gpu.staging_buffer("readback", bytes)?, busy: Mutex::new(()) })
    }

    /// Waits for all work submitted so far and copies `slice` out.
    pub fn read(&self, gpu: &Gpu, slice: &BufferSlice) -> Result<Vec<u8>> {
        let attempt = "read back from the device";
        if slice.bytes > self.buffer.bytes() {
            let happened = format!("{} bytes do not fit staging of {}", slice.bytes, self.buffer.bytes());
            return Err(Error::new(Kind::Limit, attempt, happened));
        }
        let _alone = lock(&self.busy);
        gpu.check()?;
        // Copies are in words of four bytes; what is read past the end is cut off below.
        let bytes = slice.bytes.next_multiple_of(4);
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(slice.buffer.raw(), slice.offset, self.buffer.raw(), 0, bytes);
        gpu.submit_raw(encoder.finish());
        let (sender, receiver) = std::sync::mpsc::channel();
        self.buffer.raw().map_async(wgpu::MapMode::Read, 0..bytes, move |result| {
            let _ = sender.send(result);
        });
        gpu.wait()?;
        let lost = |e: String| gpu.check().err().unwrap_or_else(|| Error::new(Kind::DeviceLost, attempt, e));
        // Where another thread polls at the same time, it may be the one that still has to call us.
        let mapped = loop {
            match receiver.recv_timeout(std::time::Duration::from_millis(5)) {
                Ok(mapped) => break mapped,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => gpu.wait()?,
                Err(_) => return Err(lost("the device dropped the request".into())),
            }
        };
        mapped.map_err(|e| lost(e.to_string()))?;
        let view = self.buffer.raw().get_mapped_range(0..bytes).map_err(|e| lost(e.to_string()))?;
        let mut out = view.to_vec();
        drop(view);
        self.buffer.raw().unmap();
        out.truncate(slice.bytes as usize);
        Ok(out)
    }
}

impl Gpu {
    /// Queues an upload: it happens before the next submission. `data` is padded to whole words of four bytes.
    pub fn write(&self, slice: &BufferSlice, data: &[u8]) -> Result<()> {
        self.check()?;
        if data.len() as u64 > slice.bytes {
            let happened = format!("{} bytes do not fit {}", data.len(), slice.bytes);
            return Err(Error::new(Kind::Shape, "upload to the device", happened));
        }
        let whole = data.len() & !3;
        self.inner.queue.write_buffer(slice.buffer.raw(), slice.offset, &data[..whole]);
        if whole < data.len() {
            let mut last = [0u8; 4];
            last[..data.len() - whole].copy_from_slice(&data[whole..]);
            self.inner.queue.write_buffer(slice.buffer.raw(), slice.offset + whole as u64, &last);
        }
        Ok(())
    }

    /// Encodes `dispatches` into one pass and submits it; waits first while too much is in flight.
    pub fn submit<'a>(&self, dispatches: impl IntoIterator<Item = &'a Dispatch>) -> Result<()> {
        self.check()?;
        let commands = self.encode(dispatches);
        self.submit_raw(commands);
        self.bound_in_flight()?;
        self.check()
    }

    /// The host's part of a submission alone: what recording a replay costs.
    pub(super) fn encode<'a>(&self, dispatches: impl IntoIterator<Item = &'a Dispatch>) -> wgpu::CommandBuffer {
        let mut encoder = self.device().create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            let mut bound = None;
            for dispatch in dispatches {
                dispatch.encode(&mut pass, &mut bound);
            }
        }
        encoder.finish()
    }

    /// Seconds of host time that encoding `dispatches` takes; the commands are dropped.
    pub fn encoding_seconds(&self, dispatches: &[Dispatch]) -> f64 {
        let start = std::time::Instant::now();
        let commands = self.encode(dispatches);
        let seconds = start.elapsed().as_secs_f64();
        drop(commands);
        seconds
    }

    pub(super) fn submit_raw(&self, commands: wgpu::CommandBuffer) {
        let index = self.inner.queue.submit([commands]);
        lock(&self.inner.in_flight).submissions.push_back(index);
    }

    pub(super) fn queue(&self) -> &wgpu::Queue {
        &self.inner.queue
    }

    fn bound_in_flight(&self) -> Result<()> {
        let oldest = {
            let mut in_flight = lock(&self.inner.in_flight);
            if in_flight.submissions.len() > MAX_IN_FLIGHT { in_flight.submissions.pop_front() } else { None }
        };
        match oldest {
            Some(index) => self.poll(wgpu::PollType::Wait { submission_index: Some(index), timeout: None }),
            None => self.poll(wgpu::PollType::Poll),
        }
    }

    /// Waits until everything submitted has run.
    pub fn wait(&self) -> Result<()> {
        lock(&self.inner.in_flight).submissions.clear();
        self.poll(wgpu::PollType::wait_indefinitely())?;
        self.check()
    }

    fn poll(&self, poll: wgpu::PollType) -> Result<()> {
        match self.device().poll(poll) {
            Ok(_) => Ok(()),
            Err(e) => {
                self.check()?;
                Err(Error::new(Kind::DeviceLost, "wait for the device", e.to_string()))
            }
        }
    }
}
