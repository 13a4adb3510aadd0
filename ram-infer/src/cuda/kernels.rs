//! The kernels on the GPU: each format's are compiled when the first matrix of it is loaded, once a process.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use candle_core::CudaDevice;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::CudaFunction;
use candle_core::cuda_backend::cudarc::nvrtc::{self, CompileOptions};

use super::source;
use crate::packed::source::{Float, Launch, Packing, Set};

/// All kernels that were asked for.
pub(super) static KERNELS: LazyLock<Kernels> = LazyLock::new(Kernels::default);

/// Compiled kernels.
#[derive(Default)]
pub(super) struct Kernels {
    /// In PTX, which the driver makes into the code of its GPU.
    compiled: Mutex<HashMap<(Packing, Float, Set), Arc<str>>>,
}

impl Kernels {
    /// A set of a packing's kernels for inputs of a type, compiled unless they were.
    ///
    /// # Errors
    /// That NVRTC refuses the source.
    pub(super) fn compiled(
        &self,
        packing: Packing,
        inputs: Float,
        set: Set,
    ) -> candle_core::Result<Arc<str>> {
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ptx) = compiled.get(&(packing, inputs, set)) {
            return Ok(Arc::clone(ptx));
        }
        let options = source::OPTIONS.map(str::to_owned).into();
        let options = CompileOptions { options, ..CompileOptions::default() };
        let ptx = nvrtc::compile_ptx_with_opts(source::source(packing, inputs, set), options);
        let ptx: Arc<str> = ptx.w()?.to_src().into();
        compiled.insert((packing, inputs, set), Arc::clone(&ptx));
        Ok(ptx)
    }

    /// The kernel of a launch, ready to run on a device.
    ///
    /// # Errors
    /// Those of [`Self::compiled`], and that the driver refuses what was compiled.
    pub(super) fn function(
        &self,
        device: &CudaDevice,
        packing: Packing,
        inputs: Float,
        set: Set,
        launch: &Launch,
    ) -> candle_core::Result<CudaFunction> {
        let ptx = self.compiled(packing, inputs, set)?;
        let module = format!("{set:?} {}", packing.label(inputs));
        let function = device.get_or_load_custom_func(&launch.kernel, &module, &ptx)?;
        Ok(function.into_cuda_function())
    }
}
