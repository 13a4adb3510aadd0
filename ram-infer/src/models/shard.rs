//! A part of a model, and which tensors of the checkpoint it needs, told by their names.

use ram_core::layers::LayerRange;

use crate::config::ModelConfig;

/// A run of a model's layers, and what it holds besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// The layers.
    pub layers: LayerRange,
    /// Whether it turns tokens into the first layer's input, by the embedding.
    pub embed: bool,
    /// Whether it turns the last layer's output into logits, by the last norm and the head. A model whose head is its
    /// embedding needs that for both.
    pub head: bool,
}

impl Shard {
    /// All of a model.
    #[must_use]
    pub const fn whole(config: &ModelConfig) -> Self {
        Self { layers: LayerRange::whole(config.layers), embed: true, head: true }
    }

    /// Whether it needs a tensor of this role; `tied` says that the head is the embedding.
    pub(crate) fn needs(self, role: Role, tied: bool) -> bool {
        match role {
            Role::Layer(layer) => self.layers.contains(layer),
            Role::Embed => self.embed || (self.head && tied),
            Role::Norm | Role::Head => self.head,
            Role::Other => false,
        }
    }
}

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Layer(u16),
    Embed,
    Norm,
    Head,
    /// Nothing that generates text: an image's encoder, say, or layers that guess ahead.
    Other,
}

impl Role {
    /// The role of a tensor, whether the language model is all of the checkpoint or a part of it.
    pub(crate) fn of(name: &str) -> Self {
        let inner = ["model.language_model.", "language_model.model.", "model."];
        if let Some(rest) = inner.iter().find_map(|prefix| name.strip_prefix(prefix)) {
            let (word, rest) = rest.split_once('.').unwrap_or((rest, ""));
            return match word {
                "layers" => {
                    let number = rest.split('.').next().unwrap_or_default();
                    number.parse().map_or(Self::Other, Self::Layer)
                }
                "embed_tokens" => Self::Embed,
                "norm" => Self::Norm,
                _ => Self::Other,
            };
        }
        let outer = name.strip_prefix("language_model.").unwrap_or(name);
        if outer.starts_with("lm_head.") { Self::Head } else { Self::Other }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_is_known_by_its_name() {
        for (name, role) in [
            ("model.layers.12.self_attn.q_proj.weight", Role::Layer(12)),
            ("language_model.model.layers.0.mlp.gate.scales", Role::Layer(0)),
            ("model.language_model.layers.3.input_layernorm.weight", Role::Layer(3)),
            ("model.embed_tokens.scales", Role::Embed),
            ("language_model.model.embed_tokens.weight", Role::Embed),
            ("model.norm.weight", Role::Norm),
            ("lm_head.weight", Role::Head),
            ("language_model.lm_head.biases", Role::Head),
            ("vision_tower.layers.0.weight", Role::Other),
            ("model.layers.x.weight", Role::Other),
            ("model.layers.70000.weight", Role::Other),
            ("mtp.layers.0.weight", Role::Other),
            ("model.normal.weight", Role::Other),
            ("", Role::Other),
        ] {
            assert_eq!(Role::of(name), role, "{name}");
        }
    }

    #[test]
    fn a_tied_embedding_is_needed_at_both_ends() {
        let layers = LayerRange::new(2, 4).unwrap();
        let check = |embed, head, tied| Shard { layers, embed, head }.needs(Role::Embed, tied);
        assert!(check(true, false, false) && check(false, true, true));
        assert!(!check(false, true, false) && !check(false, false, true));
    }
}
