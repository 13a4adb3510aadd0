//! From layers and widths to parameters and bytes.
//!
//! Names as in `config.json`, letters as in the engine: *E hidden, H query heads, K kv heads, D head width, V
//! vocabulary*.

use std::num::NonZeroU16;

use crate::layers::LayerRange;
use crate::units::Bytes;

/// Bytes of a value of the caches and of what is not quantised: bfloat16.
const BF16_BYTES: u64 = 2;
/// Bytes of a value of a recurrent state: float32.
const F32_BYTES: u64 = 4;

/// Layers and widths of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// `num_hidden_layers`.
    pub layers: NonZeroU16,
    /// `hidden_size`, E.
    pub hidden: u64,
    /// `vocab_size`, V.
    pub vocab: u64,
    /// `max_position_embeddings`, in tokens.
    pub context: u64,
    /// `tie_word_embeddings`: whether the output head is the embedding.
    pub tied: bool,
    /// How tokens look at each other.
    pub attention: Attention,
    /// What follows attention in each layer.
    pub feed_forward: FeedForward,
}

/// How the tokens of a sequence look at each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// Grouped-query attention in each layer.
    Grouped(Grouped),
    /// Multi-head latent attention in each layer (DeepSeek-V2, section 2.1).
    Latent(Latent),
    /// DeltaNet layers, and one layer of attention with a gated output in each `every`.
    Hybrid {
        /// The layers of attention.
        attention: Grouped,
        /// The other layers.
        delta: DeltaNet,
        /// `full_attention_interval`: layers `every - 1`, `2 * every - 1`, … are attention.
        every: u16,
    },
}

/// Grouped-query attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grouped {
    /// `num_attention_heads`, H.
    pub heads: u64,
    /// `num_key_value_heads`, K.
    pub kv_heads: u64,
    /// `head_dim`, D.
    pub head: u64,
    /// Whether q, k and v have biases (Qwen 2.5).
    pub biased: bool,
    /// Whether q and k are normed, one weight per D (Qwen 3).
    pub normed: bool,
}

/// Latent attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latent {
    /// `num_attention_heads`, H.
    pub heads: u64,
    /// `q_lora_rank`.
    pub q_rank: u64,
    /// `kv_lora_rank`: what the cache holds of a token, and `rope` more.
    pub kv_rank: u64,
    /// `qk_nope_head_dim`.
    pub nope: u64,
    /// `qk_rope_head_dim`.
    pub rope: u64,
    /// `v_head_dim`.
    pub value: u64,
}

/// A gated DeltaNet layer (Yang et al. 2024).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaNet {
    /// `linear_num_key_heads`.
    pub key_heads: u64,
    /// `linear_num_value_heads`.
    pub value_heads: u64,
    /// `linear_key_head_dim` and `linear_value_head_dim`, which are equal.
    pub head: u64,
    /// `linear_conv_kernel_dim`.
    pub kernel: u64,
}

/// What follows attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedForward {
    /// One gated MLP.
    Dense {
        /// `intermediate_size`.
        intermediate: u64,
    },
    /// A router that picks some of many gated MLPs.
    Experts {
        /// `num_experts`.
        experts: u64,
        /// `num_experts_per_tok`.
        active: u64,
        /// `moe_intermediate_size`.
        intermediate: u64,
        /// Width of the expert that every token takes; 0 for none.
        shared: u64,
        /// Layers at the beginning that are dense, and their width (`first_k_dense_replace`, `intermediate_size`).
        dense: (u16, u64),
    },
}

/// How matrices are stored. Norms, biases and convolutions are not quantised by either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// MLX `affine`: `bits` a weight, and a 16-bit scale and bias for each `group` of a row.
    Affine {
        /// Bits of a weight.
        bits: u64,
        /// Weights that share a scale and a bias.
        group: u64,
    },
    /// MLX `nvfp4`: 4 bits a weight, and an 8-bit scale for each 16.
    Nvfp4,
}

impl Quantization {
    /// The format of nearly all of `mlx-community`: 4 bits, groups of 64; 4.5 bits a weight in all.
    pub const AFFINE_4: Self = Self::Affine { bits: 4, group: 64 };

    /// Bytes of these parameters.
    #[must_use]
    pub const fn bytes(self, parameters: Parameters) -> Bytes {
        let router = affine_bytes(parameters.router, 8, 64);
        let matrix = match self {
            Self::Affine { bits, group } => affine_bytes(parameters.matrix, bits, group),
            Self::Nvfp4 => parameters.matrix / 2 + parameters.matrix / 16,
        };
        Bytes::new(matrix + router + parameters.plain * BF16_BYTES)
    }
}

const fn affine_bytes(weights: u64, bits: u64, group: u64) -> u64 {
    weights / 8 * bits + weights / group * 2 * BF16_BYTES
}

/// Parameters by how they are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// Of matrices, in the model's quantisation.
    pub matrix: u64,
    /// Of Qwen's routers, which are kept at 8 bits in groups of 64.
    pub router: u64,
    /// Of norms, biases, convolutions and DeepSeek's routers, in bfloat16.
    pub plain: u64,
}

impl Parameters {
    /// How many there are.
    #[must_use]
    pub const fn count(self) -> u64 {
        self.matrix + self.router + self.plain
    }
}

impl std::ops::Add for Parameters {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            matrix: self.matrix + other.matrix,
            router: self.router + other.router,
            plain: self.plain + other.plain,
        }
    }
}

impl std::iter::Sum for Parameters {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), |sum, part| sum + part)
    }
}

/// Which of the experts are counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Experts {
    All,
    OfOneToken,
}

impl Shape {
    /// All parameters.
    #[must_use]
    pub fn total(self) -> Parameters {
        self.whole(Experts::All)
    }

    /// Parameters that take part in one token.
    #[must_use]
    pub fn active(self) -> Parameters {
        self.whole(Experts::OfOneToken)
    }

    /// Parameters that a node with these layers holds; a tied embedding counts at both ends of the model.
    #[must_use]
    pub fn slice(self, layers: LayerRange) -> Parameters {
        let (first, last) = (layers.first() == 0, layers.end() == self.layers.get());
        let tables = u64::from(first) + u64::from(last) - u64::from(first && last && self.tied);
        let ends = Parameters {
            matrix: tables * self.vocab * self.hidden,
            plain: if last { self.hidden } else { 0 },
            router: 0,
        };
        ends + self.total_in(layers)
    }

    /// Parameters of these layers that take part in one token, without those of the model's ends.
    #[must_use]
    pub fn active_in(self, layers: LayerRange) -> Parameters {
        layers.iter().map(|layer| self.layer(layer, Experts::OfOneToken)).sum()
    }

    /// Parameters of these layers, without those of the model's ends.
    #[must_use]
    pub fn total_in(self, layers: LayerRange) -> Parameters {
        layers.iter().map(|layer| self.layer(layer, Experts::All)).sum()
    }

    /// Parameters of the embedding; the head has as many.
    #[must_use]
    pub fn embedding(self) -> Parameters {
        Parameters { matrix: self.vocab * self.hidden, ..Parameters::default() }
    }

    /// Bytes that one token takes in the caches of these layers.
    #[must_use]
    pub fn kv_bytes_per_token(self, layers: LayerRange) -> Bytes {
        let values = |layer| match self.attention {
            Attention::Grouped(attention) => attention.cached(),
            Attention::Latent(latent) => latent.kv_rank + latent.rope,
            Attention::Hybrid { attention, .. } if self.attends(layer) => attention.cached(),
            Attention::Hybrid { .. } => 0,
        };
        Bytes::new(layers.iter().map(values).sum::<u64>() * BF16_BYTES)
    }

    /// Bytes of the recurrent states of these layers, per sequence.
    #[must_use]
    pub fn state_bytes(self, layers: LayerRange) -> Bytes {
        let Attention::Hybrid { delta, .. } = self.attention else {
            return Bytes::ZERO;
        };
        let layers = layers.iter().filter(|&layer| !self.attends(layer)).map(|_| delta.state_bytes());
        Bytes::new(layers.sum())
    }

    /// Values of the widest activations of one token: the residual stream twice, what attention makes, and what the
    /// feed-forward makes, as many at once as an unfused layer holds.
    #[must_use]
    pub fn activation_width(self) -> u64 {
        let attention = match self.attention {
            Attention::Grouped(attention) | Attention::Hybrid { attention, .. } => {
                2 * attention.heads * attention.head + attention.cached()
            }
            Attention::Latent(latent) => latent.heads * (2 * (latent.nope + latent.rope) + 2 * latent.value),
        };
        let feed_forward = match self.feed_forward {
            FeedForward::Dense { intermediate } => 3 * intermediate,
            FeedForward::Experts { active, intermediate, shared, dense, .. } => {
                let sparse = 3 * (active * intermediate + shared);
                if sparse > 3 * dense.1 { sparse } else { 3 * dense.1 }
            }
        };
        2 * self.hidden + if attention > feed_forward { attention } else { feed_forward }
    }

    fn whole(self, experts: Experts) -> Parameters {
        let tables = if self.tied { 1 } else { 2 };
        let ends = Parameters { matrix: tables * self.vocab * self.hidden, plain: self.hidden, router: 0 };
        ends + LayerRange::whole(self.layers).iter().map(|layer| self.layer(layer, experts)).sum()
    }

    fn layer(self, layer: u16, experts: Experts) -> Parameters {
        let norms = Parameters { plain: 2 * self.hidden, ..Parameters::default() };
        let attention = match self.attention {
            Attention::Grouped(attention) => attention.parameters(self.hidden),
            Attention::Latent(latent) => latent.parameters(self.hidden),
            Attention::Hybrid { attention, .. } if self.attends(layer) => {
                // The gate of the output is as wide as q.
                let gate = self.hidden * attention.heads * attention.head;
                attention.parameters(self.hidden) + Parameters { matrix: gate, ..Parameters::default() }
            }
            Attention::Hybrid { delta, .. } => delta.parameters(self.hidden),
        };
        norms + attention + self.feed_forward(layer, experts)
    }

    fn feed_forward(self, layer: u16, counted: Experts) -> Parameters {
        let mlp = |width: u64| Parameters { matrix: 3 * self.hidden * width, ..Parameters::default() };
        match self.feed_forward {
            FeedForward::Dense { intermediate } => mlp(intermediate),
            FeedForward::Experts { dense: (first, width), .. } if layer < first => mlp(width),
            FeedForward::Experts { experts, active, intermediate, shared, .. } => {
                let counted = if counted == Experts::All { experts } else { active };
                mlp(counted * intermediate + shared) + self.router(experts, shared)
            }
        }
    }

    /// The router, with DeepSeek's bias per expert or Qwen's gate of the shared expert.
    fn router(self, experts: u64, shared: u64) -> Parameters {
        let weights = self.hidden * experts;
        match self.attention {
            Attention::Latent(_) => Parameters { plain: weights + experts, ..Parameters::default() },
            _ if shared > 0 => Parameters { router: weights + self.hidden, ..Parameters::default() },
            _ => Parameters { router: weights, ..Parameters::default() },
        }
    }

    /// Whether this layer of a hybrid is one of attention.
    const fn attends(self, layer: u16) -> bool {
        match self.attention {
            Attention::Hybrid { every, .. } => (layer + 1).is_multiple_of(every),
            Attention::Grouped(_) | Attention::Latent(_) => true,
        }
    }
}

impl Grouped {
    /// Values that a token leaves in the cache of a layer: k and v.
    const fn cached(self) -> u64 {
        2 * self.kv_heads * self.head
    }

    /// `q_proj`, `k_proj`, `v_proj`, `o_proj`, and what biases and norms they have.
    const fn parameters(self, hidden: u64) -> Parameters {
        let (q, kv) = (self.heads * self.head, self.cached());
        let biases = if self.biased { q + kv } else { 0 };
        let norms = if self.normed { 2 * self.head } else { 0 };
        Parameters { matrix: hidden * (q + kv) + q * hidden, plain: biases + norms, router: 0 }
    }
}

impl Latent {
    /// `q_a_proj`, `q_b_proj`, `kv_a_proj_with_mqa`, `kv_b_proj`, `o_proj`, and the norms of both ranks.
    const fn parameters(self, hidden: u64) -> Parameters {
        let q = hidden * self.q_rank + self.q_rank * self.heads * (self.nope + self.rope);
        let kv = hidden * (self.kv_rank + self.rope) + self.kv_rank * self.heads * (self.nope + self.value);
        let o = self.heads * self.value * hidden;
        Parameters { matrix: q + kv + o, plain: self.q_rank + self.kv_rank, router: 0 }
    }
}

impl DeltaNet {
    /// Channels of the convolution: q, k and v side by side.
    const fn channels(self) -> u64 {
        (2 * self.key_heads + self.value_heads) * self.head
    }

    /// `in_proj_qkv`, `in_proj_z`, `in_proj_a`, `in_proj_b`, `out_proj`; `conv1d`, `A_log`, `dt_bias`, `norm`.
    const fn parameters(self, hidden: u64) -> Parameters {
        let value = self.value_heads * self.head;
        let inputs = hidden * (self.channels() + value + 2 * self.value_heads);
        let plain = self.channels() * self.kernel + 2 * self.value_heads + self.head;
        Parameters { matrix: inputs + value * hidden, plain, router: 0 }
    }

    /// The state matrix of each value head, and the convolution's last inputs.
    const fn state_bytes(self) -> u64 {
        self.value_heads * self.head * self.head * F32_BYTES
            + self.channels() * (self.kernel - 1) * BF16_BYTES
    }
}
