//! The options of inference: `[inference]`.

use serde::{Deserialize, Serialize};

use crate::config::ConfigError;

/// Where sessions run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// A GPU where there is one, else the CPU; the choice is logged.
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU; without one the start fails.
    Cuda,
}

/// `[inference]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InferenceConfig {
    /// Where sessions run.
    pub device: Device,
    /// ONNX Runtime's shared library; empty: `ORT_DYLIB_PATH`, then beside the executable, then the system's.
    pub runtime: String,
    /// Maximum images per run; 0: the smallest batch that is nearly as fast per image as twice its size, measured in
    /// warm-up.
    pub max_batch: usize,
    /// On the CPU, the longest a run may take; warm-up lowers the batch until it fits.
    pub max_run_ms: u64,
    /// Threads of ONNX Runtime on the CPU; 0: one per core.
    pub threads: usize,
    /// GPU memory for ONNX Runtime; 0: no limit.
    pub gpu_memory_bytes: usize,
}

impl Default for InferenceConfig {
    fn default() -> Self {
        Self {
            device: Device::Auto,
            runtime: String::new(),
            max_batch: 0,
            max_run_ms: 500,
            threads: 0,
            gpu_memory_bytes: 0,
        }
    }
}

impl InferenceConfig {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        ConfigError::refuse_zero(&[("inference.max_run_ms", self.max_run_ms)])
    }
}
