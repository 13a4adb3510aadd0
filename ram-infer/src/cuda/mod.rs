//! Packed matrices on NVIDIA's GPUs, multiplied as they are packed.
//!
//! | file | owns |
//! |---|---|
//! | `metal_stdlib.cuh` | Metal's words in CUDA's language, and the kernels' entry points |
//! | [`source`] | their text for CUDA's compiler, and how they are launched |
//! | [`kernels`] | compiling them, once |
//! | [`stack`] | matrices of experts, of which each output takes one |
//!
//! The kernels are those of [`crate::packed`]. They are compiled by NVRTC, CUDA's runtime compiler, when a model is
//! loaded; `tests/cuda.rs` compiles them all. This room's Rust is type-checked. None of it has been run on a GPU.
//!
//! Letters of shapes: T tokens, R rows (outputs), C columns (inputs).

mod kernels;
mod source;
mod stack;

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaView, DeviceRepr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::{CpuStorage, CudaDevice, CudaStorage, CustomOp1, DType, Layout, Shape, Tensor};

use self::kernels::KERNELS;
pub(crate) use self::stack::PackedStack;
use crate::device::Device;
use crate::error::InferError;
use crate::packed::source::{FEW_TOKENS_MAX, Launch, Packing, Set, Shape as Sizes};
use crate::packed::{Parts, float, narrow};
use crate::scope::Scope;
use crate::weights::Stored;

/// A matrix (R, C) in the GPU's memory, packed as its file has it.
pub(crate) struct PackedMatrix {
    rows: usize,
    cols: usize,
    packing: Packing,
    set: Set,
    device: CudaDevice,
    words: CudaSlice<u8>,
    scales: CudaSlice<u8>,
    /// Of the affine formats.
    biases: Option<CudaSlice<u8>>,
    /// 0 to R - 1, (R): what the kernel is asked for when all rows are unpacked.
    numbers: Tensor,
}

impl PackedMatrix {
    /// Loads the matrix of the module at this place; `None` when it is not packed in a way that the kernels know, or
    /// not for NVIDIA's GPU.
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
        let candle_core::Device::Cuda(device) = at.opened() else { return Ok(None) };
        let Some(parts) = Parts::find(at, stack, rows, cols)? else { return Ok(None) };
        Self::upload(device, set, &parts, rows, cols).map(Some).map_err(InferError::device)
    }

    fn upload(
        device: &CudaDevice,
        set: Set,
        parts: &Parts<'_>,
        rows: usize,
        cols: usize,
    ) -> candle_core::Result<Self> {
        let packing = parts.packing;
        KERNELS.compiled(packing, float(Device::Cuda.activations())?, set)?;
        let upload = |stored: &Stored| device.clone_htod(&stored.bytes[..]);
        let matrix = Self {
            rows,
            cols,
            packing,
            set,
            device: device.clone(),
            words: upload(parts.words)?,
            scales: upload(parts.scales)?,
            biases: parts.biases.map(upload).transpose()?,
            numbers: Tensor::arange(0, narrow(rows)?, &candle_core::Device::Cuda(device.clone()))?,
        };
        // Each thread queues on a stream of its own: what other threads read must be there before they are handed it.
        device.synchronize()?;
        Ok(matrix)
    }

    /// The product of inputs (T, C) with every row: (T, R), of the inputs' type.
    ///
    /// # Errors
    /// Those of the device, and that inputs are of another type or width.
    pub(crate) fn forward(&self, inputs: &Tensor) -> candle_core::Result<Tensor> {
        let inputs = inputs.contiguous()?;
        if inputs.dim(0)? <= PACKED_TOKENS_MAX {
            return inputs.apply_op1_no_bwd(&Products(self));
        }
        // Many inputs take the GPU's matrix units, which Metal's and CUDA's languages reach in ways too different for
        // one text; cuBLAS reaches them on every GPU. So rows are unpacked, as many at a time as memory is set aside
        // for, and it multiplies.
        let at_once = (UNPACKED_NUMBERS_MAX / self.cols).max(1);
        let product = |first: usize| {
            let numbers = self.numbers.narrow(0, first, at_once.min(self.rows - first))?;
            // (T, C) x (C, rows) -> (T, rows)
            inputs.matmul(&numbers.apply_op1_no_bwd(&Rows(self))?.t()?)
        };
        let products: candle_core::Result<Vec<Tensor>> =
            (0..self.rows).step_by(at_once).map(product).collect();
        Tensor::cat(&products?, 1)
    }

    /// The rows of these numbers: (T, C), of the type that activations have.
    ///
    /// # Errors
    /// Those of the device; the caller has checked that there are such rows.
    pub(crate) fn rows(&self, numbers: &[u32]) -> candle_core::Result<Tensor> {
        Tensor::new(numbers, self.numbers.device())?.apply_op1_no_bwd(&Rows(self))
    }

    /// The sizes of a launch for `tokens` outputs.
    fn sizes(&self, tokens: usize) -> candle_core::Result<Sizes> {
        let (rows, cols, tokens) = (narrow(self.rows)?, narrow(self.cols)?, narrow(tokens)?);
        Ok(Sizes { rows, cols, tokens, experts: 1, share: 1 })
    }

    /// Queues a launch behind what candle has queued: it reads the matrix, `from`, and `numbers` where its kernel takes
    /// them, and writes all of `to`.
    fn queue<From, To>(
        &self,
        launch: &Launch,
        sizes: &Sizes,
        from: &CudaView<'_, From>,
        numbers: Option<&CudaView<'_, u32>>,
        to: &mut CudaSlice<To>,
    ) -> candle_core::Result<()> {
        let inputs = float(Device::Cuda.activations())?;
        let function = KERNELS.function(&self.device, self.packing, inputs, self.set, launch)?;
        let [width, height] = launch.groups;
        let config = LaunchConfig {
            grid_dim: (narrow(width)?, narrow(height)?, 1),
            block_dim: (narrow(launch.threads)?, 1, 1),
            shared_mem_bytes: 0,
        };
        let biases = self.biases.as_ref().unwrap_or(&self.scales);
        let stream = self.device.cuda_stream();
        let mut queued = stream.launch_builder(&function);
        queued.arg(&self.words).arg(&self.scales).arg(biases).arg(from).arg(to).arg(sizes);
        if let Some(numbers) = numbers {
            queued.arg(numbers);
        }
        #[expect(unsafe_code, reason = "what a kernel is handed is not checked against what it takes")]
        // SAFETY: kernels take these six, of these types (`EXPORT_PRODUCTS`, `EXPORT_ROWS`), and those of a stack
        // numbers behind them (`EXPORT_GATHERED`). They read the matrix within R and C, and those of a stack within X,
        // which `Parts::find` checked against its tensors; `from`, `numbers` and `to` within T, which the callers check
        // or allocate; rows and matrices by numbers, of which one past the last counts as the last. Biases are not read
        // in formats that have none.
        unsafe { queued.launch(config) }.w()?;
        Ok(())
    }
}

#[expect(unsafe_code, reason = "cudarc asks for a promise")]
// SAFETY: it is five `u32` in C's order, as the kernels' `Shape`.
unsafe impl DeviceRepr for Sizes {}

/// `forward` of few inputs as an operation of candle.
struct Products<'a>(&'a PackedMatrix);

impl CustomOp1 for Products<'_> {
    fn name(&self) -> &'static str {
        "packed-products"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        candle_core::bail!("the matrix is on a GPU, and its inputs are not")
    }

    fn cuda_fwd(&self, inputs: &CudaStorage, layout: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        let matrix = self.0;
        let (tokens, cols) = layout.shape().dims2()?;
        if cols != matrix.cols || tokens == 0 || !layout.is_contiguous() {
            candle_core::bail!("inputs {:?} for a matrix of {} columns", layout.shape(), matrix.cols)
        }
        let CudaStorageSlice::BF16(numbers) = &inputs.slice else {
            candle_core::bail!("no kernel for inputs of type {:?}", inputs.dtype())
        };
        let inputs = numbers.slice(layout.start_offset()..layout.start_offset() + tokens * cols);
        let launch = source::product(matrix.packing, float(DType::BF16)?, matrix.rows, tokens);
        #[expect(unsafe_code, reason = "candle hands out memory that nothing was written to")]
        // SAFETY: the kernel writes each of the numbers before anything that is queued later reads them.
        let mut products = unsafe { matrix.device.alloc(tokens * matrix.rows) }?;
        matrix.queue(&launch, &matrix.sizes(tokens)?, &inputs, None, &mut products)?;
        let products = CudaStorage { slice: CudaStorageSlice::BF16(products), device: matrix.device.clone() };
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

    fn cuda_fwd(&self, numbers: &CudaStorage, layout: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        let matrix = self.0;
        let tokens = layout.shape().dims1()?;
        let CudaStorageSlice::U32(all) = &numbers.slice else {
            candle_core::bail!("numbers of rows of type {:?}", numbers.dtype())
        };
        if tokens == 0 || !layout.is_contiguous() {
            candle_core::bail!("{:?} numbers of rows", layout.shape())
        }
        let numbers = all.slice(layout.start_offset()..layout.start_offset() + tokens);
        let launch = source::take_rows(matrix.packing, float(DType::BF16)?, matrix.cols, tokens);
        #[expect(unsafe_code, reason = "candle hands out memory that nothing was written to")]
        // SAFETY: the kernel writes each of the numbers before anything that is queued later reads them.
        let mut rows = unsafe { matrix.device.alloc(tokens * matrix.cols) }?;
        matrix.queue(&launch, &matrix.sizes(tokens)?, &numbers, None, &mut rows)?;
        let rows = CudaStorage { slice: CudaStorageSlice::BF16(rows), device: matrix.device.clone() };
        Ok((rows, (tokens, matrix.cols).into()))
    }
}

/// Up to so many inputs are multiplied with rows as they are packed, eight at a time, more with unpacked ones. Of a
/// weight of 4 bits, two turns of eight read a byte; unpacking it to 2 bytes moves half a byte, 2 and 2. Not measured.
const PACKED_TOKENS_MAX: usize = 2 * FEW_TOKENS_MAX;

/// Weights that are unpacked at a time: 128 MiB.
const UNPACKED_NUMBERS_MAX: usize = 64 << 20;
