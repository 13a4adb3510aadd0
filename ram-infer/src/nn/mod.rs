//! The parts that transformers are made of, for the processor, each a file.
//!
//! Numbers are plain f32 slices, rows after rows; each part works on the tokens of all sequences of a pass at once, in
//! regions that the threads of a [`Pool`] share. What a token becomes depends on its own sequence alone, to the bit:
//! every sum has an order of its own, whatever is computed beside it.
//!
//! Letters of shapes: T tokens of this pass, H query heads, K key and value heads, G = H / K query heads that share
//! one, D head width, E model width, I width inside of the MLP, V vocabulary.

pub(crate) mod attention;
pub(crate) mod decoder;
pub(crate) mod delta;
pub(crate) mod latent;
pub(crate) mod linear;
mod math;
pub(crate) mod mlp;
pub(crate) mod moe;
pub(crate) mod norm;
pub(crate) mod rope;
pub(crate) mod route;
mod stack;

use std::ops::Range;

use crate::batch::Part;
use crate::kernel::{Inputs, Numerics};
use crate::kv::Blocks;
use crate::pool::{Pool, Scattered};

/// What all layers of one pass share.
pub(crate) struct Pass<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) numerics: Numerics,
    pub(crate) parts: &'a [Part<'a>],
    /// The first token of each part, and the end of the last: where its rows are.
    pub(crate) starts: Vec<usize>,
    pub(crate) turns: rope::Turns,
    pub(crate) blocks: Blocks<'a>,
}

/// Memory that layers borrow from one another; grows to what the largest pass takes.
#[derive(Default)]
pub(crate) struct Workspace {
    /// Inputs of products, in the kernels' own form: one for each way of packing that a group of layers has.
    pub(crate) inputs: Vec<Inputs>,
    /// (T, E), where the normed rows are needed more than once
    pub(crate) normed: Vec<f32>,
    /// (T, H*D), (T, K*D) twice, (T, H*D)
    pub(crate) queries: Vec<f32>,
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
    pub(crate) attended: Vec<f32>,
    /// (T, H*D), of queries that come with a gate
    pub(crate) gates: Vec<f32>,
    /// (T, I)
    pub(crate) inner: Vec<f32>,
    /// Of experts, DeltaNets and latent attention.
    pub(crate) experts: moe::Room,
    pub(crate) delta: delta::Room,
    pub(crate) latent: latent::Room,
}

impl Pass<'_> {
    /// Tokens of the pass.
    pub(crate) fn tokens(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Does something for each of `rows` rows of `width` numbers; alone when that is quicker than telling others.
    pub(crate) fn by_rows(&self, rows: usize, width: usize, work: impl Fn(Range<usize>) + Sync) {
        if rows * width < ALONE_NUMBERS {
            work(0..rows);
        } else {
            self.pool.spread(rows, work);
        }
    }

    /// Does something with the number and the numbers of each row of `out`, (rows, `width`), as [`Self::by_rows`].
    pub(crate) fn each_row(&self, out: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
        let (rows, out) = (out.len() / width, Scattered::new(out));
        self.by_rows(rows, width, |rows| {
            for row in rows {
                #[expect(unsafe_code, reason = "rows are written by several threads")]
                // SAFETY: each row is one item of the region.
                work(row, unsafe { out.part(row * width..(row + 1) * width) });
            }
        });
    }
}

/// A slice of just this length; what it held is of no interest.
pub(crate) fn sized(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
    &mut buffer[..length]
}

/// Some 5 µs of simple work.
const ALONE_NUMBERS: usize = 1 << 14;
