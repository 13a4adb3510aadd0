//! Linear layers, several at once over the same inputs.
//!
//! A product is cut into tiles of [`ROWS`] outputs. A region hands out tiles; a thread computes a tile for a block
//! of tokens while the tile's weights stay in its cache, and at once does what follows: adds the bias, adds to the
//! residual stream, or joins gate and up.

use std::cell::RefCell;
use std::ops::Range;

use super::norm::RmsNorm;
use super::{ALONE_NUMBERS, Pass, math};
use crate::error::InferError;
use crate::kernel::{Inputs, Numerics, Packed, ROWS};
use crate::logits::{self, Logits};
use crate::pool::Scattered;
use crate::quant;
use crate::scope::Scope;

/// A linear layer: `y = x W^T + b`.
pub(crate) struct Linear {
    weight: Packed,
    bias: Option<Vec<f32>>,
}

/// Whether a linear layer adds a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bias {
    /// It does.
    Added,
    /// It does not.
    None,
}

impl Bias {
    /// As config.json says it.
    pub(crate) const fn when(added: bool) -> Self {
        if added { Self::Added } else { Self::None }
    }
}

/// What becomes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Into {
    /// It is the output.
    Set,
    /// It is added to what stands there.
    Add,
}

impl Linear {
    /// Loads the layer at this place: `outputs` by `inputs`.
    ///
    /// # Errors
    /// [`InferError::MissingTensor`], [`InferError::TensorShape`], [`InferError::TensorDtype`],
    /// [`InferError::UnsupportedQuantization`].
    pub(crate) fn load(
        at: &Scope<'_>,
        outputs: usize,
        inputs: usize,
        bias: Bias,
    ) -> Result<Self, InferError> {
        let bias = (bias == Bias::Added).then(|| at.floats("bias", outputs)).transpose()?;
        Ok(Self { weight: quant::load(at, outputs, inputs)?, bias })
    }

    /// A layer of these weights alone.
    pub(crate) const fn of(weight: Packed) -> Self {
        Self { weight, bias: None }
    }

    /// Numbers that come out.
    pub(crate) fn outputs(&self) -> usize {
        self.weight.rows()
    }

    /// Its weights.
    pub(crate) const fn weight(&self) -> &Packed {
        &self.weight
    }

    /// Whether both read inputs in the same form.
    fn takes_inputs_of(&self, other: &Self) -> bool {
        (self.weight.format(), self.weight.cols()) == (other.weight.format(), other.weight.cols())
    }

    /// Tiles of 16 outputs.
    pub(super) const fn tiles(&self) -> usize {
        self.weight.tiles()
    }

    /// The outputs of a tile, (tokens, 16), bias and all.
    pub(super) fn tile(&self, tile: usize, inputs: &Inputs, tokens: Range<usize>, products: &mut [f32]) {
        self.weight.tile(tile, inputs, tokens, products);
        self.finish(tile, products);
    }

    fn finish(&self, tile: usize, products: &mut [f32]) {
        if let Some(bias) = &self.bias {
            let bias = &bias[tile * ROWS..];
            for row in products.chunks_exact_mut(ROWS) {
                row.iter_mut().zip(bias).for_each(|(product, bias)| *product += bias);
            }
        }
    }
}

/// The inputs of a group of layers, ready for each.
pub(crate) struct Prepared<'a> {
    layers: &'a [&'a Linear],
    /// Which of the inputs are whose.
    which: Vec<usize>,
    inputs: &'a [Inputs],
    tokens: usize,
}

/// Readies `x`, (T, C), for all of `layers`; those that are packed alike share the work.
pub(crate) fn prepare<'a>(
    pass: &Pass<'_>,
    x: &[f32],
    layers: &'a [&'a Linear],
    buffers: &'a mut Vec<Inputs>,
) -> Prepared<'a> {
    prepare_in(pass, pass.numerics, x, None, layers, buffers)
}

/// [`prepare`] of the rows of `x` after a norm: each is normed, rounded and put in order at once.
pub(crate) fn prepare_normed<'a>(
    pass: &Pass<'_>,
    x: &[f32],
    norm: &RmsNorm,
    layers: &'a [&'a Linear],
    buffers: &'a mut Vec<Inputs>,
) -> Prepared<'a> {
    prepare_in(pass, pass.numerics, x, Some(norm), layers, buffers)
}

/// [`prepare`], perhaps after a norm, for products that are computed in these numbers whatever the pass has.
pub(crate) fn prepare_in<'a>(
    pass: &Pass<'_>,
    numerics: Numerics,
    x: &[f32],
    norm: Option<&RmsNorm>,
    layers: &'a [&'a Linear],
    buffers: &'a mut Vec<Inputs>,
) -> Prepared<'a> {
    let cols = layers.first().map_or(1, |layer| layer.weight.cols());
    let mut which = Vec::with_capacity(layers.len());
    let mut ready = 0;
    for (number, layer) in layers.iter().enumerate() {
        let alike = (0..number).find(|&before| layer.takes_inputs_of(layers[before]));
        if let Some(before) = alike {
            which.push(which[before]);
            continue;
        }
        if buffers.len() == ready {
            buffers.push(Inputs::default());
        }
        let filling = buffers[ready].fill(&layer.weight, x.len() / cols, numerics);
        let fill = || match norm {
            Some(norm) => filling.work_through(x, |row| norm.row(row)),
            None => filling.work(x),
        };
        if x.len() < ALONE_NUMBERS {
            fill();
        } else {
            pass.pool.run(pass.pool.threads(), 1, |_| fill());
        }
        which.push(ready);
        ready += 1;
    }
    Prepared { layers, which, inputs: buffers, tokens: x.len() / cols }
}

impl Prepared<'_> {
    /// The inputs of a layer.
    pub(super) fn inputs(&self, layer: usize) -> &Inputs {
        &self.inputs[self.which[layer]]
    }

    /// Computes each layer into its output, (T, R).
    pub(crate) fn project(&self, pass: &Pass<'_>, into: Into, outputs: &mut [&mut [f32]]) {
        let outs: Vec<Scattered<'_, f32>> = outputs.iter_mut().map(|out| Scattered::new(out)).collect();
        let ends: Vec<usize> = self
            .layers
            .iter()
            .scan(0, |end, layer| {
                *end += layer.weight.tiles();
                Some(*end)
            })
            .collect();
        let tiles = ends.last().copied().unwrap_or(0);
        self.by_tiles(pass, tiles, |tile, tokens, [products, _]| {
            let number = ends.partition_point(|end| *end <= tile);
            let layer = self.layers[number];
            let tile = tile + layer.weight.tiles() - ends[number];
            layer.tile(tile, self.inputs(number), tokens.clone(), products);
            put(&outs[number], layer.outputs(), tile, tokens, products, into);
        });
    }

    /// Computes two layers, gate and up, and `silu(gate) * up` into `out`, (T, R).
    pub(crate) fn gated(&self, pass: &Pass<'_>, out: &mut [f32]) {
        let [gate, up] = self.layers else { unreachable!("a gate and what it lets through") };
        let out = Scattered::new(out);
        self.by_tiles(pass, gate.weight.tiles(), |tile, tokens, [gates, ups]| {
            gate.tile(tile, self.inputs(0), tokens.clone(), gates);
            up.tile(tile, self.inputs(1), tokens.clone(), ups);
            math::silu_times(gates, ups);
            put(&out, gate.outputs(), tile, tokens, gates, Into::Set);
        });
    }

    /// Computes one layer, the head, into rows of logits.
    pub(crate) fn logits(&self, pass: &Pass<'_>) -> Vec<Logits> {
        let [head] = self.layers else { unreachable!("a head alone") };
        let mut rows: Vec<Logits> = (0..self.tokens).map(|_| Logits::room(head.outputs())).collect();
        let scattered = rows.iter_mut().map(Logits::parts);
        let outs: Vec<_> =
            scattered.map(|(row, peaks)| (Scattered::new(row), Scattered::new(peaks))).collect();
        self.by_tiles(pass, head.tiles(), |tile, tokens, [products, _]| {
            head.tile(tile, self.inputs(0), tokens.clone(), products);
            let wide = tile * ROWS..head.outputs().min((tile + 1) * ROWS);
            for ((row, peaks), products) in outs[tokens].iter().zip(products.chunks_exact(ROWS)) {
                let products = &products[..wide.len()];
                #[expect(unsafe_code, reason = "tiles are written by several threads")]
                // SAFETY: each tile of each token is computed by one item of a region, and tiles do not overlap.
                unsafe {
                    row.part(wide.clone()).copy_from_slice(products);
                    peaks.part(tile..tile + 1)[0] = logits::peak(products);
                }
            }
        });
        rows
    }

    /// Hands out tiles, block of tokens after block of tokens; `work` gets [room for a tile's products](with_products).
    fn by_tiles(
        &self,
        pass: &Pass<'_>,
        tiles: usize,
        work: impl Fn(usize, Range<usize>, [&mut [f32]; 2]) + Sync,
    ) {
        let cols = self.layers.first().map_or(1, |layer| layer.weight.cols());
        let block = (BLOCK_NUMBERS / cols).clamp(BLOCK_TOKENS_MIN, BLOCK_TOKENS_MAX);
        for first in (0..self.tokens).step_by(block) {
            let tokens = first..self.tokens.min(first + block);
            pass.pool.spread(tiles, |part| {
                with_products(|mut room| {
                    for tile in part {
                        work(
                            tile,
                            tokens.clone(),
                            room.each_mut().map(|room| &mut room[..tokens.len() * ROWS]),
                        );
                    }
                });
            });
        }
    }
}

/// Lends a thread its room for the products of two tiles with a block of tokens, (tokens, 16) each: to make it anew
/// would take as long as a product with one token.
pub(super) fn with_products(work: impl FnOnce([&mut [f32]; 2])) {
    thread_local!(static ROOM: RefCell<Vec<f32>> = RefCell::new(vec![0.0; 2 * BLOCK_TOKENS_MAX * ROWS]));
    ROOM.with_borrow_mut(|room| work(room.split_at_mut(BLOCK_TOKENS_MAX * ROWS).into()));
}

/// Puts a tile's products, (tokens, 16), where they belong in an output, (T, R).
pub(super) fn put(
    out: &Scattered<'_, f32>,
    width: usize,
    tile: usize,
    tokens: Range<usize>,
    products: &[f32],
    into: Into,
) {
    let first = tile * ROWS;
    let rows = ROWS.min(width - first);
    for (token, products) in tokens.zip(products.chunks_exact(ROWS)) {
        let start = token * width + first;
        #[expect(unsafe_code, reason = "tiles are written by several threads")]
        // SAFETY: each tile of each token is computed by one item of a region, and tiles do not overlap.
        let out = unsafe { out.part(start..start + rows) };
        match into {
            Into::Set => out.copy_from_slice(&products[..rows]),
            Into::Add => out.iter_mut().zip(products).for_each(|(out, product)| *out += product),
        }
    }
}

/// Inputs of a block of tokens: in 8 bits they take half of a core's second cache.
const BLOCK_NUMBERS: usize = 1 << 18;
const BLOCK_TOKENS_MIN: usize = 16;
pub(super) const BLOCK_TOKENS_MAX: usize = 128;
