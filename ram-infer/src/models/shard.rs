//! A part of a model, and which tensors of the checkpoint it needs.

use ram_core::checkpoint::Role;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tied_embedding_is_needed_at_both_ends() {
        let layers = LayerRange::new(2, 4).unwrap();
        let check = |embed, head, tied| Shard { layers, embed, head }.needs(Role::Embed, tied);
        assert!(check(true, false, false) && check(false, true, true));
        assert!(!check(false, true, false) && !check(false, false, true));
    }
}
