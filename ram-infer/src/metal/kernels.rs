//! The kernels on the GPU: each format's are compiled when the first matrix of it is loaded, once a process.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use candle_core::{MetalDevice, MetalError};
use candle_metal_kernels::metal::{ComputePipeline, Library};

use crate::packed::source::{Float, Launch, Packing, Set};

/// All kernels that were asked for. This crate opens one GPU, the first, so they are all of that.
pub(super) static KERNELS: LazyLock<Kernels> = LazyLock::new(Kernels::default);

/// Compiled kernels.
#[derive(Default)]
pub(super) struct Kernels {
    libraries: Mutex<HashMap<(Packing, Float, Set), Library>>,
    /// By the kernel's name, which holds packing and type of inputs.
    pipelines: Mutex<HashMap<String, ComputePipeline>>,
}

impl Kernels {
    /// A set of a packing's kernels for inputs of a type, compiled unless they were.
    ///
    /// # Errors
    /// That the GPU's compiler refuses the source: before macOS 14 it has no bf16.
    pub(super) fn library(
        &self,
        device: &MetalDevice,
        packing: Packing,
        inputs: Float,
        set: Set,
    ) -> candle_core::Result<Library> {
        let mut libraries = self.libraries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(library) = libraries.get(&(packing, inputs, set)) {
            return Ok(library.clone());
        }
        let library = device.metal_device().new_library_with_source(&packing.source(inputs, set), None);
        let library = library.map_err(MetalError::from)?;
        libraries.insert((packing, inputs, set), library.clone());
        Ok(library)
    }

    /// The kernel of a launch, ready to run.
    ///
    /// # Errors
    /// Those of [`Self::library`].
    pub(super) fn pipeline(
        &self,
        device: &MetalDevice,
        packing: Packing,
        inputs: Float,
        set: Set,
        launch: &Launch,
    ) -> candle_core::Result<ComputePipeline> {
        let mut pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = pipelines.get(&launch.kernel) {
            return Ok(pipeline.clone());
        }
        let function = self.library(device, packing, inputs, set)?.get_function(&launch.kernel, None);
        let function = function.map_err(MetalError::from)?;
        let pipeline = device.metal_device().new_compute_pipeline_state_with_function(&function);
        let pipeline = pipeline.map_err(MetalError::from)?;
        pipelines.insert(launch.kernel.clone(), pipeline.clone());
        Ok(pipeline)
    }
}
