//! Linear layers of one shape, one beside the other: of experts, or of heads. Each run of inputs goes through one.

use std::ops::Range;

use super::linear::{self, BLOCK_TOKENS_MAX, Into, Linear};
use super::route::Run;
use super::{Pass, math};
use crate::error::InferError;
use crate::kernel::{Inputs, Packed, ROWS};
use crate::pool::Scattered;
use crate::quant;
use crate::scope::Scope;

/// Linear layers of one shape and packing.
pub(crate) struct Stack {
    layers: Vec<Linear>,
}

impl Stack {
    /// Loads the module at this place: `count` layers of `outputs` by `inputs`; at least one.
    ///
    /// # Errors
    /// Those of [`Linear::load`].
    pub(crate) fn load(
        at: &Scope<'_>,
        count: usize,
        outputs: usize,
        inputs: usize,
    ) -> Result<Self, InferError> {
        Ok(Self::of(quant::load_stacked(at, &[count], outputs, inputs)?))
    }

    /// A stack of these matrices, which have one shape and packing.
    pub(crate) fn of(matrices: Vec<Packed>) -> Self {
        Self { layers: matrices.into_iter().map(Linear::of).collect() }
    }

    /// Sends each run of rows of `x`, (rows, C), through its layer; writes `out`, (slots, R).
    pub(crate) fn project(
        &self,
        pass: &Pass<'_>,
        x: &[f32],
        runs: &[Run],
        buffers: &mut Vec<Inputs>,
        out: &mut [f32],
    ) {
        let any = [self.any()];
        let ready = linear::prepare(pass, x, &any, buffers);
        let out = Scattered::new(out);
        by_tiles(pass, runs, self.any().tiles(), |run, tile, [rows, slots], [products, _]| {
            self.layers[run.number].tile(tile, ready.inputs(0), rows, products);
            linear::put(&out, self.any().outputs(), tile, slots, products, Into::Set);
        });
    }

    /// `silu(gate) * up` of two stacks, as [`Self::project`].
    pub(crate) fn gated(
        [gate, up]: [&Self; 2],
        pass: &Pass<'_>,
        x: &[f32],
        runs: &[Run],
        buffers: &mut Vec<Inputs>,
        out: &mut [f32],
    ) {
        let pair = [gate.any(), up.any()];
        let ready = linear::prepare(pass, x, &pair, buffers);
        let out = Scattered::new(out);
        by_tiles(pass, runs, gate.any().tiles(), |run, tile, [rows, slots], [gates, ups]| {
            gate.layers[run.number].tile(tile, ready.inputs(0), rows.clone(), gates);
            up.layers[run.number].tile(tile, ready.inputs(1), rows, ups);
            math::silu_times(gates, ups);
            linear::put(&out, gate.any().outputs(), tile, slots, gates, Into::Set);
        });
    }

    /// Numbers that come out of each.
    pub(crate) fn outputs(&self) -> usize {
        self.any().outputs()
    }

    /// What all are like.
    fn any(&self) -> &Linear {
        &self.layers[0]
    }
}

/// Hands out the tiles of all runs in one region; `work` gets rows of inputs, as many slots, and
/// [room for their products](linear::with_products).
fn by_tiles(
    pass: &Pass<'_>,
    runs: &[Run],
    tiles: usize,
    work: impl Fn(&Run, usize, [Range<usize>; 2], [&mut [f32]; 2]) + Sync,
) {
    pass.pool.spread(runs.len() * tiles, |items| {
        linear::with_products(|mut room| {
            for item in items {
                let run = &runs[item / tiles];
                for first in (0..run.slots.len()).step_by(BLOCK_TOKENS_MAX) {
                    let count = BLOCK_TOKENS_MAX.min(run.slots.len() - first);
                    let of = |rows: &Range<usize>| rows.start + first..rows.start + first + count;
                    let room = room.each_mut().map(|room| &mut room[..count * ROWS]);
                    work(run, item % tiles, [of(&run.inputs), of(&run.slots)], room);
                }
            }
        });
    });
}
