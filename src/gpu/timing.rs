//! Device time per launch, from timestamps where the adapter has them.

use super::buffer::Buffer;
use super::kernel::Dispatch;
use super::{Gpu, Readback, Timestamps};
use crate::error::{Error, Kind, Result};

/// Launches timed in one go: two timestamps each, and a query set holds at most 4096.
const BATCH: usize = 2048;

/// Times launches one by one.
pub struct Timer {
    queries: wgpu::QuerySet,
    resolved: Buffer,
    readback: Readback,
    inside: bool,
    period_ns: f64,
}

impl Timer {
    /// Error where the adapter has no timestamps: time whole submissions instead.
    pub fn new(gpu: &Gpu) -> Result<Timer> {
        let inside = match gpu.caps().timestamps {
            Timestamps::InsidePasses => true,
            Timestamps::PassBoundaries => false,
            Timestamps::None => {
                return Err(Error::new(Kind::Adapter, "time launches", "this adapter has no timestamp queries"));
            }
        };
        let count = 2 * BATCH as u32;
        let scopes =
            [wgpu::ErrorFilter::Validation, wgpu::ErrorFilter::OutOfMemory].map(|f| gpu.device().push_error_scope(f));
        let queries = gpu.device().create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("launch times"),
            ty: wgpu::QueryType::Timestamp,
            count,
        });
        // Some drivers have few query sets to give; that is no fault of the device.
        for scope in scopes.into_iter().rev() {
            if let Some(error) = pollster::block_on(scope.pop()) {
                return Err(Error::new(Kind::Adapter, "time launches", error.to_string()));
            }
        }
        let bytes = u64::from(count) * 8;
        Ok(Timer {
            queries,
            resolved: gpu.query_buffer(bytes)?,
            readback: Readback::new(gpu, bytes)?,
            inside,
            period_ns: f64::from(gpu.queue().get_timestamp_period()),
        })
    }

    /// Length of one tick of the device's clock, in nanoseconds.
    pub fn period_ns(&self) -> f64 {
        self.period_ns
    }

    /// Runs `dispatches` in order and gives nanoseconds of device time for each.
    pub fn run(&self, gpu: &Gpu, dispatches: &[Dispatch]) -> Result<Vec<f64>> {
        let mut times = Vec::with_capacity(dispatches.len());
        for batch in dispatches.chunks(BATCH) {
            gpu.check()?;
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            if self.inside {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                let mut bound = None;
                for (i, dispatch) in batch.iter().enumerate() {
                    pass.write_timestamp(&self.queries, 2 * i as u32);
                    dispatch.encode(&mut pass, &mut bound);
                    pass.write_timestamp(&self.queries, 2 * i as u32 + 1);
                }
            } else {
                for (i, dispatch) in batch.iter().enumerate() {
                    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                        label: None,
                        timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                            query_set: &self.queries,
                            beginning_of_pass_write_index: Some(2 * i as u32),
                            end_of_pass_write_index: Some(2 * i as u32 + 1),
                        }),
                    });
                    dispatch.encode(&mut pass, &mut None);
                }
            }
            let ticks = 2 * batch.len() as u32;
            encoder.resolve_query_set(&self.queries, 0..ticks, self.resolved.raw(), 0);
            gpu.submit_raw(encoder.finish());
            let bytes = self.readback.read(gpu, &self.resolved.slice(0, u64::from(ticks) * 8))?;
            let ticks: &[u64] = &bytemuck::pod_collect_to_vec(&bytes);
            times.extend(ticks.chunks_exact(2).map(|t| t[1].saturating_sub(t[0]) as f64 * self.period_ns));
        }
        Ok(times)
    }
}
