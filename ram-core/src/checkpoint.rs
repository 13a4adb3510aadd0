//! What the tensors of a checkpoint are for, told by their names.

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The layer of this number.
    Layer(u16),
    /// The embedding.
    Embed,
    /// The norm behind the last layer.
    Norm,
    /// The head.
    Head,
    /// Nothing that generates text: an image's encoder, say, or layers that guess ahead.
    Other,
}

impl Role {
    /// The role of a tensor, whether the language model is all of the checkpoint or a part of it.
    #[must_use]
    pub fn of(name: &str) -> Self {
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
}
