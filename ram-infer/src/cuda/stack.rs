//! Packed matrices that lie behind each other, of which each output takes one: the experts of a layer.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaStorageSlice;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Layout, Shape, Tensor};

use super::{PackedMatrix, source};
use crate::error::InferError;
use crate::packed::source::{Order, Set, Shape as Sizes};
use crate::packed::{float, narrow, shared};
use crate::scope::Scope;

/// Matrices (X, R, C) in the GPU's memory, packed as their file has them.
///
/// Letters of shapes beside those of [`super`]: X matrices, N outputs.
pub(crate) struct PackedStack {
    count: usize,
    /// All of them; its rows are those of one.
    matrices: PackedMatrix,
}

impl PackedStack {
    /// Loads the matrices of the module at this place; `None` when they are not packed in a way that the kernels know,
    /// or not for NVIDIA's GPU.
    ///
    /// # Errors
    /// Those of [`PackedMatrix::load`].
    pub(crate) fn load(
        at: &Scope<'_>,
        count: usize,
        rows: usize,
        cols: usize,
    ) -> Result<Option<Self>, InferError> {
        let matrices = PackedMatrix::load_for(Set::Stack, at, &[count], rows, cols)?;
        Ok(matrices.map(|matrices| Self { count, matrices }))
    }

    /// The product of inputs (N / share, C), each taken `share` times in turn, with the matrices of these numbers, (N):
    /// (N, R), of the inputs' type.
    ///
    /// # Errors
    /// Those of the device, and that inputs are of another type or width, or not so many.
    pub(crate) fn forward(&self, inputs: &Tensor, numbers: &Tensor) -> candle_core::Result<Tensor> {
        self.gathered(inputs, numbers, Order::Any)
    }

    /// [`Self::forward`] of inputs (N, C), where the same number often follows itself.
    ///
    /// # Errors
    /// Those of [`Self::forward`].
    pub(crate) fn forward_runs(&self, inputs: &Tensor, numbers: &Tensor) -> candle_core::Result<Tensor> {
        self.gathered(inputs, numbers, Order::Runs)
    }

    fn gathered(&self, inputs: &Tensor, numbers: &Tensor, order: Order) -> candle_core::Result<Tensor> {
        let products = Products { stack: self, order };
        inputs.contiguous()?.apply_op2_no_bwd(&numbers.contiguous()?, &products)
    }
}

/// `forward` as an operation of candle.
struct Products<'a> {
    stack: &'a PackedStack,
    order: Order,
}

impl CustomOp2 for Products<'_> {
    fn name(&self) -> &'static str {
        "packed-stack-products"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        candle_core::bail!("the matrices are on a GPU, and their inputs are not")
    }

    fn cuda_fwd(
        &self,
        inputs: &CudaStorage,
        layout: &Layout,
        numbers: &CudaStorage,
        numbers_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let matrices = &self.stack.matrices;
        let [outputs, share] = shared(layout, numbers_layout, matrices.cols, self.order)?;
        let (CudaStorageSlice::BF16(rows), CudaStorageSlice::U32(all)) = (&inputs.slice, &numbers.slice)
        else {
            candle_core::bail!("no kernel for inputs {:?} by numbers {:?}", inputs.dtype(), numbers.dtype())
        };
        let first = layout.start_offset();
        let inputs = rows.slice(first..first + layout.shape().elem_count());
        let first = numbers_layout.start_offset();
        let numbers = all.slice(first..first + outputs);
        let (experts, share) = (narrow(self.stack.count)?, narrow(share)?);
        let sizes = Sizes { experts, share, ..matrices.sizes(outputs)? };
        let launch =
            source::gather(matrices.packing, float(DType::BF16)?, matrices.rows, outputs, self.order);
        #[expect(unsafe_code, reason = "candle hands out memory that nothing was written to")]
        // SAFETY: the kernel writes each of the numbers before anything that is queued later reads them.
        let mut products = unsafe { matrices.device.alloc(outputs * matrices.rows) }?;
        matrices.queue(&launch, &sizes, &inputs, Some(&numbers), &mut products)?;
        let products =
            CudaStorage { slice: CudaStorageSlice::BF16(products), device: matrices.device.clone() };
        Ok((products, (outputs, matrices.rows).into()))
    }
}
