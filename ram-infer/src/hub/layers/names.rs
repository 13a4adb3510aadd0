//! Which tensors of a model a run of its layers needs, told by their names in the checkpoint.

use ram_core::layers::LayerRange;
use serde_json::Value;

/// What of a model is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// The layers.
    pub layers: LayerRange,
    /// Whether the embedding is wanted: where tokens come in.
    pub embed: bool,
    /// Whether the final norm and the head are wanted: where logits come out. A model whose head is its embedding
    /// needs that for both.
    pub head: bool,
}

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Layer(u16),
    Embed,
    Norm,
    Head,
    /// Nothing that generates text: an image's encoder, say, or layers that guess ahead.
    Other,
}

impl Role {
    /// The role of a tensor, whether the language model is all of the checkpoint or a part of it.
    pub(super) fn of(name: &str) -> Self {
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

/// What a model's configuration says of its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) layers: u16,
    /// Whether the head is the embedding.
    pub(super) tied: bool,
}

impl Shape {
    /// Reads a `config.json`, where the language model may stand in `text_config`; `None` when it counts no layers.
    pub(super) fn read(config: &Value) -> Option<Self> {
        let told = |key: &str| config["text_config"].get(key).or_else(|| config.get(key));
        let layers = told("num_hidden_layers")?.as_u64()?;
        let tied = told("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false);
        Some(Self { layers: u16::try_from(layers).ok()?, tied })
    }
}

impl Shard {
    /// Whether a tensor of this role is wanted.
    pub(super) fn needs(self, role: Role, tied: bool) -> bool {
        match role {
            Role::Layer(layer) => self.layers.contains(layer),
            Role::Embed => self.embed || (self.head && tied),
            Role::Norm | Role::Head => self.head,
            Role::Other => false,
        }
    }

    /// How its folder's name ends.
    pub(super) fn suffix(self) -> String {
        let (first, end) = (self.layers.first(), self.layers.end());
        let ends = match (self.embed, self.head) {
            (true, true) => ".eh",
            (true, false) => ".e",
            (false, true) => ".h",
            (false, false) => "",
        };
        format!(".{first}-{end}{ends}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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

    #[test]
    fn a_configuration_may_have_the_language_model_in_a_part_of_its_own() {
        let plain = json!({ "num_hidden_layers": 16, "tie_word_embeddings": true });
        assert_eq!(Shape::read(&plain), Some(Shape { layers: 16, tied: true }));
        let nested = json!({ "text_config": { "num_hidden_layers": 4 }, "tie_word_embeddings": true });
        assert_eq!(Shape::read(&nested), Some(Shape { layers: 4, tied: true }));
        for bad in [json!({}), json!([]), json!({ "num_hidden_layers": 70_000 })] {
            assert_eq!(Shape::read(&bad), None);
        }
    }
}
