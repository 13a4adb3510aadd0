//! Causal self-attention with shared key and value heads (GQA; Ainslie et al. 2023), over a cache.
//!
//! On Apple's GPU it is candle's fused kernel; elsewhere, and for heads of a width that it does not have, products and
//! a softmax.

use candle_core::{DType, Device, Tensor};

use super::cache::LayerCache;
use super::linear::Linear;
use super::norm::RmsNorm;
use super::rope::Turns;
use super::route::Sorter;
use crate::config::ModelConfig;
use crate::error::InferError;
use crate::nn::attention::Recipe;
use crate::scope::Scope;

/// The attention of one layer.
pub(crate) struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// Norms over each head of the queries and the keys.
    qk_norm: Option<(RmsNorm, RmsNorm)>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// What all layers of one pass share.
pub(crate) struct Pass {
    /// Rotations of the pass's positions.
    pub(crate) turns: Turns,
    /// What its tokens see.
    pub(crate) sees: Sees,
    /// What sorts the choices of experts; `None` without experts, or when there are few.
    pub(crate) sorter: Option<Sorter>,
    /// The position of the first token.
    pub(crate) position: usize,
}

/// Which positions the tokens of a pass see: each itself and those before it, and of them the last `window`.
pub(crate) struct Sees {
    /// The first position that any of them sees.
    from: usize,
    /// Zero where a token sees and minus infinity where not, (T, S - from); `None` for one token, which sees all of
    /// those.
    mask: Option<Tensor>,
}

impl Sees {
    /// For the `tokens` from the position `first` on.
    ///
    /// # Errors
    /// Those of the device.
    pub(crate) fn new(
        first: usize,
        tokens: usize,
        window: Option<usize>,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Self> {
        let end = first + tokens;
        let window = window.unwrap_or(end);
        let from = (first + 1).saturating_sub(window);
        if tokens == 1 {
            return Ok(Self { from, mask: None });
        }
        let sees = |at: usize, position: usize| position <= at && at - position < window;
        let row = |at: usize| {
            (from..end).map(move |position| if sees(at, position) { 0.0 } else { f32::NEG_INFINITY })
        };
        let mask: Vec<f32> = (first..end).flat_map(row).collect();
        let mask = Tensor::from_vec(mask, (tokens, end - from), &Device::Cpu)?;
        Ok(Self { from, mask: Some(mask.to_dtype(dtype)?.to_device(device)?) })
    }

    /// Attends with `queries`, (H, T, D), over `keys` and `values`, (K, S, D), as far as they are seen; returns
    /// (H, T, D).
    fn attend(&self, queries: &Tensor, keys: &Tensor, values: &Tensor) -> candle_core::Result<Tensor> {
        let seen = |of: &Tensor| of.narrow(1, self.from, of.dim(1)? - self.from);
        let (keys, values) = (seen(keys)?, seen(values)?);
        if is_fused(queries)? {
            fused(queries, &keys, &values, self.mask.as_ref())
        } else {
            attend(queries, &keys, &values, self.mask.as_ref())
        }
    }
}

impl Attention {
    /// Loads the attention at this place.
    ///
    /// # Errors
    /// Those of [`Linear::load`].
    pub(crate) fn load(at: &Scope<'_>, recipe: Recipe) -> Result<Self, InferError> {
        let &ModelConfig { hidden_size, heads, kv_heads, head_dim, .. } = at.config();
        let kv_width = kv_heads * head_dim;
        let norm = |name| RmsNorm::load(&at.enter(name), head_dim);
        let qk_norm = if recipe.qk_norm { Some((norm("q_norm")?, norm("k_norm")?)) } else { None };
        Ok(Self {
            q_proj: Linear::load(&at.enter("q_proj"), heads * head_dim, hidden_size, recipe.qkv)?,
            k_proj: Linear::load(&at.enter("k_proj"), kv_width, hidden_size, recipe.qkv)?,
            v_proj: Linear::load(&at.enter("v_proj"), kv_width, hidden_size, recipe.qkv)?,
            o_proj: Linear::load(&at.enter("o_proj"), hidden_size, heads * head_dim, recipe.o)?,
            qk_norm,
            heads,
            kv_heads,
            head_dim,
        })
    }

    /// `x` is (T, E); returns (T, E). Writes T positions to `cache`.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        pass: &Pass,
        cache: &mut LayerCache,
    ) -> candle_core::Result<Tensor> {
        let tokens = x.dim(0)?;
        let queries = self.by_heads(&self.q_proj.forward(x)?, self.heads)?;
        let keys = self.by_heads(&self.k_proj.forward(x)?, self.kv_heads)?;
        let values = self.by_heads(&self.v_proj.forward(x)?, self.kv_heads)?;
        let (queries, keys) = match &self.qk_norm {
            Some((q_norm, k_norm)) => (q_norm.forward(&queries)?, k_norm.forward(&keys)?),
            None => (queries, keys),
        };
        let (queries, keys) = (pass.turns.apply(&queries)?, pass.turns.apply(&keys)?);
        let (keys, values) = cache.append(&keys, &values, pass.position)?;
        let heads = pass.sees.attend(&queries, &keys, &values)?;
        // (H, T, D) -> (T, H*D)
        let joined = heads.transpose(0, 1)?.reshape((tokens, self.heads * self.head_dim))?;
        self.o_proj.forward(&joined)
    }

    fn by_heads(&self, x: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
        // (T, heads*D) -> (heads, T, D)
        x.reshape((x.dim(0)?, heads, self.head_dim))?.transpose(0, 1)?.contiguous()
    }
}

/// `softmax(q k^T / sqrt(D) + mask) v` (Vaswani et al. 2017, eq. 1), grouped.
///
/// `queries` are (H, T, D), `keys` and `values` (K, S, D), `mask` is (T, S); returns (H, T, D).
fn attend(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    mask: Option<&Tensor>,
) -> candle_core::Result<Tensor> {
    let (heads, tokens, head_dim) = queries.dims3()?;
    let (kv_heads, positions, _) = keys.dims3()?;
    let rows = heads / kv_heads * tokens;
    // (H, T, D) -> (K, G*T, D): the heads that share keys lie together, so their rows are one matrix.
    let grouped = (queries * (head_dim as f64).powf(-0.5))?.reshape((kv_heads, rows, head_dim))?;
    // (K, G*T, D) x (K, D, S) -> (K, G*T, S)
    let scores = grouped.matmul(&keys.t()?)?;
    let scores = match mask {
        Some(mask) => scores
            .reshape((heads, tokens, positions))?
            .broadcast_add(mask)?
            .reshape((kv_heads, rows, positions))?,
        None => scores,
    };
    let weights = candle_nn::ops::softmax_last_dim(&scores)?;
    // (K, G*T, S) x (K, S, D) -> (K, G*T, D) -> (H, T, D)
    weights.matmul(values)?.reshape((heads, tokens, head_dim))
}

/// Whether candle has a fused kernel for these queries.
fn is_fused(queries: &Tensor) -> candle_core::Result<bool> {
    Ok(queries.device().is_metal() && matches!(queries.dim(2)?, 32 | 64 | 72 | 80 | 96 | 128 | 256))
}

/// [`attend`], in one kernel of Apple's GPU. One token must see all positions: for that the kernel takes no mask.
fn fused(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    mask: Option<&Tensor>,
) -> candle_core::Result<Tensor> {
    let (heads, tokens, head_dim) = queries.dims3()?;
    let mask = mask.map(|mask| mask.broadcast_as((1, heads, tokens, keys.dim(1)?))).transpose()?;
    let scale = (head_dim as f32).sqrt().recip();
    let [queries, keys, values] = [queries, keys, values].map(|of| of.unsqueeze(0));
    // The mask has all of it, so the kernel need not make one of its own; 1 is for no softcapping.
    candle_nn::ops::sdpa(&queries?.contiguous()?, &keys?, &values?, mask.as_ref(), false, scale, 1.0)?
        .squeeze(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The formula, in f64, one number at a time.
    fn reference(
        [q, k, v]: [&[f32]; 3],
        [heads, kv_heads, first, tokens, dim]: [usize; 5],
        window: usize,
    ) -> Vec<f64> {
        let positions = first + tokens;
        let mut out = Vec::new();
        for head in 0..heads {
            let shared = head / (heads / kv_heads);
            for token in 0..tokens {
                let at = first + token;
                let query = &q[(head * tokens + token) * dim..][..dim];
                let seen = (at + 1).saturating_sub(window)..=at;
                let row = |of: &[f32], position: usize| -> Vec<f64> {
                    of[(shared * positions + position) * dim..][..dim].iter().map(|x| f64::from(*x)).collect()
                };
                let score = |position: usize| {
                    let products = row(k, position).into_iter().zip(query).map(|(k, q)| k * f64::from(*q));
                    (products.sum::<f64>() / (dim as f64).sqrt()).exp()
                };
                let total: f64 = seen.clone().map(score).sum();
                for d in 0..dim {
                    out.push(
                        seen.clone().map(|position| score(position) / total * row(v, position)[d]).sum(),
                    );
                }
            }
        }
        out
    }

    proptest! {
        #[test]
        fn attention_agrees_with_its_formula_with_and_without_a_window(
            kv_heads in 1usize..3,
            group in 1usize..4,
            first in 0usize..9,
            tokens in 1usize..6,
            window in proptest::option::of(1usize..8),
            seed in proptest::collection::vec(-2.0f32..2.0, 6 * 15 * 4),
        ) {
            let (heads, dim, positions) = (kv_heads * group, 4, first + tokens);
            let take = |heads: usize, rows: usize, skip: usize| -> Vec<f32> {
                seed.iter().cycle().skip(skip).take(heads * rows * dim).copied().collect()
            };
            let (q, k, v) = (take(heads, tokens, 0), take(kv_heads, positions, 77), take(kv_heads, positions, 191));
            let tensor = |data: &Vec<f32>, heads, rows| {
                Tensor::from_vec(data.clone(), (heads, rows, dim), &Device::Cpu).unwrap()
            };
            let sees = Sees::new(first, tokens, window, DType::F32, &Device::Cpu).unwrap();
            let found = sees.attend(
                &tensor(&q, heads, tokens),
                &tensor(&k, kv_heads, positions),
                &tensor(&v, kv_heads, positions),
            );
            let shape = [heads, kv_heads, first, tokens, dim];
            let expected = reference([&q, &k, &v], shape, window.unwrap_or(usize::MAX));
            let found = found.unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            prop_assert_eq!(found.len(), expected.len());
            for (found, expected) in found.into_iter().zip(expected) {
                prop_assert!((f64::from(found) - expected).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn one_token_needs_no_mask_and_nothing_behind_its_window() {
        let check = |first, tokens, window, from, masked| {
            let sees = Sees::new(first, tokens, window, DType::F32, &Device::Cpu).unwrap();
            assert_eq!((sees.from, sees.mask.is_some()), (from, masked));
        };
        check(7, 1, None, 0, false);
        check(7, 1, Some(8), 0, false);
        check(7, 1, Some(7), 1, false);
        check(0, 2, None, 0, true);
        check(7, 2, Some(4), 4, true);
    }
}
