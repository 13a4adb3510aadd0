//! Packed matrices on Apple's GPU, multiplied as they are packed.
//!
//! | file | owns |
//! |---|---|
//! | [`kernels`] | compiling them, once |
//! | [`stack`] | matrices of experts, of which each output takes one |
//! | [`resident`] | weights in the GPU's sight, without a copy |
//!
//! The kernels are those of [`crate::packed`], whose numbers are tested on a processor (`tests/msl.rs`); this room's
//! Rust is type-checked for macOS and has not been run.
//!
//! Letters of shapes: T tokens, R rows (outputs), C columns (inputs).

mod kernels;
mod resident;
mod stack;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, MetalDevice, MetalStorage, Shape, Tensor};
use candle_metal_kernels::metal::Buffer;
use objc2_metal::MTLSize;

use self::kernels::KERNELS;
use self::resident::Resident;
pub(crate) use self::stack::PackedStack;
use crate::device::Device;
use crate::error::InferError;
use crate::packed::source::{self, Launch, Packing, Set};
use crate::packed::{Parts, float, narrow};
use crate::scope::Scope;
use crate::weights::Stored;

/// A matrix (R, C) in the GPU's memory, packed as its file has it.
pub(crate) struct PackedMatrix {
    rows: usize,
    cols: usize,
    packing: Packing,
    set: Set,
    device: MetalDevice,
    words: Resident,
    scales: Resident,
    /// Of the affine formats.
    biases: Option<Resident>,
}

impl PackedMatrix {
    /// Loads the matrix of the module at this place; `None` when it is not packed in a way that the kernels know, or
    /// not for Apple's GPU.
    ///
    /// # Errors
    /// [`InferError::MissingTensor`], [`InferError::TensorShape`]; [`InferError::Device`] without memory, or when the
    /// kernels do not compile.
    pub(crate) fn load(at: &Scope<'_>, rows: usize, cols: usize) -> Result<Option<Self>, InferError> {
        Self::load_for(Set::Matrix, at, &[], rows, cols)
    }

    /// Loads what kernels of a set read: a matrix, or matrices that are stacked as `stack` says.
    fn load_for(
        set: Set,
        at: &Scope<'_>,
        stack: &[usize],
        rows: usize,
        cols: usize,
    ) -> Result<Option<Self>, InferError> {
        let candle_core::Device::Metal(device) = at.opened() else { return Ok(None) };
        let Some(parts) = Parts::find(at, stack, rows, cols)? else { return Ok(None) };
        let Parts { packing, words, scales, biases } = parts;
        let inputs = float(Device::Metal.activations()).map_err(InferError::device)?;
        KERNELS.library(device, packing, inputs, set).map_err(InferError::device)?;
        let scale_bytes = scales.dtype.bitsize() / 8;
        let resident = |stored: &Stored, number_bytes| {
            Resident::new(device, &stored.bytes, number_bytes).map_err(InferError::device)
        };
        Ok(Some(Self {
            rows,
            cols,
            packing,
            set,
            device: device.clone(),
            words: resident(words, 4)?,
            scales: resident(scales, scale_bytes)?,
            biases: biases.map(|biases| resident(biases, scale_bytes)).transpose()?,
        }))
    }

    /// The product of inputs (T, C) with every row: (T, R), of the inputs' type.
    ///
    /// # Errors
    /// Those of the device, and that inputs are of another width.
    pub(crate) fn forward(&self, inputs: &Tensor) -> candle_core::Result<Tensor> {
        inputs.contiguous()?.apply_op1_no_bwd(&Products(self))
    }

    /// The rows of these numbers: (T, C), of the type that activations have.
    ///
    /// # Errors
    /// Those of the device; the caller has checked that there are such rows.
    pub(crate) fn rows(&self, numbers: &[u32]) -> candle_core::Result<Tensor> {
        let numbers = Tensor::new(numbers, &candle_core::Device::Metal(self.device.clone()))?;
        numbers.apply_op1_no_bwd(&Rows(self))
    }

    /// The sizes of a launch for `tokens` outputs.
    fn sizes(&self, tokens: usize) -> candle_core::Result<source::Shape> {
        let (rows, cols, tokens) = (narrow(self.rows)?, narrow(self.cols)?, narrow(tokens)?);
        Ok(source::Shape { rows, cols, tokens, experts: 1, share: 1 })
    }

    /// Queues a launch behind what candle has queued; `bound` are the buffers beside the matrix's own, each with where
    /// it starts. Returns what it writes: `count` numbers of `dtype`.
    fn run(
        &self,
        launch: &Launch,
        dtype: DType,
        sizes: source::Shape,
        count: usize,
        bound: &[(usize, &Buffer, usize)],
    ) -> candle_core::Result<MetalStorage> {
        let pipeline = KERNELS.pipeline(&self.device, self.packing, float(dtype)?, self.set, launch)?;
        let output = self.device.new_buffer_builder().with_size_for(count, dtype).build()?;
        let guard = self.device.command_encoder()?;
        let encoder = guard.as_ref();
        encoder.set_compute_pipeline_state(&pipeline);
        let biases = self.biases.as_ref().unwrap_or(&self.scales);
        for (index, part) in [&self.words, &self.scales, biases].into_iter().enumerate() {
            encoder.set_input_buffer(index, Some(&part.buffer), part.offset);
        }
        for (index, buffer, offset) in bound {
            encoder.set_input_buffer(*index, Some(*buffer), *offset);
        }
        encoder.set_output_buffer(OUTPUT, Some(&output), 0);
        encoder.set_bytes(SHAPE, &sizes);
        let [width, height] = launch.groups;
        let threads = MTLSize { width: launch.threads, height: 1, depth: 1 };
        encoder.dispatch_thread_groups(MTLSize { width, height, depth: 1 }, threads);
        drop(guard);
        Ok(MetalStorage::new(output, self.device.clone(), count, dtype))
    }
}

/// `forward` as an operation of candle.
struct Products<'a>(&'a PackedMatrix);

impl CustomOp1 for Products<'_> {
    fn name(&self) -> &'static str {
        "packed-products"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        candle_core::bail!("the matrix is on a GPU, and its inputs are not")
    }

    fn metal_fwd(
        &self,
        inputs: &MetalStorage,
        layout: &Layout,
    ) -> candle_core::Result<(MetalStorage, Shape)> {
        let (matrix, dtype) = (self.0, inputs.dtype());
        let (tokens, cols) = layout.shape().dims2()?;
        if cols != matrix.cols || tokens == 0 || !layout.is_contiguous() {
            candle_core::bail!("inputs {:?} for a matrix of {} columns", layout.shape(), matrix.cols)
        }
        let launch = matrix.packing.product(float(dtype)?, matrix.rows, tokens);
        let bound = (INPUTS, inputs.buffer(), layout.start_offset() * dtype.size_in_bytes());
        let products = matrix.run(&launch, dtype, matrix.sizes(tokens)?, tokens * matrix.rows, &[bound])?;
        Ok((products, (tokens, matrix.rows).into()))
    }
}

/// `rows` as an operation of candle.
struct Rows<'a>(&'a PackedMatrix);

impl CustomOp1 for Rows<'_> {
    fn name(&self) -> &'static str {
        "packed-rows"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        candle_core::bail!("the matrix is on a GPU, and the numbers of its rows are not")
    }

    fn metal_fwd(
        &self,
        numbers: &MetalStorage,
        layout: &Layout,
    ) -> candle_core::Result<(MetalStorage, Shape)> {
        let (matrix, dtype) = (self.0, Device::Metal.activations());
        let tokens = layout.shape().dims1()?;
        if tokens == 0 || numbers.dtype() != DType::U32 || !layout.is_contiguous() {
            candle_core::bail!("{:?} numbers of rows", layout.shape())
        }
        let launch = matrix.packing.take_rows(float(dtype)?, matrix.cols, tokens);
        let bound = (IDS, numbers.buffer(), layout.start_offset() * DType::U32.size_in_bytes());
        let rows = matrix.run(&launch, dtype, matrix.sizes(tokens)?, tokens * matrix.cols, &[bound])?;
        Ok((rows, (tokens, matrix.cols).into()))
    }
}

// Where the kernels expect their buffers; the matrix's own are 0 to 2.
const INPUTS: usize = 3;
const OUTPUT: usize = 4;
const SHAPE: usize = 5;
const IDS: usize = 6;
