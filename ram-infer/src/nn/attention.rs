//! Causal self-attention with shared key and value heads (GQA; Ainslie et al. 2023), over blocks of the past.
//!
//! A query walks the blocks of its sequence from the first one on and keeps a running maximum, sum and average (online
//! softmax; Milakov and Gimelshein 2018), so scores are never held for more than one block. Blocks begin at fixed
//! positions, so a query's numbers do not depend on how its sequence was cut into passes.

use std::cell::RefCell;
use std::ops::Range;

use super::linear::{self, Bias, Into, Linear};
use super::norm::RmsNorm;
use super::{Pass, Workspace, math, sized};
use crate::batch::{BLOCK_TOKENS, Part};
use crate::config::ModelConfig;
use crate::error::InferError;
use crate::kernel::{Floats, Strided, add_products};
use crate::kv::Head;
use crate::pool::Scattered;
use crate::scope::Scope;
use crate::simd::{self, Kernel, LANES, MultiplyAdd};

/// The attention of one layer.
pub(crate) struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// Norms over each head of the queries and the keys.
    qk_norm: Option<(RmsNorm, RmsNorm)>,
    /// Whether the queries come with a gate.
    gated: bool,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    /// How far back a token sees, itself included.
    window: usize,
}

/// How the attention of a family differs from that of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recipe {
    /// Whether the projections of queries, keys and values add a bias.
    pub(crate) qkv: Bias,
    /// Whether that of the output does.
    pub(crate) o: Bias,
    /// Whether each head of the queries and the keys is normed before it is turned.
    pub(crate) qk_norm: bool,
    /// Whether a gate, which comes with the queries, is put before the output.
    pub(crate) gated: bool,
}

impl Attention {
    /// Loads the attention at this place.
    ///
    /// # Errors
    /// Those of [`Linear::load`] and [`RmsNorm::load`].
    pub(crate) fn load(at: &Scope<'_>, recipe: Recipe) -> Result<Self, InferError> {
        let &ModelConfig { hidden_size, heads, kv_heads, head_dim, sliding_window, .. } = at.config();
        let kv_width = kv_heads * head_dim;
        let q_width = heads * head_dim * if recipe.gated { 2 } else { 1 };
        let norm = |name| RmsNorm::load(&at.enter(name), head_dim);
        let qk_norm = if recipe.qk_norm { Some((norm("q_norm")?, norm("k_norm")?)) } else { None };
        let window = sliding_window.and_then(|window| usize::try_from(window.get()).ok());
        Ok(Self {
            q_proj: Linear::load(&at.enter("q_proj"), q_width, hidden_size, recipe.qkv)?,
            k_proj: Linear::load(&at.enter("k_proj"), kv_width, hidden_size, recipe.qkv)?,
            v_proj: Linear::load(&at.enter("v_proj"), kv_width, hidden_size, recipe.qkv)?,
            o_proj: Linear::load(&at.enter("o_proj"), hidden_size, heads * head_dim, recipe.o)?,
            qk_norm,
            gated: recipe.gated,
            heads,
            kv_heads,
            head_dim,
            window: window.unwrap_or(usize::MAX),
        })
    }

    /// Adds the attention of `x`, (T, E), after a norm, to `x`. Writes the tokens' positions to the blocks.
    pub(crate) fn add_to(
        &self,
        x: &mut [f32],
        norm: &RmsNorm,
        layer: usize,
        pass: &Pass<'_>,
        space: &mut Workspace,
    ) {
        let tokens = pass.tokens();
        let width = tokens * self.heads * self.head_dim;
        let queries = sized(&mut space.queries, tokens * self.q_proj.outputs());
        let keys = sized(&mut space.keys, tokens * self.kv_heads * self.head_dim);
        let values = sized(&mut space.values, tokens * self.kv_heads * self.head_dim);
        let attended = sized(&mut space.attended, width);
        let all = [&self.q_proj, &self.k_proj, &self.v_proj];
        let ready = linear::prepare_normed(pass, x, norm, &all, &mut space.inputs);
        ready.project(pass, Into::Set, &mut [&mut *queries, &mut *keys, &mut *values]);
        self.remember(layer, pass, keys, values);
        let gates = sized(&mut space.gates, if self.gated { width } else { 0 });
        self.part_gates(queries, gates);
        attend(pass, layer, &self.widths(), &mut queries[..width], attended, |token, query| {
            if let Some((q_norm, _)) = &self.qk_norm {
                q_norm.row(query);
            }
            pass.turns.apply(token, query);
        });
        if self.gated {
            let row = self.heads * self.head_dim;
            pass.each_row(attended, row, |token, out| math::sigmoid_times(out, &gates[token * row..][..row]));
        }
        let output = [&self.o_proj];
        let ready = linear::prepare(pass, attended, &output, &mut space.inputs);
        ready.project(pass, Into::Add, &mut [x]);
    }

    /// Norms and turns the keys, and writes keys and values, (T, K*D) each, to the blocks.
    fn remember(&self, layer: usize, pass: &Pass<'_>, keys: &mut [f32], values: &[f32]) {
        let (width, head_dim) = (self.kv_heads * self.head_dim, self.head_dim);
        let keys = Scattered::new(keys);
        pass.by_rows(self.kv_heads, 2 * pass.tokens() * head_dim, |heads| {
            for (head, token) in heads.flat_map(|head| (0..pass.tokens()).map(move |token| (head, token))) {
                let (part, position) = place(pass, token);
                let start = token * width + head * head_dim;
                let (block, at) = (part.blocks[position / BLOCK_TOKENS], Head { layer, head });
                #[expect(unsafe_code, reason = "heads are worked on by several threads")]
                // SAFETY: each head is one item of the region, so one thread alone touches its keys and its numbers
                // in all blocks.
                unsafe {
                    let key = keys.part(start..start + head_dim);
                    if let Some((_, k_norm)) = &self.qk_norm {
                        k_norm.row(key);
                    }
                    pass.turns.apply(token, key);
                    let value = &values[start..start + head_dim];
                    pass.blocks.write(block, at, position % BLOCK_TOKENS, key, value);
                }
            }
        });
    }

    /// Takes the gates out of `queries`, (T, H, 2*D): every head's second half. What is left is (T, H*D).
    fn part_gates(&self, queries: &mut [f32], gates: &mut [f32]) {
        let head_dim = self.head_dim;
        for (head, gate) in gates.chunks_exact_mut(head_dim).enumerate() {
            let start = 2 * head * head_dim;
            gate.copy_from_slice(&queries[start + head_dim..start + 2 * head_dim]);
            queries.copy_within(start..start + head_dim, head * head_dim);
        }
    }

    fn widths(&self) -> Widths {
        Widths {
            heads: self.heads,
            kv_heads: self.kv_heads,
            keys: self.head_dim,
            values: self.head_dim,
            window: self.window,
            scale: (self.head_dim as f32).sqrt().recip(),
        }
    }
}

/// What one attention is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Widths {
    pub(super) heads: usize,
    /// Divides `heads`.
    pub(super) kv_heads: usize,
    /// Numbers of a key and a query.
    pub(super) keys: usize,
    /// Numbers of a value. Where the blocks keep none, a value is the beginning of its key.
    pub(super) values: usize,
    /// How far back a token sees, itself included.
    pub(super) window: usize,
    /// What scores are multiplied with.
    pub(super) scale: f32,
}

impl Widths {
    /// Query heads that are worked on together: those of one key and value head, or a part of them where they are many.
    fn group(&self) -> usize {
        let group = self.heads / self.kv_heads;
        (1..=group.min(ROWS)).rev().find(|part| group.is_multiple_of(*part)).unwrap_or(1)
    }
}

/// Attends with the queries, (T, H * keys); writes (T, H * values). `ready` is done to each query of a token before.
pub(super) fn attend(
    pass: &Pass<'_>,
    layer: usize,
    widths: &Widths,
    queries: &mut [f32],
    out: &mut [f32],
    ready: impl Fn(usize, &mut [f32]) + Sync,
) {
    let group = widths.group();
    let (groups, step) = (widths.heads / group, (ROWS / group).max(1));
    // One item for some tokens of one part and one group of heads, so that they share what is read.
    let runs = |number: usize| {
        let (first, end) = (pass.starts[number], pass.starts[number + 1]);
        (first..end).step_by(step).map(move |token| (number, token..end.min(token + step)))
    };
    let items: Vec<(usize, Range<usize>)> = (0..pass.parts.len()).flat_map(runs).collect();
    let (queries, out) = (Scattered::new(queries), Scattered::new(out));
    pass.pool.run(items.len() * groups, 1, |numbers| {
        for number in numbers {
            // The last tokens see most, so they come first.
            let (part, tokens) = &items[items.len() - 1 - number / groups];
            let own = number % groups;
            let span = |token: usize, width: usize| {
                let start = (token * widths.heads + own * group) * width;
                start..start + group * width
            };
            let both = |token: usize| (span(token, widths.keys), span(token, widths.values));
            #[expect(unsafe_code, reason = "heads are written by several threads")]
            // SAFETY: each token of each group of heads belongs to one item of the region.
            let own_rows = tokens
                .clone()
                .map(both)
                .map(|(keys, values)| unsafe { (queries.part(keys), out.part(values)) });
            let head = own * group / (widths.heads / widths.kv_heads);
            attend_group(pass, Head { layer, head }, widths, (*part, tokens.clone()), own_rows, &ready);
        }
    });
}

/// Attends with the heads of one group for some tokens of one part.
fn attend_group<'a>(
    pass: &Pass<'_>,
    at: Head,
    widths: &Widths,
    (part, tokens): (usize, Range<usize>),
    own: impl Iterator<Item = (&'a mut [f32], &'a mut [f32])>,
    ready: impl Fn(usize, &mut [f32]),
) {
    thread_local!(static ROOM: RefCell<Room> = RefCell::default());
    ROOM.with_borrow_mut(|room| {
        let mut outs = Vec::with_capacity(tokens.len());
        room.begin(widths);
        let positions = tokens.clone().map(|token| place(pass, token).1);
        for ((token, position), (queries, out)) in tokens.clone().zip(positions).zip(own) {
            let first = (position + 1).saturating_sub(widths.window);
            for query in queries.chunks_exact_mut(widths.keys) {
                ready(token, query);
                room.push(query, first..position + 1, widths.scale);
            }
            outs.push(out);
        }
        room.attend(pass, &pass.parts[part], at, widths);
        for (out, found) in outs.into_iter().zip(room.results(widths.group() * widths.values)) {
            out.copy_from_slice(found);
        }
    });
}

/// The part and the position of a pass's `token`th token.
pub(super) fn place<'a>(pass: &'a Pass<'_>, token: usize) -> (&'a Part<'a>, usize) {
    let number = pass.starts.partition_point(|start| *start <= token) - 1;
    let part = &pass.parts[number];
    (part, part.position + token - pass.starts[number])
}

/// A thread's own memory for the queries of an item, a row each.
#[derive(Default)]
struct Room {
    /// (rows, D), times the scale of the scores.
    queries: Vec<f32>,
    /// (rows, D): averages of values so far, not yet divided.
    sums: Vec<f32>,
    rows: Vec<Row>,
    /// (rows, 32): of one block the scores, then the weights.
    weights: Vec<f32>,
    /// (D, 32) and (32, D)
    keys: Vec<f32>,
    values: Vec<f32>,
}

struct Row {
    /// Positions.
    sees: Range<usize>,
    /// The largest score so far.
    largest: f32,
    /// The sum of the weights so far.
    weight: f32,
}

impl Row {
    /// What it sees of a block, counted from the block's first position.
    fn within(&self, block: usize) -> Range<usize> {
        let first = block * BLOCK_TOKENS;
        let clamp = |position: usize| position.clamp(first, first + BLOCK_TOKENS) - first;
        clamp(self.sees.start)..clamp(self.sees.end)
    }
}

impl Room {
    fn begin(&mut self, widths: &Widths) {
        self.queries.clear();
        self.rows.clear();
        sized(&mut self.keys, widths.keys * BLOCK_TOKENS);
        sized(&mut self.values, widths.values * BLOCK_TOKENS);
    }

    fn push(&mut self, query: &[f32], sees: Range<usize>, scale: f32) {
        self.queries.extend(query.iter().map(|x| x * scale));
        self.rows.push(Row { sees, largest: f32::NEG_INFINITY, weight: 0.0 });
    }

    /// `softmax(q k^T / sqrt(D)) v` (Vaswani et al. 2017, eq. 1) for all rows.
    fn attend(&mut self, pass: &Pass<'_>, part: &Part<'_>, at: Head, widths: &Widths) {
        let Self { queries, sums, rows, weights, keys, values } = self;
        let sums = sized(sums, rows.len() * widths.values);
        let weights = sized(weights, rows.len() * BLOCK_TOKENS);
        sums.fill(0.0);
        let first = rows.iter().map(|row| row.sees.start).min().unwrap_or(0);
        let end = rows.iter().map(|row| row.sees.end).max().unwrap_or(0);
        let blocks = first / BLOCK_TOKENS..end.div_ceil(BLOCK_TOKENS);
        #[expect(unsafe_code, reason = "several threads read a block")]
        // SAFETY: the region before wrote all blocks of this layer, this one writes none.
        let stored = |block: usize| unsafe { pass.blocks.head(part.blocks[block], at) };
        let mut blocks = blocks.map(|block| (block, stored(block))).peekable();
        while let Some((block, stored)) = blocks.next() {
            let next = blocks.peek().and_then(|(_, next)| next.as_kept());
            let (keys, values) = if pass.blocks.keeps_values(at.layer) {
                stored.floats(rows.len() <= DIRECT_ROWS, keys, values)
            } else {
                let (keys, _) = stored.floats(false, keys, &mut []);
                (keys, across(keys, values, widths.values))
            };
            weights.fill(0.0);
            let queries = Strided { floats: queries, stride: widths.keys, count: widths.keys };
            add_products(queries, keys, next.map(|(keys, _)| keys), BLOCK_TOKENS, weights);
            simd::run(Weigh { rows, block, weights, sums });
            for (own, sees) in alike(rows, block) {
                let weights = &weights[own.start * BLOCK_TOKENS + sees.start..];
                let weights = Strided { floats: weights, stride: BLOCK_TOKENS, count: sees.len() };
                let sums = &mut sums[own.start * widths.values..own.end * widths.values];
                let values = values.rows(sees, widths.values);
                add_products(weights, values, next.map(|(_, values)| values), widths.values, sums);
            }
        }
        for (row, sums) in rows.iter().zip(sums.chunks_exact_mut(widths.values)) {
            let share = row.weight.recip();
            sums.iter_mut().for_each(|sum| *sum *= share);
        }
    }

    /// What was found, `width` numbers at a time.
    fn results(&self, width: usize) -> impl Iterator<Item = &[f32]> {
        self.sums.chunks_exact(width)
    }
}

/// Runs of rows that see the same of a block, and something of it.
fn alike(rows: &[Row], block: usize) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let mut first = 0;
    let runs = rows.chunk_by(move |row, next| row.within(block) == next.within(block)).map(move |run| {
        first += run.len();
        (first - run.len()..first, run[0].within(block))
    });
    runs.filter(|(_, sees)| !sees.is_empty())
}

/// The beginnings of keys, (D, 32), as values, (32, `width`).
fn across<'a>(keys: Floats<'_>, values: &'a mut [f32], width: usize) -> Floats<'a> {
    let Floats::F32(keys) = keys else { unreachable!("keys that were asked for as f32") };
    for (number, keys) in keys.chunks_exact(BLOCK_TOKENS).take(width).enumerate() {
        for (position, key) in keys.iter().enumerate() {
            values[position * width + number] = *key;
        }
    }
    Floats::F32(&values[..width * BLOCK_TOKENS])
}

/// Makes weights of the scores of a block, and sums and weights so far smaller where a larger score has come.
struct Weigh<'a> {
    rows: &'a mut [Row],
    block: usize,
    /// (rows, 32)
    weights: &'a mut [f32],
    /// (rows, D)
    sums: &'a mut [f32],
}

impl Kernel for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: MultiplyAdd>(self) {
        let Self { rows, block, weights, sums } = self;
        let width = sums.len() / rows.len();
        let (weights, _) = weights.as_chunks_mut::<BLOCK_TOKENS>();
        // Each step for all rows, so that the processor works on several rows at a time.
        for ((row, weights), sums) in rows.iter_mut().zip(&mut *weights).zip(sums.chunks_exact_mut(width)) {
            let sees = row.within(block);
            weights[..sees.start].fill(f32::NEG_INFINITY);
            weights[sees.end..].fill(f32::NEG_INFINITY);
            let largest = simd::largest(&halved(weights, simd::larger));
            if largest > row.largest {
                let kept = math::exp::<M>(row.largest - largest);
                row.largest = largest;
                row.weight *= kept;
                sums.iter_mut().for_each(|sum| *sum *= kept);
            }
        }
        for (row, weights) in rows.iter().zip(&mut *weights) {
            // Finite, even where nothing was seen yet.
            let largest = simd::larger(row.largest, f32::MIN);
            for weight in weights {
                *weight = math::exp::<M>(*weight - largest);
            }
        }
        for (row, weights) in rows.iter_mut().zip(weights) {
            row.weight += simd::total(&halved(weights, |x, y| x + y));
        }
    }
}

/// The two halves joined, number by number.
#[inline(always)]
fn halved(numbers: &[f32; BLOCK_TOKENS], join: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    let mut joined = [0.0; LANES];
    for lane in 0..LANES {
        joined[lane] = join(numbers[lane], numbers[lane + LANES]);
    }
    joined
}

/// Rows of an item: as many as make reading a block worth while, and few enough for a thread's nearest cache.
const ROWS: usize = 32;
/// With more rows it pays to make f32 of a block first.
const DIRECT_ROWS: usize = 8;

#[cfg(test)]
#[expect(unsafe_code, reason = "one thread alone")]
mod tests {
    use std::num::NonZeroUsize;

    use proptest::prelude::*;

    use super::*;
    use crate::batch::{BlockId, Wanted, blocks_for};
    use crate::config::{RopeConfig, RopeScaling};
    use crate::kernel::Numerics;
    use crate::kv::{KvDtype, KvShape, LayerKv, PagedKv};
    use crate::nn::rope::Rope;
    use crate::pool::Pool;

    fn number(seed: usize) -> f32 {
        ((seed as f32) * 12.9898).sin() * 1.5
    }

    /// What a query finds among the positions that it sees, by the formula in f64.
    fn expected(query: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>], sees: Range<usize>) -> Vec<f64> {
        let dot =
            |key: &[f32]| query.iter().zip(key).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
        let scale = (query.len() as f64).sqrt();
        let weights: Vec<f64> = keys[sees.clone()].iter().map(|key| (dot(key) / scale).exp()).collect();
        let total: f64 = weights.iter().sum();
        let number = |lane: usize| {
            let products = weights.iter().zip(&values[sees.clone()]);
            products.map(|(weight, value)| weight * f64::from(value[lane])).sum::<f64>() / total
        };
        (0..values[0].len()).map(number).collect()
    }

    proptest! {
        #[test]
        fn attention_agrees_with_its_formula(
            head_dim in prop_oneof![Just(8_usize), Just(32), Just(64), Just(80)],
            positions in 1_usize..120,
            rows in prop::collection::vec((0_usize..120, 1_usize..130), 1..6),
            seed in 0_usize..1000,
        ) {
            let vector = |first: usize| (0..head_dim).map(|i| number(seed + 131 * first + i)).collect::<Vec<f32>>();
            let keys: Vec<_> = (0..positions).map(|position| vector(2 * position)).collect();
            let values: Vec<_> = (0..positions).map(|position| vector(2 * position + 1)).collect();
            let mut blocks: Vec<_> = (0..).map(BlockId).take(blocks_for(positions)).collect();
            blocks.reverse();
            let tokens = vec![0; positions];
            let part = Part { tokens: &tokens, position: 0, blocks: &blocks, slot: 0, logits: Wanted::None };
            let layers = vec![LayerKv::Positions { heads: 1, keys: head_dim, values: head_dim }];
            let mut kv = PagedKv::new(KvShape { layers, dtype: KvDtype::F32 }, 1);
            kv.admit(&[part]).unwrap();
            let (pool, at) = (Pool::of(NonZeroUsize::MIN), Head { layer: 0, head: 0 });
            let rope = Rope::new(&RopeConfig { theta: 1e4, scaling: RopeScaling::None }, head_dim);
            let pass = Pass {
                pool: &pool,
                numerics: Numerics::F32,
                parts: &[part],
                starts: vec![0, positions],
                turns: rope.turns(&[]),
                blocks: kv.view(),
            };
            for (position, (key, value)) in keys.iter().zip(&values).enumerate() {
                let block = blocks[position / BLOCK_TOKENS];
                // SAFETY: one thread.
                unsafe { pass.blocks.write(block, at, position % BLOCK_TOKENS, key, value) };
            }
            let mut room = Room::default();
            let scale = (head_dim as f32).sqrt().recip();
            let widths =
                Widths { heads: 1, kv_heads: 1, keys: head_dim, values: head_dim, window: usize::MAX, scale };
            room.begin(&widths);
            let rows: Vec<_> = rows.into_iter().enumerate().map(|(row, (last, window))| {
                let end = last.min(positions - 1) + 1;
                (vector(5000 + row), end.saturating_sub(window)..end)
            }).collect();
            for (query, sees) in &rows {
                room.push(query, sees.clone(), scale);
            }
            room.attend(&pass, &part, at, &widths);
            for ((query, sees), found) in rows.into_iter().zip(room.results(head_dim)) {
                let expected = expected(&query, &keys, &values, sees);
                for (found, expected) in found.iter().zip(expected) {
                    prop_assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} for {expected}");
                }
            }
        }
    }
}
