//! Numbers as raw bytes: type, shape, and little-endian elements, row after row.
//!
//! A pipeline sends activations in the type in which its model keeps them, so a hop loses nothing. They are read into
//! f32, which holds every number of each type.

use bytes::BytesMut;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

impl Dtype {
    /// Bytes of an element.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// Rows and columns of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u32)", into = "(u32, u32)")]
pub struct Shape {
    /// Rows: tokens.
    pub rows: u32,
    /// Columns: the model's width, or its vocabulary.
    pub cols: u32,
}

impl From<(u32, u32)> for Shape {
    fn from((rows, cols): (u32, u32)) -> Self {
        Self { rows, cols }
    }
}

impl From<Shape> for (u32, u32) {
    fn from(shape: Shape) -> Self {
        (shape.rows, shape.cols)
    }
}

impl Shape {
    /// How many elements.
    #[must_use]
    pub const fn elements(self) -> u64 {
        self.rows as u64 * self.cols as u64 // each fits in 32 bits
    }
}

/// Bytes that are no tensor of the type and shape that was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a tensor of {rows} x {cols} numbers of {element} bytes cannot have {got} bytes")]
pub struct TensorError {
    /// Rows told.
    pub rows: u32,
    /// Columns told.
    pub cols: u32,
    /// Bytes of an element.
    pub element: usize,
    /// Bytes that came.
    pub got: usize,
}

/// Writes numbers in a type, each rounded to its nearest (ties to even).
#[must_use]
pub fn encode(dtype: Dtype, numbers: &[f32]) -> BytesMut {
    fn put<const N: usize>(bytes: &mut [u8], numbers: &[f32], convert: impl Fn(f32) -> [u8; N]) {
        for (bytes, number) in bytes.as_chunks_mut().0.iter_mut().zip(numbers) {
            *bytes = convert(*number);
        }
    }
    let mut bytes = BytesMut::zeroed(numbers.len() * dtype.bytes());
    match dtype {
        Dtype::F32 => put(&mut bytes, numbers, f32::to_le_bytes),
        Dtype::F16 => put(&mut bytes, numbers, |number| f16::from_f32(number).to_le_bytes()),
        Dtype::Bf16 => put(&mut bytes, numbers, |number| bf16::from_f32(number).to_le_bytes()),
    }
    bytes
}

/// Reads the numbers of a tensor.
///
/// # Errors
/// [`TensorError`] when there are more or fewer bytes than the type and the shape say; before memory is taken.
pub fn decode(dtype: Dtype, shape: Shape, bytes: &[u8]) -> Result<Vec<f32>, TensorError> {
    let Shape { rows, cols } = shape;
    if shape.elements().checked_mul(dtype.bytes() as u64) != Some(bytes.len() as u64) {
        return Err(TensorError { rows, cols, element: dtype.bytes(), got: bytes.len() });
    }
    fn get<const N: usize>(bytes: &[u8], convert: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        bytes.as_chunks().0.iter().map(|bytes| convert(*bytes)).collect()
    }
    Ok(match dtype {
        Dtype::F32 => get(bytes, f32::from_le_bytes),
        Dtype::F16 => get(bytes, |bytes| f16::from_le_bytes(bytes).to_f32()),
        Dtype::Bf16 => get(bytes, |bytes| bf16::from_le_bytes(bytes).to_f32()),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

    #[test]
    fn bytes_that_do_not_fit_the_shape_are_refused() {
        let check = |rows, cols, got| {
            let refused = decode(Dtype::Bf16, Shape { rows, cols }, &vec![0; got]);
            assert_eq!(refused, Err(TensorError { rows, cols, element: 2, got }));
        };
        check(1, 8, 15);
        check(1, 8, 17);
        check(2, 8, 16);
        check(0, 8, 1);
        check(u32::MAX, u32::MAX, 2); // the product with the element's size is over 64 bits
        check(1 << 31, 1 << 31, 0); // and would be 0 if it wrapped
    }

    #[test]
    fn the_bytes_are_those_of_the_standard() {
        let numbers = [1.0, -2.5, 1.0 / 3.0];
        let check = |dtype, expected: &[u8]| assert_eq!(&encode(dtype, &numbers)[..], expected);
        // Of numpy: np.array([1, -2.5, 1/3], '<f4').tobytes() and '<f2'; bf16 are the upper halves, rounded.
        check(Dtype::F32, &[0, 0, 128, 63, 0, 0, 32, 192, 171, 170, 170, 62]);
        check(Dtype::F16, &[0, 60, 0, 193, 85, 53]);
        check(Dtype::Bf16, &[128, 63, 32, 192, 171, 62]);
    }

    proptest! {
        #[test]
        fn what_was_read_is_written_back_to_the_bit(
            bytes in prop::collection::vec(any::<[u8; 4]>(), 0..40),
            dtype in prop::sample::select(&DTYPES[..]),
        ) {
            let bytes = bytes.concat();
            let cols = u32::try_from(bytes.len() / dtype.bytes()).unwrap();
            let numbers = decode(dtype, Shape { rows: 1, cols }, &bytes).unwrap();
            prop_assume!(numbers.iter().all(|number| !number.is_nan())); // whose bits may change
            prop_assert_eq!(&encode(dtype, &numbers)[..], &bytes[..]);
        }
    }
}
