//! Products of small matrices that are not packed: scores and averages of attention.

#![expect(clippy::needless_range_loop, reason = "lanes side by side, unrolled by the compiler")]
#![expect(unsafe_code, reason = "rows are read through pointers")]
#![expect(unsafe_op_in_unsafe_fn, reason = "every line would be a block of its own")]

use super::floats::from_bf16;
use super::isa::{Isa, Kernel, Processor};
use super::layout::ROWS as LANES;

/// A matrix of floats, rows one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Floats<'a> {
    /// In 32 bits.
    F32(&'a [f32]),
    /// Rounded to bf16.
    Bf16(&'a [u16]),
}

impl<'a> Floats<'a> {
    /// The rows of `range`, which are `width` wide.
    pub(crate) fn rows(self, range: std::ops::Range<usize>, width: usize) -> Self {
        let range = range.start * width..range.end * width;
        match self {
            Self::F32(floats) => Self::F32(&floats[range]),
            Self::Bf16(floats) => Self::Bf16(&floats[range]),
        }
    }

    const fn len(&self) -> usize {
        match self {
            Self::F32(floats) => floats.len(),
            Self::Bf16(floats) => floats.len(),
        }
    }
}

/// The left matrix of a product (M, K), a piece of the columns of a wider one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strided<'a> {
    /// From the first element on.
    pub(crate) floats: &'a [f32],
    /// From one row to the next.
    pub(crate) stride: usize,
    /// K.
    pub(crate) count: usize,
}

/// `out (M, N) += left (M, K) * right (K, N)`.
///
/// To an element its products are added one after the other in the order of K, so a row's results depend on no other.
/// `next` is what will stand on the right of a later product: it is asked of the memory meanwhile.
///
/// # Panics
/// When the sizes do not fit each other.
pub(crate) fn add_products(
    left: Strided<'_>,
    right: Floats<'_>,
    next: Option<Floats<'_>>,
    width: usize,
    out: &mut [f32],
) {
    if out.is_empty() || left.count == 0 {
        return;
    }
    let rows = out.len() / width;
    assert_eq!(out.len(), rows * width, "whole rows of results");
    assert_eq!(right.len(), left.count * width, "a row on the right for each column on the left");
    assert!(left.floats.len() >= (rows - 1) * left.stride + left.count, "a row on the left for each result");
    let processor = Processor::best();
    let product = Product { left, right, next, width, rows, out };
    // SAFETY: the sizes were checked above.
    unsafe { processor.run(product) };
}

struct Product<'a> {
    left: Strided<'a>,
    right: Floats<'a>,
    next: Option<Floats<'a>>,
    /// N.
    width: usize,
    /// M.
    rows: usize,
    out: &'a mut [f32],
}

impl Kernel for Product<'_> {
    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let Self { left, right, next, width, rows, out } = self;
        match (right, next) {
            (Floats::F32(right), Some(Floats::F32(next))) => {
                At::new(left, right, next, width, out).all::<I>(rows);
            }
            (Floats::Bf16(right), Some(Floats::Bf16(next))) => {
                At::new(left, right, next, width, out).all::<I>(rows);
            }
            (Floats::F32(right), _) => At::new(left, right, &[], width, out).all::<I>(rows),
            (Floats::Bf16(right), _) => At::new(left, right, &[], width, out).all::<I>(rows),
        }
    }
}

/// A kind of floats on the right.
trait Float: Copy {
    /// Reads 16.
    ///
    /// # Safety
    /// As [`Isa`] says.
    unsafe fn lanes<I: Isa>(from: *const Self) -> I::F;
    fn get(self) -> f32;
}

impl Float for f32 {
    #[inline(always)]
    unsafe fn lanes<I: Isa>(from: *const Self) -> I::F {
        I::f32(from.cast())
    }

    #[inline(always)]
    fn get(self) -> f32 {
        self
    }
}

impl Float for u16 {
    #[inline(always)]
    unsafe fn lanes<I: Isa>(from: *const Self) -> I::F {
        I::bf16(from.cast())
    }

    #[inline(always)]
    fn get(self) -> f32 {
        from_bf16(self)
    }
}

/// Where the operands are.
struct At<T> {
    left: *const f32,
    stride: usize,
    depth: usize,
    right: *const T,
    /// Null, or what is asked for.
    next: *const T,
    width: usize,
    out: *mut f32,
}

impl<T: Float> At<T> {
    #[inline(always)]
    fn new(left: Strided<'_>, right: &[T], next: &[T], width: usize, out: &mut [f32]) -> Self {
        let Strided { floats, stride, count: depth } = left;
        let next = if next.is_empty() { std::ptr::null() } else { next.as_ptr() };
        Self {
            left: floats.as_ptr(),
            stride,
            depth,
            right: right.as_ptr(),
            next,
            width,
            out: out.as_mut_ptr(),
        }
    }

    #[inline(always)]
    unsafe fn all<I: Isa>(&self, rows: usize) {
        let mut row = 0;
        macro_rules! block {
            ($count:literal) => {
                while $count <= I::TOKENS_MAX && $count <= rows - row {
                    self.rows::<I, $count>(row);
                    row += $count;
                }
            };
        }
        block!(4usize);
        block!(2usize);
        block!(1usize);
    }

    /// The results of the `M` rows from `row` on: as many vectors side by side as leave all sums in registers.
    #[inline(always)]
    unsafe fn rows<I: Isa, const M: usize>(&self, row: usize) {
        let mut col = 0;
        macro_rules! block {
            ($vectors:literal) => {
                while $vectors * M <= I::TOKENS_MAX && col + $vectors * LANES <= self.width {
                    self.block::<I, M, $vectors>(row, col);
                    col += $vectors * LANES;
                }
            };
        }
        block!(4usize);
        block!(2usize);
        block!(1usize);
        for row in row..row + M {
            for col in col..self.width {
                self.one(row, col);
            }
        }
    }

    #[inline(always)]
    unsafe fn block<I: Isa, const M: usize, const V: usize>(&self, row: usize, col: usize) {
        let out = self.out.add(row * self.width + col);
        let left = self.left.add(row * self.stride);
        let mut sums = [[I::zero(); V]; M];
        for m in 0..M {
            for v in 0..V {
                sums[m][v] = I::f32(out.add(m * self.width + v * LANES).cast());
            }
        }
        let asks = row == 0 && !self.next.is_null();
        for k in 0..self.depth {
            if asks {
                // From end to end, as evenly as the products go on.
                let from = self.next.wrapping_add(col * self.depth + k * V * LANES);
                for v in 0..V {
                    I::prefetch(from.wrapping_add(v * LANES).cast());
                }
            }
            let right = self.right.add(k * self.width + col);
            let mut lanes = [I::zero(); V];
            for v in 0..V {
                lanes[v] = T::lanes::<I>(right.add(v * LANES));
            }
            for m in 0..M {
                let x = I::splat(left.add(m * self.stride + k));
                for v in 0..V {
                    sums[m][v] = I::fma(x, lanes[v], sums[m][v]);
                }
            }
        }
        for m in 0..M {
            for v in 0..V {
                I::store(out.add(m * self.width + v * LANES), sums[m][v]);
            }
        }
    }

    /// A column that is left over.
    #[inline(always)]
    unsafe fn one(&self, row: usize, col: usize) {
        let out = self.out.add(row * self.width + col);
        let mut sum = out.read();
        for k in 0..self.depth {
            sum += self.left.add(row * self.stride + k).read()
                * self.right.add(k * self.width + col).read().get();
        }
        out.write(sum);
    }
}

#[cfg(test)]
mod tests {
    use super::super::floats::to_bf16;
    use super::*;

    /// Deterministic numbers between -1 and 1.
    fn number(i: usize) -> f32 {
        ((i as f32) * 12.9898).sin()
    }

    #[test]
    fn products_agree_with_f64_and_a_row_alone_with_itself_among_others() {
        for (rows, depth, width) in [
            (1, 1, 1),
            (1, 64, 32),
            (2, 7, 48),
            (3, 64, 64),
            (4, 32, 80),
            (7, 5, 33),
            (9, 31, 130),
            (32, 3, 16),
        ] {
            let stride = depth + 3;
            let floats: Vec<f32> = (0..rows * stride).map(number).collect();
            let left = Strided { floats: &floats, stride, count: depth };
            let rounded: Vec<u16> = (0..depth * width).map(|i| to_bf16(number(7 * i + 1))).collect();
            let right: Vec<f32> = rounded.iter().map(|bits| from_bf16(*bits)).collect();
            let before: Vec<f32> = (0..rows * width).map(|i| number(3 * i)).collect();
            let [mut wide, mut narrow] = [before.clone(), before.clone()];
            add_products(left, Floats::F32(&right), None, width, &mut wide);
            let next = Some(Floats::Bf16(&rounded[..width.min(7)]));
            add_products(left, Floats::Bf16(&rounded), next, width, &mut narrow);
            assert_eq!(wide.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), {
                narrow.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
            });
            for row in 0..rows {
                let own = row * width..(row + 1) * width;
                let mut alone = before[own.clone()].to_vec();
                let left = Strided { floats: &floats[row * stride..], ..left };
                add_products(left, Floats::F32(&right), None, width, &mut alone);
                assert!(alone.iter().zip(&wide[own]).all(|(x, y)| x.to_bits() == y.to_bits()));
                for (col, found) in alone.iter().enumerate() {
                    let product = |k: usize| f64::from(left.floats[k]) * f64::from(right[k * width + col]);
                    let expected =
                        f64::from(before[row * width + col]) + (0..depth).map(product).sum::<f64>();
                    assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} for {expected}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "a row on the left for each result")]
    fn operands_that_do_not_fit_are_refused() {
        let left = Strided { floats: &[1.0; 3], stride: 2, count: 2 };
        add_products(left, Floats::F32(&[1.0; 8]), None, 4, &mut [0.0; 8]);
    }
}
