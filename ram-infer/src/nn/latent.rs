//! Multi-head latent attention (DeepSeek-V2, section 2.1), absorbed: all heads read one compressed vector of a token.
//!
//! ```text
//! x (T, E) -> kv_a -> latent (L) | turned key (R)                    what is cached, for all heads together
//! x (T, E) -> q -> (H, N | R) -> embed_q of the N -> (H, L | R)      queries for what is cached
//! softmax(queries . cached) -> averages of latents (H, L) -> unembed_out -> (H, V) -> o_proj -> (T, E)
//! ```
//!
//! Keys and values of a head are never made: `embed_q` and `unembed_out` of each head, once the two halves of
//! `kv_b_proj`, stand on the side of the queries and of the averages. L is `kv_lora_rank`, N and R are the widths of a
//! head's queries without and with a position, V is that of a head's values.

use super::attention::{self, Widths};
use super::linear::{self, Bias, Into, Linear};
use super::norm::RmsNorm;
use super::route::Run;
use super::stack::Stack;
use super::{Pass, Workspace, sized};
use crate::batch::BLOCK_TOKENS;
use crate::config::{MlaConfig, ModelConfig};
use crate::error::InferError;
use crate::kernel::Inputs;
use crate::kv::Head;
use crate::quant;
use crate::scope::Scope;

/// The latent attention of one layer.
pub(crate) struct LatentAttention {
    queries: Queries,
    kv_a_proj_with_mqa: Linear,
    kv_a_layernorm: RmsNorm,
    /// For each head, (L, N).
    embed_q: Stack,
    /// For each head, (V, L).
    unembed_out: Stack,
    o_proj: Linear,
    mla: MlaConfig,
    heads: usize,
    /// What scores are multiplied with.
    scale: f32,
}

/// How queries are made.
enum Queries {
    /// At once.
    Plain { q_proj: Linear },
    /// Through a narrow place.
    Narrow { q_a_proj: Linear, q_a_layernorm: RmsNorm, q_b_proj: Linear },
}

/// Memory of a pass for what is between.
#[derive(Default)]
pub(crate) struct Room {
    /// (T, rank of queries), twice
    narrow: Vec<f32>,
    /// (T, H, N + R)
    queries: Vec<f32>,
    /// (T, L + R)
    latents: Vec<f32>,
    /// (H, T, N), and later (H, T, V)
    by_head: Vec<f32>,
    /// (H, T, L), for the queries and later for the averages
    absorbed: Vec<f32>,
    /// (T, H, L + R)
    whole: Vec<f32>,
    /// (T, H, L), and later (T, H, V)
    attended: Vec<f32>,
    /// A run for each head.
    runs: Vec<Run>,
}

impl LatentAttention {
    /// Loads the attention at this place.
    ///
    /// # Errors
    /// Those of [`Linear::load`] and [`RmsNorm::load`].
    pub(crate) fn load(at: &Scope<'_>, mla: MlaConfig) -> Result<Self, InferError> {
        let &ModelConfig { hidden_size: width, heads, attention_bias, .. } = at.config();
        let bias = Bias::when(attention_bias);
        let matrix = |name: &str, outputs, inputs, bias| Linear::load(&at.enter(name), outputs, inputs, bias);
        let norm = |name: &str, width| {
            Ok::<_, InferError>(RmsNorm::new(at.enter(name).floats("weight", width)?, EPS))
        };
        let queries = match mla.q_lora_rank {
            None => {
                Queries::Plain { q_proj: matrix("q_proj", heads * mla.qk_head_dim(), width, Bias::None)? }
            }
            Some(rank) => Queries::Narrow {
                q_a_proj: matrix("q_a_proj", rank, width, bias)?,
                q_a_layernorm: norm("q_a_layernorm", rank)?,
                q_b_proj: matrix("q_b_proj", heads * mla.qk_head_dim(), rank, Bias::None)?,
            },
        };
        let latent = mla.kv_lora_rank;
        let (embed_q, unembed_out) = if at.has("kv_b_proj.weight") {
            split_by_heads(&at.enter("kv_b_proj"), &mla, heads)?
        } else {
            (
                Stack::load(&at.enter("embed_q"), heads, latent, mla.qk_nope)?,
                Stack::load(&at.enter("unembed_out"), heads, mla.v_head_dim, latent)?,
            )
        };
        #[expect(clippy::cast_possible_truncation, reason = "rounds")]
        let scale = (at.config().rope.score_scale() / (mla.qk_head_dim() as f64).sqrt()) as f32;
        Ok(Self {
            queries,
            kv_a_proj_with_mqa: matrix("kv_a_proj_with_mqa", latent + mla.qk_rope, width, bias)?,
            kv_a_layernorm: norm("kv_a_layernorm", latent)?,
            embed_q,
            unembed_out,
            o_proj: matrix("o_proj", width, heads * mla.v_head_dim, bias)?,
            mla,
            heads,
            scale,
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
        let (tokens, heads, mla) = (pass.tokens(), self.heads, &self.mla);
        let Workspace { inputs, latent: room, .. } = space;
        room.runs.clear();
        room.runs.extend((0..heads).map(|number| {
            let rows = number * tokens..(number + 1) * tokens;
            Run { number, inputs: rows.clone(), slots: rows }
        }));
        let latents = sized(&mut room.latents, tokens * (mla.kv_lora_rank + mla.qk_rope));
        let queries = sized(&mut room.queries, tokens * heads * mla.qk_head_dim());
        self.queries_and_latents(pass, (x, norm), &mut room.narrow, inputs, [&mut *queries, &mut *latents]);
        self.remember(layer, pass, latents);
        let by_head = sized(&mut room.by_head, heads * tokens * mla.qk_nope);
        pass.each_row(by_head, mla.qk_nope, |row, out| {
            let query = &queries[(row % tokens * heads + row / tokens) * mla.qk_head_dim()..];
            out.copy_from_slice(&query[..mla.qk_nope]);
        });
        let absorbed = sized(&mut room.absorbed, heads * tokens * mla.kv_lora_rank);
        self.embed_q.project(pass, by_head, &room.runs, inputs, absorbed);
        let widths = self.widths();
        let whole = sized(&mut room.whole, tokens * heads * widths.keys);
        pass.each_row(whole, widths.keys, |row, whole| {
            let (token, head) = (row / heads, row % heads);
            let (latent, turned) = whole.split_at_mut(mla.kv_lora_rank);
            let start = (head * tokens + token) * mla.kv_lora_rank;
            latent.copy_from_slice(&absorbed[start..start + mla.kv_lora_rank]);
            turned.copy_from_slice(&queries[row * mla.qk_head_dim() + mla.qk_nope..][..mla.qk_rope]);
            pass.turns.apply_to_pairs(token, turned);
        });
        let attended = sized(&mut room.attended, tokens * heads * mla.kv_lora_rank);
        attention::attend(pass, layer, &widths, whole, attended, |_, _| {});
        pass.each_row(absorbed, mla.kv_lora_rank, |row, out| {
            let start = (row % tokens * heads + row / tokens) * mla.kv_lora_rank;
            out.copy_from_slice(&attended[start..start + mla.kv_lora_rank]);
        });
        let by_head = sized(&mut room.by_head, heads * tokens * mla.v_head_dim);
        self.unembed_out.project(pass, absorbed, &room.runs, inputs, by_head);
        let attended = sized(&mut room.attended, tokens * heads * mla.v_head_dim);
        pass.each_row(attended, mla.v_head_dim, |row, out| {
            let start = (row % heads * tokens + row / heads) * mla.v_head_dim;
            out.copy_from_slice(&by_head[start..start + mla.v_head_dim]);
        });
        linear::prepare(pass, attended, &[&self.o_proj], inputs).project(pass, Into::Add, &mut [x]);
    }

    /// Writes the queries, (T, H * (N + R)), and the latents, (T, L + R), of `x`, (T, E), after a norm.
    fn queries_and_latents(
        &self,
        pass: &Pass<'_>,
        (x, norm): (&[f32], &RmsNorm),
        narrow: &mut Vec<f32>,
        inputs: &mut Vec<Inputs>,
        [queries, latents]: [&mut [f32]; 2],
    ) {
        let kv_a_proj = &self.kv_a_proj_with_mqa;
        match &self.queries {
            Queries::Plain { q_proj } => {
                let both = [q_proj, kv_a_proj];
                let ready = linear::prepare_normed(pass, x, norm, &both, inputs);
                ready.project(pass, Into::Set, &mut [queries, latents]);
            }
            Queries::Narrow { q_a_proj, q_a_layernorm, q_b_proj } => {
                let narrow = sized(narrow, pass.tokens() * q_a_proj.outputs());
                let both = [q_a_proj, kv_a_proj];
                let ready = linear::prepare_normed(pass, x, norm, &both, inputs);
                ready.project(pass, Into::Set, &mut [&mut *narrow, latents]);
                let ready = [q_b_proj];
                let ready = linear::prepare_normed(pass, narrow, q_a_layernorm, &ready, inputs);
                ready.project(pass, Into::Set, &mut [queries]);
            }
        }
    }

    /// Norms the latents and turns the keys beside them, (T, L + R), and writes both to the blocks.
    fn remember(&self, layer: usize, pass: &Pass<'_>, latents: &mut [f32]) {
        let width = self.mla.kv_lora_rank + self.mla.qk_rope;
        pass.each_row(latents, width, |token, row| {
            let (latent, key) = row.split_at_mut(self.mla.kv_lora_rank);
            self.kv_a_layernorm.row(latent);
            pass.turns.apply_to_pairs(token, key);
        });
        for (token, row) in latents.chunks_exact(width).enumerate() {
            let (part, position) = attention::place(pass, token);
            let block = part.blocks[position / BLOCK_TOKENS];
            #[expect(unsafe_code, reason = "blocks are written by several threads elsewhere")]
            // SAFETY: outside of a region this thread is alone.
            unsafe {
                pass.blocks.write(block, Head { layer, head: 0 }, position % BLOCK_TOKENS, row, &[]);
            }
        }
    }

    const fn widths(&self) -> Widths {
        Widths {
            heads: self.heads,
            kv_heads: 1,
            keys: self.mla.kv_lora_rank + self.mla.qk_rope,
            values: self.mla.kv_lora_rank,
            window: usize::MAX,
            scale: self.scale,
        }
    }
}

/// `embed_q` and `unembed_out` of each head from `kv_b_proj`, (H * (N + V), L), as checkpoints had it once. It is
/// unpacked for good: packed anew its halves would lose something.
fn split_by_heads(at: &Scope<'_>, mla: &MlaConfig, heads: usize) -> Result<(Stack, Stack), InferError> {
    let (latent, nope, value) = (mla.kv_lora_rank, mla.qk_nope, mla.v_head_dim);
    let joined = quant::load(at, heads * (nope + value), latent)?;
    let (mut embed_q, mut unembed_out) = (Vec::with_capacity(heads), Vec::with_capacity(heads));
    let mut rows = vec![0.0; (nope + value) * latent];
    for head in 0..heads {
        for (number, row) in rows.chunks_exact_mut(latent).enumerate() {
            joined.row(head * (nope + value) + number, row);
        }
        let (keys, values) = rows.split_at(nope * latent);
        // (N, L) -> (L, N)
        let across = (0..latent).flat_map(|to| (0..nope).map(move |from| keys[from * latent + to]));
        embed_q.push(quant::plain(at, latent, nope, &across.collect::<Vec<_>>())?);
        unembed_out.push(quant::plain(at, value, latent, values)?);
    }
    Ok((Stack::of(embed_q), Stack::of(unembed_out)))
}

/// What the norms of the narrow places add under their roots, whatever config.json says of the others.
const EPS: f32 = 1e-6;
