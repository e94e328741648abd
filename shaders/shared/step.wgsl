// What changes from one replay of a plan to the next. 64 bytes, written once before each submission;
// everything else a kernel is told is fixed when the plan is recorded. Binding: the including file says
// `@group(0) @binding({{ STEP_BINDING }}) var<uniform> step: Step;` through the STEP_BINDING constant.
struct Step {
  key_lo: u32,        // random key: a 64-bit mix of (seed, step, micro-batch), made on the host
  key_hi: u32,
  step: u32,          // optimiser step, from 0
  micro: u32,         // micro-batch within the step, from 0
  lr: f32,            // learning rate of this step
  loss_scale: f32,    // every loss gradient is multiplied by this (f16 training); 1 otherwise
  grad_scale: f32,    // 1 / (loss_scale * micro-batches): what the optimiser multiplies gradients by
  bias1: f32,         // 1 - beta1^t, or 1 without bias correction
  bias2: f32,         // 1 - beta2^t, or 1
  reserved0: f32, reserved1: f32, reserved2: f32, reserved3: f32, reserved4: f32, reserved5: f32, reserved6: f32,
}
@group(0) @binding({{ STEP_BINDING }}) var<uniform> step: Step;
