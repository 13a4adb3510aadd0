//! What a plan must know of a model before its weights are here, and what the folder of a part of it is called.

use serde_json::Value;

use crate::models::Shard;

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

/// How the name of a part's folder ends.
pub(super) fn suffix(shard: Shard) -> String {
    let (first, end) = (shard.layers.first(), shard.layers.end());
    let ends = match (shard.embed, shard.head) {
        (true, true) => ".eh",
        (true, false) => ".e",
        (false, true) => ".h",
        (false, false) => "",
    };
    format!(".{first}-{end}{ends}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
