//! Gated DeltaNet (Yang et al. 2024): a layer that keeps a matrix for each head instead of keys and values.
//!
//! ```text
//! S <- g S;  S <- S + beta (v - S k) k^T;  y = S q            for each token and each head of values
//! ```
//!
//! `q`, `k` and `v` come out of a short convolution over the last tokens and a SiLU; `q` and `k` have the length one
//! (times `1 / sqrt(Dk)` for `q`). A head of queries and keys serves several heads of values. What comes out is normed,
//! and gated by `z`.
//!
//! State of a layer: `S` of each head of values, (Dv, Dk), and then the last inputs of the convolution, oldest first,
//! head of keys after head of keys: for each (kernel - 1, q | k | v). Tokens are taken one after the other, so it does
//! not show how a sequence was cut.

use std::cell::RefCell;

use super::linear::{self, Bias, Into, Linear};
use super::norm::RmsNorm;
use super::route::sigmoid;
use super::{Pass, Workspace, math, sized};
use crate::config::DeltaConfig;
use crate::error::InferError;
use crate::pool::Scattered;
use crate::scope::Scope;
use crate::simd::{self, Kernel, MultiplyAdd};

/// The DeltaNet of one layer.
pub(crate) struct DeltaNet {
    inputs: Inputs,
    /// For each head of keys, (kernel, channels): the weights of its q, k and v.
    conv: Vec<Vec<f32>>,
    /// For each head of values: `-e^A_log`, and what is added to `a`.
    decays: Vec<f32>,
    dt_bias: Vec<f32>,
    norm: RmsNorm,
    out_proj: Linear,
    shape: Shape,
}

/// What a token's projections are called and how they lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Projections {
    /// Qwen3-Next: by heads of keys, q, k, v, z and b, a.
    ByHeads,
    /// Qwen3.5: all q, all k, all v; and each of the others alone.
    Apart,
}

#[expect(clippy::large_enum_variant, reason = "made once for each layer")]
enum Inputs {
    ByHeads { in_proj_qkvz: Linear, in_proj_ba: Linear },
    Apart { in_proj_qkv: Linear, in_proj_z: Linear, in_proj_b: Linear, in_proj_a: Linear },
}

#[derive(Clone, Copy)]
struct Shape {
    key_heads: usize,
    /// Heads of values for each head of keys.
    group: usize,
    key_dim: usize,
    value_dim: usize,
    kernel: usize,
}

impl Shape {
    /// Inputs of the convolution for one head of keys: q, k and the v of its group.
    const fn channels(self) -> usize {
        2 * self.key_dim + self.values()
    }

    /// Values of one head of keys.
    const fn values(self) -> usize {
        self.group * self.value_dim
    }

    const fn value_heads(self) -> usize {
        self.key_heads * self.group
    }

    /// Numbers of the matrices of one head of keys.
    const fn matrices(self) -> usize {
        self.values() * self.key_dim
    }
}

/// Memory of a pass for what is projected.
#[derive(Default)]
pub(crate) struct Room {
    /// (T, …), as the checkpoint has it.
    mixed: Vec<f32>,
    z: Vec<f32>,
    b: Vec<f32>,
    a: Vec<f32>,
    /// (T, values of all heads)
    found: Vec<f32>,
}

impl DeltaNet {
    /// Loads the DeltaNet at this place.
    ///
    /// # Errors
    /// Those of [`Linear::load`] and [`RmsNorm::load`].
    pub(crate) fn load(
        at: &Scope<'_>,
        delta: &DeltaConfig,
        projections: Projections,
    ) -> Result<Self, InferError> {
        let width = at.config().hidden_size;
        let shape = Shape {
            key_heads: delta.key_heads,
            group: delta.value_heads / delta.key_heads,
            key_dim: delta.key_dim,
            value_dim: delta.value_dim,
            kernel: delta.kernel,
        };
        let values = shape.key_heads * shape.values();
        let matrix = |name: &str, outputs| Linear::load(&at.enter(name), outputs, width, Bias::None);
        let inputs = if projections == Projections::ByHeads {
            Inputs::ByHeads {
                in_proj_qkvz: matrix("in_proj_qkvz", delta.channels() + values)?,
                in_proj_ba: matrix("in_proj_ba", 2 * delta.value_heads)?,
            }
        } else {
            Inputs::Apart {
                in_proj_qkv: matrix("in_proj_qkv", delta.channels())?,
                in_proj_z: matrix("in_proj_z", values)?,
                in_proj_b: matrix("in_proj_b", delta.value_heads)?,
                in_proj_a: matrix("in_proj_a", delta.value_heads)?,
            }
        };
        let conv = at.enter("conv1d").floats_shaped("weight", &[delta.channels(), delta.kernel, 1])?;
        let decays = at.floats("A_log", delta.value_heads)?;
        Ok(Self {
            inputs,
            conv: (0..shape.key_heads).map(|head| shape.conv_of(head, &conv)).collect(),
            decays: decays.into_iter().map(|a_log| -a_log.exp()).collect(),
            dt_bias: at.floats("dt_bias", delta.value_heads)?,
            norm: RmsNorm::load(&at.enter("norm"), delta.value_dim)?,
            out_proj: Linear::load(&at.enter("out_proj"), width, values, Bias::None)?,
            shape,
        })
    }

    /// Adds the layer of `x`, (T, E), after a norm, to `x`. Changes the states of the parts' slots.
    pub(crate) fn add_to(
        &self,
        x: &mut [f32],
        norm: &RmsNorm,
        layer: usize,
        pass: &Pass<'_>,
        space: &mut Workspace,
    ) {
        let Workspace { inputs, delta: room, .. } = space;
        let (tokens, shape) = (pass.tokens(), self.shape);
        let heads = shape.value_heads();
        let mixed_width = match &self.inputs {
            Inputs::ByHeads { in_proj_qkvz, .. } => in_proj_qkvz.outputs(),
            Inputs::Apart { in_proj_qkv, .. } => in_proj_qkv.outputs(),
        };
        let mixed = sized(&mut room.mixed, tokens * mixed_width);
        let z = sized(&mut room.z, tokens * shape.key_heads * shape.values());
        let b = sized(&mut room.b, 2 * tokens * heads);
        let a = sized(&mut room.a, tokens * heads);
        match &self.inputs {
            Inputs::ByHeads { in_proj_qkvz, in_proj_ba } => {
                let all = [in_proj_qkvz, in_proj_ba];
                let ready = linear::prepare_normed(pass, x, norm, &all, inputs);
                ready.project(pass, Into::Set, &mut [&mut *mixed, &mut *b]);
            }
            Inputs::Apart { in_proj_qkv, in_proj_z, in_proj_b, in_proj_a } => {
                let all = [in_proj_qkv, in_proj_z, in_proj_b, in_proj_a];
                let ready = linear::prepare_normed(pass, x, norm, &all, inputs);
                let b = &mut b[..tokens * heads];
                ready.project(pass, Into::Set, &mut [&mut *mixed, &mut *z, b, &mut *a]);
            }
        }
        let projected = Projected { by_heads: self.is_by_heads(), shape, mixed, z, b, a };
        let found = sized(&mut room.found, tokens * shape.key_heads * shape.values());
        self.remember_and_read(layer, pass, &projected, found);
        linear::prepare(pass, found, &[&self.out_proj], inputs).project(pass, Into::Add, &mut [x]);
    }

    const fn is_by_heads(&self) -> bool {
        matches!(self.inputs, Inputs::ByHeads { .. })
    }

    /// Takes all tokens through the states; writes (T, values).
    fn remember_and_read(&self, layer: usize, pass: &Pass<'_>, projected: &Projected<'_>, found: &mut [f32]) {
        let (shape, found) = (self.shape, Scattered::new(found));
        let (heads, values) = (shape.key_heads, shape.values());
        let matrices = heads * shape.matrices();
        let window = (shape.kernel - 1) * shape.channels();
        pass.pool.run(pass.parts.len() * heads, 1, |items| {
            for item in items {
                let (number, head) = (item / heads, item % heads);
                let state = pass.blocks.state(pass.parts[number].slot, layer);
                #[expect(unsafe_code, reason = "heads are worked on by several threads")]
                // SAFETY: each head of each part is one item of the region, and no two parts have one slot.
                let (matrices, window) = unsafe {
                    let start = head * shape.matrices();
                    let from = matrices + head * window;
                    (state.part(start..start + shape.matrices()), state.part(from..from + window))
                };
                self.with_head(head, matrices, window, |own| {
                    for token in pass.starts[number]..pass.starts[number + 1] {
                        let start = (token * heads + head) * values;
                        #[expect(unsafe_code, reason = "heads are worked on by several threads")]
                        // SAFETY: as above; each token is of one part.
                        let out = unsafe { found.part(start..start + values) };
                        own.step(token, projected, out);
                    }
                });
            }
        });
    }

    /// Does something with one head of keys: its state, and memory of this thread.
    fn with_head(
        &self,
        head: usize,
        matrices: &mut [f32],
        window: &mut [f32],
        work: impl FnOnce(&mut HeadState<'_>),
    ) {
        thread_local!(static ROOM: RefCell<[Vec<f32>; 2]> = RefCell::default());
        ROOM.with_borrow_mut(|[row, mixed]| {
            let channels = self.shape.channels();
            let (row, mixed) = (sized(row, channels), sized(mixed, channels));
            work(&mut HeadState { net: self, head, matrices, window, row, mixed });
        });
    }
}

impl Shape {
    /// The weights of one head of keys, (kernel, channels), out of (channels of all, kernel).
    fn conv_of(self, head: usize, conv: &[f32]) -> Vec<f32> {
        let (keys, values) = (self.key_heads * self.key_dim, self.values());
        let queries = head * self.key_dim..(head + 1) * self.key_dim;
        let channels: Vec<usize> = (queries.clone())
            .chain(queries.map(|channel| keys + channel))
            .chain(2 * keys + head * values..2 * keys + (head + 1) * values)
            .collect();
        let tap = |tap: usize| channels.iter().map(move |channel| conv[channel * self.kernel + tap]);
        (0..self.kernel).flat_map(tap).collect()
    }
}

/// What all tokens project to.
struct Projected<'a> {
    by_heads: bool,
    shape: Shape,
    mixed: &'a [f32],
    z: &'a [f32],
    b: &'a [f32],
    a: &'a [f32],
}

impl Projected<'_> {
    /// Copies q, k and v of a token and a head of keys to `row`.
    fn read(&self, token: usize, head: usize, row: &mut [f32]) {
        let Shape { key_heads, key_dim, .. } = self.shape;
        let values = self.shape.values();
        if self.by_heads {
            let start = (token * key_heads + head) * (self.shape.channels() + values);
            row.copy_from_slice(&self.mixed[start..start + row.len()]);
        } else {
            let token = &self.mixed[token * key_heads * self.shape.channels()..];
            let keys = key_heads * key_dim;
            let (q, rest) = row.split_at_mut(key_dim);
            let (k, v) = rest.split_at_mut(key_dim);
            q.copy_from_slice(&token[head * key_dim..(head + 1) * key_dim]);
            k.copy_from_slice(&token[keys + head * key_dim..keys + (head + 1) * key_dim]);
            v.copy_from_slice(&token[2 * keys + head * values..2 * keys + (head + 1) * values]);
        }
    }

    /// The gate of a token and a head of keys: (values of its group).
    fn gate(&self, token: usize, head: usize) -> &[f32] {
        let (values, heads) = (self.shape.values(), self.shape.key_heads);
        if self.by_heads {
            let width = self.shape.channels() + values;
            let start = (token * heads + head) * width + self.shape.channels();
            &self.mixed[start..start + values]
        } else {
            &self.z[(token * heads + head) * values..][..values]
        }
    }

    /// `b` and `a` of a token and a head of values, the `number`th of the group of `head`.
    fn rates(&self, token: usize, head: usize, number: usize) -> (f32, f32) {
        let Shape { key_heads, group, .. } = self.shape;
        let at = token * key_heads + head;
        if self.by_heads {
            (self.b[2 * at * group + number], self.b[(2 * at + 1) * group + number])
        } else {
            (self.b[at * group + number], self.a[at * group + number])
        }
    }
}

/// One head of keys with its group of heads of values, of one sequence.
struct HeadState<'a> {
    net: &'a DeltaNet,
    head: usize,
    /// (group, Dv, Dk)
    matrices: &'a mut [f32],
    /// (kernel - 1, channels), oldest first.
    window: &'a mut [f32],
    /// (channels), twice
    row: &'a mut [f32],
    mixed: &'a mut [f32],
}

impl HeadState<'_> {
    /// Takes one token; writes the values of the group to `out`.
    fn step(&mut self, token: usize, projected: &Projected<'_>, out: &mut [f32]) {
        let Self { net, head, matrices, window, row, mixed } = self;
        let (head, Shape { group, key_dim, value_dim, .. }) = (*head, net.shape);
        projected.read(token, head, row);
        convolve(&net.conv[head], window, row, mixed);
        let (q, rest) = mixed.split_at_mut(key_dim);
        let (k, v) = rest.split_at_mut(key_dim);
        normalise(q, (key_dim as f32).sqrt().recip());
        normalise(k, 1.0);
        for number in 0..group {
            let (b, a) = projected.rates(token, head, number);
            let value_head = head * group + number;
            let decay = (net.decays[value_head] * softplus(a + net.dt_bias[value_head])).exp();
            let own = number * value_dim..(number + 1) * value_dim;
            let matrix = &mut matrices[number * value_dim * key_dim..(number + 1) * value_dim * key_dim];
            let out = &mut out[own.clone()];
            simd::run(Step { matrix, q, k, v: &v[own], decay, beta: sigmoid(b), out });
            net.norm.row(out);
        }
        row[..out.len()].copy_from_slice(projected.gate(token, head));
        math::silu_times(&mut row[..out.len()], out);
        out.copy_from_slice(&row[..out.len()]);
    }
}

/// `silu` of the convolution of the last tokens' inputs, `window` and then `row`; `row` moves into the window.
fn convolve(weights: &[f32], window: &mut [f32], row: &[f32], out: &mut [f32]) {
    let channels = row.len();
    out.fill(0.0);
    let inputs = window.chunks_exact(channels).chain([row]);
    for (weights, inputs) in weights.chunks_exact(channels).zip(inputs) {
        for ((sum, weight), input) in out.iter_mut().zip(weights).zip(inputs) {
            *sum += weight * input;
        }
    }
    if let Some(kept) = window.len().checked_sub(channels) {
        window.copy_within(channels.., 0);
        window[kept..].copy_from_slice(row);
    }
    out.iter_mut().for_each(|sum| *sum *= sigmoid(*sum));
}

/// Makes a vector as long as `length`.
fn normalise(x: &mut [f32], length: f32) {
    let squares: f32 = x.iter().map(|x| x * x).sum();
    let scale = length / (squares + LENGTH_EPS).sqrt();
    x.iter_mut().for_each(|x| *x *= scale);
}

fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// One token's step of one matrix.
struct Step<'a> {
    /// (Dv, Dk)
    matrix: &'a mut [f32],
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    decay: f32,
    beta: f32,
    /// (Dv)
    out: &'a mut [f32],
}

impl Kernel for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: MultiplyAdd>(self) {
        let Self { matrix, q, k, v, decay, beta, out } = self;
        for ((row, v), out) in matrix.chunks_exact_mut(k.len()).zip(v).zip(out) {
            row.iter_mut().for_each(|x| *x *= decay);
            let change = (v - simd::dot::<M>(row, k)) * beta;
            row.iter_mut().zip(k).for_each(|(x, k)| *x = M::madd(*k, change, *x));
            *out = simd::dot::<M>(row, q);
        }
    }
}

/// What is added to the sum of squares.
const LENGTH_EPS: f32 = 1e-6;

#[cfg(test)]
mod tests {
    use super::*;

    fn check(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
        }
    }

    /// Three tokens through mlx-lm's `gated_delta_update`.
    #[test]
    fn the_recurrence_is_that_of_mlx_lm() {
        let q = [[-0.1, 0.9, -0.5, 0.1], [-0.7, 0.9, 0.4, 0.1], [1.1, 0.2, -2.5, 2.0]];
        let k = [[0.4, -0.8, -1.3, 1.2], [0.2, 1.2, -1.3, 1.1], [-1.3, 0.1, -0.6, -0.1]];
        let v = [[0.1, 0.1, -0.4], [0.1, 0.5, 1.4], [1.9, -0.1, 0.4]];
        let rates = [(-0.9, 0.4), (-0.6, 0.0), (1.6, -0.1)];
        let expected = [
            [7.02e-5, 7.02e-5, -0.000_280_6],
            [-0.003_613_9, 0.011_188_6, 0.081_066_9],
            [0.001_536_9, 0.069_259_9, 0.139_161_4],
        ];
        let mut matrix = [0.0; 12];
        for token in 0..3 {
            let (mut q, mut k, mut out, (b, a)) = (q[token], k[token], [0.0; 3], rates[token]);
            normalise(&mut q, 0.5);
            normalise(&mut k, 1.0);
            let decay = (-(-1.5_f32).exp() * softplus(a + 0.4)).exp();
            let v = &v[token];
            let beta = sigmoid(b);
            simd::run(Step { matrix: &mut matrix, q: &q, k: &k, v, decay, beta, out: &mut out });
            check(&out, &expected[token]);
        }
        let state = [
            -1.418_277_1,
            0.116_485_2,
            -0.686_305_6,
            -0.084_266_3,
            0.111_977_9,
            0.066_798_7,
            -0.057_961_8,
            0.094_151_8,
            -0.221_010_1,
            0.293_566_8,
            -0.325_815_1,
            0.156_849_2,
        ];
        check(&matrix, &state);
    }

    #[test]
    fn the_convolution_sees_the_last_tokens_and_forgets_the_rest() {
        // Two channels: one that sees the token before the last one, one that sees the last three.
        let weights = [0.0, 1.0, 1.0, 1.0, 0.0, 1.0];
        let (mut window, mut out) = ([0.0; 4], [0.0; 2]);
        let silu = |x: f32| x * sigmoid(x);
        let mut found = Vec::new();
        for token in 1..=5_u8 {
            convolve(&weights, &mut window, &[f32::from(token); 2], &mut out);
            found.push(out);
        }
        check(&found.concat(), &[0.0, 1.0, 1.0, 3.0, 2.0, 6.0, 3.0, 9.0, 4.0, 12.0].map(silu));
        assert_eq!(window.map(f32::to_bits), [4.0_f32, 4.0, 5.0, 5.0].map(f32::to_bits));
    }
}
