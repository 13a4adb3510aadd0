//! JSON schemas of the words that stand on the wire: each as its `Serialize` writes it and its `FromStr` reads it.
//!
//! Types that serde derives have theirs derived beside it; here are those that write themselves.

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{Array, ArrayBuilder, Object, ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::chat::PromptText;
use crate::id::{
    Epoch, GroupId, JobId, MODEL_ID_BYTES_MAX, ModelId, NODE_NAME_CHARS_MAX, NodeName, ProviderId,
};
use crate::layers::LayerRange;
use crate::units::{Bytes, Permille, Timestamp, TokenCount, TokenRate, XRam};

macro_rules! schema {
    ($($type:ty => $object:expr;)*) => {$(
        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                RefOr::T($object.into())
            }
        }

        impl ToSchema for $type {}
    )*};
}

schema! {
    JobId => text("A job: one request, through all its attempts.").pattern(Some("^[0-9a-f]{32}$")).build();
    GroupId => text("A group of providers that hold a model together.").pattern(Some("^[0-9a-f]{32}$")).build();
    Epoch => count("A number that only rises.");
    LayerRange => layers();
    ProviderId => text("A provider: `p_` and the first 16 bytes of its key.").pattern(Some("^p_[0-9a-f]{32}$")).build();
    ModelId => model_id();
    NodeName => text("The name that an operator gave a node.")
        .min_length(Some(1))
        .max_length(Some(NODE_NAME_CHARS_MAX))
        .build();
    PromptText => text("Words of a user or of a model.").build();
    XRam => text("An amount of xRAM: an exact decimal, of at most 18 places.")
        .pattern(Some(r"^[0-9]+(\.[0-9]{1,18})?$"))
        .build();
    TokenCount => count("Tokens.");
    TokenRate => count("Thousandths of a token a second.");
    Bytes => count("Bytes.");
    Permille => count("Thousandths.");
    Timestamp => count("Milliseconds since 1970 UTC.");
}

fn model_id() -> Object {
    const PART: &str = "[A-Za-z0-9_-][A-Za-z0-9._-]*";
    text("A model by its alias (`qwen3-8b`) or its full id (`mlx-community/Qwen3-8B-4bit`).")
        .min_length(Some(1))
        .max_length(Some(MODEL_ID_BYTES_MAX))
        .pattern(Some(format!("^{PART}(/{PART})?$")))
        .build()
}

fn layers() -> Array {
    let number = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).maximum(Some(u16::MAX));
    let pair = ArrayBuilder::new().items(number).min_items(Some(2)).max_items(Some(2));
    pair.description(Some("Layers from the first number up to, and without, the second.")).build()
}

fn text(description: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).description(Some(description))
}

fn count(description: &str) -> Object {
    let whole = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0));
    whole.description(Some(description)).build()
}
