//! Weights where the GPU reads them: in the mapped file itself, where that can be.

use std::ffi::c_void;
use std::ptr::NonNull;

use block2::RcBlock;
use candle_core::{MetalDevice, MetalError};
use candle_metal_kernels::RESOURCE_OPTIONS;
use candle_metal_kernels::metal::Buffer;
use objc2_metal::MTLDevice as _;

use crate::weights::Span;

/// Bytes of a tensor in a buffer of the GPU.
pub(super) struct Resident {
    pub(super) buffer: Buffer,
    /// Where in the buffer the tensor starts.
    pub(super) offset: usize,
}

impl Resident {
    /// The pages of the mapped file that hold a tensor of numbers of `number_bytes`, or a copy where they cannot be
    /// shared: the numbers must lie at multiples of their size.
    ///
    /// # Errors
    /// That there is no memory.
    pub(super) fn new(device: &MetalDevice, span: &Span, number_bytes: usize) -> candle_core::Result<Self> {
        let aligned = span.as_ptr().addr().is_multiple_of(number_bytes);
        if let Some(shared) = aligned.then(|| Self::shared(device, span)).flatten() {
            return Ok(shared);
        }
        let copy =
            device.metal_device().new_buffer_with_data(span.as_ptr().cast(), span.len(), RESOURCE_OPTIONS);
        Ok(Self { buffer: copy.map_err(MetalError::from)?, offset: 0 })
    }

    /// A buffer over the mapped pages; `None` when Metal does not want them.
    #[expect(
        unsafe_code,
        reason = "Metal is handed mapped memory, which it keeps for as long as it needs it"
    )]
    fn shared(device: &MetalDevice, span: &Span) -> Option<Self> {
        if !cfg!(target_arch = "aarch64") || span.is_empty() {
            return None;
        }
        let offset = span.as_ptr().addr() % PAGE_BYTES;
        let length = (offset + span.len()).next_multiple_of(PAGE_BYTES);
        let pages = NonNull::new(span.as_ptr().wrapping_sub(offset).cast_mut().cast::<c_void>())?;
        // Metal drops the block when it needs the pages no more, and with it what keeps them mapped.
        let kept = span.clone();
        let release = RcBlock::new(move |_: NonNull<c_void>, _: usize| {
            let _ = &kept;
        });
        // SAFETY: a mapping is made of whole pages, so the pages around the tensor are mapped to their ends; `kept`
        // keeps them so until the block is dropped, and may be dropped on any thread. They are never written: no
        // kernel has a pointer to weights that are not constant, and nobody else is handed the buffer.
        let raw = unsafe {
            device.metal_device().as_ref().newBufferWithBytesNoCopy_length_options_deallocator(
                pages,
                length,
                RESOURCE_OPTIONS,
                Some(&*release),
            )
        };
        Some(Self { buffer: Buffer::new(raw?), offset })
    }
}

/// A page of Apple silicon.
const PAGE_BYTES: usize = 16 << 10;
